"""The edge of memory: a cap on the CUDA allocator, and how an error says that memory ran out."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager

import torch

from harness.hardware import GIB


def cap_allocator(limit_gib: float) -> dict[str, object]:
    """Let this process's CUDA allocator hold at most ``limit_gib`` GiB; beyond it raises ``OutOfMemoryError``.

    It caps what torch reserves. The CUDA context and libraries that allocate on their own are not counted.

    Returns:
        the cap as the allocator has it, for the record.

    Raises:
        ValueError: the device has less memory than that.
    """
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = limit_gib * GIB / total
    if fraction > 1:
        raise ValueError(f"a cap of {limit_gib:g} GiB on a device with {total / GIB:.1f} GiB caps nothing")
    torch.cuda.set_per_process_memory_fraction(fraction, 0)
    return {"memory_limit_bytes": round(limit_gib * GIB), "device_bytes": total, "fraction": fraction}


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that memory ran out, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release() -> None:
    """Give back what nothing refers to any more, to the device as well."""
    gc.collect()
    if torch.accelerator.is_available() and torch.get_device_module().is_initialized():
        torch.accelerator.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work; nothing to wait for on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def forked_random(device: torch.device) -> AbstractContextManager[None]:
    """Random numbers drawn inside change nothing outside, on the host and on the device."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
