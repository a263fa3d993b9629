"""Verdicts: from records with known truths, through the real store, to the word that is printed."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import stats
from harness.errors import UserError
from harness.record import Record
from harness.store.store import Store
from peft_matrix.console import print_verdicts
from reports.apps.reproduction import run
from reports.apps.reproduction.claims import BUILT_IN, Claim, Criterion, Paper, load_claims
from reports.apps.reproduction.judging import JudgedClaim, Judgement, decide
from reports.apps.reproduction.measuring import Measured, compute
from reports.apps.reproduction.record_lookup import count_key
from reports.apps.reproduction.report import as_rows, by_kind, to_markdown
from tests.reports.making import ENVIRONMENT, cell, failed_record, ok_record

SWEEP = "proxies"


def claim(**fields: Any) -> Claim:
    base: dict[str, Any] = {
        "id": "c",
        "statement": "A is above B in accuracy.",
        "printed": [{"place": "Table 1"}],
        "metric": "accuracy",
        "form": "order",
        "unit": "points",
        "evidence": {"sweep": SWEEP, "arm": {"method": "a"}, "baseline": {"method": "b"}},
    }
    return Claim.model_validate({**base, **fields})


def row_of(one: Claim, root: Path) -> dict[str, Any]:
    paper = Paper(paper="P", version="v1", claims=(one,))
    results = run.answer([(paper, one)], run.library([root]))
    assert to_markdown(results) == to_markdown(results)
    return json.loads(json.dumps(as_rows(results)))[0]  # type: ignore[no-any-return]


def put(root: Path, method: str, *, seeds: int = 3, tuned: bool = True, **fields: Any) -> list[Record]:
    store, made = Store(root), []
    changed = fields.pop("cell", {})
    for seed in range(seeds):
        of = {**cell(method, seed=seed), **changed}
        of |= {"tuning": {"learning_rates": 5}} if tuned else {}
        order = {"run": "r", "block": seed, "position": 0, "size": 2}
        environment = {**ENVIRONMENT, "order": order, **fields.get("environment_extra", {})}
        given = {k: v for k, v in fields.items() if k != "environment_extra"}
        record, data = ok_record(of, environment=environment, sweep=SWEEP, **given)
        store.append(record, data)
        made.append(record)
    return made


def test_order_difference_and_what_the_verdict_rests_on(tmp_path: Path) -> None:
    a, b = put(tmp_path, "a", accuracy=0.8), put(tmp_path, "b", accuracy=0.6)
    row = row_of(claim(), tmp_path)
    assert row["verdict"] == "reproduced"
    assert row["flags"] == []
    assert sorted(row["records"]) == sorted(r.id for r in a + b)
    assert 10 < row["interval"][0] < row["measured"] < row["interval"][1] < 30  # points, not fractions
    assert row_of(claim(expect="less"), tmp_path)["verdict"] == "not_reproduced"
    assert row_of(claim(form="difference", value=40.0), tmp_path)["verdict"] == "partially"
    assert row_of(claim(form="difference", value=5.0), tmp_path)["flags"] == ["exceeds"]


def test_an_effect_below_what_could_be_found_is_inconclusive(tmp_path: Path) -> None:
    put(tmp_path, "a", accuracy=0.61), put(tmp_path, "b", accuracy=0.60)
    row = row_of(claim(form="difference", value=0.5), tmp_path)
    assert row["verdict"] == "inconclusive"
    assert row["mde"] > 0.5


def test_equivalence_needs_an_interval_inside_the_margin(tmp_path: Path) -> None:
    put(tmp_path, "a", accuracy=0.6, step_ms=10.0), put(tmp_path, "b", accuracy=0.6, step_ms=10.0)
    assert row_of(claim(form="equivalence", margin=20.0), tmp_path)["verdict"] == "reproduced"
    assert row_of(claim(form="equivalence", margin=0.01), tmp_path)["verdict"] == "inconclusive"
    put(tmp_path, "c", accuracy=0.9)
    far = claim(
        form="equivalence", margin=2.0, evidence={"sweep": SWEEP, "arm": {"method": "c"}, "baseline": {"method": "b"}}
    )
    assert row_of(far, tmp_path)["verdict"] == "not_reproduced"


def test_up_to_is_the_largest_of_the_stated_set_and_never_a_mean(tmp_path: Path) -> None:
    for method, ms in (("slow", 40.0), ("mid", 20.0), ("fast", 10.0)):
        put(tmp_path, method, step_ms=ms)
    pairs = [{"arm": {"method": m}, "baseline": {"method": "fast"}} for m in ("mid", "slow")]
    upto = claim(metric="step_ms", form="upto", unit="ratio", value=3.5, evidence={"sweep": SWEEP, "pairs": pairs})
    row = row_of(upto, tmp_path)
    assert row["verdict"] == "reproduced"  # the mean of 2 and 4 would not reach 3.5
    assert row["measured"] == pytest.approx(4, rel=0.1)
    missing = [*pairs[:1], {"arm": {"method": "absent"}, "baseline": {"method": "fast"}}]
    row = row_of(
        claim(metric="step_ms", form="upto", unit="ratio", value=3.5, evidence={"sweep": SWEEP, "pairs": missing}),
        tmp_path,
    )
    assert row["verdict"] == "inconclusive"
    assert "not every member" in row["reason"]


def test_an_interaction_is_a_difference_of_differences(tmp_path: Path) -> None:
    for method, accuracy in (("a4", 0.5), ("b4", 0.5), ("a64", 0.9), ("b64", 0.5)):
        put(tmp_path, method, accuracy=accuracy)
    levels = [{"arm": {"method": f"a{r}"}, "baseline": {"method": f"b{r}"}} for r in (4, 64)]
    assert (
        row_of(claim(form="interaction", evidence={"sweep": SWEEP, "levels": levels}), tmp_path)["verdict"]
        == "reproduced"
    )


def test_a_proxy_never_replaces_the_claims_verdict(tmp_path: Path) -> None:
    put(tmp_path, "a", accuracy=0.9), put(tmp_path, "b", accuracy=0.5)
    base = claim().model_dump(
        exclude={"id", "statement", "printed", "metric_kind", "scope", "needs", "doubts", "unstated", "proxies"}
    )
    row = row_of(
        claim(
            evidence=None, needs={"gpu_hours": 5}, proxies=[{**base, "setup": "nano", "differs": "a far smaller model"}]
        ),
        tmp_path,
    )
    assert row["verdict"] == "not_run"
    assert row["records"] == []
    assert [p["verdict"] for p in row["proxies"]] == ["proxy_agrees"]
    assert "reproduced" not in json.dumps(row)


def test_evidence_that_is_refused_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a", environment_extra={"imported": {"from": "elsewhere"}}), put(tmp_path, "b")
    row = row_of(claim(), tmp_path)
    assert (row["verdict"], row["flags"]) == ("not_run", ["imported-evidence-refused"])
    other = tmp_path / "other"
    put(other, "a", cell={"protocol": 99}), put(other, "b")
    assert row_of(claim(), other)["flags"] == ["other-protocol-refused"]
    failing = tmp_path / "failing"
    Store(failing).append(failed_record(cell("a"), "oom", reason="out of memory", sweep=SWEEP))
    put(failing, "b")
    assert "oom" in row_of(claim(), failing)["reason"]


def test_scope_tuning_seeds_and_contradicting_texts_are_flagged(tmp_path: Path) -> None:
    put(tmp_path, "a", tuned=False, accuracy=0.9), put(tmp_path, "b", accuracy=0.5)
    assert row_of(claim(), tmp_path)["flags"] == ["untuned-baseline"]
    assert row_of(claim(scope={"models": ["meta-llama/Llama-2-7b-hf"]}), tmp_path)["verdict"] == "not_comparable"
    printed = [{"value": 5.84, "place": "abstract"}, {"value": 4.27, "place": "repository"}]
    assert "reference-inconsistent" in row_of(claim(printed=printed), tmp_path)["flags"]
    rounded = [{"value": 5.84, "place": "abstract"}, {"value": 5.8, "place": "repository"}]
    assert "reference-inconsistent" not in row_of(claim(printed=rounded), tmp_path)["flags"]
    one = tmp_path / "one"
    put(one, "a", seeds=1, accuracy=0.9), put(one, "b", seeds=1, accuracy=0.5)
    row = row_of(claim(metric="step_ms", unit="ratio"), one)
    assert (row["verdict"], row["flags"]) == ("inconclusive", ["no-blocks"])


def put_tuned(root: Path, method: str, *, edge: bool = False, **fields: Any) -> None:
    put(root, method, environment_extra={"facts": {"tuning": {"lr_at_edge": edge}}}, **fields)


@pytest.mark.parametrize(("edge", "verdict"), [("b", "inconclusive"), ("a", "reproduced"), ("", "reproduced")])
def test_a_rate_at_the_edge_of_the_lower_side_decides_nothing(edge: str, verdict: str, tmp_path: Path) -> None:
    for method, accuracy in (("a", 0.9), ("b", 0.5)):
        put_tuned(tmp_path, method, edge=method == edge, accuracy=accuracy)
    row = row_of(claim(), tmp_path)
    assert row["verdict"] == verdict
    assert ("lr-at-edge" in row["flags"]) == bool(edge)
    other = row_of(claim(expect="less"), tmp_path)
    assert other["verdict"] == ("inconclusive" if edge == "b" else "not_reproduced")


def test_an_arm_that_learned_nothing_decides_nothing(tmp_path: Path) -> None:
    """Both arms at the share of the most frequent of seven answers: equal, and that says nothing of either method."""
    put(tmp_path, "a", accuracy=0.14, items=400), put(tmp_path, "b", accuracy=0.14, items=400)
    row = row_of(claim(form="equivalence", margin=20.0), tmp_path)
    assert (row["verdict"], row["flags"]) == ("inconclusive", ["nothing-learned"])
    put(tmp_path, "c", accuracy=0.9, items=400), put(tmp_path, "d", accuracy=0.9, items=400)
    evidence = {"sweep": SWEEP, "arm": {"method": "c"}, "baseline": {"method": "d"}}
    assert row_of(claim(form="equivalence", margin=20.0, evidence=evidence), tmp_path)["verdict"] == "reproduced"


def test_scores_of_one_seed_decide_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a", seeds=1, accuracy=0.9), put(tmp_path, "b", seeds=1, accuracy=0.5)
    row = row_of(claim(), tmp_path)
    assert (row["verdict"], row["flags"]) == ("inconclusive", ["one-seed"])
    assert row["interval"][0] > 0


def test_no_headline_adds_kinds_up() -> None:
    """Arithmetic, counts, proxies and measurements: apart in the report, on a terminal, and on the site."""
    own = judged_claim("arithmetic"), judged_claim("counted"), judged_claim("measured")
    shown = {kind: dict(counts) for kind, counts in by_kind(own).items()}
    assert shown == {
        "arithmetic on printed numbers": {"reproduced": 1},
        "counted from shapes": {"reproduced": 1},
        "measured": {"reproduced": 1},
        "measured (proxy)": {"agrees": 1, "agrees by construction": 1},
    }
    rows = json.loads(json.dumps(as_rows(own)))
    assert [row["kind"] for row in rows] == ["arithmetic", "counted", "measured"]
    console = Console(record=True, width=200, file=StringIO())
    print_verdicts(rows, console)
    text = console.export_text()
    assert "measured: 1 reproduced" in text
    assert "measured (proxy): 1 agrees, 1 agrees by construction" in text
    assert "arithmetic: 1 reproduced" in text
    assert not re.search(r"(?<!\d)3 reproduced", text)


def judged_claim(kind: str) -> JudgedClaim:
    evidence: dict[str, dict[str, Any]] = {
        "arithmetic": {"compute": {"sum": [1, 2]}},
        "counted": {"count": {"architecture": "llama-3.2-3b", "method": "lora"}},
        "measured": {"sweep": SWEEP, "arm": {"method": "a"}, "baseline": {"method": "b"}},
    }
    of = claim(id=kind, evidence=evidence[kind])
    proxy = {
        **of.model_dump(include={"metric", "form", "unit", "expect"}),
        "setup": "nano",
        "differs": "a far smaller one",
    }
    proxies = [proxy, {**proxy, "by_construction": "it is so"}] if kind == "measured" else []
    of = claim(id=kind, evidence=evidence[kind], proxies=proxies)
    agrees = tuple(
        Judgement("proxy_agrees", "", None, ("by-construction",) if one.by_construction else ()) for one in of.proxies
    )
    return JudgedClaim(Paper(paper="P", version="v1", claims=(of,)), of, Judgement("reproduced", "", None, ()), agrees)


def test_a_trial_of_tuning_is_no_evidence(tmp_path: Path) -> None:
    put(tmp_path, "a", cell={"role": "trial"}), put(tmp_path, "b")
    assert row_of(claim(), tmp_path)["verdict"] == "not_run"


def test_a_count_is_looked_up_by_what_is_counted(tmp_path: Path) -> None:
    wanted = {"architecture": "tiny", "method": "lora", "params": {"r": 2}}
    counted = claim(
        metric="trainable_parameters",
        form="absolute",
        unit="count",
        value=4096,
        tolerance={"value": 0, "why": "a count is exact"},
        evidence={"count": wanted},
    )
    assert row_of(counted, tmp_path)["verdict"] == "not_run"
    assert counted.evidence is not None
    assert counted.evidence.count is not None
    record, _ = ok_record(
        cell("lora"), trainable=4096, with_samples=False, key=count_key(counted.evidence.count), sweep="counts"
    )
    Store(tmp_path).append(record)
    assert row_of(counted, tmp_path)["verdict"] == "reproduced"
    assert row_of(counted.model_copy(update={"value": 4097.0}), tmp_path)["verdict"] == "not_reproduced"


def test_a_choice_left_open_by_the_source_decides_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a", accuracy=0.9)
    put(tmp_path, "b", accuracy=0.5)
    assert row_of(claim(), tmp_path)["verdict"] == "reproduced"
    row = row_of(claim(unstated="0.4 with one reading, -0.1 with the other"), tmp_path)
    assert (row["verdict"], "unstated-choice" in row["flags"]) == ("inconclusive", True)
    assert "0.4 with one reading" in row["reason"]


@pytest.mark.parametrize("items", [True, False], ids=["items", "no items"])
def test_an_arm_is_compared_with_another_score_of_itself(items: bool, tmp_path: Path) -> None:
    put(tmp_path, "a", accuracy=0.8, retained=0.4, with_samples=items)
    evidence = {"sweep": SWEEP, "arm": {"method": "a"}, "baseline": {"method": "a"}}
    same = {"metric": "retained_accuracy", "baseline_metric": "base_retained_accuracy", "expect": "less"}
    row = row_of(claim(**same, evidence=evidence), tmp_path)
    assert row["measured"] == pytest.approx(-52, abs=8), "not the metric less itself"
    assert row["n"] == ("200 shared items, 3 and 3 seeds" if items else "3 paired seeds")
    assert row["interval"][0] < row["measured"] < row["interval"][1] < 0


def test_an_untrained_model_has_the_interval_of_its_items(tmp_path: Path) -> None:
    wanted = {"form": "absolute", "unit": "points", "value": 50.0, "tolerance": {"value": 10, "why": "why"}}
    rows = {}
    for method in ("none", "lora"):
        put(tmp_path / method, method, seeds=1, accuracy=0.5, retained=None, merged=False)
        evidence = {"sweep": SWEEP, "arm": {"method": method}}
        rows[method] = row_of(claim(**wanted, evidence=evidence), tmp_path / method)
    assert [row["verdict"] for row in rows.values()] == ["reproduced", "inconclusive"]
    counted = stats.wilson(round(rows["none"]["measured"] * 2), 200)
    assert rows["none"]["n"] == "200 items"
    assert rows["none"]["interval"] == pytest.approx([100 * counted.low, 100 * counted.high])


@pytest.mark.parametrize("least", ["a", "b"])  # whichever of the two cells the store lists first
def test_the_cell_with_the_most_test_items_decides(least: str, tmp_path: Path) -> None:
    wanted = {"form": "absolute", "unit": "points", "value": 50.0, "tolerance": {"value": 10, "why": "why"}}
    store, task = Store(tmp_path), cell("none")["task"]
    for name, accuracy in (("a", 0.5), ("b", 0.9)):
        apart = tmp_path / name
        same = {"task": {**task, "test_items": 10 if name == "a" else 20}}
        (record,) = put(apart, "none", seeds=1, accuracy=accuracy, retained=None, merged=False, cell=same)
        reading = record.metrics["accuracy"].model_copy(update={"n": 10 if name == least else 200})
        data = (apart / "samples" / f"{record.samples.digest}.parquet").read_bytes() if record.samples else None
        store.append(record.model_copy(update={"metrics": {**record.metrics, "accuracy": reading}}), data)
    row = row_of(claim(**wanted, evidence={"sweep": SWEEP, "arm": {"method": "none"}}), tmp_path)
    assert (row["measured"] > 70) == (least == "a")


def test_straddling_interval_is_inconclusive_rounding_ignored() -> None:
    absolute = Criterion.model_validate(
        {
            "metric": "accuracy",
            "form": "absolute",
            "unit": "points",
            "value": 50.0,
            "tolerance": {"value": 1, "why": "why"},
        }
    )
    assert decide(absolute, Measured(50.5, 49.5, 50.9))[0] == "reproduced"
    assert decide(absolute, Measured(51.0, 50.0, 52.0))[0] == "inconclusive"
    assert decide(absolute, Measured(53.0, 52.0, 54.0))[0] == "not_reproduced"
    ratio = Criterion.model_validate(
        {"metric": "step_ms", "form": "ratio", "unit": "ratio", "band": (0.6, 0.8), "evidence": None}
    )
    assert decide(ratio, Measured(0.9, 0.85, 0.95))[0] == "partially"
    assert decide(ratio, Measured(1.2, 1.1, 1.3))[0] == "not_reproduced"


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
