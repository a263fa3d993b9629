"""Results of optimum-benchmark: ``benchmark.json``, or ``benchmark_report.json`` with ``benchmark_config.json``.

It measures speed, memory and energy, on random data and possibly random weights, and no accuracy. Latency, memory
and energy come from three passes. What is known to be wrong in a field is left out and named.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.digests import digest
from harness.metrics import missing, reading
from harness.record import Outcome, Reading, Span
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

TOOL = "optimum-benchmark"
JOULES = {"kWh": 3_600_000.0, "Wh": 3600.0, "J": 1.0}
BYTES = {"MB": 1e6, "GB": 1e9, "B": 1.0}

LACKS = (
    "accuracy",
    "date: the file does not say when it ran",
    "driver, clocks and power limit of the GPU",
    "a common window: latency, memory and energy come from three passes",
    "idle power",
)
MAPPED = (
    "config.name",
    "config.backend.*",
    "config.scenario.*",
    "config.launcher.name",
    "config.launcher.device_isolation",
    "config.environment.*",
    "report.*.memory.unit",
    "report.*.latency.unit",
    "report.*.throughput.unit",
    "report.*.energy.unit",
    "report.train.latency.values",
    "report.train.throughput.value",
    "report.train.memory.max_allocated",
    "report.train.memory.max_global_vram",
    "report.prefill.latency.values",
    "report.decode.latency.values",
    "report.load_model.latency.values",
)
REASONS = {
    "report.per_token.*": "its events are not cleared between calls: early gaps are counted again",
    "report.decode.memory.*": "a copy of generate.memory",
    "report.decode.energy.*": "the difference of two runs' noise",
    "report.*.memory.max_reserved": "the allocator's cache is not emptied before: it carries earlier phases",
    "report.*.memory.max_ram": "sampled resident memory of the parent alone; ours is the kernel's own peak",
    "report.*.memory.max_process_vram": "0 where process ids are hidden, as in containers",
    "report.*.energy.cpu": "where there is no RAPL it is a model (share of the TDP)",
    "report.*.energy.ram": "a model: watts per DIMM",
    "report.*.energy.total": "holds the modelled parts",
    "report.*.efficiency.*": "follows from energy.total",
    "report.*.latency.*": "follows from the values",
    "report.generate.throughput.*": "tokens per second labelled as samples per second",
    "report.*.memory.*": "no stage of ours matches this phase",
    "report.*.throughput.*": "no quantity of ours matches this phase",
    "report.*.energy.*": "no stage of ours matches this phase, or several GPUs are summed",
    "config.launcher.*": "settings of the launcher",
    "config.log_report": "printing",
    "config.print_report": "printing",
}


class _Backend(ForeignFields):
    name: Scalar = None
    model: Scalar = None
    task: Scalar = None
    device: Scalar = None
    torch_dtype: Scalar = None
    attn_implementation: Scalar = None
    quantization_scheme: Scalar = None
    peft_type: Scalar = None
    seed: int | None = None
    model_kwargs: dict[str, object] | None = None
    quantization_config: dict[str, object] | None = None
    peft_config: dict[str, object] | None = None


class _Scenario(ForeignFields):
    name: Scalar = None
    training_arguments: dict[str, object] | None = None
    input_shapes: dict[str, object] | None = None
    generate_kwargs: dict[str, object] | None = None
    max_steps: Scalar = None
    warmup_steps: Scalar = None


class _Environment(ForeignFields):
    gpu: list[Scalar] | Scalar = None
    cpu: Scalar = None


class _BenchmarkSettings(ForeignFields):
    backend: _Backend | None = None
    scenario: _Scenario | None = None
    environment: _Environment | None = None


class _Latency(ForeignFields):
    values: list[Scalar] | None = None


class _Measured(ForeignFields):
    latency: _Latency | None = None


class _BenchmarkFile(ForeignFields):
    config: _BenchmarkSettings
    report: dict[str, _Measured | None]


def read(path: Path) -> list[Imported]:
    """The record of one benchmark.

    Raises:
        UserError: the file is not one of this tool.
    """
    if path.name == "benchmark_report.json":
        if path.with_name("benchmark.json").is_file():
            return []  # the same run, repeated
        content = {"config": read_json(path.with_name("benchmark_config.json")), "report": read_json(path)}
    else:
        content = read_json(path, "config", "report")
    typed(content, _BenchmarkFile, path)
    content = {"config": content["config"], "report": _without_empty(content["report"])}
    config, report = content["config"], content["report"]
    environment = config.get("environment") or {}
    devices = environment.get("gpu") or []
    one_gpu = len(devices if isinstance(devices, list) else [devices]) == 1
    mapped = (*MAPPED, "report.train.energy.gpu") if one_gpu else MAPPED
    named = name_unmapped(content, mapped, REASONS)
    origin = Origin(TOOL, str(environment.get("optimum_benchmark_version") or ""), path, LACKS, named)
    made = Content(
        cell=_cell(config, environment),
        outcome=Outcome(status="ok", stage="train" if "train" in report else "probe"),
        metrics=_metrics(config, report),
        spans=_spans(report, one_gpu),
        environment=_environment(environment),
    )
    return [Imported(make_record(origin, made))]


def _without_empty(report: Mapping[str, Any]) -> dict[str, object]:
    """The report without measurements that were not asked for (``null``)."""
    return {
        target: {name: part for name, part in (parts or {}).items() if part is not None}
        for target, parts in report.items()
    }


def _part(report: Mapping[str, Any], target: str, kind: str) -> Mapping[str, Any]:
    part = (report.get(target) or {}).get(kind)
    return part if isinstance(part, Mapping) else {}


def _values(report: Mapping[str, object], target: str) -> list[float]:
    found = [number(value) for value in _part(report, target, "latency").get("values") or ()]
    return [value for value in found if value is not None]


def _median_ms(name: str, values: list[float], source: str, factor: float = 1.0, **details: object) -> Reading:
    return reading(
        name,
        1000.0 * factor * statistics.median(values),
        source=source,
        n=len(values),
        spread=1000.0 * factor * statistics.stdev(values) if len(values) > 1 else None,
        details=details,
    )


def _metrics(config: Mapping[str, Any], report: Mapping[str, object]) -> dict[str, Reading]:
    found = {"accuracy": missing("accuracy", "not_measured", source=TOOL)}
    scenario = config.get("scenario") or {}
    batch = (scenario.get("input_shapes") or {}).get("batch_size")
    steps, prefill, decode = (_values(report, target) for target in ("train", "prefill", "decode"))
    if steps:
        found["step_ms"] = _median_ms("step_ms", steps, f"{TOOL}, train.latency.values")
    rate = number(_part(report, "train", "throughput").get("value"))
    if rate is not None:
        found["train_samples_per_s"] = reading("train_samples_per_s", rate, source=f"{TOOL}, train.throughput")
    if prefill:
        found["ttft_ms"] = _median_ms("ttft_ms", prefill, f"{TOOL}, prefill.latency.values", batch_size=batch)
    tokens = _fixed_length(scenario.get("generate_kwargs") or {})
    if decode and tokens > 1:
        found["tpot_ms"] = _median_ms(
            "tpot_ms", decode, f"{TOOL}, decode.latency.values over tokens less one", 1 / (tokens - 1), batch_size=batch
        )
    return found


def _fixed_length(generate: Mapping[str, object]) -> int:
    """Number of generated tokens where it is fixed, else 0."""
    low, high = generate.get("min_new_tokens"), generate.get("max_new_tokens")
    return high if isinstance(high, int) and low == high else 0


def _spans(report: Mapping[str, object], one_gpu: bool) -> tuple[Span, ...]:
    """The stages that mean the same here and there: loading, and training."""
    spans = []
    loading = _values(report, "load_model")
    if loading:
        spans.append(Span(stage="load", seconds=sum(loading)))
    seconds = _values(report, "train")
    if seconds:
        memory, energy = _part(report, "train", "memory"), _part(report, "train", "energy")
        size, joules = BYTES.get(str(memory.get("unit"))), JOULES.get(str(energy.get("unit")))
        readings = []
        for name, key in (
            ("cuda_allocated_peak_bytes", "max_allocated"),
            ("device_used_peak_bytes", "max_global_vram"),
        ):
            value = number(memory.get(key))
            if value and size:
                readings.append(reading(name, value * size, source=f"{TOOL}, train.memory.{key}"))
        gpu = number(energy.get("gpu"))
        if gpu and joules and one_gpu:
            readings.append(reading("energy_gross_j", gpu * joules, source=f"{TOOL}, train.energy.gpu (CodeCarbon)"))
        spans.append(Span(stage="train", seconds=sum(seconds), readings=tuple(readings)))
    return tuple(spans)


def _cell(config: Mapping[str, Any], environment: Mapping[str, object]) -> dict[str, object]:
    backend, scenario = config.get("backend") or {}, config.get("scenario") or {}
    model = str(backend.get("model") or "")
    scheme = backend.get("quantization_scheme")
    peft = backend.get("peft_type")
    names = _gpus(environment)
    device = str(backend.get("device") or "not stated")
    arguments = scenario.get("training_arguments") or {}
    method = str(peft).lower() if peft else ("full" if scenario.get("name") == "training" else "none")
    bits = (backend.get("quantization_config") or {}).get("bits")
    return {
        "model": {
            "label": model.rpartition("/")[2],
            "id": model,
            "revision": (backend.get("model_kwargs") or {}).get("revision"),
            "dtype": backend.get("torch_dtype"),
            "attention": backend.get("attn_implementation"),
            "random_weights": backend.get("no_weights"),
        },
        "method": {
            "label": method,
            "name": method,
            "params": dict(backend.get("peft_config") or {}),
            "learning_rate": arguments.get("learning_rate"),
            "steps": scenario.get("max_steps"),
        },
        "quantization": {
            "label": (f"{scheme}-{bits}bit" if bits else str(scheme)) if scheme else "none",
            "name": str(scheme or "none"),
            "params": dict(backend.get("quantization_config") or {}),
        },
        "task": {
            "label": f"{scenario.get('name')}, {backend.get('task')}",
            "name": str(scenario.get("name")),
            "version": None,
            "digest": digest(scenario),
            "kind": backend.get("task"),
            "data": "random",
        },
        "hardware": {"label": names[0] if names else device, "device": device},
        "training": {
            "steps": scenario.get("max_steps"),
            "batch_size": arguments.get("per_device_train_batch_size"),
            "warmup_steps": scenario.get("warmup_steps"),
        },
        "evaluation": {"backend": backend.get("name"), "compile": backend.get("torch_compile")},
        "seed": backend.get("seed"),
    }


def _gpus(environment: Mapping[str, object]) -> list[str]:
    names = environment.get("gpu") or []
    return [str(name) for name in (names if isinstance(names, list) else [names])]


def _environment(environment: Mapping[str, object]) -> dict[str, object]:
    versions = {
        name.removesuffix("_version").replace("_", "-"): value
        for name, value in environment.items()
        if name.endswith("_version") and name != "python_version"
    }
    return {
        "packages": versions,
        "commits": {k: v for k, v in environment.items() if k.endswith("_commit") and v},
        "python": str(environment.get("python_version") or ""),
        "platform": str(environment.get("platform") or ""),
        "cpu": {"model": str(environment.get("cpu") or "not stated").strip(), "cores": environment.get("cpu_count")},
        "gpus": [{"name": name} for name in _gpus(environment)],
    }
