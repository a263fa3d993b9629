"""Tiny random models in memory, and one method's whole life on one of them, run once and checked by many tests."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.methods.base import Method, Setting, Workshop
from harness.methods.catalog import METHODS
from harness.quantizers.catalog import QUANTIZERS

CAUSAL, CLASSIFIER = "causal-lm", "sequence-classification"
VOCABULARY = 96
STEPS = 3
MARK = "#"  # the text that methods acting on certain tokens are given; one token, in every prompt
PARAMS: dict[str, dict[str, Any]] = {
    "alora": {"invocation": MARK},
    "trainable-tokens": {"text": MARK},
    "cpt": {"context": MARK},  # in these batches every token is an answer, whose embedding CPT keeps
}
DECODERS = frozenset({"ls-unllama", "layerwise-unmask"})  # methods that make a classifier of a decoder only


def llama(key_value_heads: int = 2) -> nn.Module:
    """A Llama of two layers (hidden 64, the least that 4-bit blocks allow) with grouped queries, seeded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": key_value_heads}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=0)).eval()


def bert() -> nn.Module:
    """A BERT classifier of two layers without dropout, seeded; its biases are not zero, as in a trained model."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(**sizes, **dropout, num_attention_heads=4, num_labels=3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
    return model


def decoder_classifier(layers: int = 2) -> nn.Module:
    """A Llama with a classifier's head, seeded."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, **heads, pad_token_id=0, num_labels=3)).eval()


def base(kind: str, quantizer: str = "none", method: str = "") -> nn.Module:
    """A fresh base of that kind under that quantizer, which the method can adapt; the same weights every time."""
    model = llama() if kind == CAUSAL else decoder_classifier() if method in DECODERS else bert()
    cls = QUANTIZERS.get(quantizer)
    return cls(cls.resolve({}), kind).apply(model).eval()


@functools.cache
def tokenizer() -> Any:
    """One token per character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate(map(chr, range(32, 32 + VOCABULARY)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=" ", pad_token=" ")


def batch(kind: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Four sequences of twelve tokens; the fifth is the mark, and two sequences end in padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, VOCABULARY, (4, 12), generator=generator)
    ids[:, 4] = tokenizer()(MARK)["input_ids"][0]
    mask = torch.ones_like(ids)
    mask[::2, -2:] = 0
    labels = ids.masked_fill(mask == 0, -100) if kind == CAUSAL else torch.arange(4) % 3
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, kind: str) -> torch.Tensor:
    """The model's logits on the batch, at the positions that are not padding."""
    inputs = batch(kind)
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return found[inputs["attention_mask"].bool()] if kind == CAUSAL else found


def gap(left: torch.Tensor, right: torch.Tensor) -> float:
    """The greatest difference of two tensors."""
    return float((left - right).abs().max())


def made(name: str, kind: str = CAUSAL, base_kind: str = "fp", steps: int = STEPS, **params: Any) -> Method:
    """The method with these parameters over its defaults."""
    cls = METHODS.get(name)
    setting = Setting(
        kind=kind,  # type: ignore[arg-type]  # one of the two constants above
        base=base_kind,
        seed=0,
        steps=steps,
        learning_rate=5e-3,
        tokenizer=tokenizer(),
    )
    return cls(cls.resolve({**PARAMS.get(name, {}), **params}), setting)


def attached(method: Method, model: nn.Module) -> nn.Module:
    """Calibrated and attached as the worker does it, seeded."""
    calibrated(method, model)
    return method.attach(model)


def calibrated(method: Method, model: nn.Module) -> None:
    """The stage ``prepare``, seeded."""
    kind = method.setting.kind

    def batches(count: int) -> Iterable[Mapping[str, torch.Tensor]]:
        return [batch(kind, seed) for seed in range(count)]

    def held_out(count: int) -> Iterable[Mapping[str, torch.Tensor]]:
        return [batch(kind, 100 + seed) for seed in range(count)]

    torch.manual_seed(0)
    method.calibrate(model, batches)
    method.search(model, batches, held_out)


def train(method: Method, model: nn.Module, steps: int = STEPS) -> set[str]:
    """A few steps as the worker does them. Returns the names of trainable parameters that never had a gradient."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    silent = set(trainable)
    if not trainable:
        return silent
    model.train()
    optimizer = method.optimizer(model) or torch.optim.AdamW(trainable.values(), lr=5e-3, weight_decay=0.0)
    inputs = batch(method.setting.kind)
    for step in range(1, steps + 1):
        method.select(model, step - 1)
        if method.training_step(model, inputs) is None:
            outputs = model(**inputs)
            method.loss(outputs, inputs, outputs.loss).backward()  # type: ignore[no-untyped-call]
        silent -= {name for name, p in trainable.items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
        optimizer.step()
        method.on_step(model, step)
        optimizer.zero_grad()
    return silent


def finalized(method: Method, model: nn.Module) -> nn.Module:
    """The stage ``finalize`` for a method without source models; the batch is the validation split."""
    inputs = batch(method.setting.kind, seed=2)

    def validation_nll(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float(candidate.eval()(**inputs).loss)

    return method.finalize(model, Workshop(validation_nll, (), lambda: base(method.setting.kind)))


@dataclass
class Life:
    """Observations of one method on one model kind and base."""

    method: Method
    expected: int | None = None
    trainable: int = 0
    start_gap: float = 0.0
    names: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    moved: float = 0.0
    reload_gap: float = 0.0
    merge_gap: float | None = None


@functools.cache
def live(name: str, kind: str, quantizer: str = "none") -> Life:
    """Attach, train, save, load onto a fresh base, merge."""
    base_kind = QUANTIZERS.get(quantizer).declaration.base
    method = made(name, kind, base_kind)
    life = Life(method)
    model = base(kind, quantizer, name)
    before = logits(model, kind)
    calibrated(method, model)
    life.expected = method.expected_trainable(model)
    model = method.attach(model)
    life.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    life.names = {n for n, p in model.named_parameters() if p.requires_grad}
    life.start_gap = gap(logits(model, kind), before)
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.is_floating_point()}
    life.silent = train(method, model)
    life.changed = {n for n, p in model.named_parameters() if n in kept and not torch.equal(kept[n], p)}
    model = finalized(method, method.finish(model))
    after = logits(model, kind)
    life.moved = gap(after, before)
    with tempfile.TemporaryDirectory() as folder:
        method.save(model, Path(folder))
        again = made(name, kind, base_kind)
        life.reload_gap = gap(logits(again.load(base(kind, quantizer, name), Path(folder)), kind), after)
    if type(method).check_merge(base_kind) is None:
        life.merge_gap = gap(logits(method.merge(model), kind), after)
    return life
