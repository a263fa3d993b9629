"""Methods that break one promise each, and a child process that runs a cell with each of them.

Run as ``python -m tests.runners.broken SWEEP FOLDER``; prints the outcomes by method as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from harness.methods.base import Declaration
from harness.methods.baselines import Full
from harness.methods.catalog import METHODS


class WrongCount(Full):
    """Declares one parameter more than it trains."""

    declaration: ClassVar[Declaration] = replace(Full.declaration, name="wrong-count")

    def expected_trainable(self, model: nn.Module) -> int | None:
        return (super().expected_trainable(model) or 0) + 1


class NoGradient(Full):
    """Cuts the graph of one layer, as some quantized layers do."""

    declaration: ClassVar[Declaration] = replace(Full.declaration, name="no-gradient")

    def attach(self, model: nn.Module) -> nn.Module:
        model = super().attach(model)
        model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output.detach())
        return model


class LostOnDisk(Full):
    """Comes back from disk with one tensor changed, as some initialisations do."""

    declaration: ClassVar[Declaration] = replace(Full.declaration, name="lost-on-disk")

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        model = super().load(base, folder)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        return model


class Unmoved(Full):
    """Freezes a block before the optimizer is made, so that it never trains, and asks for no gradient of it."""

    declaration: ClassVar[Declaration] = replace(Full.declaration, name="unmoved")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        others = [p for n, p in model.named_parameters() if self.expects_gradient(n)]
        return torch.optim.AdamW(others, lr=self.setting.learning_rate)

    def expects_gradient(self, name: str) -> bool:
        return "layers.0." not in name

    def expects_change(self, name: str) -> bool:
        return True


class Steady(Full):
    """Breaks nothing."""

    declaration: ClassVar[Declaration] = replace(Full.declaration, name="steady")


BROKEN = (WrongCount, NoGradient, Unmoved, LostOnDisk, Steady)


def outcome(name: str, sweep: Path, folder: Path) -> Mapping[str, Any]:
    from harness import hardware, spec
    from runners.planning import plan
    from runners.worker.job import Job
    from runners.worker.main import run_job
    from runners.workspace import Workspace

    workspace = Workspace.discover(start=folder)
    made = plan.make(
        spec.load(sweep), workspace, store=None, machine=hardware.probe(), fingerprint="", only=f"*.{name}.*"
    )
    cell = made.run[0]
    job = Job(
        key=cell.key,
        label=cell.label,
        sweep="broken",
        cell=cell.as_dict(),
        model=cell.model.name,
        folder=str(folder / f"job-{name}"),
        device="cpu",
        gpus=(),
        cores=(),
        workspaces=(),
        data_root=None,
        cache=str(folder / "cache"),
    )
    job.write()
    record = run_job(job, lambda *_, **__: None)
    return {"metrics": sorted(record.metrics), **record.outcome.model_dump(mode="json", exclude={"log_tail"})}


if __name__ == "__main__":
    for method in BROKEN:
        METHODS.add(method.declaration.name, f"tests.runners.broken:{method.__name__}")
    found = {method.declaration.name: outcome(method.declaration.name, *map(Path, sys.argv[1:])) for method in BROKEN}
    print(json.dumps(found))
