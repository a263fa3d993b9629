"""Answers of the base to a preference task's test items, before anything was attached to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Base:
    """Empty for other tasks.

    Attributes:
        log_probs: item id to the log-probability (nat) of both answers, or of the only one.
        top: position of an item to its most likely tokens [n, k] and their log-probabilities at every answer token.
    """

    log_probs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    top: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
