"""A sweep file (YAML) as a frozen value. Every check of a sweep's *form* is here; names are checked in the plan.

Configuration objects do nothing: no network, no device query, no environment variable is read in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.canonical import canonical_json
from harness.yamlfile import Loc, line_of, load_model


class Spec(BaseModel):
    """Base of every part of a sweep: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _named(value: Any) -> Any:
    """Let ``- lora`` stand for ``- {name: lora}``."""
    return {"name": value} if isinstance(value, str) else value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Parameters become part of a cell's identity, so they must be plain JSON."""
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"parameters must be plain numbers, text, lists and keys ({error})") from None
    return value


Params = Annotated[dict[str, Any], AfterValidator(_plain)]


class ModelSpec(Spec):
    """Where a model comes from.

    ``id`` is one of: ``builtin:nano`` (built and pre-trained by the program), ``package:NAME/FOLDER`` (files
    inside an installed Python package), ``skeleton:NAME`` (a real architecture with random weights), a local
    folder, or a Hub id.
    """

    id: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False


class MethodSpec(Spec):
    """One fine-tuning method: its registered name, its parameters and, if the sweep sets it, a learning rate."""

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    learning_rate: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0, description="own number of steps; marked on the board")


class QuantizationSpec(Spec):
    """One quantization: its registered name, its parameters and the moment it happens."""

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    moment: Literal["before_training", "after_merge"] = "before_training"


class TaskUse(Spec):
    """A task of the library, optionally on fewer items (``None``: all of the split)."""

    name: str
    train_items: int | None = Field(default=None, gt=0)
    validation_items: int | None = Field(default=None, gt=0)
    test_items: int | None = Field(default=None, gt=0)


class Training(Spec):
    """The training budget, the same for every method of the sweep.

    ``learning_rate`` is that of *full* fine-tuning; a method trains at this times its declared factor unless
    the sweep gives the method a learning rate of its own.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(default=16, gt=0)
    gradient_accumulation: int = Field(default=1, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_length: int = Field(default=512, gt=0, description="tokens; longer examples are counted and cut")
    gradient_checkpointing: bool = False


class Decoding(Spec):
    """How answers are generated. Temperature 0 is greedy."""

    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, gt=0, description="None: what the task says")


class Evaluation(Spec):
    """How the adapted model is scored."""

    batch_size: int = Field(default=64, gt=0)
    decoding: Decoding = Decoding()
    retention: bool = True
    merged: bool = True


class Probes(Spec):
    """What is measured after scoring. Empty lists leave a probe out."""

    latency_repeats: int = Field(default=20, ge=0)
    latency_batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()


class Limits(Spec):
    """What keeps a sweep in bounds. Nothing in here but ``threads`` can change a number."""

    timeout_s: float = Field(default=3600.0, gt=0)
    threads: int = Field(default=1, gt=0, description="CPU threads of a worker; part of the cell")
    workers: int | None = Field(default=None, gt=0, description="cells at once; None: one per device")
    retries: int = Field(default=0, ge=0)


class Rule(Spec):
    """A set of cells by shell-style patterns; every key that is given must match."""

    model: str = "*"
    method: str = "*"
    quantization: str = "*"
    task: str = "*"
    hardware: str = "*"
    seed: int | None = None


class Exclusion(Rule):
    """Cells left out on purpose; they stay on the board with this reason."""

    why: str = Field(min_length=3)


class Inclusion(Spec):
    """One further cell outside the product of the axes."""

    model: ModelSpec
    method: MethodSpec
    quantization: QuantizationSpec
    task: TaskUse
    seed: int = 0

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("method", "quantization", "task", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return _named(value)


class SweepSpec(Spec):
    """A whole sweep: axes, budget, probes, exceptions and limits."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str = ""
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    quantization: tuple[QuantizationSpec, ...] = Field(default=(QuantizationSpec(name="none"),), min_length=1)
    tasks: tuple[TaskUse, ...] = Field(min_length=1)
    hardware: tuple[str, ...] = Field(default=("any",), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    training: Training
    evaluation: Evaluation = Evaluation()
    probes: Probes = Probes()
    limits: Limits = Limits()
    exclude: tuple[Exclusion, ...] = ()
    include: tuple[Inclusion, ...] = ()
    board: str = "default"

    @field_validator("models", mode="before")
    @classmethod
    def _models(cls, value: Any) -> Any:
        return [{"id": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("methods", "quantization", "tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [_named(v) for v in value] if isinstance(value, list) else value

    @field_validator("seeds", "hardware")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same value stands twice in this axis")
        return value

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> SweepSpec:
        for axis in ("methods", "quantization"):
            labels = [item.label or item.name for item in getattr(self, axis)]
            double = sorted({label for label in labels if labels.count(label) > 1})
            if double:
                raise ValueError(f"{axis}: {', '.join(map(repr, double))} stands twice; give each use its own 'label'")
        return self


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep together with where it was read, so that later checks can name file, line and key."""

    spec: SweepSpec
    path: Path
    lines: dict[Loc, int]

    def where(self, *loc: int | str) -> str:
        """``FILE, line N, key 'a.b'`` of a location inside the sweep."""
        return f"{self.path}, line {line_of(self.lines, loc)}, key '{'.'.join(map(str, loc))}'"


def load(path: Path) -> LoadedSweep:
    """Read a sweep file.

    Raises:
        UserError: file, line and key of the first thing that is wrong, and what is allowed.
    """
    spec, lines = load_model(path, SweepSpec)
    return LoadedSweep(spec=spec, path=path, lines=lines)
