"""Learning in context: which examples a prompt is given, what is asked without them, and what no longer fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.methods.base import Method, Setting
from harness.methods.catalog import METHODS
from runners.worker import few_shot as examples
from runners.worker import scoring
from runners.worker.context import Context, Splits
from tasks.scored import Scored
from tasks.task import Item
from tests.runners.conftest import Bench
from tests.runners.context import context, task

TRAIN = [Item(f"train/{n}", f"q{n}=", f"a{n}") for n in range(9)]
TEST = [Item(f"test/{n}", prompt, "ab") for n, prompt in enumerate(("q=", "qrs=", "q" * 50))]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """A model of 128 positions, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)


def few_shot(seed: int = 0, **params: Any) -> Method:
    cls = METHODS.get("few-shot")
    return cls(cls.resolve(params), Setting("causal-lm", "fp", seed=seed, steps=0, learning_rate=0.0))


def asked(loaded: tuple[Any, Any], method: Method, **definition: Any) -> Context:
    """A context whose method has drawn its examples."""
    ctx = context(*loaded)
    ctx.method, ctx.splits = method, Splits(TRAIN, [], TEST)
    ctx.task = task(metrics=("accuracy", "answer_nll"), max_new_tokens=20, **definition)
    ctx.examples = examples.draw(method, TRAIN)
    if ctx.examples is not None:
        ctx.facts["examples"] = ctx.examples.facts
    return ctx


def told(scored: list[Scored]) -> list[tuple[str, float]]:
    return [(s.prediction, round(s.logp_answer or 0.0, 4)) for s in scored]


def test_every_item_gets_the_same_training_examples(loaded: tuple[Any, Any]) -> None:
    ctx = asked(loaded, few_shot(k=3, separator="\n"))
    shown = ctx.facts["examples"]["items"]
    assert len(set(shown)) == 3
    by_id = {item.id: item for item in TRAIN}
    head = "".join(f"{by_id[i].prompt}{by_id[i].answer}\n" for i in shown)
    plain = context(*loaded)
    by_hand = scoring.score(plain, ctx.task, [replace(item, prompt=head + item.prompt) for item in TEST])
    found = scoring.score(ctx, ctx.task, TEST)
    stopped = [(text.partition("\n")[0], logp) for text, logp in told(by_hand)]
    assert told(found) == stopped
    assert [s.item for s in found] == [item.id for item in TEST]
    assert told(found) != told(scoring.score(plain, ctx.task, TEST))
    assert scoring.mean_nll(ctx, ctx.task, TEST)[0] == pytest.approx(
        -sum(s.logp_answer or 0.0 for s in found) / len(TEST), abs=1e-5
    )
    assert "fewer" not in ctx.facts["examples"]


def test_seed_decides_which_examples_are_drawn(loaded: tuple[Any, Any]) -> None:
    drawn = [asked(loaded, few_shot(seed, k=4)).facts["examples"]["items"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_options_are_compared_after_the_examples_too(loaded: tuple[Any, Any]) -> None:
    ctx = asked(loaded, few_shot(k=2, separator="\n"))
    ctx.task = choosing = task(kind="multiple-choice")
    item = Item("test/0", "q=", " b", 1, (" a", " b"))
    [found] = scoring.score(ctx, choosing, [item])
    assert ctx.examples is not None
    [longer] = ctx.examples.before([item], tokenizer=ctx.tokenizer, positions=128, completion=0)
    assert longer.prompt.count("\n") == 2
    assert longer.prompt.endswith("\nq=")
    [by_hand] = scoring.score(context(*loaded), choosing, [longer])
    assert found == by_hand


def test_another_task_is_prompted_without_examples(loaded: tuple[Any, Any]) -> None:
    ctx = asked(loaded, few_shot(k=3, separator="\n"))
    skill = task(metrics=("accuracy", "answer_nll"), max_new_tokens=20)
    assert told(scoring.score(ctx, skill, TEST)) == told(scoring.score(context(*loaded), skill, TEST))


def test_a_completion_ends_where_another_example_would_begin(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = asked(loaded, few_shot(k=3, separator="\n"), stop=("!",))
    skill = task(metrics=("accuracy", "answer_nll"), max_new_tokens=20, stop=("?",))
    ends: list[tuple[str, ...]] = []
    complete = scoring.complete

    def noted(*arguments: Any, **more: Any) -> Any:
        ends.append(tuple(more["stops"]))
        return complete(*arguments, **more)

    monkeypatch.setattr(scoring, "complete", noted)
    scoring.score(ctx, ctx.task, TEST[:1])
    scoring.score(ctx, skill, TEST[:1])
    assert ends == [("!", "\n"), ("?",)]


def test_examples_that_do_not_fit_are_dropped_whole_and_counted(
    loaded: tuple[Any, Any],
) -> None:
    ctx = asked(loaded, few_shot(k=9, separator=" - "))
    found = scoring.score(ctx, ctx.task, TEST)
    # 128 positions less 20 to write hold BOS, 50 of the prompt and 57 more: 7 examples of 8 characters
    # the others' 72 of nine examples fit
    assert ctx.facts["examples"]["fewer"] == {"n": 1, "examples_left": {"test/2": 7}}
    assert not any(s.cut for s in found)
    assert len(found) == len(TEST)


def test_what_cannot_be_shown_is_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="shows 10 examples, and the task has 9 training items"):
        asked(loaded, few_shot(k=10))
    with pytest.raises(UserError, match="separator 'a' of the examples occurs in the answer of training item"):
        asked(loaded, few_shot(k=1, separator="a"))
    for k in (0, -1, 2.5, True, "two"):
        with pytest.raises(UserError, match="whole number of examples"):
            METHODS.get("few-shot").resolve({"k": k})
    with pytest.raises(UserError, match="needs a text between"):
        METHODS.get("few-shot").resolve({"separator": ""})


def test_few_shot_sweep_keeps_retention_and_refuses_the_rest(bench: Bench) -> None:
    tasks = [
        {"name": "strings-compose", "train_items": 16, "validation_items": 8, "test_items": 8},
        {"name": "strings-copy", "test_items": 8, "test_only": True},
    ]
    path = bench.write(methods=["none", {"name": "few-shot", "params": {"k": 2}}], tasks=tasks)
    done = bench("run", str(path))
    found = {(r["cell"]["method"]["name"], r["cell"]["task"]["name"]): r for r in bench.records()}
    alone = found["few-shot", "strings-copy"]["outcome"]
    assert alone["status"] == "unsupported", done.stdout + done.stderr
    assert "shows examples of the training split" in alone["reason"]
    none, few = found["none", "strings-compose"], found["few-shot", "strings-compose"]
    assert few["outcome"]["status"] == "ok", few["outcome"]
    shown = few["environment"]["facts"]["examples"]["items"]
    assert len(shown) == 2
    assert all(name.startswith("train") for name in shown)
    assert few["metrics"]["trainable_parameters"]["value"] == 0
    assert few["metrics"]["retained_accuracy"] == none["metrics"]["retained_accuracy"]
    assert few["metrics"]["validation_nll"]["value"] != none["metrics"]["validation_nll"]["value"]
    assert few["metrics"]["answer_nll"]["value"] != none["metrics"]["answer_nll"]["value"]
