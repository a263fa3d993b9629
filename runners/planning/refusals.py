"""Reasons why a cell cannot run, known before it starts. The worker refuses what only a running cell shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from harness import hardware as hw
from harness.compatibility import parallel_refusal, refusal
from harness.errors import UserError, did_you_mean
from harness.matrix import DEFAULTS, LATER_AXES, Cell
from harness.methods.base import Method
from harness.methods.catalog import METHODS
from harness.models import sources
from harness.models.shape import module_names
from harness.objectives.catalog import OBJECTIVES
from harness.quantizers.catalog import QUANTIZERS
from harness.recipes.catalog import RECIPES
from harness.spec import LoadedSweep
from runners import environments
from runners.planning.cell_dependencies import why_not_staged
from runners.planning.cost_model import Predictor
from tasks.task import MODEL_KIND, Kind


def unsupported_reason(cell: Cell, device: str, cache: Path) -> str | None:
    """Reason why the cell cannot run on such a device, or None.

    What the declarations refuse comes first (the answer of ``compat``), then what this machine lacks, then what this
    model, task or training rules out.

    Args:
        cache: folder of the side environments.
    """
    kind = MODEL_KIND[cell.task.identity["kind"]]
    quantization = cell.quantization.identity
    quantizer, method = QUANTIZERS.get(cell.quantization.name), METHODS.get(cell.method.name)
    params, moment = cell.method.identity["params"], quantization["moment"]
    declared = method.declared(params)
    reason = (
        refusal(method, quantizer, kind=kind, device=device, moment=moment, params=params)
        or sources.check(cell.model.name, kind, cell.loading["attention"])
        or environments.why_not(quantizer, device, moment, cache)
        or method.missing(params)
        or quantizer.check_model(kind, sources.config(cell.model.name), quantization["params"])
    )
    if reason is None and cell.model.identity.get("prompt_format") == "chat":
        reason = _no_chat(cell.task.identity["kind"])
    if reason is None and cell.task.identity.get("test_only") and declared.trains:
        reason = f"{declared.name} trains, and the sweep uses the task's test split only"
    if reason is None and declared.trains_cache and cell.training.get("gradient_checkpointing"):
        reason = f"{declared.name} trains a key-value cache, which is off under training.gradient_checkpointing"
    if reason is None and declared.trains:
        reason = _no_module(cell, declared.name)
    if reason is None and declared.demonstrates:
        reason = _nothing_to_show(cell, declared.name)
    if reason is None and (declared.trains or declared.combines):
        reason = _what_for(cell, kind, device, cache) or _variant(cell, kind, device)
    if reason is None and cell.training.get("early_stopping") and declared.trains:
        reason = _no_best_weights(method)
    return reason


def _what_for(cell: Cell, kind: str, device: str, cache: Path) -> str | None:
    """Why the cell's objective or recipe cannot train it, or None."""
    task, method = cell.task.identity, METHODS.get(cell.method.name)
    said = {axis: point.identity if (point := cell.on(axis)) else {} for axis in LATER_AXES}
    objective = OBJECTIVES.get(said["objective"].get("name", DEFAULTS["objective"]))
    recipe = RECIPES.get(said["recipe"].get("name", DEFAULTS["recipe"]))
    task_kind = "judged" if task.get("judged") else task["kind"]
    others = {role: value for role, value in said["objective"].items() if role in ("teacher", "reference")}
    seen_as = "preference" if recipe.declaration.makes_pairs else task_kind
    reason = objective.check(kind, seen_as, method, others) or recipe.check(
        kind, task["kind"], objective.declaration.name, method, teacher="teacher" in said["recipe"]
    )
    for point in (cell.common, *cell.further):
        for place, name in point.others.items():
            role = place.partition(".")[2]
            if role == "judge" and kind != "causal-lm":
                continue  # there are no completions to judge
            second = point.identity[role].get("judge", point.identity[role])["quantization"]
            quantizer = QUANTIZERS.get(second["name"])
            reason = (
                reason
                or sources.check(name, kind)
                or environments.why_not(quantizer, device, second["moment"], cache)
                or quantizer.check_model(kind, sources.config(name), second["params"])
            )
    quantization = cell.quantization.identity
    before = quantization["moment"] == "before_training"
    return reason or why_not_staged(cell, kind, quantization["base"] if before else "fp")


def _no_best_weights(method: type[Method]) -> str | None:
    """Reason why the weights of an earlier step cannot be put back, or None."""
    moving = method.select is not Method.select or method.on_step is not Method.on_step
    if moving or method.phases is not Method.phases or method.search_steps is not Method.search_steps:
        return (
            "early stopping puts the trained tensors of the best step back, and during the run this method changes "
            "which tensors train, or more than those"
        )
    return None


def _no_chat(kind: Kind) -> str | None:
    """Reason why items of such a task are no conversation, or None."""
    if MODEL_KIND[kind] != "causal-lm":
        return f"'prompt_format: chat' asks a language model, and the task is {kind}"
    if kind == "language-modelling":
        return "'prompt_format: chat' needs questions with answers, and the task has texts without a question"
    return None


def _nothing_to_show(cell: Cell, name: str) -> str | None:
    """Reason why there are no worked examples for a few-shot method, or None."""
    task = cell.task.identity
    if task.get("test_only"):
        return f"{name} shows examples of the training split, and the sweep uses the task's test split only"
    if task["kind"] == "language-modelling":
        return f"{name} shows questions with their answers, and the task has texts without a question"
    return None


# --- modules that a method names -----------------------------------------------------------------------
HEADS = frozenset({"score", "classifier", "lm_head"})
"""Modules that a model may have without a tensor in its files."""


def _named_modules(cell: Cell) -> list[str]:
    """The modules that a sweep names for a method; not those of its defaults, and no regular expression."""
    defaults = METHODS.get(cell.method.name).declaration.defaults
    params = cell.method.identity["params"].items()
    chosen = [v for name, v in params if name.startswith("target_modules") and v != defaults.get(name)]
    return [name for names in chosen if isinstance(names, list | tuple) for name in names if isinstance(name, str)]


def _has(modules: Collection[str], name: str) -> bool:
    """True if ``name`` is a full name or the last parts of one; a model may have a prefix that its files lack."""
    return name.rpartition(".")[2] in HEADS or any(
        name == one or one.endswith(f".{name}") or f".{name}." in f".{one}." or name.endswith(f".{one}")
        for one in modules
    )


def _last_parts(modules: Collection[str]) -> list[str]:
    return sorted({one.rpartition(".")[2] for one in modules})


def _modules(cell: Cell) -> frozenset[str] | None:
    return module_names(cell.model.name, cell.model.identity.get("revision"))


def _no_module(cell: Cell, method: str) -> str | None:
    """Why a method that names modules of other models cannot train this one, or None."""
    named = _named_modules(cell)
    modules = _modules(cell) if named else None
    if modules is None or any(_has(modules, name) for name in named):
        return None
    asked = " or ".join(map(repr, named))
    return f"{method}: {cell.model.label} has no module named {asked}; it has {', '.join(_last_parts(modules))}"


def check_named_modules(cells: Iterable[Cell], sweep: LoadedSweep) -> None:
    """Refuse a name that a method gives and no model of the sweep has: a typo, which peft would not mention.

    Raises:
        UserError: such a name, with the names that are near it.
    """
    models: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        for name in _named_modules(cell):
            models.setdefault((cell.method.label, name), {})[cell.model.name] = cell
    for (label, name), used in models.items():
        known = [_modules(cell) for cell in used.values()]
        if any(modules is None or _has(modules, name) for modules in known):
            continue
        at = next((i for i, one in enumerate(sweep.spec.methods) if label in (one.label, one.name)), 0)
        shown = ", ".join(sorted(cell.model.label for cell in used.values())[:3])
        there = {part for modules in known if modules for part in _last_parts(modules)}
        raise UserError(
            f"{label} names the module {name!r}, which is not in {shown}",
            where=sweep.where("methods", at),
            fix=did_you_mean(name, there),
        )


# --- variants of training -----------------------------------------------------------------------------
def _variant(cell: Cell, kind: str, device: str) -> str | None:
    """Reason why the cell's variant cannot train it on such a device, or None.

    Args:
        kind: model kind.
        device: ``cpu`` or ``cuda``.
    """
    if (apart := _parallel(cell, device)) is not None:
        return apart
    switches = cell.switches
    for name in ("attention", "dtype"):
        if switches.get(name) == cell.model.identity[name]:
            return f"the variant changes nothing: the model already has {name}: {switches[name]}"
    method = METHODS.get(cell.method.name)
    checks: dict[str, Callable[[], str | None]] = {
        "dtype": lambda: _dtype(cell),
        "packing": lambda: _packing(cell, kind, method),
        "compile": lambda: _own_steps(method, "compiles the forward and backward pass of the training loop"),
        "optimizer": lambda: _optimizer(method, str(switches["optimizer"])),
        "offload": lambda: _offload(device, method),
        "kernels": lambda: _kernels(device),
    }
    for name, check in checks.items():
        if switches.get(name) and (reason := check()) is not None:
            return f"{name}: {reason}"
    named = cell.training.get("optimizer")
    if named is not None and "optimizer" not in switches and method.declaration.trains:
        reason = _optimizer(method, named)
        return f"training.optimizer: {reason}" if reason is not None else None
    return None


def _dtype(cell: Cell) -> str | None:
    return "the earlier stages trained in another dtype" if cell.on("stages") is not None else None


def _packing(cell: Cell, kind: str, method: type[Method]) -> str | None:
    if kind != "causal-lm":
        return "a classifier reads one answer a sequence, and packed texts share a sequence"
    if cell.loading["attention"] == "flash_attention_2":
        return "flash_attention_2 takes no mask of blocks; use sdpa or eager"
    for axis, default in (("objective", "sft"), ("recipe", "plain")):
        point = cell.on(axis)
        if point is not None and point.name != default:
            return f"the {axis} {point.name} reads rows one by one"
    if method.declaration.family == "prompt":
        return f"{method.declaration.name} puts its own tokens in front of every row"
    if method.loss is not Method.loss or method.task_loss is not Method.task_loss:
        return f"{method.declaration.name} computes its own loss, which reads rows one by one"
    return _own_steps(method, "packs the batches of the training loop")


def _own_steps(method: type[Method], what: str) -> str | None:
    if method.training_step is Method.training_step:
        return None
    return f"{method.declaration.name} has a custom training step, and the variant {what}"


def _optimizer(method: type[Method], named: str) -> str | None:
    if named in OF_BITSANDBYTES and find_spec("bitsandbytes") is None:
        return f"{named} needs the package bitsandbytes: pip install 'peft-matrix[quant]'"
    if method.optimizer is not Method.optimizer:
        return f"{method.declaration.name} brings its own optimizer"
    return _own_steps(method, "replaces the optimizer of the training loop")


def _offload(device: str, method: type[Method]) -> str | None:
    if device == "cpu":
        return "the device is the CPU: there is no other memory to move activations to"
    return _own_steps(method, "moves the activations of the training loop")


def _kernels(device: str) -> str | None:
    if device != "cuda":
        return "Liger's kernels are written in Triton and need a GPU"
    if find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


OF_BITSANDBYTES = ("adamw-8bit", "lion")
"""Optimizers that torch does not have."""


# --- several devices --------------------------------------------------------------------------------
ZERO = ("zero1", "zero2", "zero3")
NO_ENGINE = {
    **{z: f"{z}: training through DeepSpeed is not there yet; 'fsdp' shards the same states" for z in ZERO},
    "tp": "tp: training through a tp_plan of transformers is not there yet; 'fsdp' divides the same weights",
}
"""Strategies that a sweep may name and nothing runs, with the reason."""
KEEPS_RANKS = frozenset({"batch_size", "gradient_accumulation", "max_length", "gradient_checkpointing"}) | frozenset(
    {"attention", "dtype"}
)
"""Switches of a variant that concern each rank alone."""


def _parallel(cell: Cell, device: str) -> str | None:
    """Reason why the cell's strategy on several devices cannot train it, or None."""
    point = cell.on("parallel")
    if point is None:
        return None
    strategy = str(point.identity["strategy"])
    training, quantization = cell.training, cell.quantization
    return (
        no_engine(strategy, device, offload=point.identity.get("offload", False))
        or parallel_refusal(
            METHODS.get(cell.method.name),
            QUANTIZERS.get(quantization.name),
            strategy=strategy,
            moment=quantization.identity["moment"],
            params=cell.method.identity["params"],
        )
        or _rows(training["batch_size"], cell.ranks)
        or _alone(cell, training)
    )


def no_engine(strategy: str, device: str, *, offload: bool = False) -> str | None:
    """Reason why nothing runs this strategy on such a device, or None."""
    if strategy in NO_ENGINE:
        return NO_ENGINE[strategy]
    if offload and device == "cpu":
        return "offload: the device is the CPU, whose memory is the host's"
    return None


def _rows(batch_size: int, ranks: int) -> str | None:
    if batch_size % ranks == 0:
        return None
    return f"micro-batches of {batch_size} rows cannot be divided among {ranks} ranks"


def _alone(cell: Cell, training: Mapping[str, object]) -> str | None:
    """Reason why the cell needs the whole model or the whole batch in one process, or None."""
    for axis in ("objective", "recipe"):
        if (point := cell.on(axis)) is not None:
            return f"the {axis} {point.name} is trained in one process only"
    for name in cell.switches:
        if name not in KEEPS_RANKS:
            return f"{name}: this switch is tried with one process only"
    if training.get("optimizer") is not None:
        return "training.optimizer: another one than AdamW is tried with one process only"
    if training.get("target") is not None:
        return "training.target scores the model between steps, which one process of several cannot"
    if training.get("early_stopping") is not None:
        return "training.early_stopping scores the model between steps, which one process of several cannot"
    if training.get("on_oom") == "halve_batch":
        return "training.on_oom: a batch is halved in one process only"
    return None


Reasons = Callable[[Cell], tuple[str | None, str | None]]
"""Why a cell is for other hardware, and why it cannot run; None where there is no such reason."""


def memoised_reasons(
    profiles: dict[str, hw.HardwareProfile], machine: hw.Machine, cache: Path, predict: Predictor
) -> Reasons:
    """(elsewhere, unsupported) of a cell; computed once per combination, not per cell."""
    seen: dict[tuple[int, ...], tuple[str | None, str | None]] = {}

    @functools.cache
    def place(name: str) -> tuple[str | None, str]:
        profile = profiles[name]
        return hw.match(profile, machine), hw.device_for(profile, machine)

    def reasons(cell: Cell) -> tuple[str | None, str | None]:
        points = (cell.model, cell.method, cell.quantization, cell.task, cell.hardware, *cell.further)
        key = tuple(id(point) for point in points)
        if key not in seen:
            elsewhere, device = place(cell.hardware.name)
            threads = cell.common.identity["threads"]
            elsewhere = elsewhere or hw.too_few(
                profiles[cell.hardware.name], machine, ranks=cell.ranks, threads=threads
            )
            why = None if elsewhere else unsupported_reason(cell, device, cache) or predict.does_not_fit(cell)
            seen[key] = (elsewhere, why)
        return seen[key]

    return reasons
