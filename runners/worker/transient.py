"""Errors that another attempt may not meet again: a closed list of kinds, so that no bug is tried three times."""

from __future__ import annotations

import errno
from typing import Literal, get_args

Transient = Literal["network", "file-system", "device-lost", "device-busy"]
KINDS: frozenset[str] = frozenset(get_args(Transient))

_FILE_SYSTEM = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE}
_NETWORK = {errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE}
_NETWORK_MODULES = ("requests.", "urllib3.", "httpx.", "httpcore", "aiohttp.")
_DEVICE_LOST = ("uncorrectable ECC error", "GPU is lost", "has fallen off the bus", "device is lost")
_DEVICE_BUSY = ("CUDA-capable device(s) is/are busy or unavailable", "all CUDA-capable devices are busy")


def transient_kind(error: BaseException | None) -> Transient | None:
    """Kind of passing error of an exception or one of its causes; None for everything else."""
    seen = 0
    while error is not None and seen < 10:
        kind = _kind(error)
        if kind is not None:
            return kind
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _kind(error: BaseException) -> Transient | None:
    text = str(error)
    if isinstance(error, RuntimeError):
        if any(words in text for words in _DEVICE_LOST):
            return "device-lost"
        if any(words in text for words in _DEVICE_BUSY):
            return "device-busy"
    if isinstance(error, ConnectionError | TimeoutError):
        return "network"
    if isinstance(error, OSError):
        home = f"{type(error).__module__}."
        if error.errno in _NETWORK or home.startswith(_NETWORK_MODULES):
            return "network"
        if error.errno in _FILE_SYSTEM:
            return "file-system"
    if f"{type(error).__module__}.".startswith(_NETWORK_MODULES) and type(error).__name__.endswith(
        ("ConnectionError", "ConnectError", "Timeout", "TimeoutException", "ReadError")
    ):
        return "network"
    return None
