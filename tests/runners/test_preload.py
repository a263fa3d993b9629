"""The template process has no CUDA context, so that the workers forked from it can use the GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.hardware import Gpu
from runners.worker.preload import device_interface, gpus_from_nvml

H100 = Gpu("GPU-a", "NVIDIA H100", 80 * 2**30, 9.0, driver="580", cuda="13.0")
A10 = Gpu("GPU-b", "NVIDIA A10", 24 * 2**30, 8.6, driver="580", cuda="13.0")


def test_gpu_questions_are_answered_by_nvml_while_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def creates_a_context(device: object = None) -> str:
        return "real"

    for name in ("current_device", "get_device_capability", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, creates_a_context)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with gpus_from_nvml([H100, A10]):
        kept = torch.cuda.get_device_capability
        assert torch.cuda.current_device() == 0
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_capability(1) == (8, 6)
        assert torch.cuda.get_device_capability(torch.device("cuda", 1)) == (8, 6)
        assert torch.cuda.get_device_properties("cuda:1").total_memory == 24 * 2**30
        assert device_interface.CudaInterface.Worker.get_device_properties(0).major == 9
    assert torch.cuda.get_device_capability is creates_a_context
    assert kept() == "real"
    assert "cuda" not in device_interface.caching_worker_device_properties


def test_without_gpus_nothing_changes() -> None:
    real = torch.cuda.get_device_capability
    with gpus_from_nvml([]):
        assert torch.cuda.get_device_capability is real


@pytest.mark.slow
def test_the_imports_leave_cuda_alone() -> None:
    code = (
        "import os, runners.worker.preload, torch; assert not torch.cuda.is_initialized(); "
        "assert os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] == '1'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
