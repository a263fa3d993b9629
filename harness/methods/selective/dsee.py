"""DSEE: a low-rank and a sparse difference, and pruned weights (arXiv:2111.00160)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.methods.base import Declaration, Setting
from harness.methods.delta import ADAPTS, MERGE_REFUSES, REFUSES, WeightDelta, device_of, parameter
from harness.methods.modules import TENSORS_FILE, Linear, load_tensors

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

DOWN, UP, ENTRIES, PLACES, LIMIT = "dsee_down", "dsee_up", "dsee_entries", "dsee_places", "dsee_limit"
ROUNDS = 10
"""Alternations between the low-rank and the sparse part when places are chosen."""
HALVINGS = 40


class DSEE(WeightDelta):
    """``y = x (W * M + U V + S)^T``: U, V and the entries of S train, M prunes the smallest weights midway.

    S has its entries where a greedy decomposition of W into a low-rank and a sparse part (GreBsmo) has the sparse
    part's. M leaves out the given share of all entries, the smallest of all matrices together, once ``prune_at`` of the
    steps are done; the rest of the steps are the retraining. The product of the pruned entries is subtracted from the
    layer's output, on any kind of base, so that here pruning saves neither time nor memory: a kernel for sparse
    matrices would. This is the paper's unstructured form; heads and channels are not pruned.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="dsee",
        summary=(
            "Trains a low-rank and a very sparse difference of every matrix, prunes the smallest frozen weights midway "
            "and trains on."
        ),
        family="adapter",
        trainable="Σ r(m + n) + k over the blocks' linear layers, k sparse entries each, and a classifier's head.",
        paper="2111.00160",
        bases=ADAPTS,
        refuses=REFUSES,
        merge_refuses=MERGE_REFUSES,
        mergeable="exactly",
        defaults={"r": 16, "entries": 16, "share": 0.2, "prune_at": 0.5},
        defaults_source=(
            "the released code: rank 16, 16 entries, a fifth of the weights pruned, a rate of 5e-4; it prunes after "
            "training and trains again, here half of the steps are for each"
        ),
        lr_factor=10.0,
        unverified=True,
    )
    tensors = (DOWN, UP, ENTRIES, PLACES, LIMIT)

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self._stored: dict[str, torch.Tensor] = {}

    def size(self, layer: Linear) -> int:
        """Two factors and the sparse entries."""
        return int(self.params["r"]) * (layer.inputs + layer.outputs) + self._entries(layer)

    def _entries(self, layer: Linear) -> int:
        return min(int(self.params["entries"]), layer.inputs * layer.outputs)

    def place(self, module: nn.Module, layer: Linear, generator: torch.Generator) -> None:
        """V uniform, U and the entries zero; nothing is pruned yet."""
        import torch

        r, number = int(self.params["r"]), self._entries(layer)
        drawn = (2 * torch.rand(r, layer.inputs, generator=generator) - 1) * layer.inputs**-0.5
        module.register_parameter(DOWN, parameter(drawn, module))
        module.register_parameter(UP, parameter(torch.zeros(layer.outputs, r), module))
        module.register_parameter(ENTRIES, parameter(torch.zeros(number), module))
        places = self._stored.get(f"{layer.name}.{PLACES}")
        if places is None:
            start = torch.randn(layer.inputs, min(r, layer.inputs, layer.outputs), generator=generator)
            places = sparse_places(_weight(module), start.to(device_of(module)), number)
        limit = self._stored.get(f"{layer.name}.{LIMIT}")
        module.register_buffer(PLACES, places.to(device_of(module)), persistent=False)
        untyped: Any = module
        untyped.dsee_limit = None if limit is None else float(limit)

    def added(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """x (U V + S - pruned)^T."""
        import torch

        x = x.to(module.dsee_up.dtype)
        rows, columns = _split(module)
        sparse = x[..., columns] * module.dsee_entries
        out: torch.Tensor = (x @ module.dsee_down.T) @ module.dsee_up.T
        out = out.index_add(-1, rows, sparse)
        if module.dsee_limit is not None:
            out = out - torch.nn.functional.linear(x, pruned(module).to(x.dtype))
        return out

    def delta(self, module: Any) -> torch.Tensor:
        """U V + S, less what is pruned."""
        found: torch.Tensor = module.dsee_up @ module.dsee_down
        found = found.index_put(_split(module), module.dsee_entries, accumulate=True)
        return found if module.dsee_limit is None else found - pruned(module)

    def on_step(self, model: nn.Module, step: int) -> None:
        """Prune once, after the given part of the steps."""
        if step == max(1, round(float(self.params["prune_at"]) * self.setting.steps)):
            self.prune(model)

    def prune(self, model: nn.Module) -> None:
        """Find the threshold below which the given share of all entries falls; from now on they count as zero."""
        modules: list[Any] = [m for m in model.modules() if hasattr(m, LIMIT)]
        sizes = sum(m.dsee_up.shape[0] * m.dsee_down.shape[1] for m in modules)
        low, high = 0.0, max(float(_weight(m).abs().max()) for m in modules)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = sum(int((_weight(m).abs() <= middle).sum()) for m in modules)
            low, high = (middle, high) if below < float(self.params["share"]) * sizes else (low, middle)
        for module in modules:
            module.dsee_limit = high

    def save(self, model: nn.Module, folder: Path) -> None:
        """The trained values, their positions, and the threshold below which weights are pruned."""
        import torch
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        tensors |= {n: b for n, b in model.named_buffers() if n.endswith(f".{PLACES}")}
        for name, module in model.named_modules():
            if getattr(module, LIMIT, None) is not None:
                tensors[f"{name}.{LIMIT}"] = torch.tensor(module.dsee_limit, dtype=torch.float64)
        save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Attach with the places and the limit that were saved; copy the trained tensors in."""
        from safetensors.torch import load_file

        own = (f".{PLACES}", f".{LIMIT}")
        self._stored = {n: t for n, t in load_file(folder / TENSORS_FILE).items() if n.endswith(own)}
        model = self.attach(base)
        load_tensors(model, folder, skip=self._stored.keys())
        return model


def sparse_places(weight: torch.Tensor, start: torch.Tensor, number: int) -> torch.Tensor:
    """Places (flat, ascending) of the ``number`` sparse entries in ``weight`` ~ low-rank + sparse, found greedily.

    The low-rank part is Q Q^T (W - S) with Q an orthonormal basis of (W - S) V; the sparse part holds the entries of
    W less the low-rank part that are largest; each is renewed from the other.

    Args:
        weight: [outputs, inputs].
        start: first V, [inputs, rank].
    """
    import torch

    weight, basis = weight.float(), start.float()
    rest = weight
    places = torch.zeros(0, dtype=torch.long)
    for _ in range(ROUNDS):
        q = torch.linalg.qr(rest @ basis).Q
        basis = rest.T @ q
        residual = (weight - q @ basis.T).flatten()
        places = residual.abs().topk(number).indices
        sparse = torch.zeros_like(residual).scatter(0, places, residual[places])
        rest = weight - sparse.view_as(weight)
    return places.sort().values


def pruned(module: Any) -> torch.Tensor:
    """The weights that are left out, zero elsewhere, [outputs, inputs]."""
    weight = _weight(module)
    return weight.where(weight.abs() <= module.dsee_limit, 0.0)


def _weight(module: nn.Module) -> torch.Tensor:
    from harness.quantizers.measure import dequantize

    return dequantize(module).float()


def _split(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the sparse entries."""
    width = module.dsee_down.shape[1]
    return module.dsee_places // width, module.dsee_places % width
