"""Scoring in the worker: lengths, cuts, empty prompts, shared prompts, stops; against a plain computation."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.errors import Unsupported, UserError
from runners.worker import context as worker_context
from runners.worker import likelihood, scoring
from runners.worker.completion import complete
from runners.worker.encoding import IGNORED, Collator, encode_training
from runners.worker.likelihood import Window, windows
from tasks.data import load_split
from tasks.parsers import gsm8k
from tasks.scoring import summarise
from tasks.task import Item, load_task
from tests.runners.conftest import Bench
from tests.runners.context import Oracle, context, task
from tests.tasks.conftest import data_root

__all__ = ["data_root"]  # a fixture


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """A model of 128 positions whose logits are far from uniform, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    torch.manual_seed(1)
    model.lm_head.weight.data.normal_(0, 1)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def by_hand(model: Any, head: list[int], tail: list[int]) -> float:
    """Sum of log p of ``tail`` after ``head``, one row, nothing clever."""
    ids = torch.tensor([head + tail])
    with torch.inference_mode():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(float(logp[len(head) - 1 + k, token]) for k, token in enumerate(tail))


def text(length: int, seed: int = 0) -> str:
    return "".join("abcdefghij"[(seed + i * i) % 10] for i in range(length))


# --- windows -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("head", "tail"), [(1, 1), (5, 5), (6, 5), (20, 5), (3, 10), (1, 11), (4, 11), (4, 35)])
def test_windows_score_every_token_once_and_fit(head: int, tail: int) -> None:
    first, second = list(range(head)), list(range(100, 100 + tail))
    found, cut = windows(first, second, 10)
    assert [token for w in found for token in w.tail] == second
    assert all(len(w.head) + len(w.tail) - 1 <= 10 and w.head for w in found)
    assert cut is (head + tail > 11)
    whole = first + second
    for w in found:
        at = whole.index(w.tail[0])
        assert whole[at - len(w.head) : at] == w.head, "a head is what stands before its tail"


# --- likelihoods ---------------------------------------------------------------------------------
def test_likelihoods_are_those_of_a_plain_computation(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ctx = context(model, tokenizer)
    pairs = [("abc=", "cba"), ("a=", "bcd"), ("", "abc"), (text(60), text(9)), (text(200), "ab"), ("x=", text(300))]
    found = scoring.answer_logps(ctx, pairs)
    assert found.cut == [False, False, False, False, True, True]
    assert found.lengths == [4, 4, 4, 10, 3, 301]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for k in (0, 1, 2, 3):
        head = tokenizer(pairs[k][0])["input_ids"]
        tail = tokenizer(pairs[k][1], add_special_tokens=False)["input_ids"]
        assert found.logps[k] == pytest.approx(by_hand(model, head, [*tail, eos]), abs=1e-4)
    assert tokenizer("")["input_ids"] == [bos]
    head = tokenizer(pairs[4][0])["input_ids"]
    tail = [*tokenizer("ab", add_special_tokens=False)["input_ids"], eos]
    assert found.logps[4] == pytest.approx(by_hand(model, head[-(128 + 1 - 3) :], tail), abs=1e-4)
    long = [*tokenizer(pairs[5][1], add_special_tokens=False)["input_ids"], eos]
    head = tokenizer("x=")["input_ids"]
    parts = [(head[-1:], long[:128]), (long[127:128], long[128:256]), (long[255:256], long[256:])]
    assert found.logps[5] == pytest.approx(sum(by_hand(model, *part) for part in parts), abs=1e-3)


def test_empty_prompt_without_bos_uses_end_of_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    bare = copy.deepcopy(tokenizer)
    bare._tokenizer.post_processor = None
    bare.bos_token = None
    assert bare("")["input_ids"] == []
    ctx = context(model, bare)
    [found] = scoring.answer_logps(ctx, [("", "ab")]).logps
    tail = [*bare("ab")["input_ids"], bare.eos_token_id]
    assert found == pytest.approx(by_hand(model, [bare.eos_token_id], tail), abs=1e-4)
    [written] = scoring.generate(ctx, task(max_new_tokens=4), [Item("t/0", "", "a")])
    assert written.tokens <= 4
    bare.eos_token = None
    with pytest.raises(UserError, match="neither a beginning- nor an end-of-sequence token"):
        scoring.encode_prompt(bare, "")


def test_options_that_share_a_prompt_score_as_if_they_did_not(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked = [
        (text(n, n), option) for n in (5, 40, 90, 122, 200) for option in (" a", " bcd", " answer1", " answer2", "e")
    ]
    ctx = context(model, tokenizer, batch_size=12)
    shared = scoring.answer_logps(ctx, asked, end=False)
    assert ctx.facts["shared_prompts"]["used"] is True
    alone = [scoring.answer_logps(context(model, tokenizer), [pair], end=False).logps[0] for pair in asked]
    assert shared.logps == pytest.approx(alone, abs=1e-4)
    assert [cut for _, cut in zip(asked, shared.cut, strict=True)].count(True) == 5 + 2, "122 and BOS leave room for 6"


def test_model_that_cannot_share_prompts_is_scored_without(
    loaded: tuple[Any, Any],
) -> None:
    model, tokenizer = loaded
    asked = [("ab", " a"), ("ab", " b"), ("cdef", " a"), ("cdef", " b")]
    right = scoring.answer_logps(context(model, tokenizer, batch_size=2), asked, end=False).logps

    class Forgetful(torch.nn.Module):
        """Looks at the ids of the present call only, as a method that searches the prompt for a token does."""

        config = model.config

        def forward(self, input_ids: Any, attention_mask: Any = None, **more: Any) -> Any:
            more.pop("past_key_values", None)
            mask = attention_mask[:, -input_ids.shape[1] :] if attention_mask is not None else None
            return model(input_ids=input_ids, attention_mask=mask, **more)

    wrapped = Forgetful()
    wrapped.inner = model
    ctx = context(wrapped, tokenizer, batch_size=2)
    assert scoring.answer_logps(ctx, asked, end=False).logps == pytest.approx(right, abs=1e-5)
    assert ctx.facts["shared_prompts"]["used"] is False
    assert "differ by" in ctx.facts["shared_prompts"]["why"]


def test_greedy_says_whether_decoding_would_write_it(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ctx = context(model, tokenizer)
    head = tokenizer("abc=")["input_ids"]
    produced = model.generate(torch.tensor([head]), max_new_tokens=3, do_sample=False)[0, len(head) :].tolist()
    with torch.inference_mode():
        found = likelihood.log_probs(ctx, [Window(head, produced), Window(head, [*produced[:2], 5])])
    assert [f.greedy for f in found] == [True, produced[2] == 5]


# --- completions ---------------------------------------------------------------------------------
def test_a_completion_says_its_own_length_and_its_own_cut(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model = copy.deepcopy(model)
    ctx = context(model, tokenizer)
    made = task(metrics=("accuracy", "answer_nll"), max_new_tokens=20)
    items = [Item("t/0", "ab=", text(200)), Item("t/1", text(120), "a"), Item("t/2", text(107), "a")]
    scored = scoring.score(ctx, made, items)
    assert [s.cut for s in scored] == [False, True, False], "the prompt of 107 and BOS fill 108 of 128 less 20"
    for item, s in zip(items, scored, strict=True):
        ids = tokenizer(item.prompt)["input_ids"][-108:]
        row = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        eos = tokenizer.eos_token_id
        assert s.length == (row.index(eos) if eos in row else 20)
        assert s.prediction == tokenizer.decode(row, skip_special_tokens=True)
    ctx.keep_samples("adapted", "made", scored)
    assert ctx.facts["items_cut"] == {"adapted/made": {"n": 1, "items": ["t/1"]}}, "counted and named"
    assert [row["item"] for row in ctx.samples] == ["t/0", "t/1", "t/2"], "not dropped"


@pytest.mark.parametrize("wanted", [128, 300])
def test_task_without_room_for_a_prompt_is_refused(loaded: tuple[Any, Any], wanted: int) -> None:
    ctx = context(*loaded)
    with pytest.raises(Unsupported, match=f"generates up to {wanted} tokens and the model has 128 positions"):
        scoring.generate(ctx, task(max_new_tokens=wanted), [Item("t/0", "ab", "a")])
    assert scoring.new_tokens(ctx, task(max_new_tokens=127)) == 127


def test_stop_text_ends_a_completion_and_changes_nothing_else(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ctx = context(model, tokenizer)
    prompts = [tokenizer(p)["input_ids"] for p in ("ab=", "cdefg=", "h")]
    with torch.inference_mode():
        free = complete(ctx, prompts, new_tokens=40, decoding=ctx.evaluation.decoding)
        stop = free[0].text[10:12]
        stopped = complete(ctx, prompts, new_tokens=40, stops=[stop], decoding=ctx.evaluation.decoding)
    assert len(free[0].text) > 12
    assert [c.text for c in stopped] == [c.text.partition(stop)[0] for c in free]
    assert stopped[0].tokens <= 24


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(loaded: tuple[Any, Any]) -> None:
    """Padding that equals the end of sequence is recognised by the mask, and not by its number."""
    model, tokenizer = loaded
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.eos_token
    made = task(max_new_tokens=12, metrics=("accuracy", "answer_nll"))
    items = [Item(f"t/{n}", text(n, n), text(3, n)) for n in (3, 17, 30)]
    with_pad = scoring.score(context(model, tokenizer), made, items)
    without = scoring.score(context(model, bare), made, items)
    for a, b in zip(with_pad, without, strict=True):
        assert (a.prediction, a.length, a.correct) == (b.prediction, b.length, b.correct)
        assert a.logp_answer == pytest.approx(b.logp_answer, abs=1e-4)


# --- texts ---------------------------------------------------------------------------------------
def test_bits_per_byte_of_texts_longer_than_the_context(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ctx = context(model, tokenizer)
    made = task(kind="language-modelling")
    texts = [text(50), text(300), "é" * 4]
    scored = scoring.score(ctx, made, [Item(f"t/{i}", "", t) for i, t in enumerate(texts)])
    assert [s.correct for s in scored] == [None] * 3
    assert [s.cut for s in scored] == [False, True, False]
    summary = summarise(scored, made.definition.metrics)
    nats = -sum(s.logp_answer or 0 for s in scored)
    assert summary["bits_per_byte"].value == pytest.approx(nats / 0.6931471805599453 / (50 + 300 + 8))
    assert summary["perplexity"].value == pytest.approx(2.718281828459045 ** (nats / sum(s.length for s in scored)))
    ids = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert scored[0].logp_answer == pytest.approx(by_hand(model, [tokenizer.bos_token_id], ids), abs=1e-4)


# --- a known share of real items -------------------------------------------------------------------
@pytest.mark.parametrize(("name", "share"), [("gsm8k", 0.3), ("arc-easy", 0.4), ("boolq", 0.75)])
def test_an_oracle_is_scored_at_exactly_the_share_it_knows(
    name: str, share: float, loaded: tuple[Any, Any], data_root: Path
) -> None:
    """Real rows, real tokenizer, the worker's own scorer; only the model is scripted."""
    _, tokenizer = loaded
    real = load_task(name, [])
    items = load_split(real, "test", data_root=data_root, max_items=20, seed=0)
    known = {item.id for item in items[: round(share * len(items))]}
    script = {}
    for item in items:
        wrong = next((c for k, c in enumerate(item.choices) if k != item.label), " so the answer is 7.5 apples")
        right = " first 3, then\n#### " + str(gsm8k(item.answer)) if name == "gsm8k" else item.answer
        said = right if item.id in known else wrong
        script[tuple(tokenizer(item.prompt)["input_ids"])] = tokenizer(said, add_special_tokens=False)["input_ids"]
    oracle = Oracle(tokenizer, script, positions=4096)
    ctx = context(oracle, tokenizer, batch_size=8, decoding={"max_new_tokens": 40})
    scored = scoring.score(ctx, real, items)
    assert {s.item for s in scored if s.correct} == known
    accuracy = summarise(scored)["accuracy"]
    assert (accuracy.value, accuracy.n) == (len(known) / len(items), len(items))
    assert not any(s.cut for s in scored)
    if name != "gsm8k":
        assert all((s.margin or 0) > 0 for s in scored if s.item in known)


@pytest.mark.slow
def test_a_sweep_of_real_tests_runs_with_the_test_split_alone(bench: Bench, data_root: Path) -> None:
    """Rows without a training part; methods that train are refused, others are scored, nothing is fetched."""
    (bench.root / "data" / "commonsense" / "piqa").mkdir(parents=True)
    lines = (data_root / "commonsense" / "piqa" / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (bench.root / "data" / "commonsense" / "piqa" / "test.jsonl").write_text("".join(lines[:6]))
    path = bench.write(tasks=[{"name": "piqa", "test_only": True}])
    done = bench("run", str(path), "--data-root", str(bench.root / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {r["cell"]["method"]["name"]: r for r in bench.records()}
    assert records["none"]["metrics"]["accuracy"]["n"] == 6
    facts = records["none"]["environment"]["facts"]
    assert facts["items_cut"]["adapted/piqa"]["n"] == 6, "128 positions, and the model reads letter by letter"
    assert "unpinned" not in facts
    assert "uses the task's test split only" in records["lora"]["outcome"]["reason"]


# --- what is not computed ------------------------------------------------------------------------
class Counting(torch.nn.Module):
    """Counts the positions that a model gives logits for, and the tokens that it reads."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.read = self.given = 0

    def get_base_model(self) -> Any:
        return self.inner

    def forward(self, input_ids: Any, **more: Any) -> Any:
        out = self.inner(input_ids=input_ids, **more)
        self.read += input_ids.numel()
        self.given += out.logits.shape[0] * out.logits.shape[1]
        return out


def test_only_positions_that_are_read_get_logits(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    counting = Counting(model)
    ctx = context(counting, tokenizer, batch_size=64)
    pairs = [(text(40 + n % 3, n), " ab") for n in range(30)]
    found = scoring.answer_logps(ctx, pairs).logps
    assert counting.given <= 30 * (3 + 1 + 2), "three tokens, the end, and up to two for prompts of unequal length"
    assert counting.read >= 30 * 40
    bos_first = tokenizer(pairs[0][0])["input_ids"]
    tail = [*tokenizer(" ab", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert found[0] == pytest.approx(by_hand(model, bos_first, tail), abs=1e-4)


def test_options_of_one_token_cost_one_pass_over_their_prompt(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    counting = Counting(model)
    ctx = context(counting, tokenizer, batch_size=8)
    prompts = [text(20 + n % 5, n) for n in range(24)]
    asked = [(prompt, option) for prompt in prompts for option in "abcd"]
    found = scoring.answer_logps(ctx, asked, end=False).logps
    probe = 2 * (1 + 24) * 4 + 2 * 26  # two prompts, plainly for each option, and once more shared
    assert counting.read <= probe + 24 * 26
    alone = [scoring.answer_logps(context(model, tokenizer), [pair], end=False).logps[0] for pair in asked]
    assert found == pytest.approx(alone, abs=1e-4)


def test_model_returning_all_logits_is_scored_alike(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded

    class Full(Counting):
        def forward(self, input_ids: Any, **more: Any) -> Any:
            more.pop("logits_to_keep", None)
            return super().forward(input_ids, **more)

    asked = [(text(n, n), option) for n in (5, 30, 60) for option in (" a", " bcd", "e")]
    right = scoring.answer_logps(context(model, tokenizer), asked, end=False).logps
    assert scoring.answer_logps(context(Full(model), tokenizer), asked, end=False).logps == pytest.approx(
        right, abs=1e-5
    )


def test_sharing_is_tried_with_the_longest_continuation() -> None:
    """Options of one token need no cache: they would prove nothing about the items whose options are longer."""
    one = [Window([5] * n, [k]) for n in (4, 9, 12) for k in (6, 7)]
    long = [Window([5] * 7, [6, 7, 8, 9]), Window([5] * 7, [7, 8])]
    probe, others = likelihood._probe([*one, *long], [[4, 5], [2, 3], [6, 7], [0, 1]])
    assert probe == [[4, 5], [6, 7], [0, 1]]
    assert others == [[2, 3]]


def _byte_level() -> Any:
    """Byte-level BPE without a BOS, padded with its EOS: as GPT-2 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(MASK_TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def _metaspace(*, adds_eos: bool, pad: str) -> Any:
    """SentencePiece's spaces and a BOS in front, as Llama 2; with an EOS behind every text, as T5."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "<pad>"])
    tokenizer.train_from_iterator(MASK_TEXTS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if adds_eos else "<s> $A", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad
    )


MASK_TEXTS = ("Question: how far is it to the sea?\nAnswer:", " two miles", "Say yes.", " yes", " no, not at all")
TOKENIZERS = {
    "byte level, no BOS, padded with EOS": _byte_level,
    "SentencePiece, BOS, padded with EOS": lambda: _metaspace(adds_eos=False, pad="</s>"),
    "SentencePiece, BOS and EOS, its own padding": lambda: _metaspace(adds_eos=True, pad="<pad>"),
}


@pytest.mark.parametrize("made", TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_loss_is_on_answer_and_eos_alone(made: Any) -> None:
    tokenizer = made()
    items = [Item("a", MASK_TEXTS[0], answer=MASK_TEXTS[1]), Item("b", MASK_TEXTS[2], answer=MASK_TEXTS[3])]
    rows, cut = encode_training(tokenizer, items, "causal-lm", 64)
    batch = Collator(tokenizer.pad_token_id)(rows)
    assert cut == 0
    lengths = [len(row["input_ids"]) for row in rows]
    assert lengths[0] != lengths[1], "one of the rows is padded"
    for item, ids, labels, length in zip(items, batch["input_ids"], batch["labels"], lengths, strict=True):
        trained = labels != IGNORED
        assert torch.equal(labels[trained], ids[trained]), "what is trained on is what was read"
        *answer, last = labels[trained].tolist()
        assert last == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in answer
        assert tokenizer.decode(answer).strip() == item.answer.strip()
        first = int(trained.nonzero()[0])
        read = tokenizer.decode(ids[:first], skip_special_tokens=True)
        assert read.strip() == item.prompt.strip(), "the prompt is whole and carries no loss"
        assert tokenizer.eos_token_id not in ids[:first].tolist()
        assert trained[first:length].all()
        assert not trained[length:].any(), "padding carries no loss, EOS or not"


@pytest.mark.parametrize("made", TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_cut_rows_are_counted_and_keep_an_answer(made: Any) -> None:
    tokenizer = made()
    items = [Item("a", MASK_TEXTS[0] * 4, answer=MASK_TEXTS[1]), Item("b", MASK_TEXTS[2], answer=MASK_TEXTS[3])]
    whole, _ = encode_training(tokenizer, items, "causal-lm", 10_000)
    limit = len(whole[0]["input_ids"]) - 1
    rows, cut = encode_training(tokenizer, items, "causal-lm", limit)
    assert cut == 1
    assert rows[0]["input_ids"] == whole[0]["input_ids"][1:], "the prompt loses its beginning"
    assert [t for t in rows[0]["labels"] if t != IGNORED] == [t for t in whole[0]["labels"] if t != IGNORED]
    assert rows[1] == whole[1]


def test_a_long_pass_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(worker_context.time, "monotonic", lambda: next(clock))
    said: list[dict[str, Any]] = []
    ctx = SimpleNamespace(say=lambda kind, **content: said.append({"kind": kind, **content}))
    batches = [[0], [1], [2]]
    assert list(worker_context.told(ctx, batches)) == batches  # type: ignore[arg-type]  # only 'say' is used
    assert said[-1] == {"kind": "progress", "what": "scoring", "at": 2, "of": 3}
    monkeypatch.setattr(worker_context.time, "monotonic", lambda: 0.0)
    said.clear()
    assert list(worker_context.told(ctx, batches)) == batches  # type: ignore[arg-type]  # only 'say' is used
    assert not said, "a short pass says nothing"
