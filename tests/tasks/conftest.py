"""Real data for tests, if available."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("PEFT_MATRIX_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / "gsm8k" / "test.jsonl").is_file():
        pytest.skip(f"no data root at {root}; set PEFT_MATRIX_DATA")
    return root


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
