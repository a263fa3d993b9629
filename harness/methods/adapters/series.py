"""Series adapter (arXiv:1902.00751, as in LLM-Adapters, arXiv:2304.01933)."""

from __future__ import annotations

from typing import ClassVar

from harness.methods.adapters.bottleneck import ADAPTS, REFUSES, SOURCE, BottleneckAdapter
from harness.methods.base import Declaration


class Series(BottleneckAdapter):
    """``h <- h + a U f(D h)`` where h is what a block's feed-forward layer gives, before the residual sum."""

    declaration: ClassVar[Declaration] = Declaration(
        name="series-adapter",
        summary="A narrow non-linear layer after the feed-forward layer of every block adds to what that layer gives.",
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
    beside = False
