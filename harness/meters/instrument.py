"""Shared by the meters: construction settings, typed absence, the periodic sampler, synchronization."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from harness.metrics import missing
from harness.record import Reading, WhyMissing

T = TypeVar("T")
Clock = Callable[[], float]
"""Seconds on a monotonic clock."""

CPU_SHARE = 0.0015
"""Most of one core a sampler may use, by lengthening its period. All samplers of a panel together stay below 0.5 %."""


@dataclass(frozen=True)
class MeterSetting:
    """Settings that a meter is built from.

    Attributes:
        device: torch device string of the cell (``cpu``, ``cuda``, ``cuda:0``).
        uuids: UUIDs of the assigned GPUs; nothing else on the machine is read.
        options: meter name to keyword arguments of its constructor.
    """

    device: str
    uuids: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Absence:
    """Reason why there is no value: the typed reason, and a sentence."""

    why: WhyMissing
    text: str

    def readings(self, quantities: tuple[str, ...], source: str) -> list[Reading]:
        """A reading without value for each quantity."""
        return [missing(name, self.why, source=source, details={"why": self.text}) for name in quantities]


class Sampler(Generic[T]):
    """Calls ``read`` about every ``period_s`` seconds on a separate thread, between :meth:`start` and :meth:`stop`.

    Samples are ``(time, value)``, the time being the middle of the call. The period grows if a call is so expensive
    that it would use more than :data:`CPU_SHARE` of a core, but not beyond ``longest_s``. The first error
    ends the sampling and is kept in :attr:`error`; it is the meter's business what that means.
    """

    def __init__(
        self,
        read: Callable[[], T],
        period_s: float,
        *,
        name: str,
        longest_s: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.read = read
        self.period_s = period_s
        self.longest_s = longest_s
        self.clock = clock
        self.name = name
        self.samples: list[tuple[float, T]] = []
        self.error: Exception | None = None
        self.cpu_s = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Forget earlier samples, take one at once, and go on in the background."""
        self.samples, self.error, self.cpu_s = [], None, 0.0
        self._stop.clear()
        self._take()
        self._thread = threading.Thread(target=self._run, name=f"meter-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> list[tuple[float, T]]:
        """Take a last sample and give all of them. Stopping twice is harmless."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._take()
        return self.samples

    def _run(self) -> None:
        cpu = 0.0
        due = time.monotonic() + self.period_s
        while self.error is None and not self._stop.wait(max(0.0, due - time.monotonic())):
            self._take()
            used = time.thread_time()
            now = time.monotonic()
            # absolute due times keep the rate; an expensive call delays the next one
            pause_s = min((used - cpu) / CPU_SHARE, self.longest_s)
            due = max(due + self.period_s, now + pause_s) if pause_s > self.period_s else max(due + self.period_s, now)
            cpu = used
        self.cpu_s += time.thread_time()

    def _take(self) -> None:
        if self.error is not None:
            return
        try:
            before = self.clock()
            value = self.read()
            self.samples.append(((before + self.clock()) / 2, value))
        except Exception as error:  # any failure of an instrument must stay inside it
            self.error = error


def synchronize(device: str) -> None:
    """Wait for the device's queued work. Nothing to do on a CPU, or where no context on the device exists yet."""
    torch = sys.modules.get("torch")
    if device == "cpu" or torch is None or not torch.accelerator.is_available():
        return
    if not device.startswith("cuda") or torch.cuda.is_initialized():
        torch.accelerator.synchronize(device)
