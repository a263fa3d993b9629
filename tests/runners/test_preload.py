"""The template process has no CUDA context, so that the workers forked from it can use the GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runners.worker.preload import capability_from_nvml, check_no_context


def test_capability_comes_from_nvml_while_open() -> None:
    real = torch.cuda.get_device_capability
    with capability_from_nvml([9.0, 8.6]):
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_capability(1) == (8, 6)
        assert torch.cuda.get_device_capability(torch.device("cuda", 1)) == (8, 6)
    assert torch.cuda.get_device_capability is real


def test_without_gpus_nothing_changes() -> None:
    real = torch.cuda.get_device_capability
    with capability_from_nvml([]):
        assert torch.cuda.get_device_capability is real


def test_a_context_in_the_template_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA context"):
        check_no_context()


@pytest.mark.slow
def test_the_imports_leave_cuda_alone() -> None:
    code = "import runners.worker.preload, torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
