"""A claim file (YAML) as a frozen value: what was printed, where, in which unit, and what would count as evidence.

The fields and forms are those of the measuring protocol, section 7. Validation teaches: a claim that cannot be
judged (a bare "%", a difference without a baseline, an "up to" without its set) is refused with the way to say it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.errors import UserError, did_you_mean
from harness.meters.catalog import is_metric
from harness.metrics import METRICS
from harness.yamlfile import FileModel, load_model

BUILT_IN = Path(__file__).parents[2] / "claims"

Form = Literal["absolute", "order", "difference", "ratio", "upto", "equivalence", "interaction"]
Unit = Literal["points", "relative", "ratio", "absolute", "count", "bytes"]

UNIT_LESSON = (
    "A bare '%' can mean two things. Write 'unit: points' for a difference of two percentages (49.4 % against 43.5 % "
    "is 5.9 points), 'unit: relative' for a share of the baseline (13.6 % more), 'unit: ratio' for A divided by B."
)


class Printed(FileModel):
    """One place where the number is printed.

    Attributes:
        value: as printed, in the claim's unit; None where only an order is stated.
        place: table, figure or section.
        kind: which text it is.
        version: of that text, where it is not the paper's version.
    """

    value: float | None = None
    place: str
    kind: Literal["printed", "abstract", "repository"] = "printed"
    version: str = ""


class Scope(FileModel):
    """The conditions under which the claim was made; evidence from outside them is not comparable."""

    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    hardware: str = ""
    revisions: dict[str, str] = Field(default_factory=dict)


class Tolerance(FileModel):
    """Accepted distance of a value from the printed one, in the claim's unit, with the reason."""

    value: float = Field(ge=0)
    why: str = Field(min_length=3)


class Needs(FileModel):
    """Requirements of a run of the original claim."""

    gpu_hours: float | None = Field(default=None, ge=0)
    memory_gib: float | None = Field(default=None, ge=0)
    why: str = ""


class Arm(FileModel):
    """Rows of a sweep by their labels (shell-style patterns) and, if labels are not enough, by parameters."""

    model: str = "*"
    method: str = "*"
    quantization: str = "*"
    task: str = "*"
    params: dict[str, Any] = Field(default_factory=dict, description="of the method; these must be equal")


class Pair(FileModel):
    """One comparison: an arm against its baseline."""

    arm: Arm
    baseline: Arm


class Count(FileModel):
    """A quantity that follows from shapes: counted on the real architecture without its weights."""

    architecture: str
    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    optimizer: Literal["adam", "adam-8bit", "galore", "galore-8bit"] | None = None
    rank: int | None = Field(default=None, gt=0, description="of a projecting optimizer")


class ClaimEvidence(FileModel):
    """Source of the evidence. Exactly one kind.

    Attributes:
        sweep: records of this sweep, together with ``arm`` (and ``baseline``), ``pairs`` or ``levels``.
        pairs: the stated set of an "up to" claim.
        levels: two comparisons whose effects differ, for an interaction; the second is claimed larger.
        count: counted from shapes; ``count_baseline`` is what it is divided by, or compared with.
        compute: arithmetic on printed numbers, as a tree of {operation: [numbers or trees]}.
        complete: whether a computation covers the whole stated set of an "up to" claim.
    """

    sweep: str | None = None
    arm: Arm | None = None
    baseline: Arm | None = None
    pairs: tuple[Pair, ...] = ()
    levels: tuple[Pair, ...] = ()
    count: Count | None = None
    count_baseline: Count | None = None
    compute: dict[str, Any] | None = None
    complete: bool = True

    @model_validator(mode="after")
    def _one_kind(self) -> ClaimEvidence:
        kinds = [self.sweep is not None, self.count is not None, self.compute is not None]
        if sum(kinds) != 1:
            raise ValueError("evidence is one of: a sweep with its arms, a count, or a computation")
        if self.sweep is not None and not (self.arm or self.pairs or self.levels):
            raise ValueError("evidence from a sweep names an 'arm' (and its 'baseline'), 'pairs' or 'levels'")
        if self.levels and len(self.levels) != 2:
            raise ValueError("an interaction compares the effect at two levels: give exactly two")
        return self


class Criterion(FileModel):
    """The measured quantity and the condition that confirms it; shared by a claim and its proxies.

    Attributes:
        metric: a defined quantity, or ``printed`` for arithmetic on printed numbers.
        baseline_metric: what the baseline arm is measured by, where it is another name for the same quantity (the
            merged arm's latency against a plain model's); the metric itself by default.
        stage: the stage whose reading is meant, for quantities kept per stage.
        expect: whether the arm is claimed above or below its baseline.
        value: claimed size, in ``unit``.
        band: limits of a ratio.
        margin: half-width within which two arms count as equal, in ``unit``.
        by_construction: why the verdict cannot be another one, for example because the method keeps no optimizer state.
    """

    metric: str
    baseline_metric: str | None = None
    stage: str | None = None
    form: Form
    unit: Unit
    expect: Literal["greater", "less"] = "greater"
    value: float | None = None
    band: tuple[float, float] | None = None
    margin: float | None = Field(default=None, gt=0)
    tolerance: Tolerance | None = None
    evidence: ClaimEvidence | None = None
    by_construction: str = ""

    @field_validator("metric", "baseline_metric")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name not in (None, "printed") and not is_metric(name):
            raise ValueError(f"unknown metric {name!r}. {did_you_mean(str(name), METRICS)}")
        return name

    @model_validator(mode="after")
    def _complete(self) -> Criterion:
        if self.form in ("absolute", "difference", "upto") and self.value is None:
            raise ValueError(f"the form {self.form!r} needs the claimed 'value'")
        if self.form == "ratio" and (self.band is None or not self.band[0] < self.band[1]):
            raise ValueError("the form 'ratio' needs a 'band': [lowest, highest] that still counts as the claim")
        if self.form == "equivalence" and self.margin is None:
            raise ValueError("the form 'equivalence' needs a 'margin', fixed before the data are seen")
        if self.form == "absolute" and self.tolerance is None:
            raise ValueError("the form 'absolute' needs a 'tolerance' with its 'why' (0 for an exact count)")
        if self.evidence is not None:
            self._fits(self.evidence)
        return self

    def _fits(self, evidence: ClaimEvidence) -> None:
        if evidence.sweep is None:
            return
        if self.form == "upto" and not evidence.pairs:
            raise ValueError(
                "an 'up to' claim is judged by the largest effect over a stated set: give 'pairs', never a mean"
            )
        if self.form == "interaction" and not evidence.levels:
            raise ValueError("the form 'interaction' needs two 'levels'")
        if self.form == "interaction" and self.unit not in ("points", "absolute"):
            raise ValueError("an interaction is a difference of differences: its unit is 'points' or 'absolute'")
        if self.form in ("order", "difference", "ratio", "equivalence") and evidence.baseline is None:
            raise ValueError(f"the form {self.form!r} compares: name the 'baseline' arm")


class Proxy(Criterion):
    """A downscaled version of the claim. Its verdict is reported separately and never replaces the claim's."""

    setup: str = Field(min_length=2, description="what the proxy ran on, in a word")
    differs: str = Field(min_length=10, description="in what the proxy differs from the claim")


class Claim(Criterion):
    """One claim of a paper.

    Attributes:
        id: unique over all files.
        statement: the claim in a sentence.
        printed: every place where its number is printed; two that disagree are flagged.
        doubts: what is known to be wrong with it.
        unstated: a choice that the source leaves open and that decides the verdict, with both results.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    statement: str = Field(min_length=10)
    printed: tuple[Printed, ...] = Field(min_length=1)
    metric_kind: str = ""
    scope: Scope = Scope()
    needs: Needs = Needs()
    unstated: str = ""
    doubts: tuple[
        Literal["reference-inconsistent", "leak", "estimated-memory", "one-seed-reference", "source-unread"], ...
    ] = ()
    proxies: tuple[Proxy, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _percent_needs_a_unit(cls, data: object) -> object:
        if isinstance(data, dict) and (data.get("unit") in (None, "%", "percent")):
            text = f"{data.get('statement', '')} {data.get('printed', '')} {data.get('value', '')} {data.get('unit')}"
            if "%" in text or "percent" in text:
                raise ValueError(UNIT_LESSON)
        return data


class Paper(FileModel):
    """A claim file.

    Attributes:
        arxiv: identifier; None for texts that are not there.
        version: the version that was read, ``unread`` where only a digest was.
    """

    paper: str
    arxiv: str | None = None
    version: str
    link: str = ""
    note: str = ""
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Paper:
        names = [claim.id for claim in self.claims]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"the claim {', '.join(double)} is listed twice")
        return self


def load_claims(paths: list[Path]) -> list[tuple[Paper, Claim]]:
    """All claims of these files and folders, in the order of file names.

    Raises:
        UserError: a path that is not there, a mistake in a file (file, line, key), one id in two files.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no claim file {path.name!r}", where=str(path))
        files += sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    found: list[tuple[Paper, Claim]] = []
    seen: dict[str, Path] = {}
    for file in files:
        paper, _ = load_model(file, Paper)
        for claim in paper.claims:
            if claim.id in seen:
                raise UserError(f"the claim {claim.id!r} is also in {seen[claim.id].name}", where=str(file))
            seen[claim.id] = file
            found.append((paper, claim))
    if not found:
        raise UserError("no claim files found", where=", ".join(map(str, paths)))
    return found
