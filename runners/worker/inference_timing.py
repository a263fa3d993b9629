"""One inference request, timed: prefill, then greedy decoding to a forced and verified length.

The loop is our own, so that nothing between two tokens is measured but the model: no sampling, no stop criteria, no
host sync per token. Prompts have no padding, so no attention mask is needed. What a serving stack adds comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import PeftMatrixError
from runners.worker.likelihood import takes_logits_to_keep

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import Cache, PreTrainedModel


class LengthMismatch(PeftMatrixError):
    """The request produced, or kept, another number of tokens than it was asked for."""


class NoCache(PeftMatrixError):
    """The model gives no key-value cache, so it cannot decode token by token."""


@dataclass(frozen=True)
class RequestShape:
    """Requests of one batch, each with the same lengths; ``output_tokens`` 0 is a forward pass alone."""

    batch: int
    prompt_tokens: int
    output_tokens: int

    def as_dict(self) -> dict[str, int]:
        """Plain JSON."""
        return {"batch": self.batch, "prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Timing:
    """Durations of one batch of requests, which start and end together.

    Attributes:
        ttft_ms: from the request to its first token.
        gaps_ms: between each token and the next.
        e2e_ms: from the request to its last token by the host's monotonic clock, the device synchronised at both
            ends. The others come from :attr:`Clock.source`.
    """

    ttft_ms: float
    gaps_ms: tuple[float, ...]
    e2e_ms: float

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first; None where there is no second token."""
        return sum(self.gaps_ms) / len(self.gaps_ms) if self.gaps_ms else None


class Clock:
    """Marks in time: CUDA events on a GPU, read after one sync at the end of the window; else a monotonic clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.source = "torch.cuda.Event" if self.cuda else "time.perf_counter"

    def mark(self) -> object:
        """Now, in the device's queue."""
        if not self.cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types here
        event.record()
        return event

    def sync(self) -> float:
        """Wait for the device; seconds on the host's monotonic clock."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def between_ms(self, marks: Sequence[Any]) -> list[float]:
        """Durations between successive marks, ms. Call it after :meth:`sync`."""
        if self.cuda:
            return [a.elapsed_time(b) for a, b in pairwise(marks)]
        return [(b - a) * 1e3 for a, b in pairwise(marks)]


class Decoder:
    """Runs requests on a causal language model.

    A soft prompt or prefix precedes a request's own tokens and so affects only the prefill: the model below such an
    adapter does the decoding, as it does in ``generate``.

    Args:
        model: a causal language model, or an adapter of peft around one.
        device: device of the tensors.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        config = getattr(model, "active_peft_config", None)
        soft_prompt = bool(getattr(config, "is_prompt_learning", False))
        self.first = model
        self.later = model.base_model if soft_prompt else model
        self.virtual_tokens = int(config.num_virtual_tokens) if soft_prompt and config is not None else 0
        self.clock = Clock(device)
        self._options: dict[str, object] = {"use_cache": True}
        if takes_logits_to_keep(model):
            self._options["logits_to_keep"] = 1

    def prefill(self, ids: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        """First token of each request, shape (batch, 1), and the cache.

        Raises:
            NoCache: the model returned none.
        """
        out = self.first(input_ids=ids, **self._options)
        if getattr(out, "past_key_values", None) is None:
            raise NoCache("the model returns no key-value cache")
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def step(self, token: torch.Tensor, cache: Cache) -> torch.Tensor:
        """The next token of each request, shape (batch, 1); the cache grows by one."""
        out = self.later(input_ids=token, past_key_values=cache, **self._options)
        return out.logits[:, -1:].argmax(-1)  # type: ignore[no-any-return]  # models have no types here

    def request(self, ids: torch.Tensor, output_tokens: int) -> tuple[Timing, torch.Tensor]:
        """Run one batch of requests with prompts ``ids``, shape (batch, prompt tokens).

        Returns:
            its timing, and the tokens, shape (batch, ``output_tokens``).

        Raises:
            LengthMismatch: the cache does not hold the prompt and all tokens but the last.
        """
        began = self.clock.sync()
        marks = [self.clock.mark()]
        token, cache = self.prefill(ids)
        marks.append(self.clock.mark())
        tokens = [token]
        for _ in range(output_tokens - 1):
            token = self.step(token, cache)
            marks.append(self.clock.mark())
            tokens.append(token)
        e2e_ms = (self.clock.sync() - began) * 1e3
        self.verify(cache, ids.shape[1], output_tokens)
        ttft_ms, *gaps_ms = self.clock.between_ms(marks)
        return Timing(ttft_ms, tuple(gaps_ms), e2e_ms), torch.cat(tokens, dim=1)

    def verify(self, cache: Cache, prompt_tokens: int, output_tokens: int) -> None:
        """Raise :class:`LengthMismatch` unless the cache holds the prompt and every token but the last."""
        expected = self.virtual_tokens + prompt_tokens + output_tokens - 1
        found = int(cache.get_seq_length())
        if found != expected:
            raise LengthMismatch(f"the cache holds {found} positions after the request, {expected} were expected")
