"""Model folders as people have them: every setting that could change a score unseen is decided, recorded or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import CheckFailed, Unsupported, UserError
from harness.models import conv1d, sources
from runners.worker.context import positions
from tests.runners.test_architectures import CAUSAL, CLASSIFIERS, job, run, save, workspace

__all__ = ["workspace"]  # a fixture

LLAMA = CAUSAL["llama"]


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def loaded(folder: Path, workspace: Path, kind: str = "causal-lm", **cell: Any) -> Any:
    """The context after the base was loaded and checked."""
    return run(job(folder, kind, "none", workspace, folder.parent / "job", **cell), until="prepare")


@pytest.mark.parametrize(
    "setting",
    [{"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}, {"suppress_tokens": [5]}, {"num_beams": 4}],
    ids=lambda one: next(iter(one)),
)
def test_a_generation_config_is_named_and_not_used(setting: dict[str, Any], workspace: Path, tmp_path: Path) -> None:
    from runners.worker.scoring import generate

    texts = []
    for name, changes in (("plain", {}), ("own", setting)):
        folder = save("causal-lm", "llama", LLAMA, tmp_path / name)
        edit(folder / "generation_config.json", **changes)
        ctx = loaded(folder, workspace)
        texts.append([c.text for c in generate(ctx, ctx.task, ctx.splits.test)])
    assert texts[0] == texts[1]
    assert ctx.facts["loading"]["generation_config_not_used"] == setting


def test_classification_does_not_depend_on_the_batch_size(workspace: Path, tmp_path: Path) -> None:
    from runners.worker.scoring import classification_logits

    folder = save("sequence-classification", "llama", CLASSIFIERS["llama"], tmp_path / "m", pad_token_id=7)
    found = []
    for size in (1, 64):
        evaluation = {"batch_size": size, "retention": False}
        ctx = loaded(folder, workspace, "sequence-classification", evaluation=evaluation)
        with torch.inference_mode():
            found.append(classification_logits(ctx, ctx.splits.test)[0])
    assert ctx.facts["loading"]["pad_token_id"] == {"configuration": 7, "used": ctx.tokenizer.pad_token_id}
    assert abs(found[0] - found[1]).max() < 1e-5


def test_missing_and_superfluous_weights_are_refused(workspace: Path, tmp_path: Path) -> None:
    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"hold no weights for model\.layers\.2"):
        loaded(folder, workspace)
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"weights that its configuration has no place for: model\.layers\.1"):
        loaded(folder, workspace)
    edit(folder / "config.json", num_hidden_layers=2)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, folder / "model.safetensors")
    with pytest.raises(UserError, match="hold no weights for lm_head"):
        loaded(folder, workspace)


def test_tied_weights_are_not_missing(workspace: Path, tmp_path: Path) -> None:
    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m", tie_word_embeddings=True)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    assert loaded(folder, workspace).facts["loading"]["fresh"] == []


@pytest.mark.parametrize(
    ("names", "outcome"),
    [
        ({"0": "X", "1": "Y"}, "from the files, for the same classes"),
        ({"0": "y", "1": "x"}, "trained for the classes y, x"),
        ({"0": "LABEL_0", "1": "LABEL_1"}, "its classes have no names"),
    ],
)
def test_a_head_is_used_for_its_own_classes_only(
    names: dict[str, str], outcome: str, workspace: Path, tmp_path: Path
) -> None:
    folder = save("sequence-classification", "bert", CLASSIFIERS["bert"], tmp_path / "m")
    edit(folder / "config.json", id2label=names, label2id={v: int(k) for k, v in names.items()})
    if outcome.startswith("trained"):
        with pytest.raises(UserError, match=outcome):
            loaded(folder, workspace, "sequence-classification")
    else:
        assert outcome in loaded(folder, workspace, "sequence-classification").facts["loading"]["head"]


def test_a_head_of_another_size_is_refused(workspace: Path, tmp_path: Path) -> None:
    folder = save("sequence-classification", "bert", CLASSIFIERS["bert"], tmp_path / "m", num_labels=3)
    with pytest.raises(UserError, match="its head is for other classes than x, y"):
        loaded(folder, workspace, "sequence-classification")


def test_an_encoder_outside_the_list_is_found_by_the_check(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ENCODERS", frozenset())
    folder = save("causal-lm", "camembert", {**CLASSIFIERS["bert"], "pad_token_id": 0}, tmp_path / "m")
    with pytest.raises(Unsupported, match="is no causal language model"):
        loaded(folder, workspace)


@pytest.mark.parametrize("family", ["bart", "t5", "camembert", "roformer", "ernie", "rembert", "big_bird"])
def test_the_plan_refuses_what_is_no_decoder(family: str, tmp_path: Path) -> None:
    edit(tmp_path / "config.json", model_type=family)
    why = sources.check(str(tmp_path), "causal-lm")
    assert why is not None
    assert "encoder" in why
    if family in ("bart", "t5"):
        assert "encoder-decoder" in (sources.check(str(tmp_path), "sequence-classification") or "")


def test_the_plan_names_the_attention_that_runs(tmp_path: Path) -> None:
    edit(tmp_path / "config.json", model_type="bloom")
    assert "'attention: eager' alone" in (sources.check(str(tmp_path), "causal-lm", "sdpa") or "")
    assert sources.check(str(tmp_path), "causal-lm", "eager") is None


def test_weights_that_are_not_finite_are_said(workspace: Path, tmp_path: Path) -> None:
    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match="not finite"):
        loaded(folder, workspace)


def test_tokens_without_a_row_in_the_embedding_are_refused(workspace: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{n}>" for n in range(10)])
    tokenizer.save_pretrained(folder)
    assert loaded(folder, workspace), "tokens that nothing uses do no harm"
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the pad token '\[PAD\]' has the id"):
        loaded(folder, workspace)


def test_positions_are_those_that_can_be_used(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    sizes = {"roberta": 64 - 1, "bert": 64, "llama": 64, "gpt2": 64, "bloom": float("inf"), "distilbert": 512}
    for family, expected in sizes.items():
        kind = "causal-lm" if family in CAUSAL else "sequence-classification"
        given = CAUSAL.get(family) or CLASSIFIERS[family]
        folder = save(kind, family, given, tmp_path / family)
        auto = AutoModelForCausalLM if kind == "causal-lm" else AutoModelForSequenceClassification
        assert positions(auto.from_pretrained(folder)) == expected, family


def test_gpt2_is_the_same_model_with_linear_layers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save("causal-lm", "gpt2", CAUSAL["gpt2"], tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 90, (2, 9))
    with torch.no_grad():
        before = model(ids).logits
        assert conv1d.to_linear(model) == 8
        assert torch.allclose(model(ids).logits, before, atol=1e-6)
        model.save_pretrained(tmp_path / "saved", **conv1d.for_saving(model))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        assert torch.allclose(again(ids).logits, before, atol=1e-6)
    assert conv1d.to_linear(model) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "not readable JSON"),
        ("config.json", b"[]", "an object is expected"),
        ("config.json", b"{}", "names no 'model_type'"),
        ("config.json", b'{"model_type": 3}', "names no 'model_type'"),
        ("config.json", b'{"a": ' + b"9" * 5000 + b"}", "not readable JSON"),
        ("config.json", b"[" * 100_000, "not readable JSON"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("model.safetensors", b"", "cut off"),
        ("model.safetensors", b"junk", "cut off"),
        ("model.safetensors", (2**61).to_bytes(8, "little") + b"{}", "cut off"),
        ("model.safetensors", (50 * 10**9).to_bytes(8, "little") + b"{}", "cut off"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"{}", "holds no tensor"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "cannot be read"),
        ("model.safetensors", (13).to_bytes(8, "little") + b'{"a": {"x":1}', "cannot be read"),
        ("model.safetensors", (17).to_bytes(8, "little") + b'{"a": {"shape":3}', "cannot be read"),
    ],
    ids=lambda value: value[:12].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_a_damaged_folder_is_one_sentence(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        sources.identity(str(folder), revision=None, task_digest=str)


def test_mutated_headers_and_configs_give_sentences_only(tmp_path: Path) -> None:
    """300 random mutations of each file, seeded: every one is accepted or refused as a UserError."""
    import random

    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    random_ = random.Random(0)
    refused = 0
    for name in ("config.json", "model.safetensors"):
        good = (folder / name).read_bytes()
        for _ in range(300):
            data = bytearray(good[: random_.choice([len(good), random_.randrange(len(good))])])
            for _ in range(random_.randrange(1, 6)):
                if data:
                    data[random_.randrange(min(len(data), 2000))] = random_.randrange(256)
            (folder / name).write_bytes(bytes(data))
            try:
                sources.identity(str(folder), revision=None, task_digest=str)
                sources.check(str(folder), "causal-lm")
            except UserError:
                refused += 1
        (folder / name).write_bytes(good)
    assert refused > 300


def test_a_folder_without_a_tokenizer_says_so(workspace: Path, tmp_path: Path) -> None:
    folder = save("causal-lm", "llama", LLAMA, tmp_path / "m")
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*")):
        file.unlink()
    with pytest.raises(UserError, match=r"no tokenizer that can be read \(no readable tokenizer\.json, "):
        loaded(folder, workspace)
