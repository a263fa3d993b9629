"""Results of peft's own comparison suite (``method_comparison/MetaMathQA/results``): one JSON file a run.

Quantities that the suite defines differently keep a separate name: its memory peak is that of the whole process, its
training time includes data preparation and the test generation. Nothing of it is shared between the
kinds of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harness.digests import digest
from harness.metrics import missing, reading
from harness.record import Outcome, Reading
from reports.apps.importers.base import (
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

TOOL = "peft-method-comparison"
SUITE = "peft method_comparison result file"
TEST_ITEMS = {"gsm8k": 1319}
VALIDATION_ITEMS = 50
ADALORA_REASONS = {"run_info.peft_config.rank_pattern.*": "a result of training (AdaLoRA's masks), not a setting"}
DUMMY_FILE_SIZE = 99_999_999
STATUS = {"success": "ok", "canceled": "error", "failed": "error", "running": "lost"}

LACKS = (
    "samples: no per-item outputs, so rows cannot be compared by paired tests and are not ranked",
    "seeds: one seed",
    "stages: one memory peak for loading, training and test generation together",
    "energy and latency are not measured",
    "driver, clocks and power limit of the GPU; the processor's model",
    "foreign processes on the GPU: the suite's check sees its own process only",
    "why a run was cancelled: out of memory, crash and Ctrl-C share one status",
)
MAPPED = (
    "run_info.created_at",
    "run_info.total_time",
    "run_info.experiment_name",
    "run_info.train_config.*",
    "run_info.peft_config*",
    "run_info.error_msg",
    "train_info.status",
    "train_info.accelerator_memory_max",
    "train_info.train_time",
    "train_info.file_size",
    "train_info.num_trainable_params",
    "train_info.num_total_params",
    "train_info.metrics.step",
    "train_info.metrics.train loss",
    "train_info.metrics.train time",
    "train_info.metrics.train samples",
    "train_info.metrics.valid accuracy",
    "train_info.metrics.test accuracy",
    "train_info.metrics.forgetting",
    "meta_info.model_info.sha",
    "meta_info.dataset_info.*.sha",
    "meta_info.package_info.*",
    "meta_info.system_info.*",
)
REASONS = {
    "run_info.peft_branch": "results of other branches are in other folders; the commit of peft is kept",
    "run_info.peft_config.peft_version": "is listed among the packages",
    "train_info.accelerator_memory_reserved_avg": "what is left after a step, not a peak; depends on cache flushes",
    "train_info.accelerator_memory_reserved_99th": "what is left after a step, not a peak; depends on cache flushes",
    "train_info.metrics.mem *": "what is left after a step, not a peak; depends on cache flushes",
    "train_info.metrics.tokens / sec": "whether padding tokens are counted is not stated",
    "train_info.metrics.train total tokens": "whether padding tokens are counted is not stated",
    "train_info.metrics.eval time": "evaluation between the steps; we have no quantity for it",
    "train_info.metrics.elapsed time": "mixes training, evaluation and set-up",
    "meta_info.*_info.created_at": "date of the Hub repository; its commit is kept",
    "meta_info.dataset_info.*.created_at": "date of the Hub repository; its commit is kept",
    "meta_info.pytorch_info": "build flags; torch's version is kept",
}


class _TrainConfig(ForeignFields):
    model_id: str
    batch_size: Scalar = None
    max_steps: Scalar = None
    eval_steps: Scalar = None
    seed: int | None = None
    optimizer_kwargs: dict[str, Any] | None = None
    generation_kwargs: dict[str, Any] | None = None


class _RunInfo(ForeignFields):
    train_config: _TrainConfig
    peft_config: dict[str, Any] | None = None
    experiment_name: str
    created_at: str | None = None
    error_msg: str | None = None


class _Train(ForeignFields):
    status: Scalar = None
    metrics: list[dict[str, object]] | None = None


class _Source(ForeignFields):
    sha: Scalar = None


class _Meta(ForeignFields):
    model_info: _Source | None = None
    dataset_info: dict[str, _Source] | None = None
    package_info: dict[str, Scalar] | None = None
    system_info: dict[str, Scalar] | None = None


class _SuiteFile(ForeignFields):
    run_info: _RunInfo
    train_info: _Train
    meta_info: _Meta


def read(path: Path) -> list[Imported]:
    """The record of one result file.

    Raises:
        UserError: the file is not one of this suite.
    """
    content = read_json(path, "run_info", "train_info", "meta_info")
    typed(content, _SuiteFile, path)
    run, train, meta = content["run_info"], content["train_info"], content["meta_info"]
    status = STATUS.get(str(train.get("status")), "error")
    reason = str(run.get("error_msg") or "")
    if status != "ok" and "out of memory" in reason.lower():
        status = "oom"
    if status != "ok" and not reason:
        reason = f"the suite says {train.get('status')!r} and no more"
    windows = [row for row in train.get("metrics") or () if "train time" in row]
    final: Mapping[str, object] = next(
        (row for row in reversed(train.get("metrics") or ()) if "test accuracy" in row), {}
    )
    started = str(run.get("created_at") or "")
    packages = {
        name.removesuffix("-version"): version
        for name, version in (meta.get("package_info") or {}).items()
        if name.endswith("-version")
    }
    made = Content(
        cell=_cell(run, meta),
        outcome=Outcome.model_validate({"status": status, "stage": "evaluate" if final else "train", "reason": reason}),
        metrics=_metrics(run, train, windows, final),
        series=_series(windows),
        environment=_environment(meta, packages),
        started=started,
        finished=_finished(started, number(run.get("total_time"))),
    )
    reasons = REASONS | (ADALORA_REASONS if made.cell["method"]["name"] == "adalora" else {})
    commit = str((meta.get("package_info") or {}).get("peft-commit-hash") or "")
    origin = Origin(
        tool=TOOL,
        version=f"peft {packages.get('peft', '')} {commit[:12]}".strip(),
        file=path,
        lacks=LACKS,
        unmapped=name_unmapped(content, MAPPED, reasons),
        notes=("Source: huggingface/peft, method_comparison, Apache-2.0.",),
    )
    return [Imported(make_record(origin, made))]


def _cell(run: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, object]:
    """The cell in our shape. What the suite tunes per method (optimizer, rate) belongs to the method."""
    config = run["train_config"]
    shas = {name: part.get("sha") for name, part in sorted((meta.get("dataset_info") or {}).items())}
    model = str(config["model_id"])
    batch, steps = config.get("batch_size"), config.get("max_steps")
    return {
        "model": {
            "label": model.rpartition("/")[2],
            "id": model,
            "revision": (meta.get("model_info") or {}).get("sha"),
            "dtype": config.get("dtype"),
            "attention": config.get("attn_implementation"),
        },
        "method": _method(run, config),
        "quantization": {"label": "none", "name": "none", "params": {}, "moment": "before_training", "base": "fp"},
        "task": {
            "label": "metamathqa-gsm8k",
            "name": "metamathqa-gsm8k",
            "version": "peft-suite",
            "digest": digest(shas),
            "data_revisions": shas,
            "kind": "generation",
            "prompt": config.get("query_template"),
            "train_items": batch * steps if isinstance(batch, int) and isinstance(steps, int) else None,
            "validation_items": VALIDATION_ITEMS,
            "test_items": TEST_ITEMS["gsm8k"],
        },
        "hardware": {
            "label": str((meta.get("system_info") or {}).get("accelerator") or "not stated"),
            "device": "cuda",
        },
        "training": {
            "steps": steps,
            "batch_size": batch,
            "schedule": config.get("lr_scheduler"),
            "max_length": config.get("max_seq_length"),
            "max_grad_norm": config.get("grad_norm_clip"),
            "gradient_checkpointing": config.get("use_gc"),
            "compile": config.get("compile"),
            "amp": config.get("use_amp"),
        },
        "evaluation": {
            "batch_size": config.get("batch_size_eval"),
            "every_steps": config.get("eval_steps"),
            "decoding": config.get("generation_kwargs"),
        },
        "seed": config.get("seed"),
    }


def _method(run: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    peft = run.get("peft_config") or {}
    kind = str(peft.get("peft_type") or "full").lower()
    left_out = ("peft_type", "peft_version", "base_model_name_or_path", "inference_mode", "auto_mapping")
    params = {k: v for k, v in peft.items() if k not in left_out and v not in (None, {}, [])}
    if kind == "adalora":
        params.pop("rank_pattern", None)
    optimizer = dict(config.get("optimizer_kwargs") or {})
    return {
        "label": _label(str(run["experiment_name"]), str(config["model_id"])),
        "name": kind,
        "params": params,
        "learning_rate": optimizer.pop("lr", None),
        "steps": config.get("max_steps"),
        "optimizer": {"name": config.get("optimizer_type"), **optimizer},
        "autocast_adapter_dtype": config.get("autocast_adapter_dtype"),
        "init_kv_cache_prefix": config.get("init_kv_cache_prefix"),
    }


def _label(experiment: str, model: str) -> str:
    """``lora/llama-3.2-3B-rank32`` -> ``lora rank32``: the model has a separate column."""
    kind, _, name = experiment.partition("/")
    short = model.rpartition("/")[2].lower()
    tail = name[len(short) :].lstrip("-") if name.lower().startswith(short) else name
    return kind if tail in ("", "default") else f"{kind} {tail}"


def _metrics(
    run: Mapping[str, object],
    train: Mapping[str, object],
    windows: list[Mapping[str, object]],
    final: Mapping[str, object],
) -> dict[str, Reading]:
    found: dict[str, Reading] = {"accuracy": _accuracy(final)}
    forgetting = number(final.get("forgetting"))
    if forgetting is not None:
        found["forgetting_nll"] = reading("forgetting_nll", forgetting, source=f"{SUITE}, forgetting")
    for name, key in (
        ("trainable_parameters", "num_trainable_params"),
        ("total_parameters", "num_total_params"),
        ("process_reserved_peak_bytes", "accelerator_memory_max"),
        ("run_train_s", "train_time"),
    ):
        value = number(train.get(key))
        if value:  # a run that was cancelled early writes 0 for what it has not measured
            found[name] = reading(name, value, source=f"{SUITE}, {key}")
    found["adapter_bytes"] = _file_size(run, train)
    seconds = sum(number(row.get("train time")) or 0.0 for row in windows)
    samples = number(windows[-1].get("train samples")) if windows else None
    if seconds > 0:
        found["train_s"] = reading("train_s", seconds, source=f"{SUITE}, sum of 'train time' over its windows")
        if samples:
            found["train_samples_per_s"] = reading(
                "train_samples_per_s", samples / seconds, source=f"{SUITE}, 'train samples' over summed 'train time'"
            )
    tail = _last_tenth(run, windows)
    if tail:
        found["train_loss"] = reading(
            "train_loss", sum(tail) / len(tail), source=f"{SUITE}, mean of the windows of the last tenth", n=len(tail)
        )
    return found


def _accuracy(final: Mapping[str, object]) -> Reading:
    value = number(final.get("test accuracy"))
    if value is None:
        return missing("accuracy", "stage_not_reached", source=SUITE)
    # the file does not say how many items there were; the rate must fit the split's size, or n stays unknown
    items = TEST_ITEMS["gsm8k"]
    fits = abs(value * items - round(value * items)) < 1e-6
    details = {"n": "size of the GSM8K test split, which the rate fits; not in the file"} if fits else {}
    return reading("accuracy", value, source=f"{SUITE}, test accuracy", n=items if fits else None, details=details)


def _file_size(run: Mapping[str, object], train: Mapping[str, object]) -> Reading:
    size = number(train.get("file_size"))
    if not size or size == DUMMY_FILE_SIZE:
        why = "the suite writes a placeholder where it could not read the file's size"
        return missing("adapter_bytes", "not_measured", source=SUITE, details={"why": why})
    if not run.get("peft_config"):
        why = "for full fine-tuning the suite multiplies parameters by bytes and saves nothing"
        return missing("adapter_bytes", "not_measured", source=SUITE, details={"why": why, "estimated_bytes": size})
    return reading("adapter_bytes", size, source=f"{SUITE}, file_size")


def _last_tenth(run: Mapping[str, Any], windows: list[Mapping[str, object]]) -> list[float]:
    """Losses of the windows that make up the last tenth of the steps; [] if no windows do so exactly."""
    steps = number(run["train_config"].get("max_steps")) or 0.0
    every = number(run["train_config"].get("eval_steps")) or 0.0
    if not windows or not every or number(windows[-1].get("step")) != steps or (steps / 10) % every:
        return []
    found = [number(row.get("train loss")) for row in windows[-round(steps / 10 / every) :]]
    return [value for value in found if value is not None]


def _series(windows: list[Mapping[str, object]]) -> dict[str, tuple[float, ...]]:
    """Values per window of ``eval_steps`` steps, under names that say so."""
    names = {"window_step": "step", "window_loss": "train loss", "window_validation_accuracy": "valid accuracy"}
    out = {}
    for name, key in names.items():
        values = [number(row.get(key)) for row in windows]
        if values and all(value is not None for value in values):
            out[name] = tuple(value for value in values if value is not None)
    return out


def _environment(meta: Mapping[str, Any], packages: Mapping[str, object]) -> dict[str, object]:
    system = meta.get("system_info") or {}
    commits = {k: v for k, v in (meta.get("package_info") or {}).items() if k.endswith("-commit-hash") and v}
    return {
        "packages": dict(packages),
        "commits": commits,
        "platform": " ".join(str(system.get(name) or "") for name in ("system", "release", "version", "machine")),
        "cpu": {"model": f"not stated ({system.get('processor') or 'unknown'})"},
        "gpus": [{"name": str(system.get("accelerator") or "not stated")}],
    }


def _finished(started: str, total_s: float | None) -> str:
    """The run's own end: its start plus its length; the start where the length is not there."""
    try:
        began = datetime.fromisoformat(started)
    except ValueError:
        return started
    return (began + timedelta(seconds=round(total_s or 0.0))).isoformat()
