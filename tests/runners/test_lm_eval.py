"""lm-eval in process: item by item what its own command line says of the merged checkpoint, and honest refusals."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.digests import digest
from harness.errors import CheckFailed, Unsupported, UserError
from harness.spec import Evaluation, LmEvalUse
from harness.spec_axes import TaskUse
from runners.running import job_results
from runners.worker import lm_eval_suite
from runners.worker.context import Splits
from tasks import lm_eval_tasks
from tasks.task import Item
from tests.runners.conftest import Bench
from tests.runners.context import context

pytest.importorskip("lm_eval")

ROWS = 24
CHOICE = {
    "task": "letters",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "letters-train.jsonl", "test": "letters.jsonl"}},
    "training_split": "train",
    "fewshot_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{label}}",
    "num_fewshot": 2,
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 1},
}
WRITE = {
    "task": "copying",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "letters.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}=",
    "doc_to_target": "{{q}}",
    "generation_kwargs": {"until": ["b"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
    "metadata": {"version": 1},
}


def row(i: int) -> dict[str, Any]:
    letters = "".join("abcdefghij"[(i * 7 + k * (i + 3)) % 10] for k in range(3 + i % 9))
    return {"q": letters, "options": [letters[:2], letters[::-1], "no way", "e"][: 2 + i % 3], "label": i % 2}


def write_tasks(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task in (CHOICE, WRITE):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    for name, start in (("letters.jsonl", 0), ("letters-train.jsonl", 100)):
        rows = [json.dumps(row(start + i)) for i in range(ROWS)]
        (folder / name).write_text("\n".join(rows) + "\n")


@pytest.fixture
def adapted(tiny_model: Path, tmp_path: Path) -> tuple[Any, Any, Path]:
    """A model with an unmerged adapter that is far from nothing, its tokenizer, and the merged checkpoint."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.lm_head.weight.data.normal_(0, 1)
    live = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    merged = copy.deepcopy(live).merge_and_unload()
    folder = tmp_path / "merged"
    merged.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    return live, tokenizer, folder


class CommandLine:
    """lm-eval's command line, in a separate process."""

    def __init__(self, model: Path, tasks: Path, out: Path) -> None:
        command = [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "8"),
            *("--model_args", f"pretrained={model},dtype=float32,max_length=128", "--include_path", str(tasks)),
            *("--tasks", "letters,copying", "--log_samples", "--output_path", str(out)),
        ]
        self.out = out
        self.process = subprocess.Popen(
            command, cwd=tasks, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """Samples by task."""
        _, said = self.process.communicate()
        assert self.process.returncode == 0, said[-3000:]
        found = {}
        for path in self.out.rglob("samples_*.jsonl"):
            name = path.name.removeprefix("samples_").rpartition("_")[0]
            found[name] = [json.loads(line) for line in path.read_text().splitlines()]
        return found


@pytest.mark.timeout(1800)
def test_items_match_lm_eval_cli_on_merged_checkpoint(adapted: tuple[Any, Any, Path], tmp_path: Path) -> None:
    live, tokenizer, merged = adapted
    write_tasks(tmp_path / "tasks" / "lm-eval")
    running = CommandLine(merged, tmp_path / "tasks" / "lm-eval", tmp_path / "cli")
    ctx = context(live, tokenizer, batch_size=8, lm_eval=["letters", {"task": "copying", "shots": 0}])
    ctx.job = type("Job", (), {"workspaces": (str(tmp_path),), "folder": str(tmp_path), "cell": CELL})()
    lm_eval_suite.prepare(ctx)
    before = torch.get_rng_state()
    lm_eval_suite.score_standard(ctx, arm="retained", metric="lm_eval_accuracy")
    assert torch.equal(before, torch.get_rng_state()), "lm-eval seeds the process; the cell's numbers are its own"

    theirs = running.samples()
    ours = {name: [s for s in ctx.samples if s["task"] == f"lm-eval:{name}"] for name in theirs}
    assert set(ours) == {"letters", "copying"}
    for sample, mine in zip(theirs["letters"], ours["letters"], strict=True):
        assert mine["item"] == str(sample["doc_id"])
        assert mine["correct"] is (sample["acc"] == 1.0)
        assert mine["logp_choices"] == pytest.approx([float(r[0][0]) for r in sample["resps"]], abs=2e-4)
    for sample, mine in zip(theirs["copying"], ours["copying"], strict=True):
        assert mine["prediction"] == sample["filtered_resps"][0]
        assert mine["correct"] is (sample["exact_match"] == 1.0)
    assert len(theirs["letters"]) == len(theirs["copying"]) == ROWS
    assert 0 < sum(s["correct"] for s in ours["letters"]) < ROWS, "a score that could have come out otherwise"

    written = json.loads((tmp_path / "lm-eval-retained-letters.json").read_text())
    assert written["agreement"]["items"] == lm_eval_suite.CHECKED_ITEMS
    assert written["shots"] == {"letters": 2}
    assert ctx.facts["shared_prompts"]["used"] is True
    value = ctx.metrics["lm_eval_accuracy"]
    assert value.n == 2 * ROWS
    assert value.details["letters"] == written["results"]["letters"]["acc,none"]


CELL = {"model": {"dtype": "float32"}}


def test_a_scorer_that_disagrees_with_lm_eval_is_found(
    adapted: tuple[Any, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, tokenizer, _ = adapted
    write_tasks(tmp_path / "tasks" / "lm-eval")
    ctx = context(live, tokenizer, lm_eval=["letters"])
    ctx.job = type("Job", (), {"workspaces": (str(tmp_path),), "folder": str(tmp_path), "cell": CELL})()
    lm_eval_suite.prepare(ctx)
    from runners.worker import lm_eval_model

    honest = lm_eval_model.log_probs
    monkeypatch.setattr(lm_eval_model, "log_probs", lambda *a: [p._replace(total=p.total * 1.01) for p in honest(*a)])
    with pytest.raises(CheckFailed, match="lm-eval-agreement: log-probabilities of letters differ"):
        lm_eval_suite.score_standard(ctx, arm="retained", metric="lm_eval_accuracy")


def test_a_start_token_that_is_named_and_not_added_is_refused(adapted: tuple[Any, Any, Path]) -> None:
    live, tokenizer, _ = adapted
    bare = copy.deepcopy(tokenizer)
    bare._tokenizer.post_processor = None

    def asked(words: Any) -> Any:
        ctx = context(live, words)
        ctx.suite = object()
        ctx.splits = Splits([Item(f"t/{i}", "abc=", "cba") for i in range(4)], [], [])
        return ctx

    lm_eval_suite.check_start(asked(tokenizer))
    bare._add_bos_token = True  # as read from a tokenizer_config.json; the setter would put the post-processor back
    with pytest.raises(Unsupported, match="although its settings say so"):
        lm_eval_suite.check_start(asked(bare))
    bare._add_bos_token = False
    ctx = asked(bare)
    real = ctx.model.forward

    def expects_start(input_ids: Any, **more: Any) -> Any:
        out = real(input_ids=input_ids, **more)
        out.logits[input_ids[:, 0] != bare.bos_token_id] *= 3  # surer of its wrong answers without it
        return out

    ctx.model.forward = expects_start
    with pytest.raises(Unsupported, match="nat a token with it"):
        lm_eval_suite.check_start(ctx)
    bare.bos_token = None
    lm_eval_suite.check_start(asked(bare))


def test_unknown_lm_eval_task_fails_before_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    from runners.worker.lm_eval_model import Suite

    write_tasks(tmp_path / "tasks" / "lm-eval")
    asked: list[bool] = []

    class Manager(tasks.TaskManager):  # type: ignore[misc]
        """Indexing the package's own 14,000 tasks takes ten seconds, and the one asked for is not among them."""

        def __init__(self, include_path: Any, include_defaults: bool) -> None:
            asked.append(include_defaults)
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks, "TaskManager", Manager)
    assert "letters" in Suite([LmEvalUse(task="letters")], [tmp_path]).manager.all_tasks
    with pytest.raises(UserError, match=r"lm-eval has no task 'lettres'.*tasks/lm-eval/lettres.yaml"):
        Suite([LmEvalUse(task="letters"), LmEvalUse(task="lettres")], [tmp_path])
    assert asked == [False, True], "its own tasks are indexed only where one of them is wanted"


def test_parent_keeps_tasks_finished_by_a_dead_worker(tmp_path: Path) -> None:
    for arm, name, value in (("base", "letters", 0.5), ("retained", "letters", 0.25)):
        content = {"arm": arm, "task": name, "results": {name: {"acc,none": value}}}
        (tmp_path / f"lm-eval-{arm}-{name}.json").write_text(json.dumps(content))
    found = job_results.finished_tasks(tmp_path)["lm_eval"]
    assert found["base"]["letters"] == {"results": {"letters": {"acc,none": 0.5}}}
    assert found["retained"]["letters"]["results"]["letters"]["acc,none"] == 0.25
    assert job_results.finished_tasks(tmp_path / "none") == {}


def test_what_pins_a_task(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks" / "lm-eval")
    roots = [tmp_path]
    assert lm_eval_tasks.pin("hellaswag", roots) == "lm-eval 0.4.13"
    before = lm_eval_tasks.pin("letters", roots)
    assert before.startswith("lm-eval 0.4.13, ")
    (tmp_path / "tasks" / "lm-eval" / "letters.jsonl").write_text("{}\n")
    assert lm_eval_tasks.pin("letters", roots) != before
    (tmp_path / "tasks" / "lm-eval" / "letters.jsonl").unlink()
    with pytest.raises(UserError, match=r"letters.jsonl, which does not exist"):
        lm_eval_tasks.pin("letters", roots)
    (tmp_path / "tasks" / "lm-eval" / "letters.yaml").write_text("task: other\n")
    with pytest.raises(UserError, match="'task: letters'"):
        lm_eval_tasks.pin("letters", roots)


def test_unused_later_fields_are_not_part_of_a_cell() -> None:
    assert set(Evaluation().model_dump(mode="json")) == {"batch_size", "decoding", "retention", "merged"}
    assert "samples" not in TaskUse(name="x", decoding={"temperature": 1.0}).model_dump(mode="json")["decoding"]
    asked = Evaluation(lm_eval=["hellaswag"], run_generated_code=True).model_dump(mode="json")
    assert asked["lm_eval"] == [{"task": "hellaswag", "shots": None, "items": None, "pin": ""}]
    assert digest(Evaluation(**asked).model_dump(mode="json")) == digest(asked)


@pytest.mark.slow
def test_lm_eval_tasks_are_scored_before_and_after(bench: Bench) -> None:
    write_tasks(bench.root / "tasks" / "lm-eval")
    path = bench.write(
        methods=["lora"], evaluation={"batch_size": 8, "lm_eval": [{"task": "letters", "items": 10}], "merged": False}
    )
    done = bench("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    [record] = bench.records()
    assert record["outcome"]["status"] == "ok", record["outcome"]
    assert record["metrics"]["lm_eval_accuracy"]["n"] == record["metrics"]["base_lm_eval_accuracy"]["n"] == 10
    facts = record["environment"]["facts"]["lm_eval"]
    assert set(facts) == {"base", "retained"}
    [use] = record["cell"]["evaluation"]["lm_eval"]
    assert use["pin"].startswith("lm-eval 0.4.13, ")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ q.__class__.__mro__ }}", "unsafe"),
        ("{{ q.__init__.__globals__ }}", "unsafe"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within 0.2 s"),
        ("{{ 'ab' * 3000000000 }}", "memory"),
    ],
)
def test_templates_of_tasks_run_in_a_sandbox_with_limits(
    template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A YAML of lm-eval renders in jinja2 whatever its author wrote."""
    from lm_eval import utils

    from runners.worker import lm_eval_model

    usual, doc = "{{q | regex_replace('b', 'c')}}: {{ ' '.join(a) }}\n", {"q": "ab", "a": ["x", "y"]}
    told = utils.env.from_string(usual).render(**doc)
    monkeypatch.setattr(utils, "apply_template", utils.apply_template)  # undone afterwards
    monkeypatch.setattr(lm_eval_model, "RENDER_S", 0.2)
    lm_eval_model.use_sandbox()
    assert utils.apply_template(usual, doc) == told == "ac: x y\n"
    with pytest.raises(UserError, match=said):
        utils.apply_template(template, doc)
