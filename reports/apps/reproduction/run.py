"""From claim files and stores to results: the whole of ``reproduce --check``, which runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from harness.record import Record
from harness.store.store import Store
from reports.apps.reproduction.claims import Claim, ClaimEvidence, Count, Criterion, Paper
from reports.apps.reproduction.judging import JudgedClaim, judge_claim
from reports.apps.reproduction.record_lookup import Library, count_key

COUNTS = "counts"
"""Name under which counted records are filed."""


def library(roots: Iterable[str | Path]) -> Library:
    """All records of these stores, with their samples."""
    records: list[Record] = []
    home: dict[str, tuple[Store, Record]] = {}
    for root in roots:
        store = Store(root)
        for record in store.records()[0]:
            records.append(record)
            home.setdefault(record.id, (store, record))

    def samples(identity: str) -> pa.Table | None:
        store, record = home[identity]
        return store.samples(record) if record.samples is not None else None

    return Library(records, samples)


def answer(claims: Sequence[tuple[Paper, Claim]], found: Library) -> list[JudgedClaim]:
    """A result for every claim, in order."""
    return [judge_claim(paper, claim, found) for paper, claim in claims]


def evidence_of(claims: Sequence[tuple[Paper, Claim]]) -> list[ClaimEvidence]:
    """All evidence that the claims and their proxies name."""
    tests: list[Criterion] = [test for _, claim in claims for test in (claim, *claim.proxies)]
    return [test.evidence for test in tests if test.evidence is not None]


def sweeps_of(claims: Sequence[tuple[Paper, Claim]]) -> list[str]:
    """Names of the sweeps that the claims rest on, sorted."""
    return sorted({e.sweep for e in evidence_of(claims) if e.sweep is not None})


def counts_of(claims: Sequence[tuple[Paper, Claim]]) -> dict[str, Count]:
    """Record key to what has to be counted."""
    counts = [c for e in evidence_of(claims) for c in (e.count, e.count_baseline) if c is not None]
    return {count_key(count): count for count in counts}
