"""A worker's context around a model that a test already holds, without a job, a sweep or a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.spec import Evaluation
from runners.worker.context import Context
from tasks.task import Task, TaskDefinition


def context(model: Any, tokenizer: Any, **evaluation: Any) -> Context:
    """The parts of a context that scoring needs: model, tokenizer, evaluation, seed."""
    unused: Any = None
    return Context(
        job=unused,
        kind="causal-lm",
        task=unused,
        retain=[],
        method=unused,
        quantizer=unused,
        objective=unused,
        recipe=unused,
        training=unused,
        evaluation=Evaluation(**{"batch_size": 4, **evaluation}),
        probes=unused,
        seed=0,
        steps=0,
        learning_rate=0.0,
        device=torch.device("cpu"),
        say=lambda *_, **__: None,
        tokenizer=tokenizer,
        model=model.eval(),
    )


def task(**more: Any) -> Task:
    """A task of no rows, for items that a test makes itself."""
    kind = more.pop("kind", "generation")
    needs = {
        "generation": {"prompt": "{q}", "answer": "{a}"},
        "multiple-choice": {"prompt": "{q}", "choices": "c", "label": "l"},
        "language-modelling": {"answer": "{a}"},
    }[kind]
    definition = {
        "name": "made",
        "version": 1,
        "summary": "Made by a test.",
        "kind": kind,
        "licence": "none",
        "source": {"data_root": "none"},
        "splits": {"train": {"from": "train"}, "test": {"from": "test"}},
        **needs,
        **more,
    }
    return Task(TaskDefinition.model_validate(definition), Path("made.yaml"))


SURE = 20.0
"""Logit of the scripted token; every other token has 0."""


class Oracle(PreTrainedModel, GenerationMixin):
    """Continues each known prompt with its scripted answer and the end of the sequence; everything else is ignored.

    Args:
        script: prompt ids to the ids that follow.
    """

    config_class = LlamaConfig

    def __init__(self, tokenizer: Any, script: Mapping[tuple[int, ...], list[int]], positions: int) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer),
                max_position_embeddings=positions,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
            )
        )
        self.script = dict(script)
        self.eos = tokenizer.eos_token_id
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> CausalLMOutputWithPast:
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for k, row in enumerate(input_ids.tolist()):
            start = int(attention_mask[k].argmax())
            ids = row[start : start + int(attention_mask[k].sum())]
            head = next((n for n in range(len(ids), 0, -1) if tuple(ids[:n]) in self.script), None)
            if head is None:  # only a part of a prompt, as where prompts are shared
                continue
            said = [*self.script[tuple(ids[:head])], self.eos]
            for at in range(head - 1, len(ids)):
                logits[k, start + at, said[min(at - head + 1, len(said) - 1)]] = SURE
        return CausalLMOutputWithPast(logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
