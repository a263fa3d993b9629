"""LoFiT: a vector on the output of a few attention heads (arXiv:2406.01563)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods import bases
from harness.methods.base import Batch, Declaration, Method, Setting
from harness.methods.budget import search_length
from harness.methods.modules import Linear, add_bias, blocks, classifier, count, freeze, linears, load_tensors

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

OFFSET, HEADS = "lofit_offset", "lofit_heads"


class LoFiT(Method):
    """Heads are chosen in ``prepare`` by how far a learned scaling moves them; then z + v trains on the chosen ones.

    z is a head's output before the attention's output projection. The choice costs a short extra training, which is
    billed to the row.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="lofit",
        summary="Finds the few attention heads that matter for the task and trains one offset vector on each of them.",
        family="selective",
        trainable="(width of a head) x (chosen heads), and a classifier's head.",
        paper="2406.01563",
        bases=bases.ALL,
        refuses=bases.because(bases.NO_GRADIENT, bases.DYNAMIC),
        merge_refuses=bases.because(
            "folding the offset needs columns of a floating-point weight, which this layer lacks",
            bases.QUANTIZED - bases.PACKED,
        ),
        mergeable="exactly",
        defaults={"share": 0.1, "search_steps": None, "search_rate": 5e-3, "sparsity": 5e-4},
        defaults_source=(
            "rate and weight of the L1 penalty of the search as in the released code, which keeps a tenth of the heads "
            "unless told otherwise (the paper: 3 % of a 7B model's); at least one here; the released offsets start at "
            "N(0, 1e-3), ours at 0; the search takes a quarter of the cell's steps"
        ),
        lr_factor=10.0,
        needs_search=True,
    )

    def __init__(self, params: dict[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.chosen: dict[str, list[int]] | None = None

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, Any]:
        """Stage 1: train a scaling (1 + A) of every head with an L1 penalty, rank heads by ||A||; the base is kept."""
        import torch

        freeze(model)
        scales: dict[str, torch.nn.Parameter] = {}
        hooks = []
        width = head_width(model)
        torch.manual_seed(self.setting.seed)
        for layer in output_projections(model):
            like: PreTrainedModel = model
            scale = torch.nn.Parameter(1e-3 * torch.randn(layer.inputs, device=like.device))
            scales[layer.name] = scale
            hooks.append(model.get_submodule(layer.name).register_forward_pre_hook(_scaled(scale)))
        optimizer = torch.optim.AdamW(scales.values(), lr=float(self.params["search_rate"]), weight_decay=0.0)
        sparsity, losses = float(self.params["sparsity"]), []
        for batch in batches(self.search_steps):
            loss = model(**batch).loss
            (loss + sparsity * sum(s.abs().sum() for s in scales.values())).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        for hook in hooks:
            hook.remove()
        norms = [
            (float(head.norm()), name, index)
            for name, scale in scales.items()
            for index, head in enumerate(scale.detach().view(-1, width))
        ]
        best = sorted(norms, reverse=True)[: self._count(model)]
        self.chosen = {}
        for _, name, index in sorted(best, key=lambda row: (row[1], row[2])):
            self.chosen.setdefault(name, []).append(index)
        return {"heads": self.chosen, "loss": losses}

    @property
    def search_steps(self) -> int:
        """Steps of the scaling's training; they are taken off the offsets'."""
        return search_length(self.params, "search_steps", self.setting.steps)

    def _count(self, model: nn.Module) -> int:
        heads = sum(layer.inputs // head_width(model) for layer in output_projections(model))
        return max(1, round(float(self.params["share"]) * heads))

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Chosen heads times their width, and the classifier."""
        head = classifier(model)
        return self._count(model) * head_width(model) + (count(head.parameters()) if head is not None else 0)

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the base; an offset of zeros on every chosen head. Without a search: the first heads in order."""
        import torch

        freeze(model)
        width = head_width(model)
        like: PreTrainedModel = model
        for name, heads in (self.chosen or self._first(model)).items():
            module: Any = model.get_submodule(name)
            module.register_buffer(HEADS, torch.tensor(heads, device=like.device), persistent=False)
            zeros = torch.zeros(len(heads), width, device=like.device)  # float32 on every base
            module.register_parameter(OFFSET, torch.nn.Parameter(zeros))
            module.lofit_hook = module.register_forward_pre_hook(_shifted)
        head = classifier(model)
        for parameter in head.parameters() if head is not None else ():
            parameter.requires_grad_(True)
        return model

    def _first(self, model: nn.Module) -> dict[str, list[int]]:
        """The count if there are no batches to search with: the same number of heads, whichever they are."""
        left, width, found = self._count(model), head_width(model), {}
        for layer in output_projections(model):
            here = min(left, layer.inputs // width)
            if here:
                found[layer.name] = list(range(here))
            left -= here
        return found

    def save(self, model: nn.Module, folder: Path) -> None:
        """Offsets and the classifier by name, and which heads they belong to."""
        from safetensors.torch import save_file

        from harness.methods.modules import TENSORS_FILE

        tensors = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters() if p.requires_grad}
        tensors |= {
            f"{name}.{HEADS}": getattr(module, HEADS).cpu()
            for name, module in model.named_modules()
            if hasattr(module, HEADS)
        }
        save_file(tensors, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach to the heads that were saved and copy the offsets in."""
        from safetensors.torch import load_file

        from harness.methods.modules import TENSORS_FILE

        stored = load_file(folder / TENSORS_FILE)
        self.chosen = {k.removesuffix(f".{HEADS}"): v.tolist() for k, v in stored.items() if k.endswith(HEADS)}
        model = self.attach(base)
        with_heads = {n for n in stored if n.endswith(HEADS)}
        load_tensors(model, folder, skip=with_heads)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """b += W[:, heads] v: an offset before a linear layer is an offset after it."""
        import torch

        width = head_width(model)
        with torch.no_grad():
            for module in [m for m in model.modules() if hasattr(m, OFFSET)]:
                layer: Any = module
                if layer.bias is None:
                    add_bias(layer, layer.weight.dtype)
                for index, offset in zip(layer.lofit_heads.tolist(), layer.lofit_offset, strict=True):
                    layer.bias += layer.weight[:, index * width : (index + 1) * width] @ offset.to(layer.weight.dtype)
                layer.lofit_hook.remove()
                delattr(layer, OFFSET)
                delattr(layer, HEADS)
        return model


def head_width(model: nn.Module) -> int:
    """Width of one attention head."""
    config: PreTrainedConfig = model.config
    text = config.get_text_config()
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def output_projections(model: nn.Module) -> list[Linear]:
    """The linear layer of every block's attention that takes the heads' outputs: the last one of its attention."""
    prefix, layers = blocks(model)
    found = linears(model)
    out = []
    for index in range(len(layers)):
        start = f"{prefix}.{index}."
        inside = [layer for layer in found if layer.name.startswith(start)]
        out.append([layer for layer in inside if "attn" in layer.name or "attention" in layer.name][-1])
    return out


def _scaled(scale: torch.Tensor) -> Callable[..., tuple[torch.Tensor]]:
    def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0] * (1 + scale.to(inputs[0].dtype)),)

    return hook


def _shifted(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    z = inputs[0]
    heads = z.reshape(*z.shape[:-1], -1, module.lofit_offset.shape[-1])
    moved = heads.index_add(-2, module.lofit_heads, module.lofit_offset.to(z.dtype).expand(*heads.shape[:-2], -1, -1))
    return (moved.flatten(-2),)
