"""JSON Schema and reference page of the keys that a user writes: sweeps, tasks, boards, a workspace's defaults."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

TITLES: dict[str, str] = {
    "sweep": "A sweep: `runners/sweeps/NAME.yaml`",
    "task": "A task: `tasks/NAME.yaml`",
    "board": "A board: `reports/boards/NAME.yaml`",
    "workspace": "Defaults of a workspace: `peft-matrix.yaml` in its root",
}
NAME: dict[str, Any] = {"type": "string"}
ARCHITECTURE = {
    "type": "object",
    "properties": {"architecture": NAME, "weights": {"const": "random"}, "overrides": {"type": "object"}},
    "required": ["architecture", "weights"],
}
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    **dict.fromkeys(
        ("MethodSpec", "QuantizationSpec", "TaskUse", "SkillUse", "ObjectiveSpec", "RecipeSpec", "LmEvalUse"), (NAME,)
    ),
    "VariantSpec": (NAME,),
    "ModelSpec": (NAME, ARCHITECTURE),
    "SecondModel": (NAME, {"$ref": "#/$defs/ModelSpec"}),
}
"""Other forms in which a file may give these definitions: ``methods: [lora]``."""
MEANINGS = {
    "name": "registered name (`peft-matrix methods`, `quantizers`, `objectives`, `recipes`, `tasks` list them)",
    "label": "shown instead of the name; needed where one name is used twice",
    "params": "parameters; the lists of `peft-matrix methods NAME` have the defaults",
    "teacher": "the model that is asked",
    "learning_rate": "for this method; null: the sweep's rate times the method's factor",
    "model": "pattern over model ids, such as `package:*`",
    "method": "pattern over method labels",
    "quantization": "pattern over quantization labels",
    "task": "pattern over task labels",
    "hardware": "pattern over hardware profiles",
    "objective": "pattern over objective labels",
    "recipe": "pattern over recipe labels",
    "sweep": "pattern over names of sweeps",
    "seed": "seed of every random choice",
    "metric": "name of a metric (docs/metrics.md)",
    "stage": "stage of a cell in which it was measured; null: of the whole cell",
    "SweepSpec.name": "under which records are filed; the file is NAME.yaml",
    "summary": "one line, shown in lists and above boards",
    "models": "models to fine-tune",
    "methods": "fine-tuning methods, and the untrained baselines `none` and `few-shot`",
    "SweepSpec.quantization": "number formats of the weights",
    "tasks": "what is learned and scored",
    "objectives": "what is trained for: supervised, preferences, distillation",
    "recipes": "what is done to the training rows",
    "SweepSpec.hardware": "hardware profiles (runners/hardware)",
    "seeds": "each is a separate cell",
    "training": "the training budget",
    "evaluation": "how cells are scored",
    "probes": "measurements after scoring",
    "limits": "time, threads and places; no number of a record but time depends on them",
    "accounting": "constants for CO2 and money",
    "SweepSpec.stages": "what is trained before the cell's own training, in order",
    "stages": "pattern over labels of stages",
    "earlier": "stages that are trained before the last one, each a separate cell",
    "Inclusion.stages": "what is trained before",
    "variants": "cost switches of training, each compared with the plain variant",
    "variant": "pattern over labels of variants",
    "SweepSpec.parallel": "strategies on several devices of a machine; `none` is one device",
    "parallel": "pattern over labels of parallel strategies",
    "Inclusion.parallel": "its parallel strategy",
    "VariantSpec.max_length": "tokens, in the place of the sweep's",
    "Inclusion.variant": "its variant",
    "tune": "choose learning rates on validation data, with the same budget for every method",
    "priority": "order of the cells",
    "exclude": "cells left out on purpose",
    "include": "extra cells outside the product of the axes",
    "board": "board drawn by `peft-matrix board`",
    "price_per_kwh": "of electricity",
    "price_per_gpu_hour": "of one GPU",
    "temperature": "0: greedy",
    "top_k": "sample from so many tokens; null: from all",
    "top_p": "sample from the most likely tokens that have this share; null: from all",
    "Evaluation.batch_size": "items scored at once",
    "decoding": "how answers are generated",
    "retention": "score the task's `retain` tasks before and after adaptation",
    "merged": "merge the adapter into the base, and score again",
    "why": "the reason, shown on the board",
    "value": "priority; higher runs first",
    "epochs": "passes over the training items, in the place of `steps`",
    "early_stopping": "end training when the validation split no longer improves, and keep the best weights",
    "patience": "evaluations in a row without a better score",
    "EarlyStopping.metric": "score of the validation split that decides",
    "Target.value": "score at which the target is met",
    "timeout_s": "a cell that takes longer is stopped and recorded as `timeout`",
    "id": "source of the model",
    "HubSource.id": "OWNER/NAME of the data set",
    "revision": "commit, branch or tag on the Hub",
    "dtype": "number format of the weights",
    "attention": "attention kernel",
    "trust_remote_code": "run code that the model's repository brings",
    "latency_batch_sizes": "requests at once",
    "prompt_tokens": "prompt lengths",
    "moment": "quantize before training, or after training and merging",
    "SecondModel.model": "which model",
    "SecondModel.quantization": "number format of its weights",
    "train_items": "training rows used; null: all of the split",
    "validation_items": "validation items used; null: all",
    "test_items": "test items scored; null: all",
    "Training.steps": "optimizer steps",
    "steps": "optimizer steps",
    "batch_size": "rows of a micro-batch",
    "gradient_accumulation": "micro-batches of a step",
    "Training.learning_rate": "of full fine-tuning; a method trains at this times its factor",
    "schedule": "of the learning rate",
    "warmup_fraction": "share of the steps in which the rate rises",
    "restart_cycles": "falls of `cosine_with_restarts`",
    "polynomial_power": "of `polynomial`",
    "decay_fraction": "share of the steps in which `wsd` falls",
    "weight_decay": "of the optimizer; decoupled but for `sgd`",
    "max_grad_norm": "gradients are clipped to this norm",
    "adam_betas": "of AdamW, in 8 bits as well",
    "gradient_checkpointing": "recompute activations in the backward pass: less memory, more time",
    "target": "a score; the time and energy to reach it are measured",
    "on_oom": "out of memory in training: record it, or restart with half the batch",
    "select": "what the trials are compared by",
    "trials": "of optuna's samplers",
    "prune_every": "steps between two looks of the pruner",
    "version": "raise it with every change that can alter a score",
    "kind": "what an item is and how it is scored",
    "licence": "of the data",
    "citation": "paper or page of the data",
    "source": "where rows come from",
    "splits": "split of the task to rows of the source; `train` and `test` are needed",
    "max_new_tokens": "generation stops after so many tokens",
    "notes": "what a reader of scores should know",
    "field": "field with the text",
    "after": "text before the options",
    "separator": "between two options",
    "from": "split of the source",
    "DerivedColumn.from": "template over the row, or with `each` the path of a list",
    "hub": "data set on the Hub",
    "title": "heading of the board",
    "columns": "columns of the table, from left to right",
    "baseline": "the row that `difference` columns compare with",
    "Baseline.method": "its method label",
    "Baseline.quantization": "its quantization label",
    "show": "of an interval: its value, or also its ends",
    "Inclusion.seed": "of the cell",
    **{
        f"Inclusion.{axis}": f"its {axis}"
        for axis in ("model", "method", "quantization", "task", "objective", "recipe")
    },
}
"""Meanings of keys that their class does not describe; ``Class.key`` comes before ``key``."""
ONE_OR_MORE = ("RowFilter", "Axis")
"""Definitions whose lists may be given as one value."""


def model_of(kind: str) -> type[BaseModel]:
    """The class that a file of this kind is read into."""
    if kind == "sweep":
        from harness.spec import SweepSpec

        return SweepSpec
    if kind == "task":
        from tasks.task import TaskDefinition

        return TaskDefinition
    if kind == "workspace":
        from runners.workspace import Defaults

        return Defaults
    from reports.board.spec import Board

    return Board


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a ``sweep``, ``task``, ``board`` or ``workspace`` file, for editors.

    It is generated from the classes that read the files. What depends on several keys is checked on loading alone.

    Raises:
        UserError: another kind.
    """
    if kind not in TITLES:
        raise UserError(f"there is no schema of a {kind!r}", fix=f"There is one of: {', '.join(TITLES)}.")
    model = model_of(kind)
    made = model.model_json_schema()
    described = {one.__name__: _attributes(one) for one in _models(model, set())}
    for name, one in {model.__name__: made, **made.get("$defs", {})}.items():
        one["description"] = _plain(one.get("description", "").split("\n\n")[0].replace("\n", " "))
        for key, value in one.get("properties", {}).items():
            told = {**MEANINGS, **described.get(name, {}), **_of_class(name)}
            if key in told:
                value["description"] = _plain(value.get("description", told[key]))
            if name in ONE_OR_MORE and value.get("type") == "array":
                value["anyOf"] = [{"type": value.pop("type"), "items": value.pop("items")}, NAME]
    found: dict[str, Any] = _other_forms(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": TITLES[kind].replace("`", "")}


def _of_class(name: str) -> dict[str, str]:
    return {key.partition(".")[2]: text for key, text in MEANINGS.items() if key.startswith(f"{name}.")}


def _plain(text: str) -> str:
    """Text of a docstring as Markdown: references and double quotes of code become single ones."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _other_forms(part: object) -> Any:
    """Allow the forms of :data:`FORMS` wherever one of these definitions is asked for."""
    if isinstance(part, list):
        return [_other_forms(one) for one in part]
    if not isinstance(part, dict):
        return part
    forms = FORMS.get(str(part.get("$ref", "")).rpartition("/")[2], ())
    if forms:
        rest = {key: value for key, value in part.items() if key != "$ref"}
        return {"anyOf": [*forms, {"$ref": part["$ref"]}], **rest}
    return {key: _other_forms(value) for key, value in part.items()}


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    from pydantic import BaseModel

    def inside(annotation: object) -> list[type[BaseModel]]:
        own = [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
        return own + [one for argument in getattr(annotation, "__args__", ()) for one in inside(argument)]

    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for one in inside(field.annotation):
                _models(one, seen)
    return seen


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The ``Attributes:`` section of a class: name to text."""
    _, _, section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    lines = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", lines + "\n", flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in entries}


# --- the page --------------------------------------------------------------------------------------
HEAD = """# Keys of sweep, task, board and workspace files

Every key, its type, its default and what it does. Generated by `make docs` from the classes that read the files.
`peft-matrix schema sweep` prints the same as JSON Schema. An editor with a YAML language server completes and checks a
file whose first line names it, as in the files of `peft-matrix init`:

```yaml
# yaml-language-server: $schema=../../schemas/sweep.json
```

A **name** can be given in place of an entry of `models`, `methods`, `quantization`, `tasks`, `objectives`, `recipes`
and `lm_eval`: `methods: [lora]` is `methods: [{name: lora}]`. `-o KEY=VALUE` of `plan`, `run`, `status`, `board` sets
one key of a sweep: `-o training.steps=10`.
"""


def to_markdown() -> str:
    """The page ``docs/keys.md``."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        made = schema(kind)
        parts.append(f"\n## {title}\n\n{made['description']}\n\n{_table(made)}")
        for name, one in made.get("$defs", {}).items():
            if one.get("properties"):
                parts.append(f"\n### {kind}: `{name}`\n\n{one['description']}\n\n{_table(one)}")
    return "".join(parts)


def _table(part: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in part["properties"].items():
        default = "required" if key in part.get("required", ()) else f"`{_shown(value.get('default'))}`"
        meaning = value.get("description", "")
        rows.append(f"| `{key}` | {_type(value)} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    import json

    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _type(value: dict[str, Any]) -> str:
    """A key's type in words."""
    if "$ref" in value:
        return f"`{value['$ref'].rpartition('/')[2]}`"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys("name" if one == NAME else _type(one) for one in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if "items" in value else "list"
    if value.get("type") == "object":
        return f"mapping with `{next(iter(value['properties']))}`" if value.get("properties") else "mapping"
    return {"number": "number", "integer": "whole number", "string": "text", "boolean": "true or false"}.get(
        str(value.get("type")), str(value.get("type", "any"))
    )
