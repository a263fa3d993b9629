"""Claim files: what is refused, with the sentence that teaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from reports.apps.reproduction.claims import BUILT_IN, load_claims
from reports.apps.reproduction.measuring import compute

GOOD = """
paper: A paper
arxiv: "2401.00001"
version: v1
claims:
  - id: a-over-b
    statement: "A is above B."
    printed: [{value: 2.0, place: Table 1}]
    metric: accuracy
    form: difference
    unit: points
    value: 2.0
    evidence: {sweep: s, arm: {method: a}, baseline: {method: b}}
"""


def load(folder: Path, text: str, name: str = "a.yaml") -> None:
    (folder / name).write_text(text)
    load_claims([folder])


def test_the_shipped_claims_load_and_cover_the_protocol_s_list() -> None:
    claims = load_claims([BUILT_IN])
    papers = {paper.arxiv for paper, _ in claims}
    listed = {"2304.01933", "2402.09353", "2404.02948", "2409.15371", "2305.14314", "2403.03507", "2404.18466"}
    assert listed | {"2305.17333", "2505.13840"} <= papers
    counted = {c.evidence.count.method for _, c in claims if c.evidence is not None and c.evidence.count is not None}
    assert len(counted) >= 15
    assert sum(bool(claim.proxies) for _, claim in claims) >= 10
    on_both = [claim for _, claim in claims if {proxy.setup for proxy in claim.proxies} >= {"nano", "encoder"}]
    assert len(on_both) >= 10
    assert all(c.evidence is not None or c.needs.gpu_hours or c.needs.memory_gib for _, c in claims)


@pytest.mark.parametrize(
    ("broken", "lesson"),
    [
        (GOOD.replace("    unit: points\n", "").replace("A is above B.", "A is 2 % above B."), "unit: relative"),
        (GOOD.replace("unit: points", 'unit: "%"'), "A bare '%' can mean two things"),
        (GOOD.replace("    unit: points\n", ""), "unit"),
        (GOOD.replace(", baseline: {method: b}", ""), "name the 'baseline' arm"),
        (GOOD.replace("    value: 2.0\n", ""), "needs the claimed 'value'"),
        (GOOD.replace("form: difference", "form: upto"), "largest effect over a stated set"),
        (GOOD.replace("form: difference", "form: equivalence"), "needs a 'margin', fixed before"),
        (GOOD.replace("form: difference", "form: ratio"), "needs a 'band'"),
        (GOOD.replace("form: difference", "form: absolute"), "needs a 'tolerance'"),
        (GOOD.replace("metric: accuracy", "metric: acuracy"), "unknown metric 'acuracy'"),
        (GOOD.replace("sweep: s, arm: {method: a}, baseline: {method: b}", "sweep: s"), "names an 'arm'"),
        (GOOD.replace("sweep: s,", "sweep: s, compute: {sum: [1]},"), "evidence is one of"),
        (GOOD.replace("place: Table 1", "plaice: Table 1"), "plaice"),
        (GOOD + GOOD[GOOD.index("  - id") :], "is listed twice"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_with_a_lesson(tmp_path: Path, broken: str, lesson: str) -> None:
    with pytest.raises(UserError, match=r"a\.yaml") as caught:
        load(tmp_path, broken)
    assert lesson in str(caught.value)


def test_one_id_in_two_files_is_refused(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"a-over-b.*is also in a\.yaml"):
        load(tmp_path, GOOD, "b.yaml")
    with pytest.raises(UserError, match="there is no claim file"):
        load_claims([tmp_path / "nowhere.yaml"])


def test_arithmetic_on_printed_numbers() -> None:
    assert compute({"ratio": [{"product": [4, 0.4361]}, 0.4719]}) == pytest.approx(3.69655, abs=1e-5)
    assert compute({"max": [{"difference": [5, 2, 1]}, {"mean": [1, 2]}]}) == 2.0
    for wrong in ({"power": [2, 3]}, {"sum": ["__import__"]}, {"sum": []}, {"sum": [1], "product": [2]}, {"sum": "12"}):
        with pytest.raises(UserError):
            compute(wrong)
