"""Imports of the template process, so that a worker starts in milliseconds. Creates no CUDA context.

A process that was forked from one with a CUDA context cannot use CUDA. bitsandbytes and torchao, which peft imports,
ask torch for the compute capability while they are imported, and torch creates a context to answer. So the answer
comes from NVML here, and the template refuses to serve if a library created a context all the same.

An import that fails here fails again in the worker, whose log is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.hardware import probe
from harness.quiet import quiet_stderr


@contextmanager
def capability_from_nvml(capabilities: Sequence[float]) -> Iterator[None]:
    """While open, ``torch.cuda.get_device_capability`` answers without a CUDA context.

    Args:
        capabilities: compute capability of every visible GPU in order, for example ``[9.0]``. Empty: nothing changes.
    """
    if not capabilities:
        yield
        return
    real = torch.cuda.get_device_capability

    def answer(device: Any = None) -> tuple[int, int]:
        index = device if isinstance(device, int) else getattr(device, "index", None)
        major, minor = f"{capabilities[index or 0]:.1f}".split(".")
        return int(major), int(minor)

    torch.cuda.get_device_capability = answer
    try:
        yield
    finally:
        torch.cuda.get_device_capability = real


def check_no_context() -> None:
    """Raise RuntimeError if this process has a CUDA context, which no forked worker could use."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        raise RuntimeError(
            "a library created a CUDA context while it was imported, so forked workers could not use the GPU; "
            "find it with: python -X importtime -c 'import peft', and import it in the worker instead"
        )


with quiet_stderr(), capability_from_nvml([gpu.compute_capability for gpu in probe().gpus]):
    import pandas  # noqa: F401 - pyarrow imports it when the samples are written
    import pyarrow.parquet  # noqa: F401 - likewise
    import torch.utils.flop_counter  # imported late by the meters

    import runners.worker.main  # noqa: F401 - imported for its imports

check_no_context()
