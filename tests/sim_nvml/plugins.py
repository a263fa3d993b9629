"""Meters of an outside package that misbehave, for sweeps through the real command line.

:func:`install` lays them out as an installed package would be: a distribution with the entry-point group
``peft_matrix.meter``. The module itself is what the entry points name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.meters.instrument import MeterSetting
from harness.meters.timer import Timer
from harness.record import Reading

LOST = "GPU-lost"
LOST_AT_STEP = 5
CLOCK_GOES_BACK_IN = "save"
NAMES = {"raises": "Raises", "loses-device": "LosesDevice", "turns-clock-back": "TurnsClockBack"}


def install(folder: Path, *names: str) -> Path:
    """Make a distribution in ``folder``, to be put on ``PYTHONPATH``, that registers these meters."""
    info = folder / "misbehaving_meters-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving-meters\nVersion: 1\n")
    lines = [f"{name} = {__name__}:{NAMES[name]}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[peft_matrix.meter]", *lines]) + "\n")
    return folder


class Outside:
    """A meter that reads nothing."""

    name = ""
    quantities: tuple[str, ...] = ()

    def __init__(self, setting: MeterSetting, *, file: str = "") -> None:
        self.setting = setting
        self.file = file

    def available(self) -> str | None:
        return None

    def begin(self, stage: str) -> None: ...

    def end(self, stage: str) -> list[Reading]:
        return []

    def facts(self) -> dict[str, Any]:
        return {}


class Raises(Outside):
    """Raises in every stage, at its end."""

    name = "raises"
    quantities = ("alloc_retries",)

    def end(self, stage: str) -> list[Reading]:
        raise RuntimeError(f"the instrument broke in {stage}")


class TurnsClockBack(Outside):
    """Lets the timer's clock go back by an hour during one stage."""

    name = "turns-clock-back"

    def begin(self, stage: str) -> None:
        if stage == CLOCK_GOES_BACK_IN:
            end = Timer.end

            def late(timer: Timer, stage: str) -> list[Reading]:
                timer._begun += 3600
                Timer.end = end  # type: ignore[method-assign]
                return end(timer, stage)

            Timer.end = late  # type: ignore[method-assign]


class LosesDevice(Outside):
    """Makes the file that a simulated device is lost by, in the middle of training."""

    name = "loses-device"

    def available(self) -> str | None:
        return None if LOST in self.setting.uuids else "this cell keeps its device"

    def begin(self, stage: str) -> None:
        if stage == "train":
            from runners.worker.trainer import StepClock

            begin, steps = StepClock.begin, []

            def counted(clock: StepClock) -> None:
                steps.append(1)
                if len(steps) == LOST_AT_STEP:
                    Path(self.file).touch()
                begin(clock)

            StepClock.begin = counted  # type: ignore[method-assign]
