"""The meters, outermost first. A new one is one module, one line here and one test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from harness.errors import UserError, did_you_mean
from harness.meters.base import Meter
from harness.meters.instrument import MeterSetting
from harness.metrics import METRICS
from harness.registry import Registry

METERS: Registry[Callable[..., Meter]] = Registry(
    "meter",
    {
        "host-memory": "harness.meters.memory:HostMemory",
        "torch-memory": "harness.meters.memory:TorchMemory",
        "device-state": "harness.meters.device_state:DeviceState",
        "rapl": "harness.meters.rapl:Rapl",
        "energy": "harness.meters.energy:Energy",
        "time": "harness.meters.timer:Timer",
    },
)
"""Registered from the outermost to the innermost: the energy window is inside all others but the timer, whose work is
two readings of a clock. Meters of other packages are outermost.
"""


def load_metrics() -> None:
    """Import all meters, which may define further metrics.

    Raises:
        UserError: the meter of another package cannot be imported.
    """
    for name in METERS:
        METERS.get(name)


def is_metric(name: str) -> bool:
    """True if a metric of that name is defined, here or by a meter.

    Raises:
        UserError: as :func:`load_metrics`.
    """
    if name not in METRICS:
        load_metrics()
    return name in METRICS


def build(
    device: str,
    *,
    uuids: Sequence[str] = (),
    names: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Meter]:
    """Meters for a cell, ready for a :class:`~harness.meters.panel.Panel`.

    Nothing is opened here: a meter searches for its device in ``available``.

    Args:
        device: torch device string of the cell.
        uuids: UUIDs of the assigned GPUs (:func:`harness.meters.nvml.visible_uuids` finds a worker's own).
        names: meters to use; None for all.
        options: meter name to keyword arguments of its constructor.

    Raises:
        UserError: an unknown meter, or an option that a meter does not have.
    """
    setting = MeterSetting(device, tuple(uuids), dict(options or {}))
    for name in setting.options:
        METERS.get(name, where="options of meters")
    wanted = METERS.names() if names is None else list(names)
    own = METERS.own
    outermost_first = sorted(wanted, key=lambda name: own.index(name) if name in own else -1)
    return [_build(name, setting) for name in outermost_first]


def _build(name: str, setting: MeterSetting) -> Meter:
    kind, options = METERS.get(name), setting.options.get(name, {})
    if options:
        known = {p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for option in options:
            if option not in known:
                raise UserError(
                    f"meter {name!r} has no option {option!r}",
                    where="options of meters",
                    fix=did_you_mean(option, known),
                )
    return kind(setting, **options)
