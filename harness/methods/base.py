"""Interface of a fine-tuning method: a declaration without heavy imports, and hooks that the worker calls.

The worker holds no per-method ``if``: everything a method needs is one of these hooks. The docstring of a
hook says when it is called. Nothing here imports torch at module level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.digests import without_later
from harness.errors import Unsupported, UserError, did_you_mean

if TYPE_CHECKING:  # heavy, and only for types
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

ModelKind = Literal["causal-lm", "sequence-classification"]
Mergeable = Literal["exactly", "lossily", "no"]
Batch = Mapping[str, "torch.Tensor"]


Family = Literal[
    "baseline",
    "adapter",
    "prompt",
    "selective",
    "optimizer",
    "zeroth-order",
    "quantized weights",
    "side network",
    "after training",
]


@dataclass(frozen=True)
class Declaration:
    """Declared properties of a method; shown by ``peft-matrix methods`` and checked by the worker and the tests.

    Attributes:
        name: registered name.
        summary: one sentence a reader understands.
        trainable: how many parameters it trains, as a formula in words.
        family: what it changes, in a word.
        paper: arXiv id, with the version it was read in where one was (``"2106.09685v2"``), or "" where there is none.
        kinds: model kinds it can adapt.
        refuses_kind: model kind to the true reason why it does not adapt that kind.
        bases: base kinds (:class:`harness.quantizers.base.QuantizerDeclaration.base`) it trains on.
        refuses: base kind to the true reason why it does not train there.
        merge_refuses: base kind to the reason why merging does not work there.
        mergeable: whether merging into a full-precision base keeps the function.
        defaults: parameters with their default values.
        defaults_source: where those come from.
        devices: device types it runs on.
        parallel: strategies on several devices under which it was seen to train the same model as one process
            (:data:`PARALLEL`); all others are refused.
        lr_factor: learning-rate centre, as a multiple of full fine-tuning's.
        identity_at_start: whether the attached model computes the base's function before the first step.
        trains: whether there is a training stage at all.
        trained_fraction: share of the model's parameters whose gradients and Adam states exist at once, where the
            method alone settles it (1: all of them); None elsewhere. Cells that cannot fit are refused by it.
        in_place: it trains the base's own tensors; merging is the identity, so that a merged arm says nothing new.
        combines: it needs the adapters of other cells of the sweep (their labels are in its parameters); they run
            first.
        trains_cache: it trains entries of the key-value cache, which layers that are recomputed do not get.
        demonstrates: it shows worked examples of the training split in front of every prompt (:meth:`Method.shows`).
        unverified: the declaration rests on recollection, not on the paper's text.
        later: parameters that were added later, with the value that means what was before them: at this value they
            stay out of a cell's identity, so that its earlier records still count.
        revision: raised when a correction makes the same parameters give other numbers; part of a cell's identity
            from 2 on, so that records from before the correction are not taken for records from after it.
    """

    name: str
    summary: str
    family: Family
    trainable: str = ""
    paper: str = ""
    kinds: frozenset[str] = frozenset({"causal-lm", "sequence-classification"})
    refuses_kind: Mapping[str, str] = field(default_factory=dict)
    bases: frozenset[str] = frozenset({"fp"})
    refuses: Mapping[str, str] = field(default_factory=dict)
    merge_refuses: Mapping[str, str] = field(default_factory=dict)
    mergeable: Mergeable = "no"
    defaults: Mapping[str, object] = field(default_factory=dict)
    defaults_source: str = ""
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    parallel: frozenset[str] = frozenset()
    lr_factor: float = 1.0
    identity_at_start: bool = True
    trains: bool = True
    trained_fraction: float | None = None
    in_place: bool = False
    needs_second_model: bool = False
    needs_search: bool = False
    combines: bool = False
    trains_cache: bool = False
    demonstrates: bool = False
    unverified: bool = False
    later: Mapping[str, object] = field(default_factory=dict)
    revision: int = 1


PARALLEL = frozenset({"ddp", "fsdp"})
"""Strategies on several devices that a method or a quantizer may declare."""


@dataclass(frozen=True)
class Ingredient:
    """The trained model of another cell of the sweep.

    Attributes:
        label: the cell's readable name.
        method: the method that trained it, made for that cell's parameters.
        folder: what that method saved.
        base: loads a fresh base of the model that was trained (quantized as that cell is).
    """

    label: str
    method: Method
    folder: Path
    base: Callable[[], nn.Module]


@dataclass(frozen=True)
class Workshop:
    """Input of :meth:`Method.finalize`.

    Attributes:
        validation_nll: mean negative log-likelihood of the right answers on the validation split, of a model in
            evaluation; None where the task has no validation split.
        ingredients: in the order in which the plan names them.
        base: loads a fresh base of this cell.
    """

    validation_nll: Callable[[nn.Module], float] | None
    ingredients: tuple[Ingredient, ...]
    base: Callable[[], nn.Module]


@dataclass(frozen=True)
class ShownExamples:
    """Worked examples that precede every prompt.

    Attributes:
        positions: of the examples in the training split, in the order in which they are shown.
        separator: ends each of them; what a model writes after it is no longer its answer.
    """

    positions: tuple[int, ...]
    separator: str


@dataclass(frozen=True)
class Setting:
    """The cell's properties that a method may use when it is built.

    Attributes:
        kind: what the model is used for.
        base: base kind left by the quantizer (``fp``, ``bnb-int8``, ...).
        seed: the cell's seed.
        steps: optimizer steps of the whole cell, those of a search (:attr:`Method.search_steps`) among them.
        learning_rate: resolved learning rate.
        weight_decay: decoupled weight decay.
        betas: Adam's betas.
        tokenizer: the model's tokenizer (a ``PreTrainedTokenizerBase``), None in a dry check.
        device: torch device string.
    """

    kind: ModelKind
    base: str
    seed: int
    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    tokenizer: PreTrainedTokenizerBase | None = None
    device: str = "cpu"

    @property
    def adamw(self) -> dict[str, Any]:
        """Rate, betas and decay of the cell, as every AdamW takes them."""
        return {"lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}


class Method:
    """A fine-tuning method. Subclasses set ``declaration`` and override the hooks they need.

    Args:
        params: parameters as resolved by :meth:`resolve`.
        setting: what is known of the cell.
    """

    declaration: ClassVar[Declaration]

    def __init__(self, params: Mapping[str, object], setting: Setting) -> None:
        self.params: dict[str, Any] = {**self.declaration.later, **params}
        self.setting = setting

    # --- before any model is there -------------------------------------------------------------
    @classmethod
    def declared(cls, params: Mapping[str, object]) -> Declaration:
        """Declared properties with these resolved parameters; ``declaration`` has them for the defaults."""
        return cls.declaration

    @property
    def promise(self) -> Declaration:
        """Declared properties with this cell's parameters."""
        return self.declared(self.params)

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters: plain JSON, part of the cell's identity.

        Raises:
            UserError: a parameter this method does not have.
        """
        known = cls.declaration.defaults
        for name in params:
            if name not in known:
                raise UserError(
                    f"method {cls.declaration.name!r} has no parameter {name!r}",
                    where=where,
                    fix=did_you_mean(name, known) if known else "It takes no parameters.",
                )
        return without_later({**known, **params}, cls.declaration.later)

    @classmethod
    def check(cls, kind: str, base: str, params: Mapping[str, object]) -> str | None:
        """Reason why this method does not run on such a model and base, or None: by the declaration alone."""
        d = cls.declared(params)
        if kind not in d.kinds:
            return d.refuses_kind.get(kind, f"{d.name} does not adapt {kind} models")
        if base in d.refuses:
            return d.refuses[base]
        if base not in d.bases:
            return f"it is not known to train on {base} layers"
        return None

    @classmethod
    def missing(cls, params: Mapping[str, object]) -> str | None:
        """Package or tool that this machine lacks for the method, with the command that installs it, or None."""
        return None

    @classmethod
    def check_merge(cls, base: str, params: Mapping[str, object] | None = None) -> str | None:
        """Reason why merging is not possible on such a base, or None; without ``params``, with the defaults."""
        d = cls.declared(params or {})
        if d.mergeable == "no":
            return f"{d.name} cannot be merged"
        return d.merge_refuses.get(base)

    @classmethod
    def remark(cls, params: Mapping[str, object], steps: int) -> str | None:
        """Note for the plan about a run of so many steps, such as a part of the method that never acts in it."""
        return None

    def shows(self, available: int) -> ShownExamples | None:
        """Choose which of the ``available`` training items precede every prompt of the cell's task as examples.

        Raises:
            UserError: there are fewer than wanted.
        """
        return None

    # --- attaching -----------------------------------------------------------------------------
    @property
    def search_steps(self) -> int:
        """Gradient steps on training batches that the method takes outside the training loop, before or after it.

        They are part of the cell's budget: the loop has so many steps less, and their time and tokens count as
        training's.
        """
        return 0

    @property
    def loop_steps(self) -> int:
        """Steps of the training loop."""
        return self.setting.steps - self.search_steps

    def phases(self) -> tuple[int, ...]:
        """Lengths in steps of the parts of the loop that each have a learning-rate schedule from its beginning."""
        return (self.loop_steps,)

    @property
    def wants_text(self) -> bool:
        """Whether :meth:`calibrate` is to see general text instead of the task's training items."""
        return False

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Batch]]) -> dict[str, Any] | None:
        """Stage ``prepare``: data-driven initialisation.

        Args:
            model: the base.
            batches: yields n training batches.

        Returns:
            the result of the search, plain JSON for the record; None if there is nothing to report.
        """
        return None

    def search(
        self,
        model: nn.Module,
        training: Callable[[int], Iterable[Batch]],
        validation: Callable[[int], Iterable[Batch]] | None,
    ) -> dict[str, object]:
        """Stage ``prepare``, after :meth:`calibrate`: choose what will train, with data of both splits.

        Args:
            model: the base, which is left as it is.
            training: yields n training batches.
            validation: yields n validation batches; None where the task has no such split.

        Returns:
            what was found, plain JSON for the record.
        """
        return {}

    def attach(self, model: nn.Module) -> nn.Module:
        """Stage ``attach``: return the model to train, with ``requires_grad`` set on what trains."""
        raise NotImplementedError

    def expected_trainable(self, model: nn.Module) -> int | None:
        """Trainable parameters :meth:`attach` must produce on this *base* model, by formula; None if unknown.

        Called before :meth:`attach`. A difference is the outcome ``error`` with check ``trainable-count``.
        """
        return None

    def active_parameters(self, model: nn.Module) -> int | None:
        """Entries that one step of the loop moves at most, where these are fewer than the trainable ones; else None.

        Called after :meth:`attach`.
        """
        return None

    def held(self) -> Iterable[torch.Tensor]:
        """Tensors that the method keeps outside model and optimizer while it trains (copies of weights, masks)."""
        return ()

    # --- training ------------------------------------------------------------------------------
    def select(self, model: nn.Module, step: int) -> None:
        """Before each step: choose which parameters train now (see the catalogue's trap 5)."""

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """While the operations of a step are counted, before training: the model as a step of the loop finds it."""
        yield

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """The method's own optimizer, or None for the protocol's AdamW over the trainable parameters."""
        return None

    @property
    def whole_steps(self) -> bool:
        """True if :meth:`training_step` replaces the usual step, backward pass and update included."""
        return type(self).training_step is not Method.training_step

    def training_step(self, model: nn.Module, batch: Batch) -> torch.Tensor | None:
        """A whole step of the method's own (zeroth order, ...): returns the detached loss; None: the usual one.

        When this returns a loss, the worker calls neither backward nor clips gradients.
        """
        return None

    def loss(self, outputs: ModelOutput, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
        """The loss to minimise, given the model's outputs and the task's own loss ``reference`` (scalar)."""
        return reference

    def task_loss(self, outputs: ModelOutput, batch: Batch) -> torch.Tensor:
        """The task's own loss, without what the method adds to it: what ``train_loss`` is the mean of."""
        loss: torch.Tensor = outputs.loss
        return loss

    def on_step(self, model: nn.Module, step: int) -> None:
        """After each optimizer step (from 1), before the gradients are cleared."""

    def expects_gradient(self, name: str) -> bool:
        """True if the gradient probe may require a gradient of the trainable parameter ``name``."""
        return True

    def expects_change(self, name: str) -> bool:
        """True if the trainable parameter ``name``, for which no gradient is expected, must have changed after
        training.

        Asked after the last step; a method that opts out of the gradient probe says here what it moved instead.
        """
        return False

    # --- afterwards ----------------------------------------------------------------------------
    def finalize(self, model: nn.Module, workshop: Workshop) -> nn.Module:
        """Stage ``finalize``, after training: compress, or combine with what other cells trained; billed by itself.

        Returns:
            the model that is saved and scored. Choices are made on the validation split alone.
        """
        return model

    def facts(self) -> dict[str, Any]:
        """Choices of :meth:`finish` or :meth:`finalize`, for the record."""
        return {}

    def finish(self, model: nn.Module) -> nn.Module:
        """After the last step, before saving (compress, average, rewind, ...); :meth:`facts` returns its choices."""
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what fine-tuning produced, as safetensors, into ``folder``."""
        raise NotImplementedError

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Put what :meth:`save` wrote onto a freshly loaded base (already quantized as in the cell)."""
        raise NotImplementedError

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the adapter into the base. Called only where :meth:`check_merge` allows it."""
        raise Unsupported(f"{self.declaration.name} cannot be merged")
