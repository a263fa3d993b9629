"""Why methods without evidence have none, as found by looking: each entry says when, and what was tried.

A reason for a method that has evidence by now fails a test. A method that has neither is listed as unexplained.
"""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """A reason that was found.

    Attributes:
        found: date, YYYY-MM-DD.
        why: one sentence for the page; with figures where something was run.
    """

    found: str
    why: str


ZEROTH_ORDER = (
    "not run for more than 150 steps of one random direction each; on the nano model the answer's loss falls from "
    "53.7 to {} nats; the format alone needs 13.8"
)
REASONS: dict[str, Reason] = {
    "adamw-paged": Reason("2026-11-26", "needs CUDA, and no GPU run has used it yet"),
    "qalora": Reason("2026-11-26", "peft trains it on a GPTQ base only, and no committed sweep has one with it"),
    "trainable-tokens": Reason(
        "2026-11-26",
        "trains the embeddings of named tokens only (96 numbers on nano: 35.2 nats, from 53.7); peft "
        "leaves a classifier's head frozen with it; no committed task needs a new token",
    ),
    "ls-unllama": Reason(
        "2026-11-26",
        "classifies with a decoder; the only small one here, nano, knows no English: full fine-tuning of "
        "it reaches 0.19 on TREC in 100 steps",
    ),
    "layerwise-unmask": Reason(
        "2026-11-26",
        "classifies with a decoder; the only small one here, nano, knows no English: full fine-tuning of "
        "it reaches 0.19 on TREC in 100 steps",
    ),
    "cpt": Reason(
        "2026-11-26",
        "its tokens may move 0.1 around those of the examples, and nano cannot use examples: 62.4 nats "
        "trained, 62.5 with examples untrained, 53.7 without; not run on a model that can",
    ),
    "lofit": Reason(
        "2026-11-26",
        "trains 24 numbers on nano (52.3 nats, from 53.7) and 224 beside the head on the encoder, whose "
        "answers stay those of its head (0.13, one answer); higher rates were not run",
    ),
    "multitask-prompt": Reason(
        "2026-11-26",
        "at its centre 0.24 on TREC, two answers, loss at that of the label shares; on nano 24.4 nats; "
        "other rates were not run",
    ),
    "tinylora": Reason(
        "2026-11-26", "1,344 numbers on nano: 16.7 nats, the format is 13.8; on TREC one answer at 0.002, 0.02 and 0.2"
    ),
    "nlora": Reason(
        "2026-11-26",
        "at its centre one answer for all of TREC; at 1.5e-4, chosen among four rates on validation data, 0.58 in 100 "
        "steps, 10 points above the best head, which the correction for all rows does not let count",
    ),
    "int21": Reason("2026-11-26", "weights of 2 bits: 0.48 on TREC, as the best head alone; on nano 0.035 (6.3 nats)"),
    "series-adapter": Reason(
        "2026-11-26",
        "on TREC one answer at its centre, which validation also chose among three rates four times apart (0.32); at "
        "6e-4 0.44, below the best head alone (0.48); on nano 0.07 (4.7 nats)",
    ),
    "flexora": Reason(
        "2026-11-26",
        "its search keeps one of three blocks of nano, with queries and values alone: the format is "
        "learned (14.0 nats), no more; on TREC 0.46, as the best head alone",
    ),
    "mezo": Reason("2026-11-26", ZEROTH_ORDER.format(41.5)),
    "sparse-mezo": Reason("2026-11-26", ZEROTH_ORDER.format(51.2)),
    "zo-sparse": Reason("2026-11-26", ZEROTH_ORDER.format(52.5)),
    "zo-sign": Reason("2026-11-26", ZEROTH_ORDER.format(52.6)),
    "zo-momentum": Reason("2026-11-26", ZEROTH_ORDER.format(40.9)),
    "zo-adam": Reason("2026-11-26", ZEROTH_ORDER.format(52.7)),
    "zo-conservative": Reason("2026-11-26", ZEROTH_ORDER.format(39.4)),
    "zo-forward-grad": Reason("2026-11-26", ZEROTH_ORDER.format(42.6)),
    "zo-blockwise": Reason("2026-11-26", ZEROTH_ORDER.format(40.8)),
}
