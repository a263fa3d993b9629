"""A sweep file (YAML) as a frozen value. Every check of a sweep's *form* is here; names are checked in the plan.

Configuration objects do nothing: no network, no device query, no environment variable is read in here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.spec_axes import (
    Decoding,
    Exclusion,
    JudgeSpec,
    MethodSpec,
    ModelSpec,
    ObjectiveSpec,
    ParallelSpec,
    Priority,
    QuantizationSpec,
    RecipeSpec,
    Rule,
    SkillUse,
    StagesSpec,
    TaskUse,
    VariantSpec,
    named,
)
from harness.spec_training import EarlyStopping, Target, Training
from harness.yamlfile import FileModel, Later, Loc, line_of, load_model

__all__ = [
    "Accounting",
    "EarlyStopping",
    "Evaluation",
    "Exclusion",
    "Inclusion",
    "Limits",
    "LmEvalUse",
    "LoadedSweep",
    "Priority",
    "Probes",
    "Rule",
    "SweepSpec",
    "Target",
    "TimingRepeats",
    "Training",
    "Tune",
    "load",
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Every library's generator takes it: NumPy's reads 32 bits."""
MAX_CELLS = 1_000_000


class LmEvalUse(FileModel):
    """A task of lm-eval, scored in process on the very model of the cell.

    Attributes:
        task: name of one of its tasks or groups, or of ``tasks/lm-eval/NAME.yaml`` in the workspace.
        shots: examples in front of every item; None: what the task says.
        items: only so many, the first ones.
        pin: what holds the task still: the package's version or the digest of the YAML and the files it names. Filled
            in by the plan.
    """

    task: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    shots: int | None = Field(default=None, ge=0)
    items: int | None = Field(default=None, gt=0)
    pin: str = ""


class Evaluation(FileModel):
    """Scoring of the adapted model.

    Attributes:
        lm_eval: tasks of lm-eval scored in addition to the sweep's own, before and after adaptation (``retention:
            false``:
            after it only).
        held_out: language-modelling tasks of the library whose test texts are scored before adaptation and after it, in
            bits per byte.
        retain: tasks whose skills are scored before adaptation and after it, besides those that the task names.
        option_orders: score multiple-choice items again under this many additional orders of their options.
        prompt_variants: score the test items again under each of the task's alternative ``prompts``.
        in_context: score the test items again with this many training items and their answers before each prompt.
        answer_confidence: of generated answers, score how probable the model finds them, and whether that tells right
            answers from wrong ones.
        judge: who compares generated answers with the references, both ways round; no part of an accuracy.
        run_generated_code: let programs that the model wrote be run, isolated, where a task is judged by running them.
    """

    batch_size: int = Field(default=64, gt=0)
    decoding: Decoding = Decoding()
    retention: bool = True
    merged: bool = True
    lm_eval: Annotated[tuple[LmEvalUse, ...], Later()] = ()
    run_generated_code: Annotated[bool, Later()] = False
    held_out: Annotated[tuple[str, ...], Later()] = ()
    retain: Annotated[tuple[SkillUse, ...], Later()] = ()
    option_orders: Annotated[int, Later()] = Field(default=0, ge=0)
    prompt_variants: Annotated[bool, Later()] = False
    in_context: Annotated[int, Later()] = Field(default=0, ge=0)
    answer_confidence: Annotated[bool, Later()] = False
    judge: Annotated[JudgeSpec | None, Later()] = None

    @field_validator("lm_eval", mode="before")
    @classmethod
    def _lm_eval_by_name(cls, value: object) -> object:
        return [{"task": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value

    @field_validator("retain", mode="before")
    @classmethod
    def _skills_by_name(cls, value: object) -> object:
        return [named(v) for v in value] if isinstance(value, list | tuple) else value


PositiveInt = Annotated[int, Field(gt=0)]


class Probes(FileModel):
    """Measurements after scoring: one forward pass of the probe batch, and a grid of requests.

    The grid is the product ``latency_batch_sizes`` x ``prompt_tokens`` x ``output_tokens``; without ``prompt_tokens``
    there is none. Its *headline* shape, whose numbers become metrics, is the first batch size, the first prompt
    length and the longest output. An encoder has no output: its grid is batch x prompt.

    Attributes:
        latency_repeats: requests measured at every shape. Percentiles need 20 (p50), 100 (p90) or 300 (p99).
        output_tokens: generated tokens of a request, forced; needs ``prompt_tokens``. Empty: 1, a prefill alone.
        energy: shapes at which joules per token are measured, each in windows as long as the meter needs.
        inspect: inspection after loading: ``full`` saves the model, decodes its layers and profiles a pass; ``none``
            only counts bytes; ``auto`` is ``full`` for a base that the cell quantized, else ``none``.
        intruder_dimensions: compare the singular vectors of every tuned matrix with its base's; two decompositions a
            matrix, and a second copy of the base in memory.
    """

    latency_repeats: int = Field(default=20, ge=0)
    latency_batch_sizes: tuple[PositiveInt, ...] = Field(default=(1,), min_length=1)
    prompt_tokens: tuple[PositiveInt, ...] = ()
    output_tokens: tuple[PositiveInt, ...] = ()
    energy: Annotated[Literal["headline", "grid", "none"], Later()] = "headline"
    inspect: Annotated[Literal["auto", "full", "none"], Later()] = "auto"
    intruder_dimensions: Annotated[bool, Later()] = False

    @model_validator(mode="after")
    def _grid_is_whole(self) -> Probes:
        if self.output_tokens and not self.prompt_tokens:
            raise ValueError("output_tokens needs prompt_tokens: a request has a prompt")
        return self


class Limits(FileModel):
    """Limits of a sweep. Nothing in here but ``threads`` can change a number.

    Attributes:
        retries: additional attempts at a cell that was lost or met an error that may pass
            (:mod:`runners.worker.transient`); never after running out of memory, diverging or a failed guard.
        lost_after_s: a worker that gave no sign of life for so long is killed, and its cell is ``lost``.
        min_free_disk_gib: a cell waits while the cache or the results have less; with nothing running that could free
            it, the cell is not run.
        trials_per_device: tuning trials that may share a device, because their time and energy are not reported. A
            measured
            cell never shares one.
        cells_per_device: cells of a sweep with ``measure_cost: false`` that may share a device.
    """

    timeout_s: float = Field(default=3600.0, gt=0)
    threads: int = Field(default=1, gt=0, description="CPU threads of a worker; part of the cell")
    workers: int | None = Field(default=None, gt=0, description="cells at once; None: one per device")
    retries: int = Field(default=0, ge=0)
    lost_after_s: float = Field(default=120.0, gt=0)
    min_free_disk_gib: float = Field(default=1.0, ge=0)
    trials_per_device: int = Field(default=1, gt=0)
    cells_per_device: int = Field(default=1, gt=0)


class Accounting(FileModel):
    """Constants that turn measured energy and time into CO2 and money. What is not stated is not derived.

    Not part of a cell: the constants are recorded with each value made from them.
    """

    grid_gco2_per_kwh: float | None = Field(default=None, ge=0, description="g CO2 equivalent per kWh of the grid")
    price_per_kwh: float | None = Field(default=None, ge=0)
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    currency: str | None = Field(default=None, pattern=r"^[A-Z]{3}$", description="ISO 4217")

    @model_validator(mode="after")
    def _prices_have_a_currency(self) -> Accounting:
        priced = self.price_per_kwh is not None or self.price_per_gpu_hour is not None
        if priced and self.currency is None:
            raise ValueError("a price needs its 'currency', for example EUR")
        return self


class Tune(FileModel):
    """The tuning budget: the same number of trials for every method, model, quantization and task (protocol 6).

    Trials train like any cell and are scored on the validation split alone; the test split is read once, by the
    cells that run with what the trials chose. A best rate at the edge of the grid extends the grid once on that side.

    Attributes:
        learning_rates: points of the grid, around the method's own centre.
        factor: ratio of two neighbouring rates.
        knob: method label to one of its parameters and the values tried at the best rate. Methods without one try as
            many additional rates around the best instead, so that the budget stays equal.
        seed: of the trials; not a seed of the sweep, so that no final run was seen before.
        shared_learning_rate: extra cells at this one rate for every method, for the sensitivity to tuning.
        sampler: ``grid``, or one of optuna's samplers over the rate and the knob together, with ``trials`` trials.
        pruner: one of optuna's pruners: a trial is scored on validation every ``prune_every`` steps and stopped where
            it is worse than the median (``optuna-median``) or the best quarter (``optuna-quarter``) of the trials
            before its batch at the same step. A pruned trial counts as a trial.
    """

    learning_rates: int = Field(default=5, ge=3)
    factor: float = Field(default=3.0, gt=1)
    knob: dict[str, dict[str, tuple[Any, ...]]] = Field(default_factory=dict)
    select: Literal["validation_nll"] = "validation_nll"
    seed: Seed = 1000
    shared_learning_rate: float | None = Field(default=None, gt=0)
    sampler: Literal["grid", "optuna-tpe", "optuna-random"] = "grid"
    trials: int | None = Field(default=None, gt=2)
    pruner: Annotated[Literal["none", "optuna-median", "optuna-quarter"], Later()] = "none"
    prune_every: Annotated[int | None, Later()] = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _whole(self) -> Tune:
        if (self.pruner == "none") != (self.prune_every is None):
            raise ValueError("'pruner' and 'prune_every' belong together")
        if self.pruner != "none" and self.sampler == "grid":
            raise ValueError("a pruner compares with trials that ran before: it needs one of optuna's samplers")
        if (self.sampler == "grid") != (self.trials is None):
            raise ValueError("'trials' belongs to optuna's samplers, which need it; a grid has 'learning_rates'")
        for label, knob in self.knob.items():
            if len(knob) != 1:
                raise ValueError(f"knob of {label!r}: one parameter with its values")
        if len({len(values) for knob in self.knob.values() for values in knob.values()}) > 1:
            raise ValueError("every knob tries the same number of values, so that the budget stays equal")
        return self

    @property
    def knob_trials(self) -> int:
        """Trials every method has beyond the grid of rates."""
        return max((len(values) for knob in self.knob.values() for values in knob.values()), default=0)

    def identity(self) -> dict[str, Any]:
        """The budget, as part of every tuned cell."""
        return self.model_dump(mode="json", exclude={"shared_learning_rate"})


class TimingRepeats(FileModel):
    """Runs that are made for comparisons of time, memory and energy only (protocol 3.3, 8.4): a seed repeats no time.

    Attributes:
        replicates: how often each cell of the first seed runs again, each time in a randomised block with the others.
        identical: cells that run a second time in every block they are in. The two runs of a block are the A/A arms:
            how far they differ is the smallest difference that counts.
    """

    replicates: int = Field(default=0, ge=0)
    identical: Rule | None = None


class Inclusion(FileModel):
    """One extra cell outside the product of the axes."""

    model: ModelSpec
    method: MethodSpec
    quantization: QuantizationSpec
    task: TaskUse
    objective: ObjectiveSpec = ObjectiveSpec(name="sft")
    recipe: RecipeSpec = RecipeSpec(name="plain")
    stages: StagesSpec = StagesSpec(name="none")
    variant: VariantSpec = VariantSpec(name="plain")
    parallel: ParallelSpec = ParallelSpec(strategy="none")
    seed: Seed = 0

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_id(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("method", "quantization", "task", "objective", "recipe", "stages", "variant", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return named(value)


class SweepSpec(FileModel):
    """A whole sweep: axes, budget, probes, exceptions and limits.

    Attributes:
        measure_cost: whether memory, time, energy and FLOPs are recorded. Without them several cells may share a
            device (``limits.cells_per_device``), which does not change what they learn or answer.
        timing: further runs for comparisons of time, memory and energy.
        keep: which trained weights stay in ``adapters/`` of the results folder, for ``peft-matrix export``: none, all,
            or ``best``: of each model and task the cell that is best on validation data so far.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str = ""
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    quantization: tuple[QuantizationSpec, ...] = Field(default=(QuantizationSpec(name="none"),), min_length=1)
    tasks: tuple[TaskUse, ...] = Field(min_length=1)
    objectives: tuple[ObjectiveSpec, ...] = Field(default=(ObjectiveSpec(name="sft"),), min_length=1)
    recipes: tuple[RecipeSpec, ...] = Field(default=(RecipeSpec(name="plain"),), min_length=1)
    stages: tuple[StagesSpec, ...] = Field(default=(StagesSpec(name="none"),), min_length=1)
    variants: tuple[VariantSpec, ...] = Field(default=(VariantSpec(name="plain"),), min_length=1)
    parallel: tuple[ParallelSpec, ...] = Field(default=(ParallelSpec(strategy="none"),), min_length=1)
    hardware: tuple[str, ...] = Field(default=("any",), min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    training: Training
    evaluation: Evaluation = Evaluation()
    probes: Probes = Probes()
    limits: Limits = Limits()
    accounting: Accounting = Accounting()
    measure_cost: bool = True
    tune: Tune | None = None
    timing: TimingRepeats | None = None
    priority: tuple[Priority, ...] = ()
    exclude: tuple[Exclusion, ...] = ()
    include: tuple[Inclusion, ...] = ()
    board: str = "default"
    keep: Literal["none", "best", "all"] = "none"

    @field_validator("models", mode="before")
    @classmethod
    def _models(cls, value: object) -> object:
        return [{"id": v} if isinstance(v, str) else v for v in value] if isinstance(value, list | tuple) else value

    @field_validator("methods", "quantization", "tasks", "objectives", "recipes", "stages", "variants", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return [named(v) for v in value] if isinstance(value, list | tuple) else value

    @field_validator("parallel", mode="before")
    @classmethod
    def _one_strategy(cls, value: object) -> object:
        return [value] if isinstance(value, dict | str) else value

    @field_validator("seeds", "hardware")
    @classmethod
    def _distinct(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same value is listed twice in this axis")
        return value

    @model_validator(mode="after")
    def _tuning_fits(self) -> SweepSpec:
        if self.tune is None:
            return self
        if any(use.score for use in self.tasks):
            raise ValueError("tune: 'score' of a task needs the trained cell's rate, which tuning has yet to choose")
        if self.tune.seed in self.seeds:
            raise ValueError(f"tune: the seed {self.tune.seed} is one of the sweep's; trials need a different one")
        unknown = sorted(set(self.tune.knob) - {m.label or m.name for m in self.methods})
        if unknown:
            raise ValueError(f"tune: knob names no method of this sweep: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _measured_cells_do_not_share(self) -> SweepSpec:
        if self.measure_cost and self.limits.cells_per_device > 1:
            raise ValueError(
                "limits: cells_per_device above 1 needs 'measure_cost: false': cells that share a device disturb each "
                "other's time, memory and energy"
            )
        return self

    @model_validator(mode="after")
    def _timing_is_measured(self) -> SweepSpec:
        if self.timing is not None and not self.measure_cost:
            raise ValueError("timing: its runs repeat times, and 'measure_cost: false' records none")
        return self

    @model_validator(mode="after")
    def _can_be_expanded(self) -> SweepSpec:
        axes = (self.models, self.methods, self.quantization, self.tasks, self.hardware, self.seeds)
        cells = math.prod(map(len, axes))
        if cells > MAX_CELLS:
            raise ValueError(f"the axes have {cells:,} cells, and a sweep at most {MAX_CELLS:,}: split it")
        return self

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> SweepSpec:
        for axis in ("methods", "quantization", "objectives", "recipes", "stages", "variants", "parallel"):
            labels = [getattr(item, "label", None) or item.name for item in getattr(self, axis)]
            double = sorted({label for label in labels if labels.count(label) > 1})
            if double:
                raise ValueError(
                    f"{axis}: {', '.join(map(repr, double))} is listed twice; give each use its own 'label'"
                )
        given = [model.label for model in self.models if model.label is not None]
        if double := sorted({label for label in given if given.count(label) > 1}):
            raise ValueError(f"models: the label {double[0]!r} is given twice")
        return self


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep together with the file it was read from, so that later checks can name file, line and key.

    Attributes:
        path: None for a sweep built in Python, which has no file and no lines.
    """

    spec: SweepSpec
    path: Path | None = None
    lines: dict[Loc, int] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The file, or the sweep's name, for messages."""
        return str(self.path) if self.path is not None else f"sweep {self.spec.name!r}"

    def where(self, *loc: int | str) -> str:
        """``FILE, line N, key 'a.b'`` of a location inside the sweep."""
        line = f", line {line_of(self.lines, loc)}" if self.path is not None else ""
        return f"{self.source}{line}, key '{'.'.join(map(str, loc))}'"


def load(path: Path, changes: Sequence[str] = ()) -> LoadedSweep:
    """Read a sweep file.

    Args:
        changes: values to set, as ``training.steps=10``; they are part of the cells like values of the file.

    Raises:
        UserError: file, line and key of the first thing that is wrong, and what is allowed.
    """
    spec, lines = load_model(path, SweepSpec, changes)
    return LoadedSweep(spec=spec, path=path, lines=lines)
