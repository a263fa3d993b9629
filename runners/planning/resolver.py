"""From the names of a sweep to the points of its matrix: model, method, quantization and task with their identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import hardware as hw
from harness.digests import without_later
from harness.errors import UserError, did_you_mean
from harness.file_digests import FileDigests
from harness.matrix import (
    DEFAULTS,
    LATER_AXES,
    Axes,
    Cell,
    EarlierPoints,
    Matrix,
    Pattern,
    Point,
    at_rate,
    expand,
    make_cell,
    scored_on,
)
from harness.methods.catalog import METHODS
from harness.models import sources
from harness.objectives.catalog import OBJECTIVES
from harness.quantizers.catalog import QUANTIZERS
from harness.recipes.catalog import RECIPES
from harness.record import PROTOCOL
from harness.spec import Evaluation, Inclusion, LoadedSweep
from harness.spec_axes import (
    MethodSpec,
    ModelSpec,
    ObjectiveSpec,
    ParallelSpec,
    QuantizationSpec,
    RecipeSpec,
    Rule,
    SecondModel,
    SkillUse,
    StagesSpec,
    TaskUse,
    VariantSpec,
)
from runners.workspace import Workspace
from tasks import lm_eval_tasks
from tasks.data import count_items, task_digest, unpinned
from tasks.formats import in_format
from tasks.task import SPLITS, Task, load_task

LATER: Mapping[str, object] = {"code": None, "revision": 1, "tasks": {}}
"""Later parts of an axis value's identity (:func:`without_later`): the code of a plug-in from outside this project, the
revision of a corrected method, tasks that a recipe reads."""
LATER_OF_ALL: Mapping[str, object] = {"measure_cost": True, "held_out": {}, "retain": {}}
"""The same for what all cells of a sweep share."""


class Resolver:
    """Turns what a sweep names into identities, once per name; keeps what the worker will need again."""

    def __init__(self, sweep: LoadedSweep, workspace: Workspace, machine: hw.Machine) -> None:
        self.sweep = sweep
        self.machine = machine
        self.workspace = workspace
        self._tasks: dict[str, Task] = {}
        self._digests: dict[str, str] = {}
        self._counts: dict[tuple[str, int | None], int] = {}
        self._files = FileDigests(workspace.cache / "digests")

    def task(self, name: str, where: str = "") -> Task:
        """The task called ``name``."""
        if name not in self._tasks:
            self._tasks[name] = load_task(name, list(self.workspace.roots), where=where)
        return self._tasks[name]

    def task_digest(self, name: str) -> str:
        """Digest of the task's definition and data."""
        if name not in self._digests:
            self._digests[name] = task_digest(self.task(name), data_root=self.workspace.data_root)
        return self._digests[name]

    def model_point(self, spec: ModelSpec, where: str) -> Point:
        """Identity of a model: origin, revision, dtype, attention."""
        origin = sources.identity(
            spec.id, revision=spec.revision, task_digest=self.task_digest, where=where, digests=self._files
        )
        settings = spec.model_dump(mode="json", exclude={"id", "revision", "label"})
        short = sources.short_name(spec.id) + (" (chat)" if spec.prompt_format == "chat" else "")
        return Point("model", spec.id, spec.label or short, {**origin, **settings})

    def method_point(self, spec: MethodSpec, where: str, *, task: TaskUse | None = None) -> Point:
        """Identity of a method: resolved parameters, learning rate and steps (its own, else the task's or sweep's)."""
        method = METHODS.get(spec.name, where=where)
        params = method.resolve(spec.params, where=where)
        declaration = method.declared(params)
        rate = spec.learning_rate
        if rate is None and declaration.trains:
            rate = self.sweep.spec.training.learning_rate * declaration.lr_factor
        steps = spec.steps or (task.steps if task else None) or self._steps(task, where)
        identity = {
            "name": spec.name,
            "params": params,
            "learning_rate": rate if declaration.trains else None,
            "steps": steps if declaration.trains else None,
            "code": METHODS.code(spec.name, where=where),
            "revision": declaration.revision,
        }
        return Point("method", spec.name, spec.label or spec.name, without_later(identity, LATER))

    def _steps(self, task: TaskUse | None, where: str) -> int:
        """The sweep's budget in steps, for this task.

        Raises:
            UserError: the sweep counts epochs, and there is no task to count the items of.
        """
        training = self.sweep.spec.training
        if training.steps is not None:
            return training.steps
        if task is None:
            raise UserError("'epochs' cannot be counted here", where=where, fix="Give 'steps', or the stage's 'task'.")
        at = (task.name, task.train_items)
        if at not in self._counts:
            found = self.task(task.name, where)
            n = count_items(found, "train", data_root=self.workspace.data_root, max_items=task.train_items)
            self._counts[at] = n
        return training.steps_of(self._counts[at])

    def quantization_point(self, spec: QuantizationSpec, where: str) -> Point:
        """Identity of a quantization: resolved parameters and moment."""
        quantizer = QUANTIZERS.get(spec.name, where=where)
        params = quantizer.resolve(spec.params, where=where)
        identity = {
            "name": spec.name,
            "params": params,
            "moment": spec.moment,
            "base": quantizer.declaration.base,
            "bits": quantizer.nominal_bits(params),
            "code": QUANTIZERS.code(spec.name, where=where),
        }
        return Point("quantization", spec.name, spec.label or spec.name, without_later(identity, LATER))

    def objective_point(self, spec: ObjectiveSpec, where: str) -> Point | None:
        """Identity of an objective: resolved parameters and the models it asks; None for the default."""
        objective = OBJECTIVES.get(spec.name, where=where)
        params = objective.resolve(spec.params, where=where)
        named = {role: getattr(spec, role) for role in ("teacher", "reference") if getattr(spec, role) is not None}
        factor = spec.lr_factor or objective.declaration.lr_factor
        if spec.name == DEFAULTS["objective"] and not named and factor == 1:
            return None
        identity = {
            "name": spec.name,
            "params": params,
            "lr_factor": factor,
            "code": OBJECTIVES.code(spec.name, where=where),
        }
        point = Point("objective", spec.name, spec.label or spec.name, without_later(identity, LATER))
        return self._asking(point, named, where)

    def recipe_point(self, spec: RecipeSpec, where: str) -> Point | None:
        """Identity of a recipe: resolved parameters, the tasks it reads and the model it asks; None for the default."""
        recipe = RECIPES.get(spec.name, where=where)
        params = recipe.resolve(spec.params, where=where)
        named = {"teacher": spec.teacher} if spec.teacher is not None else {}
        if spec.name == DEFAULTS["recipe"] and not named:
            return None
        identity = {
            "name": spec.name,
            "params": params,
            "code": RECIPES.code(spec.name, where=where),
            "tasks": {self.task(name, where).definition.name: self.task_digest(name) for name in recipe.tasks(params)},
        }
        point = Point("recipe", spec.name, spec.label or spec.name, without_later(identity, LATER))
        return self._asking(point, named, where)

    def variant_point(self, spec: VariantSpec) -> Point | None:
        """Identity of a variant: its switches, without those that say what the sweep says; None if none is left."""
        stated = dict(self.sweep.spec.training)
        switches = {name: value for name, value in spec.switches().items() if stated.get(name) != value}
        return Point("variant", spec.name, spec.label, switches) if switches else None

    @staticmethod
    def parallel_point(spec: ParallelSpec) -> Point | None:
        """Identity of a strategy on several devices; None for one device."""
        if spec.strategy == "none":
            return None
        return Point("parallel", spec.name, spec.label or spec.name, spec.identity())

    def _asking(self, point: Point, named: Mapping[str, SecondModel], where: str) -> Point:
        """The point with the identities of the models it names, and where those lie on this machine."""
        identity, others, trained = dict(point.identity), {}, {}
        for role, second in named.items():
            model = self.model_point(second.model, where)
            quantization = self.quantization_point(second.quantization, where)
            identity[role] = {"model": dict(model.identity), "quantization": dict(quantization.identity)}
            others[f"{point.axis}.{role}"] = model.name
            if second.trained is not None:
                stages = self.stages_point(StagesSpec(name=role, earlier=(second.trained,)), where)
                assert stages is not None  # it has one stage
                identity[role]["trained"] = stages.identity["earlier"][0]
                trained[f"{point.axis}.{role}"] = (model, quantization, stages.earlier[0])
        return replace(point, identity=identity, others=others, trained=trained)

    def _further(self, row: Inclusion, where: str) -> list[Point]:
        """Values of the later axes of a further cell, without those at their default."""
        found = (
            self.objective_point(row.objective, where),
            self.recipe_point(row.recipe, where),
            self.stages_point(row.stages, where),
            self.variant_point(row.variant),
            self.parallel_point(row.parallel),
        )
        return [point for point in found if point is not None]

    def stages_point(self, spec: StagesSpec, where: str) -> Point | None:
        """Identity of what is trained first: the methods, objectives, recipes and tasks of all its stages, in order."""
        common = self.common_point()
        earlier: list[EarlierPoints] = []
        identity: list[dict[str, Any]] = []
        for one in spec.earlier:
            method = one.method.model_copy(update={"steps": one.steps or one.method.steps})
            found = (self.objective_point(one.objective, where), self.recipe_point(one.recipe, where))
            further = [point for point in found if point is not None]
            point = at_rate(self.method_point(method, where, task=one.task), further, {})
            label = one.method.label or f"{one.method.name} {point.identity['steps']} steps"
            task = self.task_point(one.task, where) if one.task is not None else None
            before = [self._sequence(f"{spec.name}, {len(earlier)} before", earlier, identity)] if earlier else []
            earlier.append(EarlierPoints(replace(point, label=label), (*further, *before), task, common, one.handover))
            identity.append(
                {
                    "method": dict(point.identity),
                    **{f.axis: dict(f.identity) for f in further},
                    **({"task": dict(task.identity)} if task is not None else {}),
                    "handover": one.handover,
                }
            )
        return self._sequence(spec.name, earlier, identity) if earlier else None

    @staticmethod
    def _sequence(name: str, earlier: Sequence[EarlierPoints], identity: Sequence[dict[str, object]]) -> Point:
        return Point("stages", name, name, {"earlier": list(identity)}, earlier=tuple(earlier))

    def task_point(self, use: TaskUse, where: str) -> Point:
        """Identity of a task: version, digest of its data, item limits, and the tasks of its retention score."""
        task = self.task(use.name, where)
        definition = task.definition
        if use.format:
            in_format(task, use.format, where=where)
        asked_again = {"judged", *self._other_ways(), *(("raw",) if use.format else ())}
        identity = {
            "name": use.name,
            "version": definition.version,
            "kind": definition.kind,
            "digest": self.task_digest(use.name),
            "retain": {name: self.task_digest(name) for name in definition.retain},
            **use.model_dump(
                mode="json", exclude={"name", "label", "steps", "score", *(() if use.decoding else ("decoding",))}
            ),
            **definition.model_dump(mode="json", include=asked_again),
        }
        return Point("task", use.name, use.label or use.name, identity)

    def _other_ways(self) -> set[str]:
        """Fields of a definition by which the sweep asks its items again."""
        asked = self.sweep.spec.evaluation
        wanted = {"options": asked.option_orders > 0, "prompts": asked.prompt_variants}
        return {name for name, used in wanted.items() if used}

    def unpinned(self) -> dict[str, dict[str, str]]:
        """Tasks of the sweep, and those they retain, whose rows no commit holds still."""
        alone = {use.name for use in self.sweep.spec.tasks if use.test_only}
        found = {
            name: unpinned(task, data_root=self.workspace.data_root, splits=("test",) if name in alone else SPLITS)
            for name, task in self._tasks.items()
        }
        return {name: hubs for name, hubs in sorted(found.items()) if hubs}

    def unpinned_models(self) -> dict[str, str]:
        """Hub models of the sweep whose weights no commit holds still: id to the reason."""
        models = [*self.sweep.spec.models, *(row.model for row in self.sweep.spec.include)]
        found = {model.id: sources.unpinned(model.id, model.revision) for model in models}
        return {model: why for model, why in sorted(found.items()) if why}

    def hardware_point(self, name: str, where: str, profiles: dict[str, hw.HardwareProfile]) -> Point:
        """Identity of a hardware profile."""
        if name not in profiles:
            raise UserError(f"unknown hardware profile {name!r}", where=where, fix=did_you_mean(name, profiles))
        return Point("hardware", name, name, hw.identity(profiles[name], self.machine))

    def common_point(self) -> Point:
        """Identity of what all cells share."""
        spec = self.sweep.spec
        judge, where = spec.evaluation.judge, self.sweep.where("evaluation")
        identity = {
            "training": spec.training.identity(),
            "evaluation": self._pinned(spec.evaluation).model_dump(mode="json", exclude={"judge"}),
            "probes": spec.probes.model_dump(mode="json"),
            "threads": spec.limits.threads,
            "protocol": PROTOCOL,
            "measure_cost": spec.measure_cost,
            "held_out": self._held_out(spec.evaluation.held_out),
            "retain": self._retained(spec.evaluation.retain),
        }
        point = Point("common", spec.name, spec.name, without_later(identity, LATER_OF_ALL))
        if judge is None:
            return point
        asked = self._asking(point, {"judge": judge.model} if judge.model is not None else {}, where)
        by = {"judge": asked.identity["judge"]} if judge.model is not None else {}
        return replace(asked, identity={**asked.identity, "judge": {"prompt": 1, **judge.identity(), **by}})

    def _held_out(self, names: Sequence[str]) -> dict[str, str]:
        """Digests of the texts that are scored before and after adaptation, by name.

        Raises:
            UserError: one of the tasks is no language modelling.
        """
        where = self.sweep.where("evaluation")
        for name in names:
            kind = self.task(name, where).definition.kind
            if kind != "language-modelling":
                raise UserError(
                    f"held_out: the task {name!r} is {kind}, and texts are scored in bits per byte",
                    where=where,
                    fix="Name tasks of the kind language-modelling, such as wikitext-2.",
                )
        return {name: self.task_digest(name) for name in names}

    def _retained(self, skills: Sequence[SkillUse]) -> dict[str, object]:
        """The further skills that are scored before and after adaptation, by name: the digest of the task, with the
        place of its bare question where the sweep names a format.

        Raises:
            UserError: nothing in one of the tasks is right or wrong, it has not the format, or is named twice.
        """
        where = self.sweep.where("evaluation")
        found: dict[str, object] = {}
        for skill in skills:
            name = skill.name
            if name in found:
                raise UserError(f"retain: the task {name!r} is named twice", where=where, fix="Leave one of them out.")
            kind = self.task(name, where).definition.kind
            if kind in ("language-modelling", "preference"):
                raise UserError(
                    f"retain: nothing in the task {name!r} ({kind}) is right or wrong",
                    where=where,
                    fix="Name tasks with an accuracy; texts belong under held_out.",
                )
            found[name] = self.task_digest(name)
            if skill.format is not None:
                asked = in_format(self.task(name, where), skill.format, where=where).definition
                found[name] = {"digest": found[name], **asked.model_dump(mode="json", include={"raw"})}
        return found

    def _pinned(self, evaluation: Evaluation) -> Evaluation:
        """With what holds each of its lm-eval tasks still."""
        roots = list(self.workspace.roots)
        uses = [
            use.model_copy(update={"pin": lm_eval_tasks.pin(use.task, roots, where=self.sweep.where("evaluation"))})
            for use in evaluation.lm_eval
        ]
        return evaluation.model_copy(update={"lm_eval": tuple(uses)})

    def matrix(self, profiles: dict[str, hw.HardwareProfile]) -> Matrix:
        """All cells of the sweep.

        Raises:
            UserError: a name that is not known, with file, line and key.
        """
        spec, where = self.sweep.spec, self.sweep.where
        common = self.common_point()
        hardware = [self.hardware_point(h, where("hardware", i), profiles) for i, h in enumerate(spec.hardware)]

        def methods(task: TaskUse | None = None) -> list[Point]:
            return [self.method_point(m, where("methods", i), task=task) for i, m in enumerate(spec.methods)]

        axes = Axes(
            models=[self.model_point(m, where("models", i)) for i, m in enumerate(spec.models)],
            methods=methods(spec.tasks[0] if spec.training.epochs else None),
            quantization=[
                self.quantization_point(q, where("quantization", i)) for i, q in enumerate(spec.quantization)
            ],
            tasks=[self.task_point(t, where("tasks", i)) for i, t in enumerate(spec.tasks)],
            hardware=hardware,
            seeds=spec.seeds,
            common=common,
            later={
                "objective": [self.objective_point(o, where("objectives", i)) for i, o in enumerate(spec.objectives)],
                "recipe": [self.recipe_point(r, where("recipes", i)) for i, r in enumerate(spec.recipes)],
                "stages": [self.stages_point(s, where("stages", i)) for i, s in enumerate(spec.stages)],
                "variant": [self.variant_point(v) for v in spec.variants],
                "parallel": [self.parallel_point(p) for p in spec.parallel],
            },
            untrained=frozenset(
                m.name
                for m in spec.methods
                if not (METHODS.get(m.name).declaration.trains or METHODS.get(m.name).declaration.combines)
            ),
            methods_by_task={
                task.label or task.name: methods(task) for task in spec.tasks if task.steps or spec.training.epochs
            },
        )
        further = [
            make_cell(
                (
                    self.model_point(row.model, where("include", i, "model")),
                    self.method_point(row.method, where("include", i, "method"), task=row.task),
                    self.quantization_point(row.quantization, where("include", i, "quantization")),
                    self.task_point(row.task, where("include", i, "task")),
                    hardware[0],
                    common,
                    *self._further(row, where("include", i)),
                ),
                row.seed,
            )
            for i, row in enumerate(spec.include)
        ]
        self._check_rules(axes)
        exclude = [pattern(rule, rule.why) for rule in spec.exclude]
        whole = expand(axes, exclude=exclude, include=further)
        return expand(axes, exclude=exclude, include=[*further, *self._scored_elsewhere(whole.cells)])

    def _scored_elsewhere(self, cells: Sequence[Cell]) -> list[Cell]:
        """Cells that score what others trained on the further test splits that a task names.

        Methods that combine what was trained, or show examples of the task, are scored on their own task alone.
        """
        found = []
        for number, use in enumerate(self.sweep.spec.tasks):
            where = self.sweep.where("tasks", number, "score")
            points = [self.task_point(TaskUse(name=name, test_items=use.test_items), where) for name in use.score]
            for cell in cells:
                declared = METHODS.get(cell.method.name).declaration
                if cell.task.label == (use.label or use.name) and not (declared.combines or declared.demonstrates):
                    found += [scored_on(cell, point) for point in points]
        return found

    @staticmethod
    def _named(axis: str, values: Sequence[Point | None]) -> list[Point]:
        """The values with a name for the default, which is no point of a cell."""
        return [v if v is not None else Point(axis, DEFAULTS[axis], DEFAULTS[axis], {}) for v in values]

    def _check_rules(self, axes: Axes) -> None:
        """A rule that can match nothing is a misspelling: say so instead of silently excluding nothing."""
        from fnmatch import fnmatchcase

        points = {
            "model": axes.models,
            "method": axes.methods,
            "quantization": axes.quantization,
            "task": axes.tasks,
            "hardware": axes.hardware,
            **{axis: self._named(axis, values) for axis, values in axes.later.items()},
        }
        spec = self.sweep.spec
        rules: list[tuple[str, int, Rule]] = [
            *(("exclude", i, r) for i, r in enumerate(spec.exclude)),
            *(("priority", i, r) for i, r in enumerate(spec.priority)),
        ]
        for part, index, rule in rules:
            for key, values in points.items():
                pattern = getattr(rule, key)
                names = {p.name for p in values} | {p.label for p in values}
                if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
                    raise UserError(
                        f"the pattern {pattern!r} matches no {key} of this sweep",
                        where=self.sweep.where(part, index, key),
                        fix=did_you_mean(pattern, names),
                    )


def pattern(rule: Rule, why: str = "") -> Pattern:
    """A sweep's rule as a pattern over cells."""
    later = {axis: pattern for axis in LATER_AXES if (pattern := getattr(rule, axis)) != "*"}
    return Pattern(rule.model, rule.method, rule.quantization, rule.task, rule.hardware, rule.seed, why, later)
