"""RAPL on a powercap tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.meters.instrument import Setting
from harness.meters.panel import Panel
from harness.meters.rapl import Rapl, unwrapped_uj

RANGE_UJ = 262_143_328_850


def zone(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    return {
        "package-0": zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        "core": zone(tmp_path, "intel-rapl:0:0", "core", 0),
        "dram-0": zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        "package-1": zone(tmp_path, "intel-rapl:1", "package-1", RANGE_UJ - 999_999),
        "dram-1": zone(tmp_path, "intel-rapl:1:0", "dram", 0),
        "psys": zone(tmp_path, "intel-rapl:2", "psys", 0),
        "mmio copy": zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    }


def test_packages_and_dram_apart_overlaps_left_out_wraps_counted(tree: dict[str, Path], tmp_path: Path) -> None:
    panel = Panel([Rapl(Setting("cpu"), root=tmp_path)])
    panel.begin("train")
    for name, value in {"package-0": 6_000_000, "package-1": 2_000_000, "dram-0": 700_000, "dram-1": 300_000}.items():
        (tree[name] / "energy_uj").write_text(str(value))
    for name in ("core", "psys", "mmio copy"):
        (tree[name] / "energy_uj").write_text("99000000")
    readings = {r.quantity: r for r in panel.end("train")}
    assert readings["cpu_package_j"].value == pytest.approx(5 + 3)  # the second package wrapped
    assert readings["dram_j"].value == pytest.approx(1.0)
    facts = panel.facts()["rapl"]
    assert len(facts["zones"]) == 4
    assert facts["period_s"] < RANGE_UJ / 1e6 / 1000


def test_a_counter_may_wrap_between_any_two_readings() -> None:
    assert unwrapped_uj([90, 95, 3, 99, 1], 99) == 5 + 8 + 96 + 2


def test_a_machine_without_dram_zones_says_so(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = Rapl(Setting("cpu"), root=tmp_path)
    assert meter.available() is None
    meter.begin("train")
    readings = {r.quantity: r for r in meter.end("train")}
    assert readings["cpu_package_j"].value == 0
    assert readings["dram_j"].why_missing == "not_supported"


def test_no_zones_and_no_permission_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Panel([Rapl(Setting("cpu"), root=tmp_path)])
    assert {r.why_missing for r in empty.absent()} == {"no_device"}
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    real = Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self == path / "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    refused = Panel([Rapl(Setting("cpu"), root=tmp_path)])
    assert {r.why_missing for r in refused.absent()} == {"no_permission"}
    assert "energy_uj may not be read" in refused.absent()[0].details["why"]
