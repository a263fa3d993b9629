"""Progress display of a run: a live view on a terminal, plain lines when piped."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.record import Record
from runners.running.job_results import EXPECTED, counted_as
from runners.worker.job import Job

EVERY_S = 10.0
"""Seconds between two lines about running cells where there is no live view."""
STYLE = {"ok": "green", "unsupported": "yellow", "interrupted": "yellow"}


class Progress:
    """The view of one run.

    The live view is redrawn when something happens and at the scheduler's rare ticks, never by a separate timer: a
    parent that wakes often disturbs what it measures.

    Args:
        total: cells to run.
        slots: cells at once, for the estimate of the time left.
    """

    def __init__(self, console: Console, *, total: int, slots: int) -> None:
        self.console = console
        self.total = total
        self.slots = slots
        self.began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self._durations: list[float] = []
        self._running: dict[str, tuple[Job, float, str]] = {}
        self._said_at = self.began
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        elif self.total:
            at_once = f", {self.slots} at once" if self.slots > 1 else ""
            self._line(f"{self.total} cell{'s' * (self.total > 1)} to run{at_once}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    # --- events from the scheduler -------------------------------------------------------------
    def started(self, job: Job) -> None:
        """A job was launched."""
        self._running[job.key] = (job, time.monotonic(), "start")
        if job.only_build:
            self._line(f"{job.label} (once; kept in the cache)")
        self.tick()

    def message(self, job: Job, content: dict[str, Any]) -> None:
        """A worker said where it is."""
        at, of = content.get("at"), content.get("of")
        text = f"{content.get('what', content.get('stage', ''))}" + (f" {at}/{of}" if at is not None else "")
        _, began, before = self._running.get(job.key, (job, time.monotonic(), ""))
        self._running[job.key] = (job, began, text)
        if self._live is None and time.monotonic() - self._said_at >= EVERY_S:
            self._said_at = time.monotonic()
            self._line(f"  {job.label}: {text}, {clock(self._said_at - began)}")
        if text != before:
            self.tick()

    def ended(self, record: Record) -> None:
        """A cell ended."""
        _, began, _ = self._running.pop(record.key, (None, time.monotonic(), ""))
        seconds = time.monotonic() - began
        self._durations.append(seconds)
        status = record.outcome.status
        self.counts[counted_as(record)] += 1
        done = sum(self.counts.values())
        accuracy = record.metrics.get("accuracy")
        shown = f"  accuracy {accuracy.value:.3f}" if accuracy is not None and accuracy.value is not None else ""
        why = f"  {record.outcome.check + ': ' if record.outcome.check else ''}{record.outcome.reason}"
        self._line(
            Text.assemble(
                f"[{done}/{self.total}] ",
                (f"{status:<11}", STYLE.get(status, "red")),
                f" {record.label}  {seconds:.1f} s",
                shown,
                why if status != "ok" else "",
            )
        )
        self.tick()

    def note(self, text: str) -> None:
        """A sentence for the person."""
        self._line(text)

    def tick(self) -> None:
        """Redraw the live view, if there is one."""
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    # --- drawing -------------------------------------------------------------------------------
    def _line(self, text: str | Text) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        done = sum(self.counts.values())
        failed = sum(n for status, n in self.counts.items() if status not in EXPECTED)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, self.total), completed=done, width=30),
            f"{done}/{self.total} cells",
            f"elapsed {clock(time.monotonic() - self.began)}",
            f"left {clock(self._left_s()) if self._durations else '…'}",
            Text(f"{failed} failed", style="red" if failed else "dim"),
        )
        rows = Table.grid(padding=(0, 2))
        for job, began, text in self._running.values():
            rows.add_row(Text("▸", style="cyan"), job.label, Text(text, style="cyan"), clock(time.monotonic() - began))
        return Group(head, rows)

    def _left_s(self) -> float:
        mean = sum(self._durations) / len(self._durations)
        return mean * max(0, self.total - sum(self.counts.values())) / max(1, self.slots)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
