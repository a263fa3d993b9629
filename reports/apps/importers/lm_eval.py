"""Results of EleutherAI's lm-evaluation-harness: ``results_<date>.json``, with ``samples_<task>_<date>.jsonl`` in the
same folder.

One record a task. Groups are means over tasks and are left out; a board computes its own means. The harness
trains nothing, so the method is the adapter that was loaded, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.bounded import check_shape, parse_json, read_text
from harness.digests import digest
from harness.errors import UserError
from harness.metrics import missing, reading
from harness.record import Outcome, Reading
from harness.store.samples import samples_ref, samples_to_parquet
from reports.apps.importers.base import (
    MAX_BYTES,
    Content,
    ForeignFields,
    Imported,
    Origin,
    Scalar,
    make_record,
    name_unmapped,
    number,
    read_json,
    typed,
)

TOOL = "lm-eval"
LATEST_S = 253_402_300_800.0
"""Seconds to the end of the year 9999, the last that a date can hold."""
ACCURACIES = ("acc", "exact_match", "em")
"""Metrics that are the share of items answered right, in order of preference."""
OTHERS = {"acc_bytes": "accuracy_norm", "mcc": "matthews"}

LACKS = (
    "training: how the adapter came about is not in the file",
    "time, memory, energy and size",
    "driver, clocks and power limit; the environment is free text",
    "lengths of samples are characters, not tokens; whether an input was cut is not recorded",
)
MAPPED = (
    "results.*.acc,*",
    "results.*.acc_bytes,*",
    "results.*.exact_match,*",
    "results.*.em,*",
    "results.*.mcc,*",
    "results.*.alias",
    "results.*.name",
    "results.*.sample_len",
    "results.*.sample_count",
    "configs.*.num_fewshot",
    "configs.*.output_type",
    "configs.*.generation_kwargs.*",
    "configs.*.dataset_path",
    "configs.*.dataset_name",
    "configs.*.test_split",
    "configs.*.metadata.version",
    "versions.*",
    "n-shot.*",
    "n-samples.*",
    "task_hashes*",
    "config.*",
    "git_hash",
    "date",
    "transformers_version",
    "lm_eval_version",
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "model_name",
)
REASONS = {
    "results.*.*_stderr,*": "sampling error only; intervals are made from the samples",
    "results.*.acc_norm,*": "normalised by characters; our accuracy_norm is per byte (acc_bytes)",
    "results.*.f1,*": "F1 of one class; our macro_f1 is the mean over classes",
    "results.*.*": "we have no quantity for this metric",
    "groups*": "means over tasks; a board makes its own",
    "group_subtasks*": "means over tasks; a board makes its own",
    "higher_is_better*": "directions are defined with our quantities",
    "configs.*": "the task's definition; its hash is kept where samples were logged",
    "pretty_env_info": "free text; parsing it would be a guess",
    "tokenizer_*": "follows from the model",
    "eot_token_id": "follows from the model",
    "max_length": "follows from the model",
    "upper_git_hash": "commit of a surrounding checkout",
    "model_source": "is part of the model's name and arguments",
    "model_name_sanitized": "a folder's name",
    "system_instruction": "its hash is kept",
    "chat_template": "its hash is kept",
    "start_time": "a monotonic clock's; the date is kept",
    "end_time": "a monotonic clock's; the date is kept",
    "total_evaluation_time_seconds": "all tasks and the loading of the model together",
}


class _EvaluationSettings(ForeignFields):
    model: Scalar = None
    model_args: str | dict[str, object] | None = None
    model_sha: str | None = None
    peft_sha: str | None = None
    model_dtype: str | None = None
    batch_size: Scalar = None
    device: str | None = None
    limit: Scalar = None
    random_seed: int | None = None


class _Definition(ForeignFields):
    dataset_path: Scalar = None
    dataset_name: Scalar = None
    output_type: Scalar = None
    generation_kwargs: dict[str, object] | None = None


class _LmEvalFile(ForeignFields):
    results: dict[str, dict[str, Any]]
    configs: dict[str, _Definition]
    config: _EvaluationSettings
    groups: dict[str, object] | None = None
    group_subtasks: dict[str, object] | None = None
    versions: dict[str, Scalar] | None = None
    shots: dict[str, Scalar] | None = Field(default=None, alias="n-shot")
    counts: dict[str, dict[str, Scalar] | None] | None = Field(default=None, alias="n-samples")
    task_hashes: dict[str, Scalar] | None = None
    model_name: Scalar = None
    lm_eval_version: Scalar = None
    transformers_version: Scalar = None
    git_hash: Scalar = None
    chat_template_sha: Scalar = None
    system_instruction_sha: Scalar = None
    fewshot_as_multiturn: Scalar = None


class _Item(ForeignFields):
    doc_id: str | int
    target: object
    filtered_resps: list[object]
    filter: str | None = None


def read(path: Path) -> list[Imported]:
    """One record for every task of a results file.

    Raises:
        UserError: the file is not one of this harness, or its samples are damaged.
    """
    content = read_json(path, "results", "configs", "config")
    typed(content, _LmEvalFile, path)
    groups = set(content.get("group_subtasks") or {}) | set(content.get("groups") or {})
    version = str(content.get("lm_eval_version") or content.get("git_hash") or "")
    origin = Origin(TOOL, version, path, LACKS, name_unmapped(content, MAPPED, REASONS))
    tasks = [name for name in sorted(content["results"]) if name in content["configs"] and name not in groups]
    return [_task(origin, content, name) for name in tasks]


def _task(origin: Origin, content: Mapping[str, Any], task: str) -> Imported:
    scores = {key: value for key, value in content["results"][task].items() if number(value) is not None}
    chosen = next((key for name in ACCURACIES for key in sorted(scores) if key.split(",")[0] == name), "")
    rows = _samples(origin.file, task, chosen)
    data = samples_to_parquet(rows) if rows else None
    when = number(content.get("date"))
    known = when is not None and 0 <= when < LATEST_S
    date = datetime.fromtimestamp(when or 0.0, UTC).isoformat(timespec="seconds") if known else ""
    made = Content(
        cell=_cell(content, task, chosen),
        outcome=Outcome(status="ok", stage="evaluate"),
        metrics=_metrics(content, task, scores, chosen),
        samples=samples_ref(data) if data is not None else None,
        environment={
            "packages": {
                "transformers": content.get("transformers_version"),
                "lm-eval": content.get("lm_eval_version"),
            },
            "commits": {"lm-eval": content.get("git_hash")},
            "cpu": {"model": "not stated"},
            "gpus": [{"name": "not stated"}],
        },
        started=date,
        finished=date,
    )
    used = {reading_.source.removeprefix("lm-eval ") for reading_ in made.metrics.values()}
    others = {
        f"results.{task}.{key}": f"another filter or form of {chosen!r}, which is mapped already"
        for key in sorted(scores)
        if "," in key and key.split(",")[0] in (*ACCURACIES, *OTHERS) and key not in used
    }
    return Imported(make_record(replace(origin, unmapped={**origin.unmapped, **others}), made), data)


def _metrics(content: Mapping[str, Any], task: str, scores: Mapping[str, Any], chosen: str) -> dict[str, Reading]:
    counts = (content.get("n-samples") or {}).get(task) or {}
    n = counts.get("effective") if type(counts.get("effective")) is int else None
    out = {}
    if chosen:
        out["accuracy"] = reading("accuracy", scores[chosen], source=f"lm-eval {chosen}", n=n)
    else:
        out["accuracy"] = missing("accuracy", "not_measured", source="lm-eval: the task has no share of right answers")
    for key in sorted(scores):
        name = OTHERS.get(key.split(",")[0])
        if name and name not in out:
            out[name] = reading(name, scores[key], source=f"lm-eval {key}", n=n)
    return out


def _arguments(config: Mapping[str, object]) -> dict[str, str]:
    """``model_args``, which is text (``a=b,c=d``) or a mapping."""
    given = config.get("model_args") or {}
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    return {name: value for name, _, value in (part.partition("=") for part in str(given).split(",")) if name}


def _cell(content: Mapping[str, Any], task: str, chosen: str) -> dict[str, object]:
    config, arguments = content["config"], _arguments(content["config"])
    model = arguments.pop("pretrained", "") or str(content.get("model_name") or config.get("model"))
    adapter = arguments.pop("peft", "")
    revision = config.get("model_sha") or arguments.pop("revision", None)
    quantization = {name: arguments.pop(name) for name in sorted(arguments) if name.startswith(("load_in_", "bnb_"))}
    definition = content["configs"][task]
    name = definition.get("dataset_name")
    decoding = definition.get("generation_kwargs") or {}
    return {
        "model": {
            "label": model.rpartition("/")[2],
            "id": model,
            "revision": revision,
            "dtype": arguments.pop("dtype", config.get("model_dtype")),
            "attention": arguments.pop("attn_implementation", None),
            "arguments": arguments,
        },
        "method": {
            "label": Path(adapter).name if adapter else "none",
            "name": "adapter" if adapter else "none",
            "params": {"adapter": adapter} if adapter else {},
            "revision": config.get("peft_sha"),
            "learning_rate": None,
            "steps": None,
        },
        "quantization": _quantization(quantization),
        "task": {
            "label": task,
            "name": task,
            "version": (content.get("versions") or {}).get(task),
            "digest": (content.get("task_hashes") or {}).get(task) or digest(definition),
            "dataset": f"{definition.get('dataset_path')}" + (f"/{name}" if name else ""),
            "kind": definition.get("output_type"),
            "metric": chosen,
            "test_items": ((content.get("n-samples") or {}).get(task) or {}).get("effective"),
        },
        "hardware": {"label": str(config.get("device") or "not stated"), "device": str(config.get("device"))[:4]},
        "training": {},
        "evaluation": {
            "shots": (content.get("n-shot") or {}).get(task),
            "batch_size": config.get("batch_size"),
            "limit": config.get("limit"),
            "decoding": decoding,
            "chat_template_sha": content.get("chat_template_sha"),
            "system_instruction_sha": content.get("system_instruction_sha"),
            "fewshot_as_multiturn": content.get("fewshot_as_multiturn"),
        },
        "seed": config.get("random_seed"),
    }


def _quantization(found: Mapping[str, str]) -> dict[str, object]:
    on = {name for name, value in found.items() if name.startswith("load_in_") and value.lower() == "true"}
    label = "none"
    if on:
        label = f"bnb-{found.get('bnb_4bit_quant_type', '4bit')}" if "load_in_4bit" in on else "bnb-int8"
    return {"label": label, "name": label, "params": dict(found), "moment": "before_training"}


# --- samples -------------------------------------------------------------------------------------
def _samples(results: Path, task: str, chosen: str) -> list[dict[str, object]]:
    """Scored items of the chosen metric and filter; [] where none were logged."""
    stamp = results.stem.partition("_")[2]
    path = results.with_name(f"samples_{task}_{stamp}.jsonl")
    if not chosen or not path.is_file():
        return []
    metric, _, kind = chosen.partition(",")
    rows = []
    for number_, line in enumerate(read_text(path, most=MAX_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        item = parse_json(line, where=f"{path}:{number_}", nan=True)
        check_shape(item, _Item, where=f"{path}:{number_}")
        try:
            if item.get("filter", kind) == kind and metric in item:
                rows.append(_sample(task, item, metric))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"not a sample of this harness ({error})", where=f"{path}:{number_}") from error
    return rows


def _sample(task: str, item: Mapping[str, Any], metric: str) -> dict[str, object]:
    target, answers = item["target"], item["filtered_resps"]
    row: dict[str, Any] = {
        "arm": "adapted",
        "task": task,
        "item": str(item["doc_id"]),
        "correct": bool(item[metric]),
        "answer": str(target),
        "cut": False,
    }
    read = [number(a[0]) for a in answers if isinstance(a, list) and len(a) == 2]
    logs = [value for value in read if value is not None]
    if answers and len(logs) == len(answers):  # log-likelihoods of the choices
        row["prediction"] = str(max(range(len(logs)), key=logs.__getitem__))
        row["logp_choices"] = logs
        place = str(target)
        right = int(place) if place.isdecimal() and len(place) < 10 and int(place) < len(logs) else None
        if right is not None:
            row["logp_answer"] = logs[right]
            row["margin"] = logs[right] - max([v for i, v in enumerate(logs) if i != right], default=logs[right])
        row["length"] = len(str(target))
    else:
        row["prediction"] = str(answers[0]) if answers else ""
        row["length"] = len(row["prediction"])
    return row
