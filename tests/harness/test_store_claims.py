"""Claims on cells: one process at a time, for as long as it lives."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store.store import Store
from tests.harness.test_store import python

CLAIMER = """
import sys
from harness.store.store import Store
claim = Store(sys.argv[1]).claim(sys.argv[2])
print("mine" if claim else "taken", flush=True)
sys.stdin.read()  # until the parent closes it
"""


def test_a_cell_is_claimed_once_and_again_after_release(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    claim = one.claim("a" * 16)
    assert claim is not None
    with claim:
        assert two.claim("a" * 16) is None
        assert one.claim("a" * 16) is None
        other = two.claim("b" * 16)
        assert other is not None
        other.release()
        other.release()
    again = two.claim("a" * 16)
    assert again is not None
    again.release()


def test_a_claim_ends_with_its_process_even_under_kill_9(tmp_path: Path) -> None:
    holder = python(CLAIMER, str(tmp_path), "a" * 16)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    assert Store(tmp_path).claim("a" * 16) is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    claim = Store(tmp_path).claim("a" * 16)
    assert claim is not None
    claim.release()


def test_of_several_processes_one_gets_the_cell(tmp_path: Path) -> None:
    claimers = [python(CLAIMER, str(tmp_path), "a" * 16) for _ in range(3)]
    answers = [claimer.stdout.readline() for claimer in claimers if claimer.stdout]
    for claimer in claimers:
        claimer.communicate(timeout=60)
    assert sorted(answers) == ["mine\n", "taken\n", "taken\n"]


def test_claims_on_a_remote_store_need_a_local_folder(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with pytest.raises(UserError, match="local folder for locks"):
        Store(url).claim("a" * 16)
    claim = Store(url, claims_dir=tmp_path).claim("a" * 16)
    assert claim is not None
    assert Store(url, claims_dir=tmp_path).claim("a" * 16) is None
    claim.release()


def test_a_claim_is_only_on_something_that_can_be_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a cell key"):
        Store(tmp_path).claim("../x")
