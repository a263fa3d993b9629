"""Notes of a board about its data."""

from __future__ import annotations

from reports.board.provenance_summary import describe
from tests.reports.making import ENVIRONMENT, cell, failed_record


def test_data_that_no_commit_holds_still_is_named_once() -> None:
    facts = {"unpinned": {"owner/rows": "nobody knows the commit"}}
    loose = [
        failed_record(cell(seed=seed), "oom", reason="x", environment={**ENVIRONMENT, "facts": facts})
        for seed in (0, 1)
    ]
    tight = failed_record(cell(), "oom", reason="x", environment=ENVIRONMENT)
    said = dict(describe([("a", loose[0]), ("b", loose[1])]).facts)
    assert said["unpinned data"] == "owner/rows: its rows may change under this name (nobody knows the commit)"
    assert "unpinned data" not in dict(describe([("c", tight)]).facts)
