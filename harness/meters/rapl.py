"""Energy of CPU packages and DRAM from RAPL, through Linux' powercap tree.

Domains overlap: ``core`` and ``uncore`` are inside their package, ``psys`` contains the packages. Only packages are
added to packages, and DRAM zones to DRAM zones, each in a separate column. Counters wrap at
``max_energy_range_uj``; they are polled well inside the time a wrap takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.meters.instrument import Absence, MeterSetting, Sampler
from harness.metrics import missing, reading
from harness.record import Reading, WhyMissing

SOURCE = "RAPL (powercap)"
QUANTITIES = {"package": "cpu_package_j", "dram": "dram_j"}
MOST_PACKAGE_W = 1000.0
"""More than any package draws: bounds how fast a counter can wrap."""
POLL_S = 10.0


@dataclass(frozen=True)
class Zone:
    """One RAPL domain.

    Attributes:
        kind: ``package`` or ``dram``.
        path: its folder in the powercap tree.
        range_uj: microjoules at which its counter wraps.
    """

    kind: str
    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """The counter, microjoules."""
        return int((self.path / "energy_uj").read_text())


class Rapl:
    """``cpu_package_j`` and ``dram_j`` of the whole machine.

    Args:
        setting: unused; RAPL knows neither cells nor processes.
        root: the powercap tree.
    """

    name = "rapl"
    quantities = ("cpu_package_j", "dram_j")

    def __init__(self, setting: MeterSetting, *, root: Path = Path("/sys/class/powercap")) -> None:
        self.root = root
        self.why_unavailable: WhyMissing = "no_device"
        self._zones: list[Zone] = []
        self._sampler: Sampler[dict[Path, int]] = Sampler(self._read, POLL_S, name="rapl")

    def available(self) -> str | None:
        """Find the zones; they have been readable by root alone since CVE-2020-8694."""
        try:
            self._zones = find_zones(self.root)
            self._read()
        except PermissionError as error:
            self.why_unavailable = "no_permission"
            return f"{error.filename} may not be read; allow it to the account that runs the sweep"
        if not self._zones:
            return f"no RAPL zones under {self.root}"
        # a poll is due at the latest at a third of the time a wrap can take
        shortest_uj = min(zone.range_uj for zone in self._zones)
        self._sampler.period_s = min(POLL_S, shortest_uj / 1e6 / MOST_PACKAGE_W / 3)
        return None

    def begin(self, stage: str) -> None:
        """Read the counters, and keep reading so that no wrap is missed."""
        self._sampler.start()

    def end(self, stage: str) -> list[Reading]:
        """Joules since :meth:`begin`, per kind of domain."""
        samples = [values for _, values in self._sampler.stop()]
        if self._sampler.error is not None:
            why: WhyMissing = "no_permission" if isinstance(self._sampler.error, PermissionError) else "failed"
            return Absence(why, repr(self._sampler.error)).readings(self.quantities, SOURCE)
        return [self._sum(kind, quantity, samples) for kind, quantity in QUANTITIES.items()]

    def facts(self) -> dict[str, Any]:
        """The zones that are read, and how often."""
        zones = [{"zone": zone.path.name, "kind": zone.kind, "range_uj": zone.range_uj} for zone in self._zones]
        return {"zones": zones, "period_s": self._sampler.period_s, "scope": "machine"}

    def _read(self) -> dict[Path, int]:
        return {zone.path: zone.read_uj() for zone in self._zones}

    def _sum(self, kind: str, quantity: str, samples: list[dict[Path, int]]) -> Reading:
        zones = [zone for zone in self._zones if zone.kind == kind]
        if not zones:
            return missing(quantity, "not_supported", source=SOURCE, details={"why": f"no {kind} zone on this machine"})
        total_uj = sum(unwrapped_uj([values[zone.path] for values in samples], zone.range_uj) for zone in zones)
        return reading(quantity, total_uj / 1e6, source=SOURCE, resolution=1e-6, n=len(samples))


def find_zones(root: Path) -> list[Zone]:
    """Package zones, and the DRAM zones inside them. Not the MMIO copies of the same packages.

    Raises:
        PermissionError: a zone's own files may not be read.
    """
    zones = []
    for path in sorted(root.glob("intel-rapl:*")):
        name = (path / "name").read_text().strip()
        # zones are named package-0, package-0-die-1, core, uncore, dram, psys
        kind = "package" if name.startswith("package") else name
        if kind in QUANTITIES:
            zones.append(Zone(kind, path, int((path / "max_energy_range_uj").read_text())))
    return zones


def unwrapped_uj(values: list[int], range_uj: int) -> int:
    """Microjoules from the first to the last reading of a counter that wraps at most once between two."""
    return sum((b - a) % (range_uj + 1) if b < a else b - a for a, b in pairwise(values))
