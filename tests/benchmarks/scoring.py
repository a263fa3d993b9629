"""Scoring on the live model against lm-eval's own command line: same model, items, batch size and machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Figure = tuple[str, str, str]

SMALL = {"choices": 600, "answers": 64, "new_tokens": 64}
FULL = {"choices": 10_000, "answers": 1_319, "new_tokens": 300}
BATCH = 32
CHOICE_TASKS = ("arc-easy", "openbookqa", "boolq", "arc-challenge", "piqa", "siqa")


def sizes() -> dict[str, int]:
    """Number of scored items: PEFT_MATRIX_BENCH=full for the whole, which takes an hour on two cores."""
    return FULL if os.environ.get("PEFT_MATRIX_BENCH") == "full" else SMALL


def write_tasks(folder: Path, data_root: Path) -> dict[str, int]:
    """Real questions as two local tasks of lm-eval; how many items and choices they hold."""
    from tasks.data import load_split
    from tasks.task import load_task

    def read(name: str, n: int | None) -> list[Any]:
        return load_split(load_task(name, []), "test", data_root=data_root, max_items=n, seed=0)

    wanted = sizes()
    asked: list[dict[str, Any]] = []
    choices = 0
    for name in CHOICE_TASKS:
        for item in read(name, None if wanted is FULL else 40):
            if choices < wanted["choices"]:
                asked.append({"q": item.prompt, "c": [c.strip() for c in item.choices], "l": item.label})
                choices += len(item.choices)
    answers = [{"q": i.prompt, "a": i.answer.rpartition("#### ")[2]} for i in read("gsm8k", wanted["answers"])]
    common = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}, "doc_to_text": "{{q}}"}
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": "{{l}}"}
    write = {
        "output_type": "generate_until",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": wanted["new_tokens"], "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task, rows in (("bench_choices", choice, asked), ("bench_answers", write, answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **data, **task}))
    return {"bench_choices": choices, "bench_answers": len(answers)}


def figures(model: str, run: Any) -> Iterator[Figure]:
    """Ratios of whole processes, imports included, and whether the scores are the same.

    Args:
        run: ``run(command) -> seconds`` of a command that must succeed.
    """
    root = os.environ.get("PEFT_MATRIX_DATA")
    if not root:
        yield "scoring / lm-eval command line", "not measured", "no data root: set PEFT_MATRIX_DATA"
        return
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch)
        folder = workspace / "tasks" / "lm-eval"
        folder.mkdir(parents=True)
        for name, n in write_tasks(folder, Path(root)).items():
            ours = run([sys.executable, "-m", "tests.benchmarks.scoring", model, str(workspace), name])
            out = workspace / "theirs" / name
            theirs = run(
                [
                    *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", name),
                    *("--model_args", f"pretrained={model},dtype=float32", "--batch_size", str(BATCH)),
                    *("--include_path", str(folder), "--log_samples", "--output_path", str(out)),
                ]
            )
            inside = json.loads((workspace / f"{name}.json").read_text())
            written = name == "bench_answers"
            same = alike(inside["samples"], next(out.rglob("samples_*.jsonl")), written=written)
            what = "generated answers" if written else "choices"
            note = (
                f"aim ≤ 0.6; n={n:,} {what}, {ours:.0f} s / {theirs:.0f} s, of ours {inside['seconds']:.0f} s scoring"
            )
            yield f"scoring {what} / lm-eval command line", f"{ours / theirs:.3g} × (scores {same})", note


def alike(ours: list[list[Any]], theirs: Path, *, written: bool) -> str:
    """True if every item was answered alike: right or wrong, and generated texts letter by letter."""
    rows = sorted((json.loads(line) for line in theirs.read_text().splitlines()), key=lambda row: row["doc_id"])
    differ = 0
    for (right, said), row in zip(ours, rows, strict=True):
        differ += right != (row["exact_match" if written else "acc"] == 1.0)
        differ += written and said != row["filtered_resps"][0]
    return "identical" if differ == 0 else f"differ in {differ} of {len(rows)} items"


def main(model: str, workspace: str, name: str) -> None:
    """Our side: the model from its folder, and one task through the code that a cell runs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runners.worker import lm_eval_suite
    from runners.worker.lm_eval_model import LiveModel
    from tests.runners.context import context

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ctx = context(loaded, AutoTokenizer.from_pretrained(model), batch_size=BATCH, lm_eval=[name])
    ctx.job = type("Job", (), {"workspaces": (workspace,), "folder": workspace})()
    lm_eval_suite.prepare(ctx)
    live = LiveModel(ctx)
    began = time.perf_counter()
    found = ctx.suite.run(ctx, live, ctx.evaluation.lm_eval[0])
    seconds = time.perf_counter() - began
    scored = next(iter(lm_eval_suite.keep(ctx, live, found, "retained").values()))
    samples = [[s.correct, s.prediction] for s in scored]
    Path(workspace, f"{name}.json").write_text(json.dumps({"seconds": seconds, "samples": samples}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
