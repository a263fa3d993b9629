"""Child process: measure idle waiting with real meters. Reads a job as JSON, answers as JSON.

Job: ``panels`` (name to ``{"uuids", "meters", "options", "device"}``), ``stages`` (name to seconds), ``baseline``
(bool), ``clock_goes_back_after_s`` (the meters' clock then jumps back an hour). All panels measure at the same
time, so that many cases cost the time of one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.meters.catalog import build
from harness.meters.energy import Energy
from harness.meters.panel import Panel


def make_panel(p: dict[str, Any], goes_back_after_s: float | None) -> Panel:
    options: dict[str, dict[str, Any]] = {name: dict(values) for name, values in p.get("options", {}).items()}
    names = p.get("meters")
    if goes_back_after_s is not None:
        for name in names:
            options.setdefault(name, {})["clock"] = clock_that_goes_back(goes_back_after_s)
    return Panel(build(p.get("device", "cpu"), uuids=p.get("uuids", ()), names=names, options=options))


def clock_that_goes_back(after_s: float) -> Callable[[], float]:
    first: list[float] = []

    def clock() -> float:
        now = time.monotonic()
        first.append(now) if not first else None
        return now - 3600 if now - first[0] > after_s else now

    return clock


def begin_script_now() -> float:
    """Put the script's origin at this moment, before anything opens the library; the time it takes to start and
    import then shifts no event of the script."""
    origin_s = time.monotonic()
    script = Path(os.environ.get("SIM_NVML_SCRIPT", ""))
    if script.is_file():
        _, _, rest = script.read_text().partition("\n")
        script.write_text(f"origin {origin_s:.9f}\n{rest}")
    return origin_s


def energy_begun_s(panel: Panel) -> float:
    """Start of the energy window of the stage, which may be a little before the stage; now if there is none."""
    meter = panel.get("energy")
    gauges = meter._gauges if isinstance(meter, Energy) else []
    return max((gauge._begun.time_s for gauge in gauges), default=0.0) or time.monotonic()


def main() -> None:
    job = json.load(sys.stdin)
    origin_s = begin_script_now()
    panels = {name: make_panel(p, job.get("clock_goes_back_after_s")) for name, p in job["panels"].items()}
    answer: dict[str, Any] = {name: {"stages": {}} for name in panels}
    if job.get("baseline"):
        for panel in panels.values():
            panel.baseline("before")
    for stage, seconds in job["stages"].items():
        begun: dict[str, float] = {}
        for name, panel in panels.items():
            panel.begin(stage)
            begun[name] = energy_begun_s(panel)
        cpu = time.process_time()
        time.sleep(seconds)
        cpu = time.process_time() - cpu
        for name, panel in panels.items():
            ended = time.monotonic()
            readings = [reading.model_dump(mode="json") for reading in panel.end(stage)]
            answer[name]["stages"][stage] = {
                "begun_s": begun[name],
                "ended_s": ended,
                "cpu_s": cpu,
                "readings": {r["quantity"]: r for r in readings},
            }
    if job.get("baseline"):
        for panel in panels.values():
            panel.baseline("after")
    for name, panel in panels.items():
        answer[name]["cell"] = {r.quantity: r.model_dump(mode="json") for r in panel.finish()}
        answer[name]["facts"] = panel.facts()
    json.dump({**answer, "origin_s": origin_s}, sys.stdout)


if __name__ == "__main__":
    main()
