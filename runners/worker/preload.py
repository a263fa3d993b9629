"""Imports of the template process, so that a worker starts in milliseconds. Creates no CUDA context.

A process that was forked from one that initialized CUDA cannot use CUDA. bitsandbytes and torchao, which peft imports,
ask torch about the GPU while they are imported; torch initializes CUDA to answer, and does so even to say whether
there is a GPU. So NVML answers here. A worker whose template initialized CUDA all the same says so
(:func:`runners.worker.main.prepare_device`).

What was imported is frozen for the garbage collector. A cell collects several times, to give memory back between its
stages, and would walk half a million objects of its libraries each time; and it would copy the pages of the template
in which they lie, because the collector writes to them (documentation of ``gc.freeze``).

An import that fails here fails again in the worker, whose log is kept.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available asks NVML, in the workers too

import torch
from torch._dynamo import device_interface  # before torch.cuda's functions are replaced: it keeps references to them

from harness.hardware import Gpu, probe
from harness.silence_stderr import quiet_stderr


@contextmanager
def gpus_from_nvml(gpus: Sequence[Gpu]) -> Iterator[None]:
    """While open, ``torch.cuda`` answers what libraries ask at import without a CUDA context.

    Replaces ``current_device``, ``get_device_capability`` and ``get_device_properties`` (name, memory and capability
    alone: another property is an AttributeError). A library that kept one of the replacements gets torch's own answer
    once the context manager is closed.

    Args:
        gpus: the visible GPUs in torch's order. Empty: nothing changes.
    """
    if not gpus:
        yield
        return
    is_open = True
    names = ("current_device", "get_device_capability", "get_device_properties")
    real: dict[str, Callable[..., Any]] = {name: getattr(torch.cuda, name) for name in names}

    def gpu_of(device: Any) -> Gpu:
        index = device if isinstance(device, int) else torch.device(device or "cuda").index
        return gpus[index or 0]

    def capability(device: object) -> tuple[int, int]:
        major, minor = f"{gpu_of(device).compute_capability:.1f}".split(".")
        return int(major), int(minor)

    def properties(device: object) -> SimpleNamespace:
        major, minor = capability(device)
        gpu = gpu_of(device)
        return SimpleNamespace(name=gpu.name, total_memory=gpu.memory_bytes, major=major, minor=minor)

    answers: dict[str, Callable[[Any], Any]] = {
        "current_device": lambda _: 0,
        "get_device_capability": capability,
        "get_device_properties": properties,
    }

    def replacement(name: str) -> Callable[..., object]:
        return lambda device=None: (
            answers[name](device) if is_open else real[name](*([] if device is None else [device]))
        )

    for name in names:
        setattr(torch.cuda, name, replacement(name))
    try:
        yield
    finally:
        is_open = False
        for name in names:
            setattr(torch.cuda, name, real[name])
        device_interface.caching_worker_device_properties.pop("cuda", None)  # it may hold our few properties


@contextmanager
def compiler_at_first_call() -> Iterator[None]:
    """While open, a function decorated with ``torch.compile`` is handed to the compiler when it is first called.

    Real ``torch.compile`` compiles at the first call too, but imports its back ends at once: a second of processor time
    at every start, for functions of libraries (hqq) that most cells never call.
    """
    real = torch.compile

    def deferred(model: Callable[..., object] | None = None, **options: Any) -> Callable[..., Any]:
        if model is None:
            return lambda function: deferred(function, **options)
        compiled: list[Callable[..., object]] = []

        @wraps(model)
        def call(*arguments: object, **named: object) -> object:
            if not compiled:
                compiled.append(real(model, **options))
            return compiled[0](*arguments, **named)

        return call

    torch.compile = deferred
    try:
        yield
    finally:
        torch.compile = real


with quiet_stderr(), gpus_from_nvml(probe().gpus), compiler_at_first_call():
    import pandas  # noqa: F401 - pyarrow imports it when the samples are written
    import pyarrow.parquet  # noqa: F401 - likewise
    import torch.utils.flop_counter  # imported late by the meters

    import runners.worker.main  # noqa: F401 - imported for its imports

gc.collect()
gc.freeze()
