"""Tiny real models on disk, loaded and quantized the way the worker does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.quantizers.catalog import QUANTIZERS

VOCABULARY = 96
Loader = Callable[..., nn.Module]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random Llama (hidden 64, 2 layers) and a random BERT classifier, by model kind."""
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    bert = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=4, num_labels=3))
    found = {}
    for kind, model in (("causal-lm", llama), ("sequence-classification", bert)):
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind])
    return found


@pytest.fixture
def load(folders: dict[str, Path]) -> Loader:
    """``load(name, kind, params, in_memory)``: a model under that quantizer."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classes: dict[str, Any] = {
        "causal-lm": AutoModelForCausalLM,
        "sequence-classification": AutoModelForSequenceClassification,
    }

    def loaded(
        name: str = "none",
        kind: str = "causal-lm",
        params: dict[str, Any] | None = None,
        *,
        in_memory: bool = False,
    ) -> nn.Module:
        cls = QUANTIZERS.get(name)
        quantizer = cls(cls.resolve(params or {}), kind)
        kwargs = {} if in_memory else quantizer.load_kwargs()
        model = classes[kind].from_pretrained(folders[kind], dtype=torch.float32, **kwargs)
        quantizer.calibrate(model, lambda n: [batch(kind, seed) for seed in range(n)])
        return quantizer.apply(model).eval()

    return loaded


def batch(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Eight random items of twelve tokens, the last two of some items padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (8, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, -2:] = 0
    labels = ids.masked_fill(mask == 0, -100) if kind == "causal-lm" else torch.arange(8) % 3
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_lora(model: nn.Module, kind: str) -> nn.Module:
    """LoRA r4 on every kind of layer of the body, started away from zero by the seed."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "down_proj"] if kind == "causal-lm" else ["query", "value", "output.dense"]
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets))  # type: ignore[no-any-return]


def gradients(model: nn.Module, kind: str) -> dict[str, torch.Tensor | None]:
    """Gradient of every lora_B after one backward pass; None where none arrived."""
    model.zero_grad()
    model(**batch(kind)).loss.backward()
    return {
        name: None if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if "lora_B" in name
    }
