"""GPT-2's ``Conv1D`` layers as the linear layers that they are.

``transformers.pytorch_utils.Conv1D`` multiplies with a weight stored as [inputs, outputs]; ``nn.Linear`` stores
[outputs, inputs]. Methods and quantizers are written for ``nn.Linear``. So a loaded model's Conv1D layers are replaced
by linear layers with the transposed weight, which compute the same, and transposed back where a checkpoint is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn

MODEL_TYPES = frozenset({"gpt2", "openai-gpt"})
"""Architectures whose files hold every projection of the body as [inputs, outputs]."""
_MARK = "stored_transposed"


def to_linear(model: nn.Module) -> int:
    """Replace every Conv1D of ``model`` by a linear layer, in place; returns how many there were."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = [(name, module) for name, module in model.named_modules() if type(module) is Conv1D]
    for name, module in found:
        layer: Any = nn.Linear(module.nx, module.nf, device="meta")
        layer.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=module.weight.requires_grad)
        layer.bias = module.bias
        setattr(layer, _MARK, True)
        layer.train(module.training)
        model.set_submodule(name, layer)
    return len(found)


def for_saving(model: nn.Module) -> dict[str, object]:
    """Further arguments of ``model.save_pretrained``, so that the files are a checkpoint of the architecture."""
    names = {f"{name}.weight" for name, module in model.named_modules() if getattr(module, _MARK, False)}
    if not names:
        return {}
    state = model.state_dict()
    return {"state_dict": {k: v.T.contiguous() if k in names else v for k, v in state.items()}}
