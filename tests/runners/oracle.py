"""A scripted model that answers a known share of items right, through the very code that scores a real model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

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
