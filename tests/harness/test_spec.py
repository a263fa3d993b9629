from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.errors import UserError
from harness.spec import LoadedSweep, load

SMALL = """\
name: small
models: [builtin:nano]
methods:
  - lora
  - {name: lora, label: starved, params: {rank: 1}, learning_rate: 3e-4}
tasks: [copy]
training: {steps: 10}
"""


def read(folder: Path, text: str) -> LoadedSweep:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_short_forms_equal_their_long_ones(tmp_path: Path) -> None:
    spec = read(tmp_path, SMALL).spec
    assert spec.models[0].id == "builtin:nano"
    assert [m.name for m in spec.methods] == ["lora", "lora"]
    assert spec.methods[1].params == {"rank": 1}
    assert spec.methods[1].learning_rate == 3e-4
    assert spec.tasks[0].name == "copy"


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    spec = read(tmp_path, SMALL).spec
    assert [q.name for q in spec.quantization] == ["none"]
    assert spec.hardware == ("any",)
    assert spec.seeds == (0,)
    assert spec.evaluation.decoding.temperature == 0.0
    assert not spec.models[0].trust_remote_code


def test_a_sweep_cannot_be_edited(tmp_path: Path) -> None:
    spec = read(tmp_path, SMALL).spec
    with pytest.raises(ValidationError):
        spec.name = "other"  # type: ignore[misc]


def test_a_place_in_a_sweep_can_be_named_later(tmp_path: Path) -> None:
    sweep = read(tmp_path, SMALL)
    assert sweep.where("methods", 1, "params", "rank") == f"{sweep.path}, line 5, key 'methods.1.params.rank'"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("methods:", "metods:", "line 3, key 'metods': unknown key 'metods'. Did you mean 'methods'"),
        ("steps: 10", "stpes: 10", "line 7, key 'training.stpes': unknown key 'stpes'. Did you mean 'steps'?"),
        ("params:", "parms:", "line 5, key 'methods.1.parms': unknown key 'parms'. Did you mean 'params'?"),
        ("training: {steps: 10}", "", "the key 'training' is missing"),
        ("{steps: 10}", "{steps: 0}", "line 7, key 'training.steps': must be greater than 0. Found: 0."),
        ("{steps: 10}", "{steps: 10, schedule: sine}", "'sine' is not allowed here. Allowed: 'cosine', 'linear'"),
        ("3e-4", "-3e-4", "key 'methods.1.learning_rate': must be greater than 0"),
        ("3e-4", ".nan", "key 'methods.1.learning_rate'"),
        ("{rank: 1}", "{rank: .nan}", "key 'methods.1.params': parameters must be plain numbers"),
        ("{rank: 1}", "{rank: 2026-01-01}", "key 'methods.1.params': parameters must be plain numbers"),
        (", label: starved", "", "methods: 'lora' is listed twice; give each use its own 'label'"),
        (
            "name: small",
            "name: Not Good",
            "line 1, key 'name': has characters that are not allowed here; the pattern is ^[a-z0-9]",
        ),
        ("models: [builtin:nano]", "models: []", "line 2, key 'models': must have at least 1 entry. Found: []."),
        ("tasks: [copy]", "tasks: copy", "line 6, key 'tasks': must be a list, such as [a, b]. Found: 'copy'."),
        (
            "tasks: [copy]",
            "tasks: [copy]\nseeds: [0, 1, 0]",
            "key 'seeds': the same value is listed twice in this axis",
        ),
        ("tasks: [copy]", "tasks: [copy]\nexclude: [{method: lora}]", "key 'exclude.0': the key 'why' is missing"),
        ("tasks: [copy]", "tasks: [{name: copy, test_items: 0}]", "key 'tasks.0.test_items'"),
        ("tasks: [copy]", "tasks: [copy]\nprobes: {latency_repeats: -1}", "key 'probes.latency_repeats'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in SMALL
    text = complaint(tmp_path, SMALL.replace(old, new))
    assert text.startswith("sweep.yaml, line ")
    assert said in text
    assert "\n" not in text


def test_a_further_cell_is_written_as_short_as_an_axis(tmp_path: Path) -> None:
    text = SMALL + "include:\n  - {model: m, method: full, quantization: none, task: {name: copy, test_items: 5}}\n"
    cell = read(tmp_path, text).spec.include[0]
    assert (cell.model.id, cell.method.name, cell.task.test_items, cell.seed) == ("m", "full", 5, 0)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "runners" / "sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_built_in_sweep_is_well_formed(path: Path) -> None:
    assert load(path).spec.name == path.stem
