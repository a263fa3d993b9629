"""Architecture x method with tiny random weights: every pair runs through the worker's stages or is refused in words.

Each cell runs load, quantize, prepare, attach, train, save, reload and evaluate in this process; the checks of the
worker (trainable count, gradients, reload) are those of every cell.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.models import sources
from harness.quantizers.catalog import QUANTIZERS
from runners.worker import loading, main
from runners.worker.job import Job
from runners.worker.stages import stages_of
from tests.methods import tiny

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT: dict[str, Any] = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**SIZES, "num_key_value_heads": 2},
    "gemma": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "phi": SIZES,
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": SIZES,
    "bloom": {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neo": {
        **SIZES,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    },
    "gpt2": GPT,
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": {**SIZES, "pad_token_id": 0},
    "electra": {**SIZES, "embedding_size": 32},
    "albert": {**SIZES, "embedding_size": 32},
    "mpnet": SIZES,
    "deberta-v2": SIZES,
    "modernbert": {**SIZES, "global_attn_every_n_layers": 1, "local_attention": 16},
    "distilbert": {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "llama": {**SIZES, "num_key_value_heads": 2},
    "gpt2": GPT,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
METHODS = ["none", "full", "bitfit", "lora", "ia3"]
PARAMS: dict[str, dict[str, Any]] = {"lora": {"r": 2}}


def save(kind: str, family: str, sizes: dict[str, Any], folder: Path, **more: Any) -> Path:
    """A random model of that architecture with a tokenizer of one token per character, as files."""
    from tokenizers import decoders
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = AutoConfig.for_model(family, **{**ids, **sizes, **more})
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if kind == "causal-lm" else AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(folder)
    tokenizer.eos_token = "!"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of a few rows: words to copy, and two classes."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "tasks").mkdir()
    words = ["ab", "cde", "fghi", "jk", "lmn", "opqr"]
    rows = [{"q": w, "a": w, "label": i % 2} for i, w in enumerate(words)]
    for split in ("train", "test"):
        (root / "tasks" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common: dict[str, Any] = {
        "version": 1,
        "summary": "s",
        "licence": "own",
        "source": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        "prompt": "{q}=",
    }
    words_task = {**common, "name": "copy", "kind": "generation", "answer": "{a}", "max_new_tokens": 4}
    classes = {**common, "name": "classes", "kind": "sequence-classification", "label": "label", "labels": ["x", "y"]}
    for content in (words_task, classes):
        (root / "tasks" / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))
    return root


def job(model: Path, kind: str, method: str, workspace: Path, folder: Path, **cell: Any) -> Job:
    """One cell of two steps on that model."""
    from harness.methods.catalog import METHODS as TABLE
    from harness.spec import Evaluation, Probes, Training

    cls = TABLE.get(method)
    trains = cls.declaration.trains
    quantizer = QUANTIZERS.get("none")
    family = json.loads((model / "config.json").read_text())["model_type"]
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        key="k",
        label="l",
        sweep="s",
        cell={
            "model": {
                "id": model.name,
                "revision": sources.identity(str(model), revision=None, task_digest=str)["revision"],
                "dtype": "float32",
                "attention": "eager" if family in sources.EAGER_ONLY else "sdpa",
                "trust_remote_code": False,
            },
            "method": {
                "name": method,
                "params": cls.resolve(PARAMS.get(method, {})),
                "learning_rate": 1e-3 if trains else None,
                "steps": 2 if trains else None,
            },
            "quantization": {
                "name": "none",
                "params": quantizer.resolve({}),
                "moment": "before_training",
                "base": "fp",
                "bits": 32,
            },
            "task": {
                "name": "copy" if kind == "causal-lm" else "classes",
                "train_items": None,
                "validation_items": None,
                "test_items": None,
            },
            "hardware": {"label": "any"},
            "training": Training(steps=2, batch_size=2, max_length=16).identity(),
            "evaluation": Evaluation(batch_size=4).model_dump(mode="json"),
            "probes": Probes(latency_repeats=0).model_dump(mode="json"),
            "seed": 0,
            "threads": 1,
            **cell,
        },
        model=str(model),
        folder=str(folder),
        device="cpu",
        gpus=(),
        cores=(),
        workspaces=(str(workspace),),
        data_root=None,
        cache=str(folder),
    )


WANTED = ("load", "quantize", "prepare", "attach", "train", "save", "reload", "evaluate")


def run(one: Job, *, until: str = "evaluate") -> Any:
    """The stages of a cell, in this process; the worker's context afterwards."""
    ctx = main.build_context(one, lambda *_, **__: None)
    for name, work in stages_of("before_training"):
        if name == "prepare":
            loading.check_loaded(ctx)
        if name in WANTED:
            if name == "train":
                main.train.before(ctx)
            work(ctx)
        if name == until:
            break
    return ctx


@pytest.mark.parametrize("family", CAUSAL)
def test_every_method_runs_on_every_decoder(family: str, workspace: Path, tmp_path: Path) -> None:
    model = save("causal-lm", family, CAUSAL[family], tmp_path / family)
    assert sources.check(str(model), "causal-lm", "eager") is None
    for method in METHODS:
        ctx = run(job(model, "causal-lm", method, workspace, tmp_path / method))
        assert ctx.metrics["answer_nll"].value > 0
        assert ctx.facts["loading"]["fresh"] == []
        assert ctx.facts["causal"]["earlier_logits_moved"] < 1e-4


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_method_runs_on_every_classifier(family: str, workspace: Path, tmp_path: Path) -> None:
    model = save("sequence-classification", family, CLASSIFIERS[family], tmp_path / family)
    without_head(model / "model.safetensors")
    assert sources.check(str(model), "sequence-classification", "eager") is None
    for method in [*METHODS, "head"]:
        ctx = run(job(model, "sequence-classification", method, workspace, tmp_path / method))
        assert ctx.metrics["accuracy"].value is not None
        assert ctx.facts["loading"]["head"] == "drawn from the seed"


def without_head(file: Path) -> None:
    """A checkpoint as pre-training leaves it: without the classifier."""
    from safetensors.torch import load_file, save_file

    kept = {k: v for k, v in load_file(file).items() if not loading._in_head(k)}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, metadata={"format": "pt"})
