"""For every method: the best evidence in the committed records that it learns, or the reason that was found why not.

``make docs`` writes ``docs/evidence.md`` and ``evidence.json`` beside this module, which the listing of methods reads.
Both are made from the records in ``results/reference``; a test fails where they differ.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.record import Record
from harness.store.store import Store
from reports.data.effects import Evidence, Family, members_of
from reports.data.frame import aggregate, current, frame, is_trial
from reports.data.learned import METRIC, UNTRAINED, Learned, verdicts
from reports.data.samples import samples_of_records

TABLE = Path(__file__).with_suffix(".json")
HEAD = "head"
LEVEL = 0.05
"""Error rate for all rows together: a row counts as evidence if its p value times the number of rows is below it."""
NOTHING_TRAINS = {
    UNTRAINED: "nothing trains: the reference of every row",
    "few-shot": "nothing trains: examples are shown",
}
UNKNOWN = "no committed record shows it, and no cause was found yet"


class Judged(NamedTuple):
    """A row of the records with its verdict.

    Attributes:
        method: registered name, not the label.
        gain: trained less base: accuracy as a fraction, or nats of the answer's log-probability; ``low`` and ``high``
            are its 95 % interval, ``p`` is two-sided.
        base: what it was compared with.
        real: neither a built-in model nor a generated task.
        tuned: its learning rate was chosen on validation data; its record says how.
        records: ids.
    """

    method: str
    learned: bool
    model: str
    task: str
    quantization: str
    accuracy: float
    gain: float
    low: float
    high: float
    p: float
    measure: str
    base: str
    real: bool
    tuned: bool
    seeds: int
    records: tuple[str, ...]


def judge(stores: Iterable[Path], generated: Collection[str] = ()) -> list[Judged]:
    """Verdicts on every row of these stores, in their order.

    A classifier is compared with the best row that trains the fresh head alone, where the same conditions have one:
    what a method gains there was learned in the body. Other rows are compared with the untrained model.

    Args:
        generated: names of tasks whose rows are generated, which are no real tasks.
    """
    return [row for root in stores for row in _of_store(root, generated)]


def _of_store(root: Path, generated: Collection[str]) -> Iterator[Judged]:
    store = Store(root)
    records, _ = store.records()
    kept = current(records)
    by_id = {identity: record for identity, record in kept if not is_trial(record)}
    samples = samples_of_records(store, by_id.values())
    evidence = Evidence(samples)
    rows = cast("list[dict[str, Any]]", aggregate(frame(by_id.values()), samples, evidence).to_dict("records"))
    parts: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["model"], row["task"], row["hardware"], row["group"]), []).append(row)
    for members in parts.values():
        found = verdicts(members, by_id, evidence, samples)
        ok = {row["config"]: row for row in members if row["ok_records"]}
        for config, verdict in found.items():
            row = ok[config]
            record = by_id[row["ok_records"][0]]
            family = evidence.family_of(members_of(ok.values()), METRIC, config)
            yield _judged(row, record, _above_head(row, verdict, family, ok, by_id), generated)


def _above_head(
    row: Mapping[str, Any],
    verdict: Learned,
    family: Family | None,
    rows: Mapping[str, Mapping[str, Any]],
    by_id: Mapping[str, Record],
) -> Learned:
    """The verdict against the best row that trains the head alone, of the same quantization, on the same items."""
    if family is None or _name(by_id[row["ok_records"][0]]) == HEAD:
        return verdict
    alone = [
        config
        for config, other in rows.items()
        if _name(by_id[other["ok_records"][0]]) == HEAD
        and other["quantization"] == row["quantization"]
        and config in family.scores
    ]
    if not alone:
        return verdict
    best = max(alone, key=lambda config: (float(rows[config][METRIC]), config))
    found = family.effect(row["config"], best)
    better = found.low > 0 and verdict.verdict == "learned"
    return replace(
        verdict,
        verdict="learned" if better else "worse" if found.high < 0 else "no evidence",
        effect=found.effect,
        low=found.low,
        high=found.high,
        p=found.p,
        base="the head alone",
    )


def _name(record: Record) -> str:
    return record.cell_view.name("method")


def _judged(row: Mapping[str, Any], record: Record, found: Learned, generated: Collection[str]) -> Judged:
    model, task = record.cell_view.part("model"), record.cell_view.name("task")
    made_up = str(model.get("id", "")).startswith(("builtin:", "skeleton:"))
    gain, low, high, p = (
        float("nan") if value is None else value for value in (found.effect, found.low, found.high, found.p)
    )
    return Judged(
        method=_name(record),
        learned=found.verdict == "learned",
        model=row["model"],
        task=row["task"],
        quantization=row["quantization"],
        accuracy=row[METRIC],
        gain=gain,
        low=low,
        high=high,
        p=p,
        measure=found.measure,
        base=found.base,
        real=not made_up and task not in generated,
        tuned="tuning" in record.environment_view.facts,
        seeds=found.seeds,
        records=tuple(row["ok_records"]),
    )


# --- from rows to one entry per method -----------------------------------------------------------
def table(rows: Sequence[Judged], methods: Iterable[str]) -> dict[str, dict[str, object]]:
    """Method to its entry: its best evidence on a real task, else on a built-in model, else why there is none.

    With hundreds of rows some pass a 5 % test by chance, so p values are multiplied by the number of rows (Bonferroni).
    """
    sure = [row for row in rows if row.learned and row.p * len(rows) < LEVEL]
    return {name: _entry(name, [row for row in sure if row.method == name]) for name in methods}


def _entry(name: str, sure: Sequence[Judged]) -> dict[str, object]:
    nano = [row.low for row in sure if not row.real and row.measure == METRIC]
    if not sure:
        empty = dict.fromkeys(("model", "task", "gain", "interval", "record"))
        why = NOTHING_TRAINS.get(name) or (REASONS[name].why if name in REASONS else UNKNOWN)
        return {"learned": False, **empty, "why": why}
    best = max(sure, key=_strength)
    return {
        "learned": True,
        "model": best.model,
        "task": best.task,
        "gain": round(best.gain, 4),
        "interval": [round(best.low, 4), round(best.high, 4)],
        "record": best.records[0],
        "why": "",
        "measure": best.measure,
        "accuracy": round(best.accuracy, 4),
        "base": best.base,
        "quantization": best.quantization,
        "real": best.real,
        "tuned": best.tuned,
        "seeds": best.seeds,
        "nano": round(max(nano), 4) if nano else None,
    }


def _strength(row: Judged) -> tuple[object, ...]:
    """Sort key by the strength of the evidence, most important first."""
    return (row.real, row.measure == METRIC, row.quantization == "none", row.seeds > 1, row.tuned, row.low)


def stores() -> list[Path]:
    """The committed stores of this checkout."""
    root = Path(__file__).parents[2] / "results" / "reference"
    return sorted(path for path in root.iterdir() if path.is_dir())


def to_json(entries: Mapping[str, Mapping[str, object]]) -> str:
    """The text of ``evidence.json``: one line per method."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@cache
def known() -> dict[str, dict[str, Any]]:
    """Method to its entry, as last generated."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


# --- the page ------------------------------------------------------------------------------------
_INTRODUCTION = """\
# Evidence that the methods learn

For every method: a committed record in which it learns, or the reason that was found why there is none. Generated by
`make docs` from the records in `results/reference`; `peft-matrix methods --json` carries the same under `evidence`.

- **Gain** is accuracy in points with its 95 % interval, on the same items, above the base: the untrained model, or for
  a classifier the best row that trains the fresh head alone. Where accuracy cannot move, it is nats of the answer's
  log-probability.
- A row counts if its p value stays below 0.05 after multiplication by the number of all rows with a verdict.
- **Tuned**: the learning rate was chosen on validation data. Otherwise the row ran once at its declared centre or at
  the rate of its sweep. A row with one seed says that this run learned, not how the method compares: gains of two rows
  must not be compared. For that there are [boards](boards.md).
- **Nano**: lower end of the gain's interval on the built-in model, where the method learns there too.
"""


def to_markdown(entries: Mapping[str, Mapping[str, object]], rows: int) -> str:
    """The text of ``docs/evidence.md``."""
    real = {name: e for name, e in entries.items() if e["learned"] and e["real"]}
    nano = {name: e for name, e in entries.items() if e["learned"] and not e["real"]}
    without = {name: e for name, e in entries.items() if not e["learned"] and name not in NOTHING_TRAINS}
    both = sum(e["nano"] is not None for e in real.values())
    lines = [
        _INTRODUCTION,
        f"Of {len(entries) - len(NOTHING_TRAINS)} methods that train or combine trained weights **{len(real)} learn a "
        f"real task with a real model** ({both} of them on the built-in nano model as well), {len(nano)} more on the "
        f"nano model alone, and {len(without)} have no evidence. {rows:,} rows have a verdict.",
        "",
        *_learned("On a real task", real),
        *_learned("On the nano model alone", nano),
        "## No evidence",
        "",
        "| method | what was found | on |",
        "|---|---|---|",
        *(f"| {name} | {e['why']} | {_date(REASONS.get(name))} |" for name, e in without.items()),
    ]
    return "\n".join(lines) + "\n"


def _date(reason: Reason | None) -> str:
    return reason.found if reason else ""


def _learned(title: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        f"## {title}",
        "",
        "| method | model | task | accuracy | gain | above | tuned | seeds | nano | record |",
        "|---|---|---|--:|---|---|---|--:|--:|---|",
    ]
    for name, e in entries.items():
        base = "" if e["quantization"] == "none" else f" ({e['quantization']})"
        nano = "" if e["nano"] is None or not e["real"] else f"{100 * e['nano']:+.0f}"
        cells = [name, e["model"] + base, e["task"], f"{100 * e['accuracy']:.1f}", _gain(e), e["base"]]
        cells += ["yes" if e["tuned"] else "no", str(e["seeds"]), nano, f"`{e['record'][:12]}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _gain(entry: Mapping[str, Any]) -> str:
    times, unit = (100, "") if entry["measure"] == METRIC else (1, " nats")
    low, high = entry["interval"]
    return f"{times * entry['gain']:+.1f} [{times * low:+.1f}, {times * high:+.1f}]{unit}"


class Reason(NamedTuple):
    """A reason that was found.

    Attributes:
        found: date, YYYY-MM-DD.
        why: one sentence for the page; with figures where something was run.
    """

    found: str
    why: str


ZEROTH_ORDER = (
    "not run for more than 150 steps of one random direction each; on the nano model the answer's loss falls from "
    "53.7 to {} nats; the format alone needs 13.8"
)
REASONS: dict[str, Reason] = {
    "adamw-paged": Reason("2026-11-26", "needs CUDA, and no GPU run has used it yet"),
    "qalora": Reason("2026-11-26", "peft trains it on a GPTQ base only, and no committed sweep has one with it"),
    "trainable-tokens": Reason(
        "2026-11-28",
        "trains the embeddings of named tokens only (96 numbers on nano: 35.2 nats, from 53.7); peft "
        "leaves a classifier's head frozen with it; on SmolLM2 0.46 on TREC (untrained in its best format: 0.43); no "
        "committed task needs a new token",
    ),
    "cpt": Reason(
        "2026-11-28",
        "its tokens may move 0.1 around those of the examples, and nano cannot use examples: 62.4 nats "
        "trained, 62.5 with examples untrained, 53.7 without; on SmolLM2 0.27 on TREC after 60 steps, below the "
        "untrained model (0.43)",
    ),
    "lofit": Reason(
        "2026-11-27",
        "on SmolLM2 0.38 on TREC after 60 steps at its centre (untrained in its best format: 0.43); on nano 24 numbers "
        "(52.3 nats, from 53.7); on the encoder the answers stay those of its head (0.13); higher rates were not run",
    ),
    "multitask-prompt": Reason(
        "2026-11-28",
        "at its centre 0.24 on TREC on the encoder, two answers, loss at that of the label shares; on SmolLM2 0.38, "
        "below the untrained model (0.43); on nano 24.4 nats",
    ),
    "loldu": Reason(
        "2026-11-27",
        "on SmolLM2 0.44 on TREC after 60 steps at its centre, as that model untrained in its best format "
        "(0.43); on an encoder one answer at two rates",
    ),
    "mezo": Reason("2026-11-26", ZEROTH_ORDER.format(41.5)),
    "sparse-mezo": Reason("2026-11-26", ZEROTH_ORDER.format(51.2)),
    "zo-sparse": Reason("2026-11-26", ZEROTH_ORDER.format(52.5)),
    "zo-sign": Reason("2026-11-26", ZEROTH_ORDER.format(52.6)),
    "zo-momentum": Reason("2026-11-26", ZEROTH_ORDER.format(40.9)),
    "zo-adam": Reason("2026-11-26", ZEROTH_ORDER.format(52.7)),
    "zo-conservative": Reason("2026-11-26", ZEROTH_ORDER.format(39.4)),
    "zo-forward-grad": Reason("2026-11-26", ZEROTH_ORDER.format(42.6)),
    "zo-blockwise": Reason("2026-11-26", ZEROTH_ORDER.format(40.8)),
}
