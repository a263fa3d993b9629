"""Parallel adapter (arXiv:2110.04366, as in LLM-Adapters, arXiv:2304.01933)."""

from __future__ import annotations

from typing import ClassVar

from harness.methods.adapters.bottleneck import ADAPTS, REFUSES, SOURCE, BottleneckAdapter
from harness.methods.base import Declaration


class Parallel(BottleneckAdapter):
    """``y <- FFN(x) + a U f(D x)`` at the feed-forward layer of every block."""

    declaration: ClassVar[Declaration] = Declaration(
        name="parallel-adapter",
        summary="A narrow non-linear layer parallel to the feed-forward layer of every block reads the same input.",
        family="adapter",
        trainable="2bd at each block, with d the hidden size and b the bottleneck's width; and a classifier's head.",
        paper="2304.01933",
        bases=ADAPTS,
        refuses=REFUSES,
        mergeable="no",
        defaults={"bottleneck": 256, "function": "tanh", "scale": 1.0},
        defaults_source=SOURCE,
        lr_factor=10.0,
    )
    beside = True
