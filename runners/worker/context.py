"""State shared by the stages of a cell: the resolved plug-ins, the current model, and the measurements so far."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from harness.errors import CheckFailed
from harness.meters.panel import Panel
from harness.methods.base import Method, ModelKind
from harness.metrics import metric, missing, reading
from harness.objectives.base import Objective, Row, TokenSequence
from harness.quantizers.base import Quantizer
from harness.recipes.base import Recipe
from harness.record import Reading, WhyMissing
from harness.spec import Evaluation, Probes, Training
from runners.worker.job import Job
from runners.worker.memory import synchronize
from runners.worker.process import Rank
from tasks.scoring import Scored
from tasks.task import Item, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runners.worker.few_shot import Examples


RANDOM_WEIGHTS = "random weights: only memory, speed and energy are measured; answers are meaningless"

NAMED = 20
"""Items that a record names of those it counts."""


@dataclass
class Splits:
    """The items of a task. Only ``evaluate`` and ``merge`` read ``test``."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


@dataclass
class Searched:
    """Training work of a method outside the training loop.

    Attributes:
        seconds: wall time, the device waited for.
        tokens: of the training batches that were drawn, padding left out.
        samples: sequences of these batches.
    """

    seconds: float = 0.0
    tokens: int = 0
    samples: int = 0

    @contextlib.contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Add the time that passes within."""
        begin = _synced(device)
        try:
            yield
        finally:
            self.seconds += _synced(device) - begin

    def counting(self, batches: Iterable[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        """The batches, counted as they are drawn."""
        for batch in batches:
            self.tokens += int(batch["attention_mask"].sum())
            self.samples += len(batch["input_ids"])
            yield batch


def _synced(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


@dataclass
class BaseAnswers:
    """Answers of the base to a preference task's test items, before anything was attached to it; else empty.

    Attributes:
        log_probs: item id to the log-probability (nat) of both answers, or of the only one.
        top: position of an item to its most likely tokens [n, k] and their log-probabilities at every answer token.
    """

    log_probs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    top: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Context:
    """The state of one cell while it runs.

    Attributes:
        model: the model as the last stage left it.
        path: what ``from_pretrained`` is given.
        probe_logits: logits of the probe batch before saving, for the reload and merge checks.
        samples: scored items of every arm, in the order they were scored.
        say: sends a progress message to the parent.
        panel: the meters around the stages; None where a stage is run without them.
        examples: what the method shows in front of every prompt of the cell's task, None where it shows nothing.
        held_out: language-modelling tasks whose texts are scored before and after adaptation.
        model_stamps: size, times and inode of the model's files when their bytes were verified, and their SHA-256.
        searched: what the method's search took, in time and data.
        train_rows: the training items with their right answers, encoded.
        loop_rows: what the training loop reads: the same, or what objective and recipe make of the items.
        base_said: what the base said of a preference task's test items.
        rank: which of the cell's processes this is.
        suite: the lm-eval tasks of the sweep (:class:`runners.worker.lm_eval_model.Suite`), None if it names none.
    """

    job: Job
    kind: ModelKind
    task: Task
    retain: list[Task]
    method: Method
    quantizer: Quantizer
    objective: Objective
    recipe: Recipe
    training: Training
    evaluation: Evaluation
    probes: Probes
    seed: int
    steps: int
    learning_rate: float
    device: torch.device
    say: Callable[..., None]
    path: str = ""
    tokenizer: PreTrainedTokenizerBase = None  # the stage load fills it in
    model: PreTrainedModel = field(default_factory=nn.Identity)
    splits: Splits = field(default_factory=lambda: Splits([], [], []))
    train_rows: list[TokenSequence] = field(default_factory=list)
    loop_rows: list[Row] | list[TokenSequence] = field(default_factory=list)
    base_said: BaseAnswers = field(default_factory=BaseAnswers)
    probe_batch: dict[str, torch.Tensor] = field(default_factory=dict)
    probe_logits: torch.Tensor | None = None
    metrics: dict[str, Reading] = field(default_factory=dict)
    series: dict[str, tuple[float, ...]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    panel: Panel | None = None
    suite: Any = None
    examples: Examples | None = None
    held_out: list[Task] = field(default_factory=list)
    model_stamps: dict[Path, tuple[list[int], str]] = field(default_factory=dict)
    searched: Searched = field(default_factory=Searched)
    rank: Rank = field(default_factory=Rank)

    @property
    def folder(self) -> Path:
        """Scratch folder of this attempt."""
        return Path(self.job.folder)

    @property
    def trial(self) -> bool:
        """True for a tuning trial, which never reads the test split."""
        return self.job.cell.get("role") == "trial"

    @property
    def switches(self) -> dict[str, object]:
        """Switches of the cell's variant; ``{}`` for the plain one."""
        return self.job.cell.get("variant") or {}

    @property
    def trains(self) -> bool:
        """True if the cell trains: its method does, and it does not only score what another cell trained."""
        return self.method.declaration.trains and not self.scores_only

    @property
    def scores_only(self) -> bool:
        """True if the cell scores what another cell trained, on another task's test split."""
        return not (self.job.cell.get("stages") or {}).get("trains", True)

    @property
    def produces(self) -> bool:
        """True if the cell saves and reloads a result: it trains, or combines what others trained."""
        return self.trains or self.method.declaration.combines

    @property
    def quantizes_before(self) -> bool:
        """True if the base is quantized before training (else after the merge)."""
        return bool(self.job.cell["quantization"]["moment"] == "before_training")

    @property
    def random_weights(self) -> bool:
        """True if the model is a skeleton: its memory, speed and energy are measured, its answers are meaningless."""
        return bool(self.job.cell["model"].get("weights") == "random")

    @property
    def base(self) -> str:
        """Base kind under the method."""
        return str(self.method.setting.base)

    def record(self, name: str, value: float, *, source: str, **more: Any) -> None:
        """Keep a measured quantity. A quantity measured twice is a programming error.

        What a model with random weights scores, or its loss, means nothing: no such value enters a record.
        """
        if self.random_weights and metric(name).family in ("accuracy", "retention", "judged"):
            self.keep(missing(name, "not_applicable", source=source, details={"note": RANDOM_WEIGHTS}))
        else:
            self.keep(reading(name, value, source=source, **more))

    def record_missing(self, name: str, why: WhyMissing, *, source: str, **details: object) -> None:
        """Keep the reason why a quantity has no value."""
        self.keep(missing(name, why, source=source, details=details))

    def keep(self, new: Reading) -> None:
        """Keep a reading. A quantity measured twice is a programming error."""
        if new.quantity in self.metrics:
            raise CheckFailed("metric-once", f"{new.quantity} was measured twice in one cell")
        self.metrics[new.quantity] = new

    def keep_samples(self, arm: str, task: str, scored: list[Scored]) -> None:
        """Append scored items under ``arm``: ``adapted``, ``merged``, ``retained`` or ``base``.

        Items whose input was longer than the context were scored on what fits; they are counted and named.
        """
        cut = [s.item for s in scored if s.cut]
        if cut:
            self.facts.setdefault("items_cut", {})[f"{arm}/{task}"] = {"n": len(cut), "items": cut[:NAMED]}
        self.samples.extend({"arm": arm, "task": task, **s.as_row()} for s in scored)


T = TypeVar("T")
TOLD_EVERY_S = 2.0
"""Seconds between two messages of one loop to the parent process."""


def told(ctx: Context, batches: Sequence[T], what: str = "scoring") -> Iterator[T]:
    """The batches, with a word to the parent about how many of them are done."""
    said_at = time.monotonic()
    for done, batch in enumerate(batches):
        if time.monotonic() - said_at >= TOLD_EVERY_S:
            said_at = time.monotonic()
            ctx.say("progress", what=what, at=done, of=len(batches))
        yield batch


POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
"""Names that configurations give the number of positions. Without any (ALiBi, relative positions) there is no limit."""


def context_length(ctx: Context) -> int:
    """Positions the model has, in tokens (the tokenizer's limit where it is smaller); huge where there is no limit."""
    return int(min(positions(ctx.model), ctx.tokenizer.model_max_length))


def positions(model: PreTrainedModel) -> float:
    """Tokens that the model can place; infinite where its configuration names no limit.

    RoBERTa and its kin count positions from behind the padding id, so that a table of 514 rows places 512 tokens.
    """
    whole = model.config
    config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    found = next((n for name in POSITIONS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    alibi = getattr(config, "position_embedding_type", "") == "alibi"
    if found is None or alibi or getattr(config, "model_type", "") == "bloom":
        return math.inf
    for name, module in model.named_modules() if hasattr(model, "named_modules") else ():
        padding = getattr(module, "padding_idx", None) if name.endswith("position_embeddings") else None
        if padding is not None and getattr(module, "num_embeddings", None) == found:
            return int(found - padding - 1)
    return int(found)
