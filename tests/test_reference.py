"""The committed records: none is lost or changed by packing, they load, and their boards are what they were."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from harness import stats
from harness.store.packing import pack, unpack
from harness.store.store import Store
from reports.apps.regressions import matrix
from reports.data.timing import ratio
from scripts import boards
from tests.methods import test_optimizers
from tests.quality import findings as f
from tests.quality import ranks, regressions, times

ROOT = boards.ROOT
REFERENCE = boards.REFERENCE
FINDINGS = ROOT / "docs" / "findings"
STORES = boards.stores()
SWEEPS = boards.sweeps()
# Taken of the loose files before they were first packed, in each store's folder, so without any code of the project:
#   find records samples -type f | LC_ALL=C sort | xargs sha256sum | sha256sum
LOOSE = {
    "cpu-2core": ("b937fe2f5be8ef22ef3e00df4c5a343d688fcb9aa6f3be20551b77af2be27c1d", 264),
    "cpu-2core-calibrated": ("c33ac65b92923d4418d82909e21de7a5bc6d487cce4ebdf212c3c75bdb01e04a", 33),
    "cpu-2core-claims": ("75eb6e882ca9226cd9a6d211a5ade55ff147b64e126d6b09e890ab850f530fca", 983),
    "cpu-2core-evidence": ("d874455d85326159a0dbca38c327b5a87ee9e6aa96f4028af605a8b6f79569a1", 713),
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
    assert seen >= 2224


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
    said = r"\d+ rows in \d+ tables?\. (No row is ranked|First( in [^:]+)?: .+?( at [\d.]+( %)?)?)\."
    assert re.fullmatch(said, boards.in_short(tmp_path))
    assert boards.digests(tmp_path) == golden[sweep], "if this is meant to change: make boards"


def test_a_board_of_loose_records_is_that_of_packed_ones(tmp_path: Path) -> None:
    sweep = SWEEPS[boards.SMALL]
    store = copy_of(sweep.store.name, tmp_path / "loose")
    unpack(store)
    assert boards.draw(sweep._replace(store=tmp_path / "loose"), tmp_path / "board") == []
    golden = json.loads((boards.GOLDEN / "boards.json").read_text(encoding="utf-8"))
    assert boards.digests(tmp_path / "board") == golden[sweep.name]
    assert boards.in_short(tmp_path / "board") == "17 rows in 1 table. No row is ranked."


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
def real_tasks() -> f.Statements:
    """Statements of docs/findings/real-tasks-nano.md."""
    names = {"boolq": ("BoolQ", 2), "piqa": ("PIQA", 2), "siqa": ("SIQA", 3), "winogrande": ("WinoGrande", 2)}
    names |= {"arc-easy": ("ARC-easy", 4), "arc-challenge": ("ARC-challenge", 4), "openbookqa": ("OpenBookQA", 4)}
    records = {r.cell["task"]["label"]: r for r in f.of_store("cpu-2core-tasks", "real-tasks-nano")}
    for task, (name, options) in names.items():
        n, value = records[task].metrics["accuracy"].n or 0, f.value_of(records[task], "accuracy") or 0
        error, chance = math.sqrt(value * (1 - value) / (n - 1)), 1 / options
        assert abs(value - chance) < 2 * error, "every interval contains chance"
        yield f"| {name} | {n} | {value:.3f} ({error:.3f}) | {f'{chance:.2f}'.rstrip('0')} |"
    gsm = records["gsm8k"]
    assert f.value_of(gsm, "accuracy") == 0
    tokens = gsm.cell["task"]["decoding"]["max_new_tokens"]
    yield f"| GSM8K, {tokens} new tokens | {gsm.metrics['accuracy'].n} | 0 | about 0 |"
    assert records["piqa"].environment["facts"]["items_cut"]["adapted/piqa"]["n"] == 3
    assert all("items_cut" not in r.environment["facts"] for task, r in records.items() if task != "piqa")
    yield "Three PIQA items were longer than the model's 1,024 positions"
    worst = [r.environment["facts"]["shared_prompts"] for task, r in records.items() if task != "gsm8k"]
    assert len(worst) == 7
    assert all(one["used"] for one in worst)
    yield f"at most by a relative {max(one['worst_difference'] for one in worst):.0e}".replace("e-0", "e-")
    yield f"({f.millions(gsm)} parameters, three string operations)"


def smollm2() -> f.Statements:
    """Statements of docs/findings/smollm2.md about the records."""
    names = {"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}
    found_by_task: dict[str, f.Record] = {}
    for record in f.of_store("cpu-2core-claims", "smollm2-anchors"):  # an earlier run took 200 items of each set
        held = found_by_task.get(record.cell["task"]["label"])
        if held is None or (record.metrics["accuracy"].n or 0) >= (held.metrics["accuracy"].n or 0):
            found_by_task[record.cell["task"]["label"]] = record
    items = {task: record.metrics["accuracy"].n or 0 for task, record in found_by_task.items()}
    yield f"on {items['arc-easy']} fixed random test items of ARC-Easy"
    yield f"the {items['arc-challenge']:,} of ARC-Challenge"
    yield f"because {items['arc-easy']} items give a wider interval"
    for task, record in found_by_task.items():
        for form, words in (("cloze", "cloze"), ("letter", "letter"), ("finetune", "fine-tuning prompt")):
            shown = [100 * (f.value_of(record, f"{form}_{name}") or 0) for name in ("accuracy", "accuracy_norm")]
            texts = [f"{value:.1f} %" for value in shown]
            known = {("arc-easy", "cloze"): 0, ("arc-challenge", "cloze"): 1}.get((task, form))
            if known is not None:
                found = stats.wilson(round(shown[known] / 100 * items[task]), items[task])
                texts[known] += f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
            else:
                low = stats.wilson(round(shown[0] / 100 * items[task]), items[task])
                assert task == "arc-challenge" or low.low < 0.25 < low.high, "letter and fine-tuning prompt at chance"
            yield f"| {names[task]} | {words} | {texts[0]} | {texts[1]} |"
    easy = found_by_task["arc-easy"]
    gap = 100 * ((f.value_of(easy, "cloze_accuracy") or 0) - 0.25)
    yield f"too large by {gap:.0f} points on ARC-Easy"
    claims = (ROOT / "reports" / "claims" / "smollm2.yaml").read_text(encoding="utf-8")
    easy_, hard = re.findall(r"value: ([\d.]+), place: \"table, ARC", claims)
    yield f"ARC-Easy acc {easy_}, ARC-Challenge acc_norm {hard}"
    yield from f.claims_lora()


def objectives() -> f.Statements:
    """Statements of docs/findings/objectives.md."""
    nano = f.of_store("cpu-2core-objectives", "objectives")
    steps, batch, items = f.budget(f.named(nano, "full+dpo"))
    yield f"{steps} steps of {batch} pairs, three seeds, {items} test pairs"
    labels = {"SFT": "sft at 0.02", "DPO": "dpo", "IPO": "ipo", "ORPO": "orpo", "KTO": "kto", "SimPO": "simpo"}
    assert {r.cell["objective"]["lr_factor"] for r in nano if r.cell.get("objective")} == {0.02}
    yield "at 0.02 of each method's learning rate"
    for metric in ("accuracy", "retained_accuracy"):
        for shown, label in labels.items():
            numbers = [f.over_seeds(nano, f"{method}+{label}", metric) for method in ("full", "lora", "bitfit")]
            yield f"| {shown} | {' | '.join(numbers)} |"
    base = [f.over_seeds(nano, "none", metric) for metric in ("accuracy", "retained_accuracy")]
    yield f"The base prefers the chosen answer in {base[0]} % of the pairs and has {base[1]} % of its skills."
    preferences = [label for label in labels.values() if not label.startswith("sft")]
    kept = [100 * statistics.fmean(f.values(nano, "retained_accuracy", method=f"full+{x}")) for x in preferences]
    yield f"keeps {min(kept):.0f} to {max(kept):.0f} % of the skills"
    spread = [100 * statistics.stdev(f.values(nano, "retained_accuracy", method=f"lora+{x}")) for x in preferences]
    yield f"its seeds differ by {min(spread):.0f} to {max(spread):.0f} points"
    yield f"their own symbols, {f.named(nano, 'full+dpo').metrics['retained_accuracy'].n // 3} items each"
    llm = f.of_store("cpu-2core-objectives", "objectives-llm")
    for record in llm:
        metrics = ("accuracy", "base_retained_accuracy", "retained_accuracy")
        before, now = f"{f.value_of(record, 'reference_kl'):.2f}", [100 * (f.value_of(record, m) or 0) for m in metrics]
        yield f"| {record.cell['method']['label']} | {now[0]:.0f} | {before} | {now[1]:.0f} → {now[2]:.0f} |"
    steps, batch, items = f.budget(f.named(llm, "lora+dpo"))
    yield f"{steps} steps of {batch} pairs, one seed, {items} test pairs"
    yield f"the sentiment of {f.named(llm, 'lora+dpo').metrics['retained_accuracy'].n} film reviews"
    yield f"{items} pairs are too few for a ranking: a difference below about {detectable(items):.0f} points"
    yield from distillation()


def detectable(items: int) -> float:
    """Smallest difference of two rates near 65 % on the same items whose interval leaves out 0, in points."""
    return 100 * 1.96 * math.sqrt(2 * 0.65 * 0.35 / items)


def distillation() -> f.Statements:
    """The student with and without a teacher."""
    records = f.of_store("cpu-2core-objectives", "distillation")
    found = {(r.label.split(".")[1], r.cell["seed"]): r for r in records if r.outcome.status == "ok"}
    losses = {}
    for shown, label in (
        ("labels alone", "lora"),
        ("a teacher", "lora-distill-logits"),
        ("the teacher itself", "full-200-steps"),
    ):
        rows = [found[label, seed] for seed in range(3)]
        scores = ", ".join(f"{100 * (f.value_of(r, 'accuracy') or 0):.1f}" for r in rows)
        losses[label] = [f.value_of(r, "answer_nll") or 0 for r in rows]
        yield f"| {shown} | {scores} | {', '.join(f'{loss:.3f}' for loss in losses[label])} |"
    one = found["lora", 0]
    steps, batch, items = f.budget(one)
    teacher = found["lora-distill-logits", 0].cell["objective"]
    yield f"{one.cell['task']['train_items']} labelled questions, {steps} steps of {batch}, {items} test items"
    rows_ = teacher["teacher"]["trained"]["task"]["train_items"]
    yield f"in full on {rows_:,} questions"
    yield f"Alpha is {teacher['params']['alpha']} and the temperature {teacher['params']['temperature']:.0f}"
    gain = statistics.fmean(np.subtract(losses["lora"], losses["lora-distill-logits"]))
    yield f"lower with a teacher in all three, by {gain:.2f} nat in the mean"
    scores_ = [100 * x for x in f.values(records, "accuracy", method="lora")]
    yield f"differ by {max(scores_) - min(scores_):.0f} points"


def agrees(shown: str, small: str, rounds: int, of: int) -> bool:
    """Whether a share of ``of`` drawn histories and one of the first ``rounds`` of them can be the same simulation."""
    if "–" in (shown, small):
        return shown == small
    whole, part = (round(float(text.split(" ")[0]) / 100 * n) for text, n in ((shown, of), (small, rounds)))
    drawn = scipy.stats.hypergeom(of, whole, rounds)
    return min(drawn.cdf(part), drawn.sf(part - 1)) > 0.005 and (
        "[" not in shown or shown == regressions.shown(whole, of)
    )


def table_rows(page: str, columns: int) -> dict[str, list[str]]:
    """Rows of the tables of a page that have this many columns: first two places to all of them."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in page.split("\n") if line.startswith("|")]
    return {" | ".join(row[:2]): row for row in rows if len(row) == columns and not row[0].startswith(("-", ":"))}


def told_row(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"


def ranks_and_times() -> f.Statements:
    """Statements of docs/findings/statistics.md: of the committed runs exactly, of simulations within their error."""
    page = (FINDINGS / "statistics.md").read_text(encoding="utf-8")
    runs = times.kept()
    rows = list(times.measure(runs))
    yield from times.table(rows)
    alone, within = ([100 * times.spread(runs, times.METRICS[m])[at] for m in ("step_ms", "train: rss_growth_bytes")]
                     for at in (0, 1))  # fmt: skip
    yield f"Two runs of one label differed by {alone[0]:.0f} % in step time"
    yield f"two labels in one block by {within[0]:.0f} %; in RSS growth by {alone[1]:.1f} % and {within[1]:.1f} %"
    yield f"{sum(map(len, runs.values()))} runs, {len(runs['dora'])} blocks"
    found = {(row["metric"], row["blocks"], row["way"]): row for row in rows}
    for words, way in (
        ("With blocks and A/A arms at most", "blocks, A/A"),
        ("Blocks without A/A arms: up to", "blocks"),
    ):
        yield f"{words} {100 * max(row['error'] for key, row in found.items() if key[2] == way):.1f} % of equal pairs"
    rows_ = [row["error"] for key, row in found.items() if key[2] == "runs in a row" and "rss" not in key[0]]
    yield f"against {100 * min(rows_):.0f} to {100 * max(rows_):.0f} % of times for runs in a row"
    both = {label: list(runs[label].values()) for label in ("dora", *times.LABELS)}
    dora = ratio(both["dora"], both["lora-a"], times.METRICS["step_ms"])
    assert dora is not None
    yield f"DoRA's step takes {dora.ratio:.2f} × [{dora.low:.2f}, {dora.high:.2f}] that of LoRA"
    power = [100 * row["power"] for key, row in found.items() if key[0] == "step_ms" and key[2] == "blocks, A/A"]
    yield f"find it in {min(power):.0f} to {max(power):.0f} % of the comparisons"
    yield f"({100 * ranks.ACCURACY:.0f} %), {ranks.ITEMS} items"
    yield f"a family-wise error of 5 % is {100 * math.sqrt(0.05 * 0.95 / 300):.1f} points"
    yield "`python -m tests.quality.ranks --stress --boards 300`"
    yield "Each row is 300 drawn boards"
    sds = {one.name: one for one in (*ranks.SCENARIOS, *ranks.STRESS)}
    assert sds["rising"].sds[::7] == (0.0, 13.8)
    assert (min(sds["drawn"].sds), max(sds["drawn"].sds)) == (0.4, 13.5)
    assert (set(sds["two halves"].sds), sds["equal, shared"].shared) == ({2.5, 13.8}, 0.8)
    yield "from 0 to 13.8 points over the eight methods"
    yield "four at 2.5 and four at 13.8"
    yield "0.4 to 13.5"
    yield '"Shared": 80 % of the seed variance'
    assert max(sds["one of eight"].sds) - min(sds["one of eight"].sds) == pytest.approx(11.3)
    yield from drawn_boards(table_rows(page, 9))
    yield from worst_of(table_rows(page, 9))


def drawn_boards(shown: dict[str, list[str]]) -> f.Statements:
    """Rows of the tables of ranks, held to a short simulation of the same random numbers."""
    boards_, coverages = 4, []
    yield from map(told_row, shown.values())
    for row in ranks.measure(boards_, stress=True, every=3):
        small = [part.strip() for part in ranks.line(row).strip("|").split("|")]
        there = shown[" | ".join(small[:2])]
        assert agrees(there[2], small[2], boards_, 300), there
        assert agrees(there[3], small[3], boards_, 300), there
        coverages.append([[float(text.removesuffix(" %")) for text in one[4:8]] for one in (there, small)])
        assert abs(float(there[8].removesuffix(" %")) - float(small[8].removesuffix(" %"))) < 60, there
    given, measured = np.array(coverages).transpose(1, 0, 2)
    # of all rows together: 44 boards, whose coverages have a standard deviation of less than 10 points
    assert np.abs((given - measured).mean(axis=0)).max() < 4
    assert np.abs(given - measured).max() < 40


def worst_of(shown: dict[str, list[str]]) -> f.Statements:
    """Statements of the text about the tables of ranks."""
    former = {key: float(row[3].removesuffix(" %")) for key, row in shown.items() if row[3].endswith("%")}
    yield "The former ranks placed rows on {:.0f} and {:.0f} % of boards with two and three seeds at 4.8 points".format(
        former["2 | 4.8"], former["3 | 4.8"]
    )
    yield "and on {:.0f} and {:.0f} % at 13.8 points".format(former["2 | 13.8"], former["3 | 13.8"])
    pairs, old = ([ranks.fair_methods(former=was)[task] for task in f.FAIR_TASKS] for was in (False, True))
    yield f"{old[0]}, {old[1]} and {old[2]} of 28 pairs on `fair-methods`"
    yield f"{pairs[0]} (SST-2), {pairs[1]} (TREC) and {pairs[2]} (nano) of 28 differ"
    yield f"common effect of the seed cover {float(shown['2 | 4.8, shared'][6].removesuffix(' %')):.0f} %"
    lone = float(shown["3 | one of eight"][2].removesuffix(" %"))
    yield f"with three seeds is placed wrongly on {lone:.0f} % of boards"
    covered = sorted(float(shown[f"2 | {what} of eight"][5].removesuffix(" %")) for what in ("one", "two"))
    yield f"differences from such rows are covered {covered[0]:.0f} to {covered[1]:.0f} % of the time"


def detector() -> f.Statements:
    """Statements of docs/findings/regressions.md, held to a short simulation of the same random numbers."""
    page = (FINDINGS / "regressions.md").read_text(encoding="utf-8")
    q = regressions
    yield f"({q.ITEMS:,} items), step times with {100 * q.SCATTER:.1f} % scatter and {100 * q.NIGHT_SD:.1f} % a night"
    yield f"allocated memory with {100 * q.MEMORY_SCATTER:.2f} %"
    yield f"{q.CELLS} cells x 3 metrics, {q.NIGHTS} nights, {q.ROUNDS} histories a row"
    shown = table_rows(page, 5)
    for case in q.CASES:
        there, small = next(row for row in shown.values() if row[0] == case.name), list(q.measure(case, 2).values())
        assert all(agrees(a, b, 2, q.ROUNDS) for a, b in zip(there[1:], small[1:], strict=True)), (there, small)
        yield told_row(there)
    yield from alone_and_published(page)


def alone_and_published(page: str) -> f.Statements:
    """The two shorter tables of the same page."""
    q = regressions
    pairs, published = table_rows(page, 2), table_rows(page, 4)
    for sd in q.NIGHT_SDS:
        small = list(q.alone_row(sd, 5).values())
        there = next(row for row in pairs.values() if row[0] == small[0])
        assert agrees(there[1], small[1], 5, q.ROUNDS), (there, small)
        yield told_row(there)
    for number, row in enumerate(list(published.values())[1:]):
        if q.RUNS.is_dir():
            small = list(q.published(*q.PLANTED[number], rounds=2).values())
            assert row[0] == small[0]
            assert all(agrees(a, b, 2, q.SUITE_ROUNDS) for a, b in zip(row[1:], small[1:], strict=True)), (row, small)
        yield told_row(row)
    yield f"{q.SUITE_ROUNDS} histories a row"
    yield f"binomial counts of the suite's {q.SUITE_ITEMS:,} test items"
    yield f"The {len(q.truths()) if q.RUNS.is_dir() else 63} result files"
    yield "for the true values of 63 cells"
    yield f"nights are assumed to differ by {100 * matrix.ASSUMED_NIGHT_SD:.0f} %"
    found = {row[0]: float(row[1].split(" ")[0]) for row in table_rows(page, 5).values() if row[1].endswith("]")}
    yield f"A single cell that loses 8 points is found in {found['one cell 8 points worse']:.0f} % of the nights"


def libraries() -> f.Statements:
    """Statements of docs/findings/optimizers-of-libraries.md: what the tests of these optimizers use."""
    names = (
        "test_our_galore_is_the_kept_one",
        "test_our_adalomo_is_the_kept_one",
        "test_package_apollo_steps_in_a_random_subspace",
    )
    sources = {name: inspect.getsource(getattr(test_optimizers, name)) for name in names}
    assert "atol=1e-5" in sources["test_our_galore_is_the_kept_one"]
    assert "atol=1e-6" in sources["test_our_adalomo_is_the_kept_one"]
    yield "step by step (1e-5 and 1e-6)"
    apollo = sources["test_package_apollo_steps_in_a_random_subspace"]
    assert '"rank": 4' in apollo
    assert "weight((64, 128))" in apollo
    yield "(4 of 64 in the test)"
    for name, form in (("pytorch-optimizer", "APOLLO in pytorch-optimizer {}"), ("bitsandbytes", "bitsandbytes {}")):
        version = importlib.metadata.version(name)
        yield form.format(version if name.startswith("pytorch") else version.rpartition(".")[0])


PAGES: dict[str, Callable[[], f.Statements]] = {
    "objectives": objectives,
    "claims-proxies": f.claims_proxies,
    "smollm2": smollm2,
    "fair-methods": f.fair_methods,
    "gpu": f.gpu,
    "real-tasks-nano": real_tasks,
    "statistics": ranks_and_times,
    "regressions": detector,
    "optimizers-of-libraries": libraries,
}
ELSEWHERE = {
    "claims-proxies": ("the paper takes 20,000 steps", "Merging into 4 bits", "LoRA on 4 bits"),
    "fair-methods": ("the shared rate of 1e-3", "at 1e-3", "seventh at 1e-3"),
    "gpu": (
        "Python 3.12, torch 2.11",
        "H100 80GB HBM3",
        "needs windows of 5 s",
        "now takes 100 steps",
        "(r = 32)",
        "(r = 32, q and v projections)",
        "a 1B model",
        "3e-5 for full",
        "the 4-bit",
        "torch 2.11",
        "15 minutes in all",
        "15 cells",
    ),
    "objectives": ("(4-bit file)", "seeds 0, 1, 2", "on seed 0"),
    "optimizers-of-libraries": ("algorithm 1 of the paper", "any value but 1", "with scale 1"),
    "smollm2": ("at chance (25 %)", "What 4-bit weights cost", "with 13 methods"),
    "statistics": ("14 points apart", "standard error of", "ten points worse"),
    "regressions": ("version 1 to 2", "1.5 points less accuracy", "15 % of quiet nights that differ by 2 to 3 %"),
    "real-tasks-nano": (),
}
"""Numbers that are no result: a paper's, a version's, a rule's, a setting that its sweep file states."""
EVERYWHERE = ("95 %", "arXiv:")
NOT_KEPT = "## Not in the records"
NUMBER = re.compile(r"(?<![\w.,-])[-−±+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@pytest.mark.parametrize("page", PAGES)
def test_findings_say_what_the_records_give(page: str) -> None:
    text = f.told((FINDINGS / f"{page}.md").read_text(encoding="utf-8").partition(NOT_KEPT)[0])
    statements = [f.told(statement) for statement in PAGES[page]()]
    missing = [statement for statement in statements if statement not in text]
    assert not missing, f"the records give, and {page}.md does not say:\n" + "\n".join(missing)
    stale = [words for words in ELSEWHERE[page] if words not in text]
    assert not stale, f"{page}.md no more has: {stale}"
    for known in sorted({*statements, *ELSEWHERE[page]}, key=len, reverse=True):
        text = text.replace(known, " ")
    left = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+|95 %", " ", text)
    unknown = [left[max(0, m.start() - 50) : m.end() + 30] for m in NUMBER.finditer(left)]
    assert not unknown, f"numbers of {page}.md that no test gives:\n" + "\n".join(unknown)


def test_every_page_of_findings_is_held_to_the_records() -> None:
    assert {path.stem for path in FINDINGS.glob("*.md")} == set(PAGES) == set(ELSEWHERE)


def test_files_that_findings_name_exist() -> None:
    for path in FINDINGS.glob("*.md"):
        named = re.findall(r"`((?:tests|runners|harness|reports|results|docs)/[\w./-]+)`", path.read_text("utf-8"))
        assert not [name for name in named if not (ROOT / name).exists()], path.name
