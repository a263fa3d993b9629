"""Fixtures of several folders."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine draws slowly, which says nothing about the code.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

GUARDED = ("PYTHONPATH", "PYTHONSAFEPATH", "PATH", "HOME", "HF_HUB_", "OMP_", "CUDA_", "PEFT_MATRIX_")
"""Beginnings of the environment variables that no test may leave changed: later tests start processes with them."""


def guarded() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(GUARDED)}


@pytest.fixture(autouse=True)
def _environment_stays_as_it_was() -> Iterator[None]:
    before = guarded()
    yield
    assert guarded() == before


_seen_modules = [0]


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_collected() -> None:
    """Take the objects of imported libraries out of what ``gc.collect`` walks: half a million, a quarter of a second.

    Workers do the same (:mod:`runners.worker.preload`); stages that tests call in this process collect several times.
    """
    if len(sys.modules) > _seen_modules[0] + 500:
        gc.collect()
        gc.freeze()
        _seen_modules[0] = len(sys.modules)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand parameters with the nano model's tokenizer, as files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.models.nano import build_tokenizer
    from harness.models.sources import recipe

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = build_tokenizer(recipe("nano").data["alphabet"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
