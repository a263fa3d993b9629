"""Progress display of a run: a live view on a terminal, plain lines when piped."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.record import Record
from runners.running.job_results import EXPECTED, counted_as
from runners.running.live import RunFile, RunningCell
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
        file: where other commands read which cells run; None: nowhere.
    """

    live_losses = False

    def __init__(self, console: Console, *, total: int, slots: int, file: RunFile | None = None) -> None:
        self.console = console
        self.total = total
        self.slots = slots
        self.began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self._durations: list[float] = []
        self._running: dict[str, RunningCell] = {}
        self._file = file
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
        self._running[job.key] = RunningCell(job.label, job.key, job.attempt, time.time())
        if job.only_build:
            self._line(f"{job.label} (once; kept in the cache)")
        self.tick()
        self._write()

    def message(self, job: Job, content: dict[str, object]) -> None:
        """A worker said where it is, or that it lives."""
        if (cell := self._running.get(job.key)) is None:
            return
        stage, text, pid = cell.stage, cell.text, cell.pid
        cell.hear(content, time.time())
        news = content.get("event") != "beat"
        if news and self._live is None and time.monotonic() - self._said_at >= EVERY_S:
            self._said_at = time.monotonic()
            self._line(f"  {job.label}: {_doing(cell, time.time())}")
        if cell.text != text:
            self.tick()
        self._write(at_once=(cell.stage, cell.pid) != (stage, pid))

    def left(self, job: Job) -> None:
        """An attempt is over, and its cell has no result: it is tried again, or only its model was built."""
        self._running.pop(job.key, None)
        self.tick()
        self._write()

    def ended(self, record: Record) -> None:
        """A cell ended."""
        cell = self._running.pop(record.key, None)
        seconds = time.time() - cell.started if cell is not None else 0.0
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
        if counted_as(record) not in EXPECTED and status != "interrupted":
            self._line(f"  more: peft-matrix logs {record.label}")
        self.tick()
        self._write()

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
        failed = self._failed()
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, self.total), completed=done, width=30),
            f"{done}/{self.total} cells",
            f"elapsed {clock(time.monotonic() - self.began)}",
            f"left {clock(self._left_s()) if self._durations else '…'}",
            Text(f"{failed} failed", style="red" if failed else "dim"),
        )
        rows = Table.grid(padding=(0, 2))
        now = time.time()
        for cell in self._running.values():
            rows.add_row(Text("▸", style="cyan"), cell.cell, Text(_doing(cell, now), style="cyan"))
        return Group(head, rows)

    def _failed(self) -> int:
        return sum(n for status, n in self.counts.items() if status not in EXPECTED)

    def _write(self, *, at_once: bool = True) -> None:
        if self._file is not None:
            counts = {"done": sum(self.counts.values()), "failed": self._failed(), "total": self.total}
            self._file.write(self._running.values(), **counts, at_once=at_once)

    def _left_s(self) -> float:
        mean = sum(self._durations) / len(self._durations)
        return mean * max(0, self.total - sum(self.counts.values())) / max(1, self.slots)


def _doing(cell: RunningCell, now: float) -> str:
    """Stage or count, time since the start, and time until the count is full."""
    eta = cell.eta_s(now)
    return f"{cell.text}, {clock(now - cell.started)}" + (f", about {clock(eta)} to go" if eta is not None else "")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
