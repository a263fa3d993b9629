"""Stage ``inspect``: what quantization left: bytes on disk, bits per weight, error of every layer, kernels.

It has a separate span, so that the inspection is billed neither to quantization nor to training.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

from harness.meters.attribution import model_bytes
from harness.models import conv1d
from harness.quantizers.measure import WeightFiles, body_bits_per_weight, file_errors, linear_kinds, unquantized_bytes
from runners.worker.context import Context

BASE_FOLDER = "base"
ORIGINAL_FOLDER = "before-quantization"
MAX_LAYERS = 64
"""Layers whose error is taken, evenly spread over the model, so that a large one costs seconds."""
KERNELS = 6
SAME_SIZE = 0.02
"""Part by which the tensors of files may differ in size from the model they were loaded into: its buffers."""


def run(ctx: Context) -> None:
    """Look at the base as it was quantized before training."""
    inspect(ctx, WeightFiles.of(Path(ctx.path)))


def run_merged(ctx: Context) -> None:
    """Inspect the model that was quantized after the merge; the weights before it are in the job's folder."""
    folder = ctx.folder / ORIGINAL_FOLDER
    inspect(ctx, WeightFiles.of(folder, checkpoint=False))
    shutil.rmtree(folder, ignore_errors=True)


def inspect(ctx: Context, original: WeightFiles | None) -> None:
    """Record sizes and layer errors of ``ctx.model``; kinds of layers and kernels go into the facts.

    Args:
        original: the weights before quantization, None where no file on this machine holds them.
    """
    dtype = getattr(torch, ctx.job.cell["model"]["dtype"])
    held = model_bytes(ctx.model)
    source = "tensor storages"
    ctx.record("base_bytes", held, source="sum over tensors, inner tensors of quantized weights")
    ctx.record("compression_rate", unquantized_bytes(ctx.model, dtype) / held, source=source)
    kinds = linear_kinds(ctx.model)
    layout: dict[str, Any] = {"quantized": kinds.quantized, "unquantized_linears": len(kinds.plain)}
    bits = body_bits_per_weight(ctx.model)
    if bits is None:
        ctx.record_missing("bits_per_weight", "not_applicable", source=source, note="no layer holds quantized weights")
    else:
        nominal = ctx.job.cell["quantization"]["bits"]
        ctx.record("bits_per_weight", bits, source=source, details={"nominal": nominal})
        layout["packed"] = bits <= nominal + 2  # more than scales and zero points explain: whole bytes, or copies
    ctx.facts["layout"] = layout
    if closely(ctx):
        ctx.facts["kernels"] = kernels(ctx)
        _record_disk(ctx, held)
        _record_errors(ctx, original)
    else:
        _record_files(ctx, held)
        note = "the base is not quantized" if ctx.probes.inspect == "auto" else "the sweep does not ask for it"
        ctx.record_missing("layer_error_mean", "not_measured", source="inspect", note=note)


def closely(ctx: Context) -> bool:
    """True if the model is saved, decoded and profiled: for an unquantized base only if the sweep asks for it."""
    asked = ctx.probes.inspect
    return asked == "full" or (asked == "auto" and ctx.job.cell["quantization"]["name"] != "none")


def _record_files(ctx: Context, held: int) -> None:
    """The size of the checkpoint's own files, where the model holds what they hold."""
    name, source = "base_disk_bytes", "the checkpoint's own safetensors files"
    files = list(Path(ctx.path).glob("*.safetensors")) if Path(ctx.path).is_dir() else []
    tensors = sum(_tensor_bytes(file) for file in files)
    if files and abs(tensors - held) <= SAME_SIZE * held:
        ctx.record(name, sum(file.stat().st_size for file in files), source=source, n=len(files))
    else:
        note = "the files hold other bytes than the model; probes: {inspect: full} saves it"
        ctx.record_missing(name, "not_measured", source=source, note=note)


def _tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file after its header; the first 8 bytes give the header's length."""
    with path.open("rb") as stream:
        return path.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def _record_disk(ctx: Context, held: int) -> None:
    """Save the model as it is, count the files, remove them."""
    if ctx.quantizer.file is not None:
        source = f"the {ctx.quantizer.file.suffix.removeprefix('.').upper()} file"
        ctx.record("base_disk_bytes", ctx.quantizer.file.stat().st_size, source=source, n=1)
        return
    folder, source = ctx.folder / BASE_FOLDER, "safetensors files on disk"
    if shutil.disk_usage(ctx.folder).free < 2 * held:
        ctx.record_missing("base_disk_bytes", "not_measured", source=source, note="not enough free disk to save it")
        return
    try:
        ctx.model.save_pretrained(folder, safe_serialization=True, **conv1d.for_saving(ctx.model))
        files = list(folder.glob("*.safetensors"))
        ctx.record("base_disk_bytes", sum(f.stat().st_size for f in files), source=source, n=len(files))
    except Exception as error:  # each back end refuses in its own way; the reason is kept
        first = str(error).strip().splitlines()[:1]
        note = f"the back end cannot save it: {type(error).__name__}: {first[0] if first else ''}"
        ctx.record_missing("base_disk_bytes", "not_supported", source=source, note=note)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record_errors(ctx: Context, original: WeightFiles | None) -> None:
    name, source = "layer_error_mean", "decoded weights against the files' own"
    if original is None:
        ctx.record_missing(name, "not_applicable", source=source, note="no file holds the weights before quantization")
        return
    errors = file_errors(original, ctx.model, at_most=MAX_LAYERS)
    if not errors:
        ctx.record_missing(name, "not_applicable", source=source, note="no linear layer's weight can be compared")
        return
    details = {"max": max(errors.values()), "layers": {k: float(f"{v:.4g}") for k, v in errors.items()}}
    spread = statistics.stdev(errors.values()) if len(errors) > 1 else None
    ctx.record(name, statistics.fmean(errors.values()), source=source, n=len(errors), spread=spread, details=details)


def kernels(ctx: Context) -> list[str]:
    """Names of the operators (on a GPU: device kernels) that take most of a forward pass, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = ctx.device.type == "cuda"
    inputs = {k: v for k, v in ctx.probe_batch.items() if k != "labels"}
    with torch.no_grad():
        ctx.model(**inputs)  # what is compiled or laid out at the first pass is no kernel of the later ones
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
            ctx.model(**inputs)

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    return [event.key for event in sorted(found.key_averages(), key=spent, reverse=True)[:KERNELS]]
