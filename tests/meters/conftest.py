"""A built simulator for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sim_nvml.simulator import Simulator, build


@pytest.fixture(scope="session")
def sim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build the simulated NVML with")
    return build(tmp_path_factory.mktemp("sim-nvml"))


@pytest.fixture
def sim(sim_library: Path, tmp_path: Path) -> Simulator:
    return Simulator(sim_library, tmp_path)
