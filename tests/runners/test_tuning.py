"""Equal tuning: budgets, choices, edges, resuming; and that no trial can see the test split."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness.matrix import Cell, Point, make_cell
from harness.spec import SweepSpec, Tune
from runners.planning.tuning import FAILED, rates, tuned
from tests.runners.conftest import Bench


def cells(label: str = "lora", seeds: tuple[int, ...] = (0, 1), centre: float = 1e-3) -> list[Cell]:
    points = [
        Point("model", "m", "m", {"id": "m"}),
        Point("method", label, label, {"name": label, "params": {"r": 8}, "learning_rate": centre, "steps": 10}),
        Point("quantization", "none", "none", {"name": "none"}),
        Point("task", "t", "t", {"name": "t"}),
        Point("hardware", "any", "any", {"device": "cpu"}),
        Point("common", "s", "s", {"evaluation": {"batch_size": 4}, "probes": {"latency_repeats": 20}}),
    ]
    return [make_cell(points, seed) for seed in seeds]


class World:
    """A store in memory: every trial that is asked for gets the score of a known curve, and a way there if any."""

    def __init__(self, curve: Callable[[dict[str, Any]], float]) -> None:
        self.curve = curve
        self.done: dict[str, float] = {}
        self.ways: dict[str, tuple[float, ...]] = {}
        self.asked: list[Cell] = []

    def finish(self, given: list[Cell], tune: Tune, rounds: int = 10) -> Any:
        for _ in range(rounds):
            found = tuned(
                given,
                tune,
                tunable=lambda _: True,
                result=lambda cell: self.done.get(cell.key),
                curve=lambda cell: self.ways.get(cell.key, ()),
            )
            waiting = [c for c in found.cells if c.common.identity.get("role") == "trial" and c.key not in self.done]
            if not waiting:
                return found
            self.asked += waiting
            self.done |= {c.key: self.curve(dict(c.method.identity)) for c in waiting}
            if tune.pruner != "none":
                self.ways |= {c.key: (self.done[c.key] + 1, self.done[c.key]) for c in waiting}
        raise AssertionError("tuning does not come to an end")


def bowl(best: float) -> Callable[[dict[str, Any]], float]:
    return lambda method: abs(math.log(method["learning_rate"] / best))


def finals(found: Any) -> list[Cell]:
    return [c for c in found.cells if "role" not in c.common.identity]


def test_the_grid_is_around_the_methods_centre() -> None:
    assert rates(1e-3, 5, 3) == [0.0001111, 0.0003333, 0.001, 0.003, 0.009]


def test_best_rate_is_chosen_with_equal_budgets() -> None:
    found = World(bowl(3e-3)).finish(cells(), Tune())
    assert {c.method.identity["learning_rate"] for c in finals(found)} == {0.003}
    assert [c.seed for c in finals(found)] == [0, 1]
    told = found.tuning[finals(found)[0].key]
    assert (len(told["trials"]), told["lr_at_edge"]) == (5, False)
    other = World(bowl(1e-2)).finish(cells("ia3", centre=1e-2), Tune())
    assert len(other.tuning[finals(other)[0].key]["trials"]) == 5


def test_best_rate_at_the_edge_extends_once_then_is_flagged() -> None:
    found = World(bowl(3e-2)).finish(cells(), Tune())
    told = found.tuning[finals(found)[0].key]
    assert (told["chosen"]["learning_rate"], len(told["trials"]), told["lr_at_edge"]) == (0.027, 7, False)
    far = World(bowl(1e3)).finish(cells(), Tune())
    told = far.tuning[finals(far)[0].key]
    assert (told["chosen"]["learning_rate"], len(told["trials"]), told["lr_at_edge"]) == (0.081, 7, True)


def test_ties_take_the_smaller_rate_and_never_failed_trials() -> None:
    assert finals(World(lambda _: 1.0).finish(cells(), Tune()))[0].method.identity["learning_rate"] < 1e-3
    found = World(lambda m: FAILED if m["learning_rate"] > 2e-3 else m["learning_rate"]).finish(cells(), Tune())
    assert [t["score"] for t in found.tuning[finals(found)[0].key]["trials"]].count(None) == 2
    hopeless = World(lambda _: FAILED).finish(cells(), Tune())
    assert not hopeless.tuning
    assert set(hopeless.hopeless.values()) == {"tuning: none of 5 trials trained"}


def test_a_knob_costs_everybody_the_same_number_of_trials() -> None:
    tune = Tune(knob={"lora": {"r": (2, 4)}})
    found = World(lambda m: bowl(1e-3)(m) + 0.1 * abs(m["params"]["r"] - 4)).finish(cells(), tune)
    chosen = found.tuning[finals(found)[0].key]
    assert chosen["chosen"] == {"learning_rate": 0.001, "params": {"r": 4}}
    assert finals(found)[0].method.identity["params"] == {"r": 4}
    other = World(bowl(1e-3)).finish(cells("full"), tune)
    assert len(chosen["trials"]) == len(other.tuning[finals(other)[0].key]["trials"]) == 7
    with_default = World(bowl(1e-3)).finish(cells(), Tune(knob={"lora": {"r": (8, 4)}}))  # r is 8 without a knob
    assert len(with_default.tuning[finals(with_default)[0].key]["trials"]) == 7


def test_a_shared_rate_adds_separate_cells() -> None:
    found = World(bowl(3e-3)).finish(cells(), Tune(shared_learning_rate=5e-4))
    shared = [c for c in found.cells if c.common.identity.get("role") == "shared-lr"]
    assert [c.method.identity["learning_rate"] for c in shared] == [5e-4, 5e-4]
    assert len({c.key for c in found.cells}) == len(found.cells)


def test_optuna_proposes_the_same_trials_again_within_its_budget() -> None:
    pytest.importorskip("optuna")
    tune = Tune(sampler="optuna-tpe", trials=8, learning_rates=4)
    one, two = (World(bowl(4e-3)).finish(cells(), tune) for _ in range(2))
    told = one.tuning[finals(one)[0].key]
    assert len(told["trials"]) == 8
    assert told == two.tuning[finals(two)[0].key]
    assert abs(math.log(told["chosen"]["learning_rate"] / 4e-3)) < 1


PRUNED = {"sampler": "optuna-random", "trials": 6, "learning_rates": 3, "pruner": "optuna-median", "prune_every": 2}


def test_pruner_gets_curves_of_earlier_batches_in_trial_key() -> None:
    pytest.importorskip("optuna")
    world = World(bowl(1e-3))
    found = world.finish(cells(), Tune(**PRUNED))
    past = [trial.common.identity["pruning"]["past"] for trial in world.asked]
    assert [len(p) for p in past] == [0, 0, 0, 3, 3, 3]
    assert past[3] == [list(world.ways[trial.key]) for trial in world.asked[:3]]
    assert len(found.tuning[finals(found)[0].key]["trials"]) == 6
    plain = World(bowl(1e-3)).finish(cells(), Tune(**{**PRUNED, "pruner": "none", "prune_every": None}))
    assert all("pruning" not in cell.common.identity for cell in plain.cells)


def test_a_trial_worse_than_the_median_is_pruned_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    from types import SimpleNamespace

    from harness.errors import Pruned
    from runners.worker import trial_pruning
    from runners.worker.job import CURVE

    ahead = {"pruner": "optuna-median", "every": 2, "past": [[3.0, 2.0], [3.0, 2.2], [3.0, 2.4], [9.0]]}
    scores = iter([2.9, 2.3])
    monkeypatch.setattr(trial_pruning, "validation_score", lambda *_: next(scores))
    watch, ctx = trial_pruning.Pruning(ahead, steps=6), SimpleNamespace(series={})
    assert [watch.due(step) for step in range(1, 7)] == [False, True, False, True, False, False]
    watch.look(ctx, 2)  # type: ignore[arg-type]  # it needs the series alone
    with pytest.raises(Pruned, match=r"pruned after step 4 of 6, where its validation NLL 2\.3"):
        watch.look(ctx, 4)  # type: ignore[arg-type]
    assert ctx.series[CURVE] == (2.9, 2.3)
    alone = trial_pruning.Pruning({**ahead, "past": [[1.0]]}, steps=6)  # a pruned one is nothing to compare with
    scores = iter([9.0])
    alone.look(SimpleNamespace(series={}), 2)  # type: ignore[arg-type]


@pytest.mark.slow
def test_pruner_sweep_stops_hopeless_trials_and_bills_them(bench: Bench) -> None:
    pytest.importorskip("optuna")
    tune = {**PRUNED, "factor": 30, "prune_every": 3}
    path = str(bench.write(**{**TUNE, "methods": [{"name": "lora", "params": {"r": 2}}], "tune": tune}))
    assert bench("run", path).returncode == 0
    records = bench.records()
    trials = [r for r in records if r["cell"].get("role") == "trial"]
    assert len(trials) == 6
    pruned = [r for r in trials if r["outcome"]["check"] == "pruned"]
    assert pruned
    for record in pruned:
        assert record["outcome"]["status"] == "diverged"
        assert 1 <= len(record["series"]["validation_nll_curve"]) <= 3
        assert any(span["stage"] == "train" and span["seconds"] > 0 for span in record["spans"])
    final = [r for r in records if "tuning" in r["cell"]]
    assert [r["outcome"]["status"] for r in final] == ["ok"]
    assert json.loads(bench("plan", path, "--json").stdout)["waiting_for_tuning"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune": {"pruner": "optuna-median"}}, "'pruner' and 'prune_every' belong together"),
        ({"tune": {"pruner": "optuna-median", "prune_every": 2}}, "needs one of optuna's samplers"),
        ({"tune": {"seed": 0}}, "trials need a different one"),
        ({"tune": {"knob": {"dora": {"r": [1]}}}}, "knob names no method"),
        ({"tune": {"knob": {"lora": {"r": [1], "alpha": [2]}}}}, "one parameter"),
        ({"tune": {"knob": {"lora": {"r": [1]}, "full": {"x": [1, 2]}}}}, "the same number of values"),
        ({"tune": {"trials": 8}}, "'trials' belongs to optuna"),
    ],
)
def test_unequal_or_leaking_tuning_budget_is_refused(change: dict[str, Any], message: str) -> None:
    base = {"name": "s", "models": ["m"], "methods": ["lora", "full"], "tasks": ["t"], "training": {"steps": 1}}
    with pytest.raises(ValueError, match=message):
        SweepSpec.model_validate({**base, **change})


TUNE = {
    "methods": ["none", {"name": "lora", "params": {"r": 2}}],
    "training": {"steps": 10, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32},
    "evaluation": {"batch_size": 8, "retention": False},
    "tune": {"learning_rates": 3},
}


def test_tuned_sweep_finishes_and_second_run_does_nothing(bench: Bench) -> None:
    path = str(bench.write(**TUNE))
    done = bench("run", path)
    assert done.returncode == 0, done.stderr
    records = bench.records()
    trials = [r for r in records if r["cell"].get("role") == "trial"]
    assert len(trials) >= 3
    for trial in trials:
        assert trial["outcome"]["status"] == "ok", trial["outcome"]
        assert trial["samples"] is None
        assert "validation_nll" in trial["metrics"]
        assert not {"accuracy", "merged_accuracy"} & set(trial["metrics"])
        assert [s["stage"] for s in trial["spans"]] == ["load", "quantize", "prepare", "attach", "train", "validate"]
    (final,) = [r for r in records if r["cell"].get("tuning")]
    told = final["environment"]["facts"]["tuning"]
    assert {t["key"] for t in told["trials"]} == {r["key"] for r in trials}
    assert final["cell"]["method"]["learning_rate"] == told["chosen"]["learning_rate"]
    assert "nothing to run" in bench("run", path).stdout
    status = json.loads(bench("status", path, "--json").stdout)
    assert status["counts"] == {"ok": len(records)}


BLIND = """
import sys
from pathlib import Path
from harness import hardware
from harness.store.store import Store
from runners.planning import plan as planning
from runners.running.run import load_sweep
from runners.worker import main
from runners.worker.job import Job
from runners.worker.stages import load
from runners.workspace import Workspace

workspace = Workspace.discover()
sweep = load_sweep(sys.argv[1], workspace)
plan = planning.make(sweep, workspace, store=None, machine=hardware.probe(), fingerprint="")
trial = next(c for c in plan.run if c.common.identity.get("role") == "trial")
other = next(c for c in plan.run if c.method.name == "none")
read = load.load_split

def watched(task, split, **more):
    if split == "test":
        raise RuntimeError("the test split was read")
    return read(task, split, **more)

load.load_split = watched
for cell in (trial, other):
    folder = Path(cell.key)
    folder.mkdir()
    job = Job(cell.key, cell.label, "s", cell.as_dict(), cell.model.name, str(folder), "cpu", (), (), (), None, "cache")
    record = main.run_job(job, lambda *a, **k: None)
    print(record.outcome.status, record.outcome.reason)
"""


def test_a_trial_cannot_see_the_test_split(bench: Bench) -> None:
    path = str(bench.write(**TUNE))
    done = subprocess.run(
        [sys.executable, "-c", BLIND, path], cwd=bench.root, env=bench.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trial, final = [line for line in done.stdout.splitlines() if line.startswith(("ok", "error"))]
    assert trial.strip() == "ok"
    assert final == "error RuntimeError: the test split was read"


def test_a_hopeless_trial_is_stopped_early_and_says_so() -> None:
    import torch

    from harness.errors import Diverged
    from runners.worker.trainer import stop_if_hopeless

    falling = [torch.tensor(x) for x in (4.0, 3.9, 3.8, 3.7, 3.6, 3.0, 2.5, 2.0, 1.5, 1.0)]
    stop_if_hopeless(falling, [torch.tensor(1.0)])
    with pytest.raises(Diverged, match=r"stopped early: the loss rose from 3\.8 to 20"):
        stop_if_hopeless([*falling[:5], *[torch.tensor(20.0)] * 5], [])
    with pytest.raises(Diverged, match="stopped early: the gradient norm became inf"):
        stop_if_hopeless([], [torch.tensor(math.inf)])
