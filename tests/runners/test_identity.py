"""Everything that can change a number is in a cell's key or in its record's fingerprint; every input is tried here.

An input that is in neither is listed with the reason, so that a new field of a sweep fails here until it is decided.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import save_file

from harness import hardware, provenance, spec, spec_axes
from harness.digests import digest, without_later
from harness.file_digests import SETTLED_S, FileDigests
from harness.models import files, sources
from harness.registry import Registry, code_digest
from runners.planning.resolver import Resolver
from runners.workspace import Workspace
from tasks import lm_eval_tasks
from tasks.data import task_digest
from tasks.parsers import PARSERS
from tasks.task import load_task
from tests.runners.conftest import Bench

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "name": "identity",
    "models": ["MODEL"],
    "methods": [{"name": "lora", "params": {"r": 4}}],
    "quantization": [{"name": "rtn", "params": {"bits": 4}}],
    "tasks": [{"name": "mine", "train_items": 4, "validation_items": 2, "test_items": 2}],
    "seeds": [0],
    "training": {"steps": 5},
}

CHANGES: dict[str, Any] = {
    "models.id": lambda s: s["models"][0].update(id=s["models"][0]["id"].replace("one", "two")),
    "models.dtype": lambda s: s["models"][0].update(dtype="bfloat16"),
    "models.attention": lambda s: s["models"][0].update(attention="eager"),
    "models.trust_remote_code": lambda s: s["models"][0].update(trust_remote_code=True),
    "models.prompt_format": lambda s: s["models"][0].update(prompt_format="chat"),
    "models.system_prompt": lambda s: s["models"][0].update(prompt_format="chat", system_prompt="Be short."),
    "methods.name": lambda s: s["methods"][0].update(name="dora"),
    "methods.params": lambda s: s["methods"][0].update(params={"r": 8}),
    "methods.learning_rate": lambda s: s["methods"][0].update(learning_rate=0.5),
    "methods.steps": lambda s: s["methods"][0].update(steps=7),
    "quantization.name": lambda s: s["quantization"][0].update(name="none", params={}),
    "quantization.params": lambda s: s["quantization"][0].update(params={"bits": 8}),
    "quantization.moment": lambda s: s["quantization"][0].update(moment="after_merge"),
    "tasks.name": lambda s: s["tasks"][0].update(name="strings-copy"),
    "tasks.train_items": lambda s: s["tasks"][0].update(train_items=3),
    "tasks.validation_items": lambda s: s["tasks"][0].update(validation_items=1),
    "tasks.test_items": lambda s: s["tasks"][0].update(test_items=1),
    "tasks.decoding": lambda s: s["tasks"][0].update(decoding={"temperature": 0.5}),
    "tasks.steps": lambda s: s["tasks"][0].update(steps=6),
    "tasks.test_only": lambda s: s["tasks"][0].update(test_only=True),
    "hardware": lambda s: s.update(hardware=["h100"]),
    "objectives": lambda s: s.update(objectives=["distill-sequence"]),
    "variants": lambda s: s.update(variants=[{"name": "packed", "packing": True}]),
    "parallel": lambda s: s.update(parallel=[{"strategy": "ddp", "world_size": 2}]),
    "recipes": lambda s: s.update(recipes=["curriculum"]),
    "stages": lambda s: s.update(stages=[{"name": "first", "earlier": [{"method": "lora"}]}]),
    "seeds": lambda s: s.update(seeds=[1]),
    "training.steps": lambda s: s["training"].update(steps=6),
    "training.batch_size": lambda s: s["training"].update(batch_size=8),
    "training.gradient_accumulation": lambda s: s["training"].update(gradient_accumulation=2),
    "training.learning_rate": lambda s: s["training"].update(learning_rate=0.5),
    "training.schedule": lambda s: s["training"].update(schedule="linear"),
    "training.optimizer": lambda s: s["training"].update(optimizer="sgd"),
    "training.restart_cycles": lambda s: s["training"].update(schedule="cosine_with_restarts", restart_cycles=3),
    "training.polynomial_power": lambda s: s["training"].update(schedule="polynomial", polynomial_power=3.0),
    "training.decay_fraction": lambda s: s["training"].update(schedule="wsd", decay_fraction=0.5),
    "training.warmup_fraction": lambda s: s["training"].update(warmup_fraction=0.5),
    "training.weight_decay": lambda s: s["training"].update(weight_decay=0.5),
    "training.max_grad_norm": lambda s: s["training"].update(max_grad_norm=0.5),
    "training.adam_betas": lambda s: s["training"].update(adam_betas=[0.5, 0.9]),
    "training.max_length": lambda s: s["training"].update(max_length=64),
    "training.gradient_checkpointing": lambda s: s["training"].update(gradient_checkpointing=True),
    "training.target": lambda s: s["training"].update(target={"metric": "accuracy", "value": 0.5, "every": 1}),
    "training.epochs": lambda s: s.update(training={**s["training"], "steps": None, "epochs": 0.5}),
    "training.early_stopping": lambda s: s["training"].update(early_stopping={"every": 2}),
    "training.on_oom": lambda s: s["training"].update(on_oom="halve_batch"),
    "evaluation.batch_size": lambda s: s.update(evaluation={"batch_size": 8}),
    "evaluation.decoding": lambda s: s.update(evaluation={"decoding": {"temperature": 0.5}}),
    "evaluation.retention": lambda s: s.update(evaluation={"retention": False}),
    "evaluation.merged": lambda s: s.update(evaluation={"merged": False}),
    "evaluation.run_generated_code": lambda s: s.update(evaluation={"run_generated_code": True}),
    "evaluation.held_out": lambda s: s.update(evaluation={"held_out": ["texts"]}),
    "evaluation.retain": lambda s: s.update(evaluation={"retain": ["strings-copy"]}),
    "evaluation.option_orders": lambda s: s.update(evaluation={"option_orders": 2}),
    "evaluation.in_context": lambda s: s.update(evaluation={"in_context": 2}),
    "evaluation.answer_confidence": lambda s: s.update(evaluation={"answer_confidence": True}),
    "evaluation.judge": lambda s: s.update(evaluation={"judge": {"model": "builtin:nano"}}),
    "evaluation.prompt_variants": lambda s: s.update(evaluation={"prompt_variants": True}),
    "probes.latency_repeats": lambda s: s.update(probes={"latency_repeats": 3}),
    "probes.latency_batch_sizes": lambda s: s.update(probes={"latency_batch_sizes": [2]}),
    "probes.prompt_tokens": lambda s: s.update(probes={"prompt_tokens": [4]}),
    "probes.output_tokens": lambda s: s.update(probes={"prompt_tokens": [4], "output_tokens": [2]}),
    "probes.inspect": lambda s: s.update(probes={"inspect": "full"}),
    "probes.intruder_dimensions": lambda s: s.update(probes={"intruder_dimensions": True}),
    "probes.energy": lambda s: s.update(probes={"energy": "none"}),
    "measure_cost": lambda s: s.update(measure_cost=False),
    "limits.threads": lambda s: s.update(limits={"threads": 2}),
}
"""Field to a change of it that must change the key."""

NOT_IN_THE_KEY = {
    "name": "a sweep's name; two sweeps that ask for the same cell share its record",
    "summary": "words for people",
    "board": "how records are shown",
    "priority": "order of the cells",
    "exclude": "which cells run",
    "include": "further cells, each with all of these fields",
    "models.revision": "of a Hub model; test_a_hub_id_is_a_commit",
    "models.label": "words for people",
    "methods.label": "words for people",
    "quantization.label": "words for people",
    "tasks.label": "words for people",
    "tasks.score": "adds cells, each with its own task (tests/objectives/test_catalogs.py)",
    "tasks.format": "of multiple-choice tasks; test_a_format_of_a_task_is_in_the_key",
    "evaluation.lm_eval": "needs lm-eval; its pin is tested below",
    "timing": "adds cells; a repeated run holds its number (test_repeated_runs_share_the_blocks_of_their_cells)",
    "tune": "adds cells; a tuned cell holds its budget (tests/runners/test_tuning.py)",
    "keep": "which trained weights stay on disk",
    "limits.timeout_s": "ends a cell, changes no number",
    "limits.workers": "how many at once; recorded as neighbours, which a board marks",
    "limits.retries": "attempts after a passing error",
    "limits.lost_after_s": "when a silent worker is ended",
    "limits.min_free_disk_gib": "when a cell waits",
    "limits.cells_per_device": "sharing by cells whose cost is not measured (measure_cost)",
    "limits.trials_per_device": "sharing by trials, whose time is not reported",
    "accounting": "constants of CO2 and money; they are in the record beside each derived value",
}
KEYS = {
    "all-quantizers": (159, "f6c3c2a5b5a8"),
    "all-quantizers-encoder": (129, "a31bcb17ed53"),
    "calibrated": (17, "f00591d1930a"),
    "claims-24gb": (12, "76f4f070422b"),
    "claims-encoder": (120, "88f73e15eec2"),
    "claims-gpu": (240, "8d74985c0de8"),
    "claims-nano": (228, "4b95f943da1b"),
    "claims-lora": (72, "024d091847a0"),
    "claims-times": (28, "6019d8ba7bfc"),
    "demo-llm": (4, "3c71e365a22c"),
    "distillation": (9, "a2b5bdbda67d"),
    "evidence-encoder": (315, "280b6dbc3511"),
    "evidence-llm": (34, "e4ceacff3997"),
    "evidence-long": (15, "7299c881d76b"),
    "evidence-nano": (288, "9d43d1f2373f"),
    "evidence-tuned": (37, "63478b584d42"),
    "fair-methods": (144, "7dbca2021dcd"),
    "gpu-brief": (12, "500787edd9c5"),
    "gpu-quantizers": (30, "04775673ac9e"),
    "gpu-skeletons": (20, "ee8e12396b0a"),
    "merge-tasks": (24, "940a7efc6abe"),
    "objectives": (57, "ca208666101f"),
    "objectives-llm": (7, "76b46cfb7e16"),
    "quickstart": (72, "6da6b4cab715"),
    "real-encoder": (72, "c42f776ac590"),
    "real-llm-cpu": (156, "4ac254371ed6"),
    "real-llm-gpu": (156, "1825bdcf6a61"),
    "real-tasks-nano": (8, "e99dd0280ffc"),
    "recipes": (51, "7ade2a273b41"),
    "smollm2-anchors": (2, "322836c3af04"),
    "temperature": (36, "b885a7622bdb"),
    "variants": (648, "4240b268201b"),
}
"""Built-in sweep to its number of cells and a digest of their keys: no change of the code may make records stale. Only
an edit of a sweep, of a task or of a method's ``revision`` may change a line."""
WITHOUT_KEYS = {"all-methods", "all-methods-encoder", "real-llm-example"}
"""Two that grow with every method, and one whose model is at no commit."""
NESTED = {"models": spec_axes.ModelSpec, "methods": spec_axes.MethodSpec, "quantization": spec_axes.QuantizationSpec}
NESTED |= {"tasks": spec_axes.TaskUse, "training": spec.Training, "evaluation": spec.Evaluation, "probes": spec.Probes}
NESTED |= {"limits": spec.Limits}


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two tasks and two copies of a model, ``one/final`` and ``two/final``."""
    (tmp_path / "peft-matrix.yaml").write_text("version: 1\n")
    (tmp_path / "tasks").mkdir()
    rows = [{"q": f"q{i}", "a": f"a{i}"} for i in range(12)]
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "tasks" / f"{split}.jsonl").write_text(text)
    common = {"version": 1, "summary": "s", "licence": "own"}
    mine = {
        **common,
        "name": "mine",
        "kind": "generation",
        "source": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "splits": {
            "train": {"from": "train"},
            "validation": {"from": "train", "hold_out": 4},
            "test": {"from": "test"},
        },
        "prompt": "{q}=",
        "answer": "{a}",
    }
    texts = {**mine, "name": "texts", "kind": "language-modelling", "answer": "{q} {a}"}
    del texts["prompt"]
    mine["prompts"] = ["{q}?"]
    for content in (mine, texts):
        (tmp_path / "tasks" / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))
    for name in ("one", "two"):
        shutil.copytree(tiny_model, tmp_path / name / "final")
    noise(tmp_path / "two" / "final")
    monkeypatch.setenv("PEFT_MATRIX_CACHE", str(tmp_path / "cache"))
    return tmp_path


def further_weights(folder: Path) -> None:
    """Weights beside those of the model."""
    save_file({"extra": torch.zeros(2)}, folder / "adapter.safetensors")


def noise(folder: Path) -> None:
    """Other weights of the same size, with the times that the file had."""
    file = folder / "model.safetensors"
    times, data = file.stat(), bytearray(file.read_bytes())
    data[-64:] = bytes(64) if any(data[-64:]) else bytes(range(64))
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def key(place: Path, change: Callable[[dict[str, Any]], object] | None = None) -> str:
    """The key of the one cell of a sweep, from a fresh resolver."""
    content = json.loads(json.dumps({**BASE, "models": [{"id": str(place / "one" / "final")}]}))
    if change is not None:
        change(content)
    path = place / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    workspace = Workspace.discover(start=place)
    resolver = Resolver(spec.load(path), workspace, hardware.Machine(2, 2**34, "any"))
    (cell,) = resolver.matrix(hardware.load_profiles(workspace.roots)).cells
    return cell.key


# --- fields of a sweep -----------------------------------------------------------------------------
@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_changes_the_key(field: str, place: Path) -> None:
    assert key(place, CHANGES[field]) != key(place)


def test_a_format_of_a_task_is_in_the_key(place: Path) -> None:
    keys = {key(place, lambda s, f=f: s.update(tasks=[{"name": "trec-text", **f}])) for f in ({}, {"format": "cloze"})}
    assert len(keys) == 2
    skills: list[object] = ["arc-easy", {"name": "arc-easy"}, {"name": "arc-easy", "format": "cloze"}]
    kept = [key(place, lambda s, skill=skill: s.update(evaluation={"retain": [skill]})) for skill in skills]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("switch", [{}, {"batch_size": 16}, {"packing": False}, {"name": "other", "max_length": 512}])
def test_a_variant_that_switches_nothing_keeps_the_key(switch: dict[str, Any], place: Path) -> None:
    assert key(place, lambda s: s.update(variants=[{"name": "plain", **switch}])) == key(place)


def test_every_switch_changes_the_key(place: Path) -> None:
    switches: list[dict[str, Any]] = [
        {"batch_size": 8},
        {"gradient_accumulation": 2},
        {"max_length": 64},
        {"gradient_checkpointing": True},
        {"attention": "eager"},
        {"dtype": "bfloat16"},
        {"packing": True},
        {"compile": True},
        {"optimizer": "adafactor"},
        {"offload": "activations"},
        {"kernels": "liger"},
    ]
    assert {name for switch in switches for name in switch} == {*spec_axes.VariantSpec.model_fields} - {"name"}
    keys = {key(place, lambda s, w=switch: s.update(variants=[{"name": "x", **w}])) for switch in switches}
    assert len({*keys, key(place)}) == len(switches) + 1


def test_a_judge_is_its_weights_or_its_name(place: Path) -> None:
    judges: list[dict[str, Any]] = [
        {"model": "builtin:nano"},
        {"model": "builtin:nano-v2"},
        {"model": {"model": "builtin:nano", "quantization": "bnb-int8"}},
        {"url": "http://127.0.0.1:1/v1", "name": "a-2026-01-01"},
        {"url": "http://127.0.0.1:1/v1", "name": "a-2026-02-01"},
        {"model": "builtin:nano", "items": 3},
    ]
    keys = {key(place, lambda s, j=judge: s.update(evaluation={"judge": j})) for judge in judges}
    assert len({*keys, key(place)}) == len(judges) + 1


@pytest.mark.parametrize(
    ("schedule", "field", "value"),
    [
        ("cosine_with_restarts", "restart_cycles", 3),
        ("polynomial", "polynomial_power", 3.0),
        ("wsd", "decay_fraction", 0.5),
    ],
)
def test_a_parameter_of_a_schedule_is_in_the_key(place: Path, schedule: str, field: str, value: float) -> None:
    plain = key(place, lambda s: s["training"].update(schedule=schedule))
    assert key(place, lambda s: s["training"].update({"schedule": schedule, field: value})) != plain


def test_every_field_is_decided() -> None:
    fields = set()
    for name in spec.SweepSpec.model_fields:
        nested: type[BaseModel] | None = NESTED.get(name)
        fields |= {f"{name}.{inner}" for inner in nested.model_fields} if nested else {name}
    assert fields == {*CHANGES, *NOT_IN_THE_KEY}
    assert not {*CHANGES} & {*NOT_IN_THE_KEY}


def test_keys_of_the_built_in_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_MATRIX_CACHE", str(tmp_path))
    monkeypatch.delenv("PEFT_MATRIX_DATA", raising=False)  # local files are other data than the Hub's
    workspace, found = Workspace.discover(start=tmp_path), {}
    profiles = hardware.load_profiles(workspace.roots)
    for path in sorted((ROOT / "runners" / "sweeps").glob("*.yaml")):
        if path.stem not in WITHOUT_KEYS:
            resolver = Resolver(spec.load(path), workspace, hardware.Machine(2, 2**34, "any"))
            keys = sorted(cell.key for cell in resolver.matrix(profiles).cells)
            found[path.stem] = (len(keys), digest(keys)[:12])
    assert found == KEYS


@pytest.mark.parametrize(
    ("content", "later", "kept"),
    [
        ({"a": 1, "b": 2}, {"b": 2}, {"a": 1}),
        ({"a": 1, "b": 3}, {"b": 2}, {"a": 1, "b": 3}),
        ({"a": 1, "b": None}, {}, {"a": 1, "b": None}),
    ],
)
def test_without_later(content: dict[str, Any], later: dict[str, Any], kept: dict[str, Any]) -> None:
    assert without_later(content, later) == kept


def test_a_later_field_is_written_where_it_is_set() -> None:
    at_default = spec.Training(steps=1)
    assert not {"target", "on_oom", "early_stopping"} & at_default.model_dump().keys()
    changed = spec.Training(steps=1, on_oom="halve_batch")
    assert changed.model_dump() == {**at_default.model_dump(), "on_oom": "halve_batch"}


@pytest.mark.parametrize(
    "field", ["name", "summary", "models.label", "methods.label", "tasks.label", "limits.timeout_s", "accounting"]
)
def test_what_changes_no_number_keeps_the_key(field: str, place: Path) -> None:
    values = {"timeout_s": 5.0, "accounting": {"grid_gco2_per_kwh": 400.0}}
    outer, _, inner = field.rpartition(".")

    def change(content: dict[str, Any]) -> None:
        where = content.setdefault(outer, {}) if outer else content
        (where[0] if isinstance(where, list) else where)[inner] = values.get(inner, "other")

    assert key(place, change) == key(place)


# --- files of a model ------------------------------------------------------------------------------
def append(name: str, text: str = " \n") -> Callable[[Path], object]:
    return lambda folder: (folder / name).open("a").write(text)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(noise, id="weights"),
        pytest.param(append("config.json"), id="config"),
        pytest.param(append("generation_config.json"), id="generation_config"),
        pytest.param(append("tokenizer.json"), id="tokenizer"),
        pytest.param(append("tokenizer_config.json"), id="tokenizer_config"),
        pytest.param(append("special_tokens_map.json"), id="special_tokens_map"),
        pytest.param(append("chat_template.jinja", "{{ messages }}"), id="chat_template"),
        pytest.param(append("modeling_own.py", "x = 1"), id="remote_code"),
        pytest.param(further_weights, id="further_weights"),
        pytest.param(append("vocab.txt", "x"), id="vocabulary"),
    ],
)
def test_a_changed_file_of_a_model_changes_the_key(change: Callable[[Path], object], place: Path) -> None:
    before = key(place)
    change(place / "one" / "final")
    assert key(place) != before


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "optimizer.pt", "trainer_state.json", "LICENSE"])
def test_a_file_that_is_not_read_keeps_the_key(name: str, place: Path) -> None:
    before = key(place)
    append(name)(place / "one" / "final")
    assert key(place) == before


def test_shards_of_an_index_are_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "parts" / "a.safetensors").write_bytes(b"a")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "parts/a.safetensors"}}))
    assert "parts/a.safetensors" in files.source_files(tmp_path)
    for wrong, message in (
        ("../x.safetensors", "outside"),
        ("b.safetensors", "does not exist"),
        (3, "not an index of weights"),
    ):
        index.write_text(json.dumps({"weight_map": {"w": wrong}}))
        with pytest.raises(Exception, match=message):
            files.source_files(tmp_path)
    index.write_text("[")
    with pytest.raises(Exception, match="not an index of weights"):
        files.source_files(tmp_path)


def test_an_adapter_is_not_taken_for_a_model(place: Path) -> None:
    append("adapter_config.json", "{}")(place / "one" / "final")
    with pytest.raises(Exception, match="is an adapter on another model"):
        key(place)


def test_a_models_path_is_not_in_the_key(place: Path) -> None:
    before = key(place)
    shutil.copytree(place / "one", place / "moved")
    moved = str(place / "moved" / "final")
    assert key(place, lambda s: s["models"][0].update(id=moved)) == before


def test_a_builtin_model_is_its_recipe() -> None:
    """Committed records keep their keys: the bytes follow from the recipe and are on record."""
    found = sources.identity("builtin:nano", revision=None, task_digest=lambda name: name)
    assert set(found) == {"id", "revision"}
    assert not found["revision"].startswith(files.PREFIX)


def test_a_hub_id_is_a_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--cached" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)

    def found(revision: str | None) -> Any:
        return sources.identity("owner/cached", revision=revision, task_digest=str)["revision"]

    assert found(None) == "a" * 40
    assert found("b" * 40) == "b" * 40
    assert found("v1") == "v1"
    assert sources.unpinned("owner/cached", "b" * 40) is None
    assert "a" * 40 in (sources.unpinned("owner/cached", None) or "")
    assert "neither the Hub nor its local cache" in (sources.unpinned("owner/cached", "v1") or "")


# --- data and code ---------------------------------------------------------------------------------
def test_data_and_definition_change_the_key(place: Path) -> None:
    before = key(place)
    rows = place / "tasks" / "test.jsonl"
    times, text = rows.stat(), rows.read_text()
    rows.write_text(text.replace("a11", "a12"))
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = key(place)
    assert after != before
    definition = place / "tasks" / "mine.yaml"
    definition.write_text(definition.read_text() + "stop: ['\\n']\n")
    assert key(place) not in (before, after)


def test_a_data_root_changes_the_digest_of_its_task(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    task = load_task("sst2", [])
    found = set()
    for label in (0, 1):
        for split in ("train", "validation"):
            row = {"sentence": "s", "label": label, "idx": 0}
            (tmp_path / "sst2" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        found.add(task_digest(task, data_root=tmp_path))
    assert len({*found, task_digest(task, data_root=None)}) == 3


def test_code_of_a_plug_in_from_outside_is_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    package = tmp_path / "outside_parsers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("LOWER = True\n")
    (package / "parse.py").write_text("def lower(text):\n    return text.lower()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[Any] = Registry("parser", {"own": "tasks.parsers:exact"})
    registry.add("outside", "outside_parsers.parse:lower")
    assert registry.code("own") is None
    before = registry.code("outside")
    (package / "helper.py").write_text("LOWER = False\n")
    assert registry.code("outside") not in (before, None)
    assert code_digest("typing") == code_digest("typing")

    task = load_task("mine", [place])
    unchanged = task_digest(task, data_root=None)
    monkeypatch.setattr(PARSERS, "own", tuple(name for name in PARSERS.own if name != "exact"))
    monkeypatch.setitem(PARSERS._targets, "exact", "outside_parsers.parse:lower")
    assert task_digest(task, data_root=None) != unchanged


def test_everything_a_local_lm_eval_task_reads_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_tasks, "version", lambda _name: lm_eval_tasks.VERSION)
    folder = tmp_path / "tasks" / "lm-eval"
    (folder / "rows").mkdir(parents=True)
    contents = {
        "mine.yaml": "task: mine\ninclude: middle.yaml\n",
        "middle.yaml": "include: base.yaml\n",
        "base.yaml": "dataset_path: rows\ndataset_kwargs: {data_files: {test: test.jsonl}}\n",
        "rows/part.jsonl": "{}\n",
        "test.jsonl": "{}\n",
        "utils.py": "x = 1\n",
        "both.yaml": "group: both\ntask: [mine]\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    for name in ("mine", "both"):
        seen = {lm_eval_tasks.pin(name, [tmp_path])}
        for changed in contents:
            if name == "mine" and changed == "both.yaml":
                continue
            (folder / changed).write_text(contents[changed] + "\n")
            seen.add(lm_eval_tasks.pin(name, [tmp_path]))
            (folder / changed).write_text(contents[changed])
        assert len(seen) == 1 + len(contents) - (name == "mine")


# --- the environment -------------------------------------------------------------------------------
def test_variables_that_choose_kernels_make_a_record_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in provenance.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    plain = provenance.environment()
    assert "variables" not in plain
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    other = provenance.environment()
    assert other["variables"] == {"NVIDIA_TF32_OVERRIDE": "0"}
    assert provenance.fingerprint(other) != provenance.fingerprint(plain)


def test_versions_of_a_side_environment_make_a_record_stale() -> None:
    plain = provenance.environment()
    other = {**plain, "packages": {**plain["packages"], "gptqmodel": "9.9"}}
    assert provenance.fingerprint(other) != provenance.fingerprint(plain)


# --- digests of files ------------------------------------------------------------------------------
def test_a_digest_is_remembered_only_while_a_file_is_the_same(tmp_path: Path) -> None:
    file, kept = tmp_path / "x", tmp_path / "digests"
    file.write_text("one")
    digests = FileDigests(kept)
    one = digests.of(file)
    assert not kept.exists(), "changed a moment ago: another write could leave the same times"
    import time

    now = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 2 * SETTLED_S)
        assert digests.of(file) == one
    (entry,) = kept.iterdir()
    entry.write_text(entry.read_text().replace(one, "f" * 64))
    assert FileDigests(kept).of(file) == "f" * 64, "an unchanged file is not read again"
    times = file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert FileDigests(kept).of(file) not in (one, "f" * 64)
    entry.write_text("[")
    assert len(FileDigests(kept).of(file)) == 64


# --- the worker ------------------------------------------------------------------------------------
def test_two_checkpoints_of_one_name_are_two_cells(bench: Bench, tmp_path: Path, tiny_model: Path) -> None:
    for name in ("runA", "runB"):
        shutil.copytree(tiny_model, bench.root / name / "final")
    noise(bench.root / "runB" / "final")
    path = bench.write(models=["./runA/final", "./runB/final"], methods=["none"])
    assert bench("run", str(path)).returncode == 0
    records = bench.records()
    assert {r["outcome"]["status"] for r in records} == {"ok"}
    assert len({r["key"] for r in records}) == len({r["cell"]["model"]["revision"] for r in records}) == 2
    assert len({r["environment"]["facts"]["weights_sha256"] for r in records}) == 2
    again = bench("run", str(path))
    assert "nothing to run; 2 already done" in again.stdout
    noise(bench.root / "runA" / "final")
    noise(bench.root / "runA" / "final")
    file = bench.root / "runA" / "final" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert bench("run", str(path)).returncode == 0
    assert len(bench.records()) == 3, "retrained in place: another cell"


def test_a_worker_refuses_other_bytes_than_the_plan_named(bench: Bench, tiny_model: Path) -> None:
    """The digest that the plan remembers is forged; the worker reads the file itself."""
    shutil.copytree(tiny_model, bench.root / "model")
    path = bench.write(models=["./model"], methods=["none"])
    digests = FileDigests(bench.root / "cache" / "digests")
    old = os.stat(bench.root / "model" / "model.safetensors").st_mtime
    for file in (bench.root / "model").iterdir():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda: old + 3600)
            digests.of(file)
    for entry in (bench.root / "cache" / "digests").iterdir():
        content = json.loads(entry.read_text())
        entry.write_text(json.dumps({**content, "sha256": "0" * 64}))
    assert bench("run", str(path)).returncode == 1
    (record,) = bench.records()
    assert record["outcome"]["check"] == "model-files"
    assert "changed after the cell was planned" in record["outcome"]["reason"]
    assert not [name for name in record["metrics"] if "accuracy" in name]


def test_a_model_replaced_during_the_run_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    from types import SimpleNamespace

    from harness.errors import CheckFailed
    from runners.worker import model_files

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    revision = sources.identity(str(folder), revision=None, task_digest=str)["revision"]
    job = SimpleNamespace(cell={"model": {"revision": revision}}, model=str(folder))
    ctx: Any = SimpleNamespace(job=job, path=str(folder), facts={}, model_stamps={}, model=None)
    model_files.verify(ctx)
    model_files.verify_unchanged(ctx)
    os.link(folder / "model.safetensors", tmp_path / "another-name")  # changes the file's ctime, not its bytes
    model_files.verify_unchanged(ctx)
    noise(folder)
    with pytest.raises(CheckFailed, match="changed while the cell ran"):
        model_files.verify_unchanged(ctx)
    with pytest.raises(CheckFailed, match="changed after the cell was planned"):
        model_files.verify(ctx)
