"""Effects of the order of options and of the prompt, with oracles whose answers are known beforehand."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from harness.errors import UserError
from harness.spec import Evaluation
from runners.worker import few_shot, prompt_variants
from runners.worker.context import Context, Splits
from runners.worker.scoring import score
from runners.worker.stages import judge
from tasks.data import load_split, task_digest
from tasks.prompt_variants import asked_as, orders, relisted
from tasks.task import Item, load_task
from tests.runners.conftest import Bench
from tests.runners.context import Oracle, context, task
from tests.tasks.conftest import data_root

__all__ = ["data_root"]  # a fixture

ITEMS = 12


def asked(
    name: str,
    data_root: Path,
    tokenizer: Any,
    said: dict[str, str],
    train: list[Item] | None = None,
    n: int = ITEMS,
    **evaluation: Any,
) -> Context:
    """The test items of a real task scored with an oracle that answers each prompt as scripted, and again in other
    forms.
    """
    script = {
        tuple(tokenizer(prompt)["input_ids"]): tokenizer(answer, add_special_tokens=False)["input_ids"]
        for prompt, answer in said.items()
    }
    ctx = context(Oracle(tokenizer, script, positions=4096), tokenizer, batch_size=8, **evaluation)
    ctx.task = load_task(name, [])
    ctx.splits = Splits(train or [], [], items(name, data_root)[:n])
    ctx.job = SimpleNamespace(data_root=str(data_root), cell={"model": {}, "task": {"test_items": ITEMS}})  # type: ignore[assignment]
    prompt_variants.run(ctx, score(ctx, ctx.task, ctx.splits.test))
    return ctx


def items(name: str, data_root: Path, prompt: str = "") -> list[Item]:
    task = load_task(name, [])
    return load_split(
        asked_as(task, prompt or task.definition.prompt), "test", data_root=data_root, max_items=ITEMS, seed=0
    )


def value(ctx: Context, name: str) -> float:
    found = ctx.metrics[name].value
    assert found is not None
    return found


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("name", ["arc-easy", "winogrande"])
def test_first_option_oracle_shows_its_whole_sensitivity(name: str, data_root: Path, tokenizer: Any) -> None:
    task, given = load_task(name, []), items(name, data_root)
    drawn = {item.id: orders(item, 3) for item in given}
    said = {item.prompt: item.choices[0] for item in given}
    said |= {relisted(task, i, order).prompt: i.choices[0] for i in given for order in drawn[i.id]}
    ctx = asked(name, data_root, tokenizer, said, option_orders=3)
    first = {item.id: [0, *(order[0] for order in drawn[item.id])] for item in given}  # the first option, each time
    right = [sum(k == item.label for k in first[item.id]) / len(first[item.id]) for item in given]
    assert value(ctx, "option_order_accuracy") == pytest.approx(sum(right) / len(given))
    assert value(ctx, "option_order_changes") == sum(len(set(k)) > 1 for k in first.values()) / len(given)
    arms = {row["arm"] for row in ctx.samples}
    assert arms == (
        {"order-1"} if name == "winogrande" else {"order-1", "order-2", "order-3"}
    )  # two options, two orders
    for row in (r for r in ctx.samples if r["arm"] == "order-1"):
        item = next(i for i in given if i.id == row["item"])
        assert row["prediction"] == item.choices[drawn[item.id][0][0]]
        assert row["answer"] == item.answer


def test_knowing_oracle_scores_alike_under_every_order(data_root: Path, tokenizer: Any) -> None:
    task, given = load_task("arc-easy", []), items("arc-easy", data_root)
    asked_for = [*given, *(relisted(task, i, order) for i in given for order in orders(i, 2))]
    ctx = asked("arc-easy", data_root, tokenizer, {i.prompt: i.answer for i in asked_for}, option_orders=2)
    assert (value(ctx, "option_order_accuracy"), value(ctx, "option_order_changes")) == (1, 0)


def test_a_prompt_that_lists_no_options_has_no_order(data_root: Path, tokenizer: Any) -> None:
    said = {i.prompt: i.answer for i in items("boolq", data_root)}
    ctx = asked("boolq", data_root, tokenizer, said, option_orders=2)
    for name in prompt_variants.ORDERS:
        assert ctx.metrics[name].why_missing == "not_applicable"
        assert "lists no options" in ctx.metrics[name].details["note"]
    assert not ctx.samples


def test_an_oracle_that_understands_some_prompts_only(data_root: Path, tokenizer: Any) -> None:
    first, second = load_task("boolq", []).definition.prompts
    said = {i.prompt: i.answer for i in items("boolq", data_root)}
    said |= {i.prompt: next(c for c in i.choices if c != i.answer) for i in items("boolq", data_root, first)}
    last = items("boolq", data_root, second)
    said |= {i.prompt: i.choices[i.label if k % 4 == 0 else 1 - i.label] for k, i in enumerate(last)}
    ctx = asked("boolq", data_root, tokenizer, said, prompt_variants=True)
    assert ctx.metrics["prompt_accuracy"].details["accuracies"] == [1.0, 0.0, 0.25]
    assert value(ctx, "prompt_accuracy") == pytest.approx(1.25 / 3)
    assert value(ctx, "prompt_spread") == 1.0
    assert {row["arm"] for row in ctx.samples} == {"prompt-1", "prompt-2"}


def test_examples_are_shown_and_their_gain_is_paired(data_root: Path, tokenizer: Any) -> None:
    task = load_task("arc-easy", [])
    train = load_split(task, "train", data_root=data_root, max_items=9, seed=0)
    given = items("arc-easy", data_root)
    shown = few_shot.chosen(train, 3, seed=0)
    assert [i.id for i in shown.items] == few_shot.chosen(train, 3, seed=0).facts["items"]
    texts = "".join(i.prompt + i.answer + "\n\n" for i in shown.items)
    wrong = {i.prompt: next(c for c in i.choices if c != i.answer) for i in given[:6]}
    said = {i.prompt: i.answer for i in given} | wrong | {texts + i.prompt: i.answer for i in given}
    ctx = asked("arc-easy", data_root, tokenizer, said, train=train, in_context=3)
    assert value(ctx, "in_context_accuracy") == 1
    assert value(ctx, "in_context_gain") == 0.5
    assert ctx.metrics["in_context_accuracy"].details["items"] == [i.id for i in shown.items]
    assert ctx.metrics["in_context_gain"].details["standard_error"] == pytest.approx((0.25 * 12 / 11 / 12) ** 0.5)
    assert ctx.examples is None  # what is scored next sees none
    few = asked("arc-easy", data_root, tokenizer, said, train=train[:2], in_context=3)
    assert few.metrics["in_context_gain"].details["note"] == "the cell has 2 training items"


def test_confidence_of_completions(data_root: Path, tokenizer: Any) -> None:
    given = items("gsm8k", data_root)[:6]
    said = {i.prompt: f"#### {i.answer.rpartition('####')[2].strip()}" for i in given[:4]}
    said |= {i.prompt: "#### 987654321" for i in given[4:5]}
    ctx = asked("gsm8k", data_root, tokenizer, said, n=6, answer_confidence=True, decoding={"max_new_tokens": 16})
    # The oracle gives every scripted token almost all probability, so that 4 of the 5 certain answers are right.
    found = ctx.metrics["generation_calibration_error"]
    assert found.n + found.details["empty"] == 6
    certain = [b for b in found.details["bins"] if b[1] == 1.0]
    assert [(b[2], b[4]) for b in certain] == [(5, 0.8)]
    assert value(ctx, "generation_confidence_auroc") > 0.5


def test_auroc_by_hand() -> None:
    assert prompt_variants.auroc([0.9, 0.8, 0.3, 0.3], [True, False, True, False]) == pytest.approx(2.5 / 4)
    assert prompt_variants.auroc([0.1, 0.2], [True, True]) is None


def test_asking_again_is_part_of_a_cell_only_where_it_is_done(data_root: Path) -> None:
    plain = Evaluation().model_dump(mode="json")
    assert not {"option_orders", "prompt_variants"} & plain.keys()
    assert Evaluation(option_orders=2).model_dump(mode="json") == {**plain, "option_orders": 2}
    task = load_task("arc-easy", [])
    bare = asked_as(task, task.definition.prompt)
    bare.definition.__dict__.update(options=None, prompts=())
    assert task_digest(task, data_root=data_root) == task_digest(bare, data_root=data_root)


# --- a judge ----------------------------------------------------------------------------------------
Reply = Callable[[str], tuple[int, str]]
"""HTTP status and content that the server gives to a request's text."""


@pytest.fixture
def server() -> Iterator[Callable[[Reply], str]]:
    """Start a server with the interface of chat completions; returns its address up to ``/v1``."""
    started: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert said["temperature"] == 0
                status, content = reply(said["messages"][0]["content"])
                body = {"model": said["model"], "choices": [{"message": {"content": content}}]}
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None: ...

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}/v1"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def judged(url: str, **more: Any) -> Context:
    """Four judged items, two of them wrong."""
    unused: Any = None
    ctx = context(torch.nn.Identity(), unused)
    ctx.task = task(metrics=["accuracy"])
    given = [("ab", "ab"), ("long wrong answer", "cd"), ("x", "efgh"), ("ij", "ij")]
    ctx.splits = Splits([], [], [Item(str(k), f"task {k}", answer) for k, (_, answer) in enumerate(given)])
    ctx.samples = [
        {"arm": "adapted", "item": str(k), "prediction": said, "answer": answer, "correct": said == answer}
        for k, (said, answer) in enumerate(given)
    ]
    said = {"url": url, "name": "scripted-2026-01-01", "timeout_s": 5, **more}
    ctx.job = SimpleNamespace(cell={"judge": said, "model": {}}, device="cpu", others={})  # type: ignore[assignment]
    judge.run(ctx)
    return ctx


def the_two(text: str) -> tuple[str, str]:
    found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich", text)
    assert found is not None
    return found[1], found[2]


def test_a_judge_that_prefers_long_answers_is_seen(server: Any) -> None:
    def longer(text: str) -> tuple[int, str]:
        a, b = the_two(text)
        return 200, " A." if len(a) >= len(b) else "The better one is B"

    ctx = judged(server(longer))
    # Item 1's long answer wins, item 2's reference; the equal answers of items 0 and 3 follow the place.
    assert [value(ctx, name) for name in judge.METRICS] == [0.5, 0.5, 0.5, 0.5]
    assert ctx.facts["judge"]["versions"] == {"scripted-2026-01-01": 8}
    assert ctx.facts["judge"]["first_place_share"] == 6 / 8
    assert judged(server(longer), items=2).metrics["judge_win_rate"].n == 2


def test_a_judge_that_follows_the_place_decides_nothing(server: Any) -> None:
    ctx = judged(server(lambda _: (200, "A")))
    assert (value(ctx, "judge_win_rate"), value(ctx, "judge_consistency")) == (0.5, 0)
    assert ctx.metrics["judge_agreement"].why_missing == "not_applicable"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, "Both A and B are fine."), "none of the judge's 8 replies is the letter A or B"),
        ((401, ""), "the judge's server answers 401 Unauthorized"),
    ],
)
def test_a_judge_that_fails_leaves_the_cell_as_it_is(reply: tuple[int, str], said: str, server: Any) -> None:
    ctx = judged(server(lambda _: reply))
    assert {ctx.metrics[name].why_missing for name in judge.METRICS} == {"failed"}
    assert ctx.metrics["judge_win_rate"].details["note"] == said


def test_a_judge_that_is_silent_or_away_is_a_failed_metric(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PAUSE_S", 0)
    monkeypatch.setattr(judge, "TRIES", 1)
    ctx = judged(server(lambda _: (time.sleep(1), (200, "A"))[1]), timeout_s=0.2)
    assert "timed out" in ctx.metrics["judge_win_rate"].details["note"]
    ctx = judged("http://127.0.0.1:9/v1")
    assert "cannot be asked" in ctx.metrics["judge_win_rate"].details["note"]
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        judged("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY")


def test_a_local_model_judges_in_a_separate_stage(bench: Bench, tiny_model: Path) -> None:
    judge = shutil.copytree(tiny_model, bench.root / "judge")
    weights = load_file(judge / "model.safetensors")
    save_file({name: -w for name, w in weights.items()}, judge / "model.safetensors", metadata={"format": "pt"})
    path = bench.write(
        methods=["full"], evaluation={"batch_size": 8, "judge": {"model": "./judge", "items": 4}, "merged": False}
    )
    done = bench("run", str(path))
    (record,) = bench.records()
    assert record["outcome"]["status"] == "ok", done.stdout + str(record["outcome"])
    stages = [s["stage"] for s in record["spans"]]
    assert stages[stages.index("evaluate") + 1] == "judge"
    assert record["metrics"]["judge_win_rate"]["n"] + record["environment"]["facts"]["judge"]["unreadable"] / 2 <= 4
    facts = record["environment"]["facts"]["judge"]
    assert facts["asked"] == 8
    assert facts["models"]["judge"]["bytes"] > 0
    assert record["cell"]["judge"]["judge"]["model"] != record["cell"]["model"]
    assert "judge" not in record["cell"]["evaluation"]
