"""Effects of quantization on a model: real bytes, which layers it changed, and how far their weights moved."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.meters.attribution import model_bytes
from harness.models import conv1d
from harness.quantizers.layers import in_head, is_plain
from harness.quantizers.packing import PackedLinear

_BY_PRODUCT = ("gptqmodel", "auto_round_extension")
"""Libraries with many kernels for their packed layers: what such a layer multiplies with is read off a product."""


def real_bytes(model: nn.Module) -> int:
    """Bytes the model's tensors really hold, scales and zero points included; tied tensors count once."""
    return model_bytes(model)


@dataclass(frozen=True)
class LinearKinds:
    """The linear layers of a model, sorted by what holds their weights.

    Attributes:
        quantized: number of quantized layers by kind (``bnb-int8``, ``torchao:Int8Tensor``, ...).
        plain: module paths of layers whose weights are still floating point.
        logical_parameters: weights of all linear layers, packed ones counted unpacked.
    """

    quantized: dict[str, int] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    logical_parameters: int = 0


def linear_kinds(model: nn.Module) -> LinearKinds:
    """The linear layers that are in fact quantized. Adapters' own matrices are left out."""
    kinds: Counter[str] = Counter()
    plain = []
    parameters = 0
    for name, module in model.named_modules():
        if "lora_" in name or not (kind := _kind(module)):
            continue
        parameters += math.prod(_shape(module))
        if kind == "plain":
            plain.append(name)
        else:
            kinds[kind] += 1
    return LinearKinds(dict(kinds), tuple(plain), parameters)


def dequantize(module: nn.Module) -> Tensor:
    """The weight a linear layer computes with, [out_features, in_features], as a plain detached tensor.

    Raises:
        TypeError: a kind of layer that is not known here.
    """
    kind = _kind(module)
    weight: Any = getattr(module, "weight", None)
    with torch.no_grad():
        if kind == "plain":
            return cast(Tensor, weight.data.clone())
        if isinstance(module, PackedLinear):
            return module.dequantize()
        if kind == "bnb-int8":
            return _bnb_int8(module)
        if kind == "bnb-4bit":
            return _bnb_4bit(weight)
        if kind is not None:
            if kind.startswith(_BY_PRODUCT):
                return _by_product(module)
            # torchao and quanto tensors, and hqq's layer
            owner: Any = module if kind == "hqq" else weight
            return cast(Tensor, owner.dequantize().detach())
    raise TypeError(f"{type(module).__name__} is not a linear layer whose weight can be read here")


def layer_errors(reference: nn.Module, quantized: nn.Module) -> dict[str, float]:
    """Relative weight error ``||W - W'||_F / ||W||_F`` of every quantized linear layer, by module path.

    Args:
        reference: the model in full precision.
        quantized: the same model, quantized.
    """
    errors = {}
    for name, module in quantized.named_modules():
        if _kind(module) in (None, "plain"):
            continue
        weight = dequantize(reference.get_submodule(name)).float()
        found = dequantize(module).float().to(weight.device)
        errors[name] = float((weight - found).norm() / weight.norm())
    return errors


class WeightFiles:
    """The weights of a model as its safetensors files hold them, read one at a time.

    Args:
        files: tensor name to file.
        checkpoint: whether they are a checkpoint of the architecture.
    """

    def __init__(self, files: dict[str, Path], *, checkpoint: bool = True) -> None:
        self._files = files
        self.checkpoint = checkpoint

    def transposed(self, model: nn.Module) -> bool:
        """Whether these files hold the body's weights as [inputs, outputs], as GPT-2's do."""
        return self.checkpoint and str(getattr(model.config, "model_type", "")) in conv1d.MODEL_TYPES

    @classmethod
    def of(cls, folder: Path, *, checkpoint: bool = True) -> WeightFiles | None:
        """The files of ``folder``, or None if it holds none (or is no folder of this machine).

        Args:
            checkpoint: whether they are a checkpoint of the architecture, and not weights that a stage wrote down.
        """
        files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            with safe_open(path, framework="pt") as opened:
                files |= dict.fromkeys(opened.keys(), path)
        return cls(files, checkpoint=checkpoint) if files else None

    def weight(self, module: str, prefix: str) -> Tensor | None:
        """The weight of the linear layer at a module path, or None if the files have none of that name.

        Args:
            prefix: the name under which a model with a head keeps its body (``base_model_prefix``); a body saved
                alone lacks it.
        """
        for name in (module, module.removeprefix(f"{prefix}."), f"{prefix}.{module}"):
            path = self._files.get(f"{name}.weight")
            if path is not None:
                with safe_open(path, framework="pt") as opened:
                    return cast(Tensor, opened.get_tensor(f"{name}.weight"))
        return None


def file_errors(original: WeightFiles, model: nn.Module, *, at_most: int) -> dict[str, float]:
    """Relative weight error ``||W - W'||_F / ||W||_F`` of linear layers of the body against the files, by module path.

    A layer at a time is decoded. Layers in floating point count too: pruning and 16 bits move weights as well.

    Args:
        at_most: how many layers, evenly spread over the model.
    """
    names = [name for name, module in model.named_modules() if _kind(module) is not None and not in_head(name)]
    step = max(1, -(-len(names) // at_most))
    errors = {}
    for name in names[::step]:
        weight = original.weight(name, getattr(model, "base_model_prefix", ""))
        if weight is not None:
            weight = weight.T if original.transposed(model) else weight
            found = dequantize(model.get_submodule(name)).float().cpu()
            errors[name] = float((weight.float() - found).norm() / weight.float().norm())
    return errors


def body_bits_per_weight(model: nn.Module) -> float | None:
    """Bits held per weight of the layers that hold quantized weights, everything in the layer counted; None if none."""
    held = weights = 0
    for module in model.modules():
        if _kind(module) not in (None, "plain"):
            held += model_bytes(module)
            weights += math.prod(_shape(module))
    return 8 * held / weights if weights else None


def unquantized_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the model's parameters if each took one number of ``dtype``; tied parameters count once."""
    return logical_parameters(model) * dtype.itemsize


def logical_parameters(model: nn.Module) -> int:
    """Parameters of the model as if none were packed; tied parameters count once."""
    logical, inside = 0, set()
    for module in model.modules():
        if _kind(module) not in (None, "plain"):
            owner: Any = module
            logical += math.prod(_shape(owner))
            if isinstance(getattr(owner, "bias", None), Tensor):
                logical += owner.bias.numel()
            inside |= {id(p) for p in owner.parameters()}
    return logical + sum(p.numel() for p in model.parameters() if id(p) not in inside)


def _kind(module: nn.Module) -> str | None:
    """The object that stores this layer's weight; None if the module is not a linear layer."""
    if is_plain(module):
        return "plain"
    name = type(module).__name__
    if isinstance(module, PackedLinear):
        return "packed"
    if name == "Linear8bitLt":
        return "bnb-int8"
    if name in ("Linear4bit", "LinearNF4", "LinearFP4"):
        return "bnb-4bit"
    if name == "HQQLinear":
        return "hqq"
    library = type(module).__module__.partition(".")[0]
    if library in _BY_PRODUCT and hasattr(module, "qweight"):
        return f"{library}:{name}"
    if isinstance(module, nn.Linear):
        weight = type(module.weight.data)
        return f"{weight.__module__.split('.')[0]}:{weight.__name__}"
    return None


def _bnb_int8(module: Any) -> Tensor:
    """int8 codes times the row's absolute maximum over 127 (arXiv:2208.07339, equation 3)."""
    codes, scales = module.weight.data, module.weight.SCB
    if scales is None:  # the first forward pass moves both into the layer's state
        codes, scales = module.state.CB, module.state.SCB
    return cast(Tensor, codes.float() * (scales.float() / 127).unsqueeze(1))


def _shape(module: Any) -> tuple[int, int]:
    """(out_features, in_features), which AutoRound's layers spell without an underscore."""
    if hasattr(module, "infeatures"):
        return int(module.outfeatures), int(module.infeatures)
    return int(module.out_features), int(module.in_features)


def _by_product(module: Any) -> Tensor:
    """The layer's output for the unit matrix: works for every kernel, in the precision it computes in."""
    device = module.qweight.device
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    product = module(torch.eye(_shape(module)[1], device=device, dtype=dtype))
    return cast(Tensor, (product if module.bias is None else product - module.bias).T)


def _bnb_4bit(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise TypeError("the bitsandbytes layer is in its inference-only CPU layout, which cannot be read back")
    return cast(Tensor, dequantize_4bit(weight.data, state).reshape(state.shape))
