"""Full fine-tuning of which, in the end, a few entries are kept: the result is a sparse difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CheckFailed
from harness.methods.base import Setting
from harness.methods.baselines import Full
from harness.methods.modules import TENSORS_FILE, classifier, narrow

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn

PLACES = ".places"


class SparseInPlace(Full):
    """Remembers where it started; saves the entries that differ from there, and all of a classifier's head.

    A copy of the weights stays in memory while it trains.
    """

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        super().__init__(params, setting)
        self.start: dict[str, torch.Tensor] = {}
        self.kept_entries: dict[str, int] = {}

    def attach(self, model: nn.Module) -> nn.Module:
        """Free every parameter, and keep a copy of all but the classifier's."""
        model = super().attach(model)
        self.start = {n: p.detach().clone() for n, p in model.named_parameters() if n not in self.head_names(model)}
        return model

    def held(self) -> Iterable[torch.Tensor]:
        """The copy of the weights."""
        return self.start.values()

    def head_names(self, model: nn.Module) -> set[str]:
        """Names of the classifier's parameters, which are trained whole."""
        head = classifier(model)
        own = {id(p) for p in head.parameters()} if head is not None else set()
        return {n for n, p in model.named_parameters() if id(p) in own}

    def largest_differences(self, model: nn.Module, share: float) -> dict[str, torch.Tensor]:
        """True at the ``share`` of all entries that moved furthest, over the whole model; at least one."""
        import torch

        moved = {n: (model.get_parameter(n).detach() - s).abs().float() for n, s in self.start.items()}
        number = max(1, round(share * sum(m.numel() for m in moved.values())))
        # the largest of each tensor are enough to find the largest of all
        best = torch.cat([m.flatten().topk(min(number, m.numel())).values for m in moved.values()])
        limit = best.topk(number).values[-1]
        chosen: dict[str, torch.Tensor] = {}
        for name, m in moved.items():
            mask = m > limit
            chosen[name] = mask
            number -= int(mask.sum())
        for name, m in moved.items():  # ties at the limit, in the parameters' order, so that the number is exact
            ties = (m == limit).flatten().nonzero().flatten()[: max(0, number)]
            chosen[name].view(-1)[ties] = True
            number -= len(ties)
        return chosen

    def expects_gradient(self, name: str) -> bool:
        """It is known only at the end whether a tensor is among the kept ones; :meth:`check_kept` checks it then."""
        return False

    def check_kept(self, model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
        """Entries differ from the start inside the masks, and nowhere else.

        Raises:
            CheckFailed: ``sparse-difference``.
        """
        inside = outside = 0
        for name, mask in masks.items():
            differs = model.get_parameter(name).detach() != self.start[name]
            inside += int((differs & mask).sum())
            outside += int((differs & ~mask).sum())
        if outside or not inside:
            raise CheckFailed("sparse-difference", f"{inside} chosen entries moved, and {outside} others")
        self.kept_entries = {n: int(mask.sum()) for n, mask in masks.items() if bool(mask.any())}

    def facts(self) -> dict[str, Any]:
        """Entries that were kept, by tensor."""
        return {"kept_entries": self.kept_entries}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Values and flat places of the entries that differ; the classifier whole."""
        from safetensors.torch import save_file

        tensors = {}
        for name, parameter in model.named_parameters():
            values = parameter.detach().flatten().cpu()
            if name in self.start:
                places = (values != self.start[name].flatten().cpu()).nonzero().flatten()
                tensors[name], tensors[name + PLACES] = values[places].contiguous(), narrow(places)
            else:
                tensors[name] = parameter.detach().contiguous().cpu()
        save_file(tensors, folder / TENSORS_FILE)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Put the stored entries into a fresh base."""
        import torch
        from safetensors.torch import load_file

        model = self.attach(base)
        stored = load_file(folder / TENSORS_FILE)
        with torch.no_grad():
            for name in [n for n in stored if not n.endswith(PLACES)]:
                parameter = model.get_parameter(name)
                if name + PLACES in stored:
                    places = stored[name + PLACES].to(parameter.device).long()
                    parameter.view(-1)[places] = stored[name].to(parameter.device)
                else:
                    parameter.copy_(stored[name])
        return model
