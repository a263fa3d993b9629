"""Skeletons and the memory cap on a real GPU. Run with: python -m pytest tests/gpu -s."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from harness.hardware import GIB
from harness.models import skeleton as skeletons
from runners.worker.memory import cap_allocator
from tests.runners.conftest import Bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
ROOT = Path(__file__).parents[2]


def test_weights_on_device_take_their_published_bytes(tmp_path: Path) -> None:
    wanted = skeletons.skeleton("skeleton:smollm2-135m")
    folder = skeletons.ensure(wanted, tmp_path)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = skeletons.build(folder, "causal-lm", dtype=torch.bfloat16, device="cuda")
    assert torch.cuda.memory_allocated() - before == pytest.approx(2 * wanted.parameters, rel=0.01)
    again = skeletons.build(folder, "causal-lm", dtype=torch.bfloat16, device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_cap_lets_in_what_fits_and_nothing_more() -> None:
    program = (
        "import torch\nfrom runners.worker.memory import cap_allocator\ncap_allocator(2)\n"
        "a = torch.empty(3 * 2**29, dtype=torch.uint8, device='cuda')\n"
        "try:\n    torch.empty(2**30, dtype=torch.uint8, device='cuda')\n"
        "except torch.OutOfMemoryError:\n    print('capped')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "capped", done.stderr


def test_a_cap_above_the_device_is_refused() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(ValueError, match="caps nothing"):
        cap_allocator(2 * total / GIB)


@pytest.mark.slow
def test_capped_sweep_full_ends_oom_and_adapter_fits(tmp_path: Path) -> None:
    (tmp_path / "peft-matrix.yaml").write_text("version: 1\n")
    profiles = tmp_path / "runners" / "hardware"
    profiles.mkdir(parents=True)
    # 0.36 G parameters: bf16 weights, gradients and two Adam states are 2.9 GB; an adapter needs 0.7 GB and little more
    (profiles / "capped.yaml").write_text(yaml.safe_dump({"name": "capped", "device": "cuda", "memory_limit_gib": 2}))
    bench = Bench(
        tmp_path,
        {
            "name": "capped",
            "models": [{"architecture": "smollm2-360m", "weights": "random", "dtype": "bfloat16"}],
            "methods": ["full", "lora"],
            "tasks": [{"name": "strings-copy", "train_items": 64, "validation_items": 8, "test_items": 8}],
            "hardware": ["capped"],
            "training": {"steps": 5, "batch_size": 1, "learning_rate": 1e-4, "max_length": 32},
            "limits": {"threads": 2, "timeout_s": 250},
        },
    )
    done = bench("run", str(bench.write()))
    print(done.stdout, done.stderr)
    records = {r["cell"]["method"]["name"]: r for r in bench.records()}
    assert {name: r["outcome"]["status"] for name, r in records.items()} == {"full": "oom", "lora": "ok"}
    for record in records.values():
        assert record["environment"]["facts"]["memory_limit"]["memory_limit_bytes"] == 2 * GIB
