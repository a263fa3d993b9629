"""Verdicts as rows for programs, a table for people, and a Markdown report that is the same bytes each time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.metrics import METRICS
from reports.apps.reproduction.claims import Claim, Criterion, Needs, Proxy
from reports.apps.reproduction.judging import JudgedClaim, Judgement, kind_of
from reports.apps.reproduction.measuring import Measured

KIND_WORDS = {
    "arithmetic": "arithmetic on printed numbers",
    "counted": "counted from shapes",
    "measured": "measured",
}
PROXY_KIND = "measured (proxy)"
BY_CONSTRUCTION = "by-construction"
UNIT_TEXT = {"points": " points", "relative": " relative", "ratio": " ×", "absolute": "", "count": "", "bytes": " B"}


def as_rows(results: Sequence[JudgedClaim]) -> list[dict[str, object]]:
    """The shape printed by ``reproduce --json``; a claim with proxies is one row with the proxies inside."""
    return [_row(result) for result in results]


def _row(result: JudgedClaim) -> dict[str, object]:
    claim = result.claim
    row: dict[str, Any] = {
        "claim": claim.id,
        "paper": result.paper.paper,
        "statement": claim.statement,
        "printed": [p.model_dump(mode="json") for p in claim.printed],
        "unit": claim.unit,
        "form": claim.form,
        "metric": claim.metric,
        "kind": kind_of(claim),
        **_judgement(result.own),
        "sentence": sentence(result),
    }
    row["proxies"] = [
        {
            "setup": proxy.setup,
            "kind": PROXY_KIND,
            **_judgement(judged),
            "differs": proxy.differs,
            "metric": proxy.metric,
        }
        for proxy, judged in _proxies(result)
    ]
    return row


NO_EVIDENCE = "no evidence yet"


def count_kinds(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    """Kind of evidence to its verdicts and how many there are of each; they are never added up over kinds.

    Claims without a run are their own kind; proxies that hold by construction have their own verdict.

    Args:
        rows: of ``reproduce --json``.
    """
    found: dict[str, Counter[str]] = {}
    for row in rows:
        kind = NO_EVIDENCE if row["verdict"] == "not_run" else str(row.get("kind", "kind not stated"))
        found.setdefault(kind, Counter())[str(row["verdict"]).replace("_", " ")] += 1
        for proxy in (one for one in row.get("proxies") or () if isinstance(one, Mapping)):
            verdict = str(proxy.get("verdict", "")).removeprefix("proxy_").replace("_", " ")
            held = " by construction" if verdict == "agrees" and BY_CONSTRUCTION in (proxy.get("flags") or ()) else ""
            found.setdefault(PROXY_KIND, Counter())[verdict + held] += 1
    order = dict.fromkeys((*KIND_WORDS, PROXY_KIND, NO_EVIDENCE, *sorted(found)))
    return {kind: sorted(found[kind].items()) for kind in order if kind in found}


def by_kind(results: Sequence[JudgedClaim]) -> dict[str, list[tuple[str, int]]]:
    """The same of judged claims, with the kinds in words."""
    return {KIND_WORDS.get(kind, kind): counts for kind, counts in count_kinds(as_rows(results)).items()}


def _proxies(result: JudgedClaim) -> list[tuple[Proxy, Judgement]]:
    return list(zip(result.claim.proxies, result.proxies, strict=True))


def _judgement(judgement: Judgement) -> dict[str, object]:
    m = judgement.measured
    return {
        "measured": None if m is None else m.value,
        "interval": None if m is None or m.low is None else [m.low, m.high],
        "n": "" if m is None else m.n,
        "mde": None if m is None else m.mde,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "flags": list(judgement.flags),
        "records": [] if m is None else list(m.records),
    }


def sentence(result: JudgedClaim) -> str:
    """Text for a citation in a paper."""
    claim, own = result.claim, result.own
    source = result.paper.paper + (f" (arXiv:{result.paper.arxiv})" if result.paper.arxiv else "")
    if own.measured is None:
        text = f"The claim of {source} that {_lower(claim.statement)} was not run: {own.reason}{_needs(claim.needs)}."
    else:
        text = (
            f"Of the claim of {source} that {_lower(claim.statement)} the verdict is {own.verdict.replace('_', ' ')}: "
            f"printed {printed_text(claim)}, measured {measured_text(own.measured, claim)}; {own.reason}."
        )
    for proxy, judged in _proxies(result):
        text += f" A proxy ({proxy.differs}) {_proxy_text(judged, proxy)}."
    return text


def _proxy_text(judgement: Judgement, test: Criterion) -> str:
    if judgement.measured is None:
        return f"was not run: {judgement.reason}"
    words = {
        "agrees": "agrees",
        "partially": "agrees in part",
        "disagrees": "disagrees",
        "inconclusive": "is inconclusive",
    }
    said = words[judgement.verdict.removeprefix("proxy_")]
    return f"{said}: {measured_text(judgement.measured, test)}; {judgement.reason}"


def printed_text(claim: Claim) -> str:
    """The printed value, in its unit; an order in words."""
    values = [p.value for p in claim.printed if p.value is not None]
    if not values:
        if claim.form == "equivalence":
            return "equal to the baseline"
        if claim.form == "interaction":
            return "the effect grows"
        return {"greater": "higher than the baseline", "less": "lower than the baseline"}[claim.expect]
    return " / ".join(number(v) for v in dict.fromkeys(values)) + UNIT_TEXT[claim.unit]


def measured_text(m: Measured, test: Criterion) -> str:
    """The effect with its interval and what it rests on."""
    unit = UNIT_TEXT[test.unit]
    if test.unit == "absolute" and test.metric in METRICS and METRICS[test.metric].unit not in ("1", "fraction"):
        unit = f" {METRICS[test.metric].unit}"
    if m.low is None or m.high is None:
        return f"{number(m.value)}{unit} ({m.n})"
    return f"{number(m.value)}{unit} [{number(m.low)}, {number(m.high)}] ({m.n})"


def number(value: float) -> str:
    """Four significant digits; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def to_markdown(results: Sequence[JudgedClaim]) -> str:
    """The report: a summary, one table a paper, and the sentences."""
    lines = [
        "# Reproduction",
        "",
        "Claims of papers against records of this project. A proxy is a smaller experiment of the same form: its "
        "verdict is shown separately and never replaces the claim's. Verdicts and flags are explained below.",
        "",
        f"{len(results)} claims and {sum(len(r.proxies) for r in results)} proxies. What a verdict rests on:",
        "",
        *(
            f"- **{kind}**: " + ", ".join(f"{n} {verdict}" for verdict, n in counts) + "."
            for kind, counts in by_kind(results).items()
        ),
        "",
        "Arithmetic repeats a paper's own numbers and a count follows from shapes: neither is a measured phenomenon.",
        "",
    ]
    by_paper: dict[str, list[JudgedClaim]] = {}
    for result in results:
        by_paper.setdefault(result.paper.paper, []).append(result)
    for name, members in by_paper.items():
        lines += _paper_section(name, members)
    return "\n".join([*lines, *LEGEND]) + "\n"


def _paper_section(name: str, members: Sequence[JudgedClaim]) -> list[str]:
    paper = members[0].paper
    where = f"arXiv:{paper.arxiv}, version read: {paper.version}" if paper.arxiv else f"version read: {paper.version}"
    lines = [f"## {_text(name)}", "", where + (f". {_text(paper.note)}" if paper.note else ""), ""]
    lines += ["| claim | printed | measured | verdict | flags | proxies |", "|---|---|---|---|---|---|"]
    for result in members:
        claim, own = result.claim, result.own
        measured = measured_text(own.measured, claim) if own.measured is not None else f"– ({own.reason})"
        proxies = [
            f"{proxy.setup} **{judged.verdict.removeprefix('proxy_').replace('_', ' ')}**: {_proxy_cell(judged, proxy)}"
            for proxy, judged in _proxies(result)
        ]
        cells = [
            f"`{claim.id}`: {claim.statement}",
            printed_text(claim),
            measured,
            f"**{own.verdict.replace('_', ' ')}**",
            ", ".join(own.flags) or "–",
            "; ".join(proxies) or "–",
        ]
        lines.append("| " + " | ".join(map(_text, cells)) + " |")
    return [*lines, ""]


def _proxy_cell(judgement: Judgement, test: Criterion) -> str:
    flags = f" ({', '.join(judgement.flags)})" if judgement.flags else ""
    if judgement.measured is None:
        return judgement.reason + flags
    return measured_text(judgement.measured, test) + flags


LEGEND = [
    "## How to read this",
    "",
    "- **reproduced**: the whole 95 % interval satisfies the claim. **partially**: the direction agrees, the size "
    "does not. **not reproduced**: the whole interval contradicts the claim.",
    "- **inconclusive**: the interval straddles the limit, or the smallest effect that could have been found is above "
    "the claimed or the measured one. **not comparable**: the evidence has another scope.",
    "- **not run**: no evidence here; the claim file says what a run needs.",
    "- An *up to* claim is judged by the largest effect over its stated set, never by a mean.",
    "- `untuned-baseline`: the learning rates were not chosen by one tuning budget for both arms. "
    "`reference-inconsistent`: the texts print values that disagree. `one-seed`: no spread can be given. "
    "`leak`, `estimated-memory`, `one-seed-reference`: known doubts about the printed number. `source-unread`: the "
    "text that prints it could not be read here; number and place are from a digest. "
    "`…-refused`: records that were offered and left out. `by-construction`: the verdict cannot be another one. "
    "`lr-at-edge`: the best learning rate lies at the edge of those tried. `nothing-learned`: the arm does not beat "
    "the most frequent answer. `no-blocks`: times that were not measured in randomised blocks have no interval. "
    "`unstated-choice`: the verdict depends on a choice that the source does not state. "
    "`no-identical-arms`: no identical arms (A/A) ran beside them, so the smallest difference that counts is unknown.",
]


def _needs(needs: Needs) -> str:
    parts = []
    if needs.gpu_hours is not None:
        parts.append(f"about {number(needs.gpu_hours)} GPU-hours")
    if needs.memory_gib is not None:
        parts.append(f"{number(needs.memory_gib)} GiB of GPU memory")
    return f" (it needs {' and '.join(parts)})" if parts else ""


def _lower(statement: str) -> str:
    text = statement.rstrip(".")
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _text(text: str) -> str:
    """Text safe inside a Markdown table."""
    clean = " ".join(text.split())
    return clean.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
