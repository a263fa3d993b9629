"""Interface of a quantizer: a declaration without heavy imports, and hooks that the worker calls."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.errors import UserError, did_you_mean

if TYPE_CHECKING:  # heavy, and only for types
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class DeclaredMethod(Protocol):
    """As much of a method's declaration as a quantizer reads; quantizers import nothing of the methods."""

    @property
    def name(self) -> str:
        """The registered name."""

    @property
    def in_place(self) -> bool:
        """Whether it trains the base's own tensors."""

    @property
    def bases(self) -> Container[str]:
        """Base kinds it trains on."""


@dataclass(frozen=True)
class QuantizerDeclaration:
    """Declared properties of a quantizer.

    Attributes:
        name: registered name.
        summary: one sentence a reader understands.
        base: base kind it leaves (what methods declare they train on): ``fp``, ``bnb-int8``, ``bnb-nf4``, ...
        bits: nominal bits per weight.
        devices: device types it runs on (``cpu``, ``cuda``).
        parallel: strategies on several devices that train on such a base (:data:`harness.methods.base.PARALLEL`); all
            others are refused.
        moments: when it can happen.
        package: import name of the package it needs, "" for none; and the pip name.
        defaults: parameters with their default values.
        source: paper or library call behind it, and where the defaults come from.
        no_gradient: why nothing can be trained on this base, "" where adapters do train.
        refuses: method name, or ``in-place`` for all methods that train the base's own tensors, to the reason why it
            does not train on this back end although its kind of base would allow it. A method with its own entry is not
            checked under ``in-place``; the entry "" exempts it.
        refuses_merge: why no adapter can be merged into this base, "" where it can (exactly or lossily).
        environment: the side environment (``peft-matrix env``) whose packages it needs, "" for ours.
        tool_environment: the side environment one of whose tools it calls from an ordinary worker, "" for none.
        calibration_batches: batches that :meth:`Quantizer.calibrate` asks for, 0 for none.
        rounds_activations: products round their inputs to few bits, so that a difference in float32's last places may
            tip one over and move the logits by a visible step.
    """

    name: str
    summary: str
    base: str
    bits: float
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    parallel: frozenset[str] = frozenset()
    moments: frozenset[str] = frozenset({"before_training"})
    package: str = ""
    pip: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    no_gradient: str = ""
    refuses: Mapping[str, str] = field(default_factory=dict)
    refuses_merge: str = ""
    environment: str = ""
    tool_environment: str = ""
    calibration_batches: int = 0
    rounds_activations: bool = False


class Quantizer:
    """A quantization back end at one bit width. Subclasses override :meth:`load_kwargs` or :meth:`apply`.

    Args:
        params: parameters as resolved by :meth:`resolve`.
        kind: ``causal-lm`` or ``sequence-classification``; fresh heads must stay in full precision.
        device: device type the cell runs on.

    Attributes:
        cache: folder of what can be made again, where a back end that takes minutes keeps its checkpoints; None to
            keep nothing.
        tokenizer: the model's, for back ends that write a checkpoint; None until the worker has read it.
        tools: interpreters of the side environments there are, by name.
        file: what :meth:`apply` wrote in the form in which the model is deployed; None where that is the model itself.
    """

    declaration: ClassVar[QuantizerDeclaration]
    cache: Path | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    tools: Mapping[str, str] = {}
    file: Path | None = None

    def __init__(self, params: Mapping[str, object], kind: str, device: str = "cpu") -> None:
        self.params: dict[str, Any] = dict(params)
        self.kind = kind
        self.device = device

    @classmethod
    def resolve(cls, params: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
        """Defaults overlaid with the sweep's parameters.

        Raises:
            UserError: a parameter this quantizer does not have.
        """
        known = cls.declaration.defaults
        for name in params:
            if name not in known:
                raise UserError(
                    f"quantizer {cls.declaration.name!r} has no parameter {name!r}",
                    where=where,
                    fix=did_you_mean(name, known) if known else "It takes no parameters.",
                )
        return {**known, **params}

    @classmethod
    def nominal_bits(cls, params: Mapping[str, Any]) -> float:
        """Bits of one weight's code at these resolved parameters, scales and zero points left out."""
        return float(params.get("bits", cls.declaration.bits))

    @classmethod
    def check(cls, device: str, moment: str) -> str | None:
        """Reason why it is not applied on such a device at such a moment, or None: by the declaration alone."""
        d = cls.declaration
        if device not in d.devices:
            return f"{d.name} needs a {' or '.join(sorted(d.devices))} device"
        if moment not in d.moments:
            return f"{d.name} cannot be applied {moment.replace('_', ' ')}"
        return None

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Package or tool that this machine lacks for it, with the command that installs it, or None.

        A back end of a side environment needs no package here; the plan checks whether that environment exists.
        """
        d = cls.declaration
        if d.package and not d.environment and not _installed(d.package):
            return f"{d.name} needs the package {d.package!r}: pip install {d.pip or d.package}"
        return None

    @classmethod
    def check_model(cls, kind: str, config: Mapping[str, object] | None, params: Mapping[str, object]) -> str | None:
        """Reason why it cannot quantize such a model at these resolved parameters, or None; checked before any cell
        starts.

        Args:
            kind: ``causal-lm`` or ``sequence-classification``.
            config: the model's ``config.json``, None where reading it would need a download.
        """
        return None

    @classmethod
    def check_method(cls, method: DeclaredMethod) -> str | None:
        """Reason why a trained method does not train on this back end, or None; the method's own view of the base is
        checked too.

        A method that names this very base kind among its own needs no gradient through these layers.
        """
        d = cls.declaration
        blocked = d.no_gradient if d.base not in method.bases else ""
        return blocked or d.refuses.get(method.name, d.refuses.get("in-place") if method.in_place else None) or None

    def load_kwargs(self) -> dict[str, object]:
        """Keyword arguments for ``from_pretrained`` (``{}`` if the quantizer works on a loaded model)."""
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Quantize a loaded model in place (the identity if :meth:`load_kwargs` did it)."""
        return model

    def calibrate(self, model: nn.Module, batches: Callable[[int], Iterable[Mapping[str, object]]]) -> None:
        """Before :meth:`apply`, on the same unquantized model: collect activations.

        Args:
            model: the loaded model on its device.
            batches: ``batches(n)`` yields n training batches (``input_ids``, ``attention_mask``).
        """

    def facts(self) -> dict[str, Any]:
        """Results for the record (calibration digest and tokens, ...); plain JSON. Asked after :meth:`apply`."""
        return {}


def _installed(package: str) -> bool:
    try:
        return util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of "parent.package" is not there
        return False
