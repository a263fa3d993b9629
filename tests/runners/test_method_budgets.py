"""Cost of a method in its record: steps, operations and optimizer state, for every kind of method."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runners.conftest import Bench

STEPS = 24
METHODS: list[Any] = [
    "full",
    "lisa",
    "owlore",
    "lora",
    "mezo",
    "lomo",
    "zo-forward-grad",
    "natural-galore",
    "lt-sft",
    "diffora",
    "lofit",
    "grafting",
    "hft",
    "adalora",
    "lift",
    {"name": "galore", "params": {"layerwise": True}},
    {"name": "apollo", "params": {"update_gap": 100}},
    {"name": "int21", "params": {"repair_steps": 2}},
    {"name": "flexora", "params": {"search_steps": STEPS}},
]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, dict[str, Any]]:
    """The cells of one sweep, by method."""
    root = tmp_path_factory.mktemp("budgets")
    (root / "peft-matrix.yaml").write_text("version: 1\n")
    bench = Bench(
        root,
        {
            "name": "budgets",
            "models": [str(tiny_model)],
            "methods": METHODS,
            "tasks": [{"name": "strings-copy", "train_items": 64, "validation_items": 8, "test_items": 8}],
            "training": {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32},
            "evaluation": {"batch_size": 8},
            "probes": {"latency_repeats": 2, "intruder_dimensions": True},
            "limits": {"threads": 1, "timeout_s": 120},
        },
    )
    path = str(bench.write())
    planned = bench("plan", path, "--json")
    (root / "plan.json").write_text(planned.stdout)
    assert "remark       " in bench("plan", path).stdout
    run = bench("run", path)
    found = {r["cell"]["method"]["name"]: r for r in bench.records()}
    assert found, run.stdout + run.stderr
    return {**found, "plan": json.loads(planned.stdout)}


def value(record: dict[str, Any], name: str) -> float:
    reading = record["metrics"][name]
    assert reading["value"] is not None, json.dumps(reading)
    return float(reading["value"])


def test_every_cell_of_the_sweep_ended_as_it_should(records: dict[str, dict[str, Any]]) -> None:
    cells = {name: r for name, r in records.items() if name != "plan"}
    endings = {name: (r["outcome"]["status"], r["outcome"]["reason"]) for name, r in cells.items()}
    status, reason = endings.pop("flexora")
    assert status == "unsupported"
    assert f"takes {STEPS} of the cell's {STEPS} steps for its search" in reason
    assert {name: ending for name, ending in endings.items() if ending[0] != "ok"} == {}


def test_a_state_that_grows_is_recorded_at_its_largest(records: dict[str, dict[str, Any]]) -> None:
    # the blocks' matrices keep 20 projected gradients: more than the two moments of AdamW
    assert value(records["natural-galore"], "optimizer_state_bytes") > value(records["full"], "optimizer_state_bytes")


@pytest.mark.parametrize("name", ["lisa", "owlore"])
def test_blocks_that_are_asleep_cost_no_weight_gradient(records: dict[str, dict[str, Any]], name: str) -> None:
    # of two blocks both are awake: nothing is saved here, and nothing may be lost in counting
    assert value(records[name], "step_flops") == value(records["full"], "step_flops")
    assert records[name]["environment"]["facts"]["method"]["awake"] == {"0": [0, 1], "20": [0, 1]}


def test_a_step_of_the_method_s_own_is_counted_and_undone(records: dict[str, dict[str, Any]]) -> None:
    forward = records["mezo"]["metrics"]["step_flops"]["details"]["linear_forward_flops"]
    assert value(records["mezo"], "step_flops") == pytest.approx(forward, rel=0.2)  # two forward passes, both in it
    assert value(records["lomo"], "step_flops") > 1.5 * value(records["full"], "step_flops")  # two backward passes
    assert value(records["zo-forward-grad"], "step_flops") > 0
    # its projections are in the backward pass, and so in the count
    assert value(records["galore"], "step_flops") >= value(records["full"], "step_flops")
    assert value(records["galore"], "gradient_bytes") == 0  # layerwise: none is left when the step ends


@pytest.mark.parametrize(("name", "taken"), [("diffora", 6), ("lofit", 6), ("grafting", 6), ("int21", 2)])
def test_steps_of_a_search_are_the_cell_s_own(records: dict[str, dict[str, Any]], name: str, taken: int) -> None:
    record = records[name]
    assert len(record["series"]["step_ms"]) == STEPS - taken
    assert record["environment"]["facts"]["budget"] == {
        "steps": STEPS,
        "search_steps": taken,
        "loop_steps": STEPS - taken,
    }
    assert value(record, "search_steps") == taken
    loop_s = sum(record["series"]["step_ms"]) / 1e3
    assert value(record, "train_s") == pytest.approx(loop_s + value(record, "search_s"))
    assert value(record, "search_s") > 0
    # 4 sequences a step, in the loop and in the search
    assert value(record, "train_samples_per_s") * value(record, "train_s") == pytest.approx(4 * STEPS)


def test_rows_without_a_search_have_no_such_numbers(records: dict[str, dict[str, Any]]) -> None:
    for name in ("lora", "lt-sft", "full"):
        assert not {"search_s", "search_steps"} & records[name]["metrics"].keys()
        assert len(records[name]["series"]["step_ms"]) == STEPS


def test_what_a_method_chose_is_in_its_record(records: dict[str, dict[str, Any]]) -> None:
    facts = {name: record["environment"]["facts"] for name, record in records.items() if name != "plan"}
    assert len(facts["owlore"]["calibration"]["outlier_shares"]) == 2
    assert facts["owlore"]["calibration"]["drawn_by_outliers"] in (True, False)
    assert sum(len(heads) for heads in facts["lofit"]["calibration"]["heads"].values()) == 1
    assert len(facts["lofit"]["calibration"]["loss"]) == 6
    assert len(facts["int21"]["calibration"]["divergence"]) == 2
    assert len(facts["diffora"]["search"]["loss"]) == 6
    assert any("mlp" in name for name in facts["hft"]["method"]["trained"])
    for name in ("grafting", "lt-sft"):
        assert sum(facts[name]["method"]["kept_entries"].values()) > 0


def test_the_plan_says_what_never_acts_in_the_run(records: dict[str, dict[str, Any]]) -> None:
    (remark,) = records["plan"]["remarks"]
    assert remark["cell"]["label"].endswith(".apollo.none.strings-copy.s0")
    assert f"update_gap is 100, the run has {STEPS} steps" in remark["why"]


def test_the_training_loss_is_the_task_s_own(records: dict[str, dict[str, Any]]) -> None:
    penalised = records["adalora"]["series"]
    assert penalised["task_loss"][0] == pytest.approx(records["lora"]["series"]["loss"][0], rel=1e-3)
    assert penalised["loss"][0] > penalised["task_loss"][0] + 0.1  # the orthogonality term
    tail = penalised["task_loss"][-2:]
    assert value(records["adalora"], "train_loss") == pytest.approx(sum(tail) / 2)
    assert "task_loss" not in records["lora"]["series"]


def test_memory_and_entries_of_a_method_s_own_have_their_names(records: dict[str, dict[str, Any]]) -> None:
    everything = value(records["full"], "trainable_parameters")
    assert value(records["full"], "method_state_bytes") == 0
    assert value(records["lt-sft"], "method_state_bytes") == 4 * everything  # the weights it goes back to
    assert value(records["lt-sft"], "active_parameters") == pytest.approx(0.08 * everything, rel=0.01)
    assert value(records["lift"], "active_parameters") < 0.5 * value(records["lift"], "trainable_parameters")
    assert value(records["lisa"], "active_parameters") == everything  # both of its blocks are awake
    assert "active_parameters" not in records["full"]["metrics"]


def test_every_phase_has_a_schedule_from_its_beginning() -> None:
    import torch

    from harness.spec import Training
    from runners.worker.trainer import restarting

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = restarting(optimizer, Training(steps=12, warmup_fraction=0.25), (8, 4))
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    first, second = rates[:8], rates[8:]
    assert first[0] == second[0] == 0.0  # warm-up begins
    assert max(first) == max(second) == 2.0
    assert first[-1] < 0.2
    assert second[-1] < 1.0


TRANSFORMERS = {
    "cosine": ("get_cosine_schedule_with_warmup", {}),
    "linear": ("get_linear_schedule_with_warmup", {}),
    "constant": ("get_constant_schedule", {}),
    "constant_with_warmup": ("get_constant_schedule_with_warmup", {}),
    "polynomial": ("get_polynomial_decay_schedule_with_warmup", {"power": 3.0, "lr_end": 0.0}),
    "cosine_with_restarts": ("get_cosine_with_hard_restarts_schedule_with_warmup", {"num_cycles": 3}),
    "wsd": ("get_wsd_schedule", {"num_decay_steps": 10}),
}
OWN_KEYS = {
    "polynomial": {"polynomial_power": 3.0},
    "cosine_with_restarts": {"restart_cycles": 3},
    "wsd": {"decay_fraction": 0.25},
}


def rates_of(schedule: Any, optimizer: Any, steps: int) -> list[float]:
    """The rate of every step."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_each_schedule_has_the_rates_of_transformers(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    from harness.spec import Training
    from runners.worker.trainer import arguments, restarting

    steps = 40
    training = Training(steps=steps, schedule=name, warmup_fraction=0.1, learning_rate=0.5, **OWN_KEYS.get(name, {}))
    function, more = TRANSFORMERS[name]
    takes = inspect.signature(getattr(transformers.optimization, function)).parameters
    given = {"num_warmup_steps": 4, "num_training_steps": steps, **more}

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)

    theirs = sgd()
    made = getattr(transformers.optimization, function)(theirs, **{k: v for k, v in given.items() if k in takes})
    expected = rates_of(made, theirs, steps)
    ours = sgd()
    assert rates_of(restarting(ours, training, (steps,)), ours, steps) == pytest.approx(expected)
    context = SimpleNamespace(
        training=training,
        folder=tmp_path,
        learning_rate=0.5,
        seed=0,
        device=torch.device("cpu"),
        rank=SimpleNamespace(of=1),
        switches={},
        method=SimpleNamespace(loop_steps=steps),
        job=SimpleNamespace(cell={"model": {"dtype": "float32"}}),
    )
    trainer = transformers.Trainer(model=torch.nn.Linear(1, 1), args=arguments(context))  # type: ignore[arg-type]
    own = sgd()
    assert rates_of(trainer.create_scheduler(steps, own), own, steps) == pytest.approx(expected)
    if name != "constant":
        assert expected[0] == 0.0


def test_named_optimizers_train_and_are_part_of_the_cell(bench: Bench) -> None:
    def planned(**training: Any) -> dict[str, Any]:
        path = bench.write(methods=["none", "lora", "mezo", "adamw-8bit"], training={**usual, **training})
        made: dict[str, Any] = json.loads(bench("plan", str(path), "--json").stdout)
        return made

    usual = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    keys = [cell["key"] for cell in planned()["run"]]
    assert [
        cell["key"] for cell in planned(optimizer="adamw", restart_cycles=2, schedule="cosine_with_restarts")["run"]
    ]
    assert [cell["key"] for cell in planned(optimizer="adamw")["run"]] == keys, "the default is no part of a key"
    changed = planned(optimizer="sgd")
    assert not {cell["key"] for cell in changed["run"]} & set(keys)
    refused = {one["cell"]["label"].split(".")[1]: one["why"] for one in changed["unsupported"]}
    assert refused == {
        "mezo": "training.optimizer: mezo brings its own optimizer",
        "adamw-8bit": "training.optimizer: adamw-8bit brings its own optimizer",
    }
    state = {}
    for name in ("adamw", "sgd", "adafactor", "lion"):
        path = bench.write(methods=["lora"], training={**usual, "optimizer": name, "schedule": "wsd"})
        done = bench("run", str(path))
        assert done.returncode == 0, done.stdout
        (record,) = [r for r in bench.records() if r["cell"]["training"].get("optimizer", "adamw") == name]
        state[name] = record["metrics"]["optimizer_state_bytes"]["value"]
    assert state["sgd"] == 0 < state["adafactor"] < state["lion"] < state["adamw"]
    assert state["adamw"] == pytest.approx(2 * state["lion"], rel=0.02)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"optimizer": "adam"},
            "'adam' is not allowed here. Allowed: 'adamw', 'adamw-8bit', 'adafactor', 'sgd' or 'lion'.",
        ),
        ({"schedule": "cosin"}, "'polynomial', 'cosine_with_restarts' or 'wsd'"),
        ({"decay_fraction": 0.5}, "'decay_fraction' belongs to 'schedule: wsd'"),
        ({"schedule": "wsd", "decay_fraction": 0.95}, "together are more than all steps"),
    ],
)
def test_a_wrong_optimizer_or_schedule_is_named(bench: Bench, training: dict[str, Any], message: str) -> None:
    done = bench("plan", str(bench.write(training={"steps": 3, **training})))
    assert done.returncode == 2
    assert message in done.stderr


def test_intruder_dimensions_of_tuned_and_merged_weights(records: dict[str, dict[str, Any]]) -> None:
    for name in ("full", "lora"):
        reading = records[name]["metrics"]["intruder_dimensions"]
        assert 0 <= reading["value"] <= 10
        assert reading["n"] == 14  # seven matrices in each of two blocks
    assert records["int21"]["metrics"]["intruder_dimensions"]["why_missing"] == "not_applicable"
