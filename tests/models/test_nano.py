"""The built-in model: built once, the same every time, and able to do its corpus."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from harness.digests import digest_file
from harness.errors import UserError
from harness.models import nano, sources

os.environ["HF_HUB_OFFLINE"] = "1"


def examples(name: str, n: int) -> list[tuple[str, str]]:
    """Pairs of a skill that a few steps teach: say the letter again."""
    return [(f"{name}{'abcd'[i % 4]}=", "abcd"[i % 4]) for i in range(n)]


@pytest.fixture(scope="module")
def small() -> sources.ModelRecipe:
    """The nano recipe with a model and a budget for tests."""
    data = copy.deepcopy(sources.recipe("nano").data)
    data["corpus"] = ["A", "B"]
    data["config"] |= {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    data["pretraining"] |= {
        "examples": 200,
        "steps": 60,
        "batch_size": 32,
        "warmup_steps": 5,
        "threads": 1,
        "learning_rate": 1e-2,
    }
    return sources.ModelRecipe("nano", data)


def test_it_is_built_once_and_is_the_same_every_time(small: sources.ModelRecipe, tmp_path: Path) -> None:
    seen: list[int] = []
    settings = {"examples": examples, "task_digest": str}
    first = nano.ensure(small, tmp_path / "a", progress=lambda step, _: seen.append(step), **settings)
    assert seen == list(range(1, 61))
    assert nano.ensure(small, tmp_path / "a", progress=lambda *_: pytest.fail("built again"), **settings) == first
    second = nano.ensure(small, tmp_path / "b", **settings)
    assert first.name == second.name
    assert digest_file(first / "model.safetensors") == digest_file(second / "model.safetensors")
    assert [p.name for p in (tmp_path / "a" / "models").iterdir() if p.is_dir()] == [first.name]


def test_it_learns_its_corpus(small: sources.ModelRecipe, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = nano.ensure(small, tmp_path, examples=examples, task_digest=str)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = ["Aa=", "Bd="]
    ids = torch.tensor([tokenizer(p)["input_ids"] for p in prompts])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True) == ["a", "d"]


def test_another_corpus_is_another_model(small: sources.ModelRecipe) -> None:
    assert small.identity(lambda name: name) != small.identity(lambda name: name + " changed")


def test_updated_base_continues_from_earlier_weights(
    small: sources.ModelRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(sources, "recipe", {"nano": small}.__getitem__)
    still = {**small.data["pretraining"], "steps": 1, "learning_rate": 0.0}
    updated = sources.ModelRecipe("nano-v2", {**small.data, "continues": "nano", "pretraining": still})
    assert updated.identity(str) != sources.ModelRecipe("nano-v2", {**small.data, "pretraining": still}).identity(str)
    folder = nano.ensure(updated, tmp_path, examples=examples, task_digest=str)
    before = nano.ensure(small, tmp_path, examples=examples, task_digest=str)
    old, new = (load_file(f / "model.safetensors") for f in (before, folder))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)  # a step at a rate of zero


def test_the_tokenizer_survives_saving_and_puts_bos_in_front(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = nano.build_tokenizer("abc =\n")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("abc = cab", "a\nb", ""):
        ids = again(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert ids[0] == again.bos_token_id
        assert again.decode(ids, skip_special_tokens=True) == text


def test_a_half_built_model_is_never_seen(small: sources.ModelRecipe, tmp_path: Path) -> None:
    def broken(name: str, n: int) -> list[tuple[str, str]]:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        nano.ensure(small, tmp_path, examples=broken, task_digest=str)
    assert [p for p in (tmp_path / "models").iterdir() if p.is_dir()] == []


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("package:no_such_package/model", "pip install --no-deps no-such-package"),
        ("./nowhere", "a folder with a config.json is expected"),
        ("builtin:nanoo", "Did you mean 'nano'"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(model_id: str, message: str) -> None:
    with pytest.raises(UserError, match=r".") as raised:
        sources.identity(model_id, revision=None, task_digest=str, where="x.yaml, line 2")
    assert message in str(raised.value)
    assert "x.yaml, line 2" in str(raised.value)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors weights"):
        sources.identity(str(tmp_path), revision=None, task_digest=str)


def test_a_folders_path_is_not_part_of_the_identity(tmp_path: Path) -> None:
    for name in ("here/m", "there/m"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        save_file({"weight": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
    one, two = (sources.identity(str(tmp_path / n), revision=None, task_digest=str) for n in ("here/m", "there/m"))
    assert one == two
    (tmp_path / "there/m" / "config.json").write_text('{"model_type": "mistral"}')
    assert sources.identity(str(tmp_path / "there/m"), revision=None, task_digest=str) != one
