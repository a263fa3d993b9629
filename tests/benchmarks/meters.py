"""Figures of the instruments against known truth. Printed by ``make bench``; nothing passes or fails here."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.meters.instrument import MeterSetting
from harness.meters.timer import Timer
from tests.sim_nvml.cases import aliased, measurable, measure_each, meters_cpu_share, outcomes
from tests.sim_nvml.simulator import SimDevice, Simulator, build, constant

Figure = tuple[str, str, str, str]
"""Name, value, unit, note."""

WINDOW_S = 10.0
SLEEP_S = 0.2
SLEEPS = 20
ALLOCATED_MIB = 512

PROGRAM = """
import json, mmap, sys, time
from harness.meters.catalog import build
from harness.meters.panel import Panel
size = int(sys.argv[1]) * 2**20
meters = build("cpu", names=["host-memory"], options={"host-memory": {"pss_period_s": 0.05}})
panel, pss = Panel(meters), meters[0]._pss
def stage(work):
    panel.begin("x")
    kept = work()
    wanted = len(pss.samples) + 2
    while len(pss.samples) < wanted and pss.error is None:
        time.sleep(0.01)
    return {r.quantity: r.value for r in panel.end("x")}
def fill():
    block = mmap.mmap(-1, size)
    for offset in range(0, size, 4096):
        block[offset] = 1
    return block
base, grown = stage(lambda: None), stage(fill)
print(json.dumps({name: grown[name] - base[name] for name in ("peak_rss_bytes", "pss_peak_bytes")}))
"""


def figures() -> Iterator[Figure]:
    """Energy, the meters' own cost, latency and memory, each against what is known."""
    if shutil.which("cc") is None:
        yield "energy against the simulated device", "not measured", "", "no C compiler to build the simulator with"
    else:
        with tempfile.TemporaryDirectory() as folder:
            simulator = Simulator(build(Path(folder)), Path(folder))
            yield from energy(simulator)
            share = meters_cpu_share(simulator, 20.0)
            yield (
                "all meters, share of one core",
                f"{share:.2%}",
                "",
                "aim ≤ 0.5 %; a stage of 20 s, board with a counter",
            )
    yield from latency()
    yield from memory()


def energy(simulator: Simulator) -> Iterator[Figure]:
    """Error per case where the protocol gives a value; the reason where it demands none."""
    for name, outcome in outcomes(simulator, measurable(), WINDOW_S).items():
        shown = f"{outcome.error:+.2%}" if outcome.error is not None else f"None, {outcome.reading['why_missing']}"
        yield f"energy, {name}", shown, "", f"aim ±1 %; window {WINDOW_S:g} s"
    error = outcomes(simulator, {"aliased": aliased()}, WINDOW_S)["aliased"].error
    shown = f"{error:+.0%}" if error is not None else "None"
    yield (
        "energy, 25 of 100 ms, power in step",
        shown,
        "",
        "no reader can know; the reading says 75 % unseen",
    )
    without = {
        "counter reset": SimDevice("GPU-0", constant(100), extra=["counter_reset 3.0"]),
        "device lost": SimDevice("GPU-1", constant(100), extra=["lost_at 3.0"]),
        "foreign process": SimDevice("GPU-2", constant(100), extra=["process 2.0 4.0 4242"]),
    }
    answer = measure_each(simulator, without, {"train": 5.0})
    short = measure_each(simulator, {"short window": SimDevice("GPU-0", constant(100))}, {"train": 0.2})
    for name, case in {**answer, **short}.items():
        reading = case["stages"]["train"]["readings"]["energy_gross_j"]
        shown = "None" if reading["value"] is None else f"{reading['value']:.1f} J"
        yield f"energy, {name}", f"{shown}, {reading['why_missing']}", "", "None is demanded"


def latency() -> Iterator[Figure]:
    """The timer on work of known length: a sleep on the CPU, a kernel of known cycles on a GPU."""
    errors = [timed_s("cpu", lambda: time.sleep(SLEEP_S)) / SLEEP_S - 1 for _ in range(SLEEPS)]
    note = f"a sleep of {SLEEP_S:g} s, median of n={SLEEPS}, worst {max(errors, key=abs):+.2%}; aim ≤ 1 %"
    yield "latency of a known sleep, CPU", f"{statistics.median(errors):+.2%}", "", note
    import torch

    if not torch.cuda.is_available():
        yield "latency of a sleep kernel, GPU", "not measured", "", "no CUDA device"
        return
    cycles = 400_000_000
    torch.cuda._sleep(cycles)
    once = timed_s("cuda", lambda: torch.cuda._sleep(cycles))
    thrice = timed_s("cuda", lambda: [torch.cuda._sleep(cycles) for _ in range(3)])
    yield "three sleep kernels / one, GPU", f"{thrice / once / 3 - 1:+.2%}", "", "known to be 3; aim ≤ 1 %"


def timed_s(device: str, work: Callable[[], Any]) -> float:
    """Reading of the timer for ``work``, seconds."""
    timer = Timer(MeterSetting(device))
    timer.begin("x")
    work()
    [reading] = timer.end("x")
    assert reading.value is not None
    return reading.value


def memory() -> Iterator[Figure]:
    """Memory kinds of the host against a mapping that is written page by page, in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ALLOCATED_MIB)], capture_output=True, text=True, check=True
    )
    for name, grown in json.loads(done.stdout).items():
        error = grown / (ALLOCATED_MIB * 2**20) - 1
        yield f"memory of {ALLOCATED_MIB} MiB, {name}", f"{error:+.2%}", "", "a mapping written page by page; aim ±1 %"
