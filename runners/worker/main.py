"""One cell from job file to record file: builds the context, runs the stages, turns every ending into an outcome."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from harness import provenance
from harness.errors import CheckFailed, Diverged, Pruned, Unsupported, UserError
from harness.hardware import Thermal
from harness.matrix import in_effect
from harness.meters import catalog as meters
from harness.meters.panel import Panel
from harness.meters.thermal import cool_down, thermometer
from harness.methods.base import Method, Setting
from harness.methods.catalog import METHODS
from harness.metrics import metric, missing
from harness.objectives.base import DEFAULT as SFT
from harness.objectives.catalog import OBJECTIVES
from harness.quantizers.catalog import QUANTIZERS
from harness.recipes.base import DEFAULT as PLAIN
from harness.recipes.catalog import RECIPES
from harness.record import Outcome, Reading, Record, Span, Status
from harness.spec import Evaluation, Probes, Training
from harness.store.samples import samples_ref, samples_to_parquet
from runners.worker import earlier, loading, model_files, parallel, trainrows
from runners.worker.context import Context
from runners.worker.job import LOG_FILE, RECORD_FILE, SAMPLES_FILE, Job, write_atomically
from runners.worker.memory import cap_allocator, is_out_of_memory
from runners.worker.process import Rank, Say
from runners.worker.stages import load, stages_of, train
from runners.worker.transient import transient_kind
from tasks.formats import in_format
from tasks.task import MODEL_KIND, Format, Task, load_task

LOG_TAIL_CHARACTERS = 4000
COST_FAMILIES = ("memory", "time", "energy", "compute")
LEARNING_SERIES = ("loss", "task_loss", "grad_norm")
"""Series that are kept where no cost is measured: a neighbour on the device does not change them."""


class Interrupted(BaseException):
    """SIGTERM from the scheduler: end cleanly. A BaseException, so that no handler below swallows it."""


def work(job: Job, say: Say) -> None:
    """Main function of a worker process: build the job's model, or run its cell."""
    if job.only_build:
        prepare_process(job)
        load.model_path(build_context(replace(job, cell=in_effect(job.cell)), say))
    elif job.ranks > 1:
        run_ranks(job, say)
    else:
        run_job(job, say)


def run_ranks(job: Job, say: Say) -> None:
    """Run the cell in several processes. Where one of them fails, the record says how the first one did."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    loss = parallel.run(job, say, run_rank)
    if loss is None:
        return
    file = Path(job.folder) / RECORD_FILE
    if file.is_file():
        record = Record.from_json(file.read_text(encoding="utf-8"), where=str(file))
    else:
        record = record_of(job, CellRun(), Outcome(status="lost", stage="train", reason=loss.reason), started)
    outcome = loss.outcome or record.outcome.model_copy(update={"status": "lost", "check": "", "reason": loss.reason})
    write_atomically(file, record.model_copy(update={"outcome": outcome}).to_json().encode())


def run_rank(job: Job, say: Say, number: int) -> None:
    """One of several processes of a cell; it ends with code 1 where its stages did not end well."""
    if number == 0:
        outcome = run_job(job, say).outcome
    else:
        job = replace(job, cell=in_effect(job.cell))
        prepare_process(job, number)
        outcome = run_stages(job, CellRun(), say, number)
    if outcome.status != "ok":
        parallel.leave(job, number, outcome)
        sys.exit(1)


def run_job(job: Job, say: Say) -> Record:
    """Run the cell and leave ``record.json`` (and ``samples.parquet``) in the job's folder."""
    planned, job = job, replace(job, cell=in_effect(job.cell))
    prepare_process(job)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    run = CellRun()
    outcome = run_stages(job, run, say)
    samples = samples_to_parquet(run.ctx.samples) if run.ctx is not None and run.ctx.samples else None
    record = record_of(planned, run, outcome, started, samples)
    folder = Path(job.folder)
    if samples is not None:
        write_atomically(folder / SAMPLES_FILE, samples)
    if job.keep and outcome.status == "ok" and Path(job.keep).is_dir():
        earlier.keep_spans(Path(job.keep), run.spans)
    write_atomically(folder / RECORD_FILE, record.to_json().encode())
    return record


def record_of(planned: Job, run: CellRun, outcome: Outcome, started: str, samples: bytes | None = None) -> Record:
    """The record of a cell: what was measured, how it ended, and where it ran.

    Args:
        planned: the job as the scheduler wrote it.
    """
    job = replace(planned, cell=in_effect(planned.cell))
    further = provenance.SIDE_PACKAGES if job.side_environment else ()
    environment = {**provenance.environment(further), "device": job.device, "threads": torch.get_num_threads()}
    return Record(
        key=job.key,
        label=job.label,
        sweep=job.sweep,
        cell=planned.cell,
        outcome=outcome,
        metrics=recorded_metrics(run, job),
        spans=tuple(run.spans),
        series=recorded_series(run, job),
        samples=samples_ref(samples) if samples is not None else None,
        environment={
            **environment,
            "facts": run.ctx.facts if run.ctx is not None else {},
            **meter_facts(run.panel),
            "cores": list(job.cores),
            "assigned_gpus": list(job.gpus),
            "neighbours": job.neighbours,
            **({"order": job.order} if job.order else {}),
            **({"side_environment": job.side_environment} if job.side_environment else {}),
            **({"transient": run.passing} if run.passing else {}),
        },
        fingerprint=provenance.fingerprint(environment),
        attempt=job.attempt,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass
class CellRun:
    """Results of the run so far; they go into the record in every case."""

    ctx: Context | None = None
    panel: Panel | None = None
    spans: list[Span] = field(default_factory=list)
    passing: str | None = None  # the kind of an error that another attempt may not meet


def run_stages(job: Job, run: CellRun, say: Say, number: int = 0) -> Outcome:
    """The cell's stages in order, each in a separate span, and how they ended; of the rank ``number``."""
    stage = "start"
    try:
        run.ctx = ctx = build_context(job, say, number)
        if (batch := batch_facts(job)) is not None:
            ctx.facts["batch"] = batch
        run.spans.extend(earlier.spans(ctx))
        if job.tuning:
            ctx.facts["tuning"] = job.tuning
        ctx.panel = run.panel = panel = make_panel(job, number)
        prepare_device(job, ctx)
        panel.baseline("before")
        for stage, work in stages_of(job.cell["quantization"]["moment"], job.cell.get("role"), further=further(ctx)):
            if number and stage not in parallel.STAGES:
                continue
            say("stage", stage=stage)
            if stage == "train":
                train.before(ctx)
            if stage == "prepare":  # the base is loaded; looking at it is billed to no stage
                loading.check_loaded(ctx)
            panel.begin(stage)
            try:
                work(ctx)
            finally:
                run.spans.append(span_of(stage, panel.end(stage)))
            if stage == "train":
                train.after(ctx, run.spans[-1])
        model_files.verify_unchanged(ctx)
        panel.baseline("after")
        ctx.series.update(panel.series())
        ctx.metrics.update({r.quantity: r for r in panel.finish() if r.quantity not in ctx.metrics})
    except BaseException as error:  # every ending is an outcome; nothing escapes without a record
        outcome = outcome_of(error, stage, Path(job.folder))
        run.passing = transient_kind(error) if outcome.status == "error" and not outcome.check else None
        return outcome
    return Outcome(status="ok", stage=stage)


def further(ctx: Context) -> set[str]:
    """The stages that this cell has and others do not."""
    trains = {"recipe": trainrows.has_recipe(ctx), "targets": trainrows.asks_models(ctx)} if ctx.trains else {}
    finalizes = type(ctx.method).finalize is not Method.finalize and not ctx.scores_only
    compiles = ctx.trains and bool(ctx.switches.get("compile"))
    judges = "judge" in ctx.job.cell and ctx.job.cell.get("role") != "trial" and not ctx.random_weights
    gathers = ctx.trains and not ctx.rank.alone
    has = {**trains, "compile": compiles, "gather": gathers, "finalize": finalizes, "judge": judges}
    return {name for name, there in has.items() if there}


def prepare_device(job: Job, ctx: Context) -> None:
    """Cool down as the hardware profile asks, wake the GPU and cap its memory; what was done is a fact of the cell."""
    if ctx.rank.number == 0 and (settled := cool_down_first(job)) is not None:
        ctx.facts["cool_down"] = settled
    if ctx.device.type == "cuda":
        if torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "a library created a CUDA context in the template process while it was imported, so this worker cannot "
                "use the GPU; see runners/worker/preload.py, which answers the libraries' questions without a context"
            )
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no types here; the idle baseline is taken with the context alive
        limit_gib = job.cell["hardware"].get("memory_limit_gib")
        if limit_gib is not None:
            ctx.facts["memory_limit"] = cap_allocator(limit_gib)


def used_batch(job: Job) -> dict[str, int]:
    """The micro-batch of a rank and the accumulation of this attempt: as the sweep asks, halved once per earlier
    attempt that ran out of memory. Their product stays."""
    asked = Training(steps=1, **job.cell["training"])
    factor = 2 ** len(job.out_of_memory)
    return {
        "batch_size": asked.batch_size // factor // job.ranks,
        "gradient_accumulation": asked.gradient_accumulation * factor,
    }


def batch_facts(job: Job) -> dict[str, object] | None:
    """The batch asked for and the batch used, if the sweep allows halving; None otherwise."""
    training = job.cell["training"]
    if training.get("on_oom") != "halve_batch":
        return None
    asked = {name: training[name] for name in ("batch_size", "gradient_accumulation")}
    return {"asked": asked, "used": used_batch(job), "out_of_memory": list(job.out_of_memory)}


def measures_cost(job: Job) -> bool:
    """True if the sweep records memory, time, energy and FLOPs; otherwise the cell may have shared its device."""
    return bool(job.cell.get("measure_cost", True))


def recorded_metrics(run: CellRun, job: Job) -> dict[str, Reading]:
    """The run's metrics; those of cost without a value where the sweep measures none."""
    found = run.ctx.metrics if run.ctx is not None else {}
    if measures_cost(job):
        return found
    why = {"why": "the sweep measures no cost (measure_cost: false)"}
    return {
        name: missing(name, "not_measured", source="sweep", details=why)
        if metric(name).family in COST_FAMILIES
        else value
        for name, value in found.items()
    }


def recorded_series(run: CellRun, job: Job) -> dict[str, tuple[float, ...]]:
    """The run's series; where the sweep measures no cost, only those that say how it learned."""
    found = run.ctx.series if run.ctx is not None else {}
    return found if measures_cost(job) else {name: found[name] for name in LEARNING_SERIES if name in found}


def make_panel(job: Job, number: int = 0) -> Panel:
    """The meters of the cell, on the devices it uses and with the options of its hardware profile.

    Rank 0 reads the energy and the state of all devices of the cell; the others read their own memory and time.
    """
    names = None if measures_cost(job) else ["time"]
    if number and names is None:
        names = ["host-memory", "torch-memory", "time"]
    options = job.cell["hardware"].get("meters") if names is None else None
    return Panel(meters.build(job.device, uuids=job.metered, names=names, options=options))


def cool_down_first(job: Job) -> dict[str, object] | None:
    """Wait until the GPUs are as cool as the hardware profile wants them; how that went, None if it wants nothing."""
    thermal = Thermal(**(job.cell["hardware"].get("thermal") or {}))
    if thermal.cool_below_c is None:
        return None
    read_c = thermometer(job.metered)
    return cool_down(read_c, below_c=thermal.cool_below_c, cap_s=thermal.cool_cap_s).facts()


def meter_facts(panel: Panel | None) -> dict[str, object]:
    """Description of the instruments, for the record; ``simulated`` is set only if a driver reports it."""
    facts = panel.facts() if panel is not None else {}
    boards = facts.get("device-state", {}).get("boards", ())
    simulated = any("simulated" in board["driver"] for board in boards)
    return {"meters": facts, **({"simulated": True} if simulated else {})}


def span_of(stage: str, readings: tuple[Reading, ...]) -> Span:
    """A stage's span; its seconds are the innermost meter's, so that other meters' work is not billed.

    Where the clock failed there are none, and the reason stays among the readings.
    """
    seconds = next((r.value for r in readings if r.quantity == "stage_s"), None)
    return Span(
        stage=stage,
        seconds=seconds,
        readings=tuple(r for r in readings if r.quantity != "stage_s" or r.value is None),
    )


def prepare_process(job: Job, number: int = 0) -> None:
    """Pin cores, fix threads, hide other GPUs, quieten libraries. Before any tensor is made.

    Args:
        number: of the rank, which gets its part of the job's cores, and one of its GPUs.
    """
    if cores := share_of(job.cores, number, job.ranks):
        os.sched_setaffinity(0, cores)
    if job.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share_of(job.gpus, number, job.ranks))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(job.cell["threads"])
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the scheduler decides
    signal.signal(signal.SIGTERM, _interrupt)


def share_of(devices: tuple[object, ...], number: int, ranks: int) -> tuple[Any, ...]:
    """A rank's part of the cores or GPUs of a job."""
    size = len(devices) // ranks
    return devices[number * size : (number + 1) * size]


def _interrupt(_signum: int, _frame: object) -> None:
    raise Interrupted


def build_context(job: Job, say: Say, number: int = 0) -> Context:
    """The cell's plug-ins and budgets."""
    cell = job.cell
    roots = [Path(w) for w in job.workspaces]
    task = in_format(load_task(cell["task"]["name"], roots), cell["task"].get("format") or "finetune")
    kind: Any = MODEL_KIND[task.definition.kind]
    quantization, method = cell["quantization"], cell["method"]
    objective, recipe = cell.get("objective") or {}, cell.get("recipe") or {}
    base = quantization["base"] if quantization["moment"] == "before_training" else "fp"
    training = Training(steps=method["steps"] or 1, **{**cell["training"], **used_batch(job)})
    setting = Setting(
        kind=kind,
        base=base,
        seed=cell["seed"],
        steps=method["steps"] or 0,
        learning_rate=method["learning_rate"] or 0.0,
        weight_decay=training.weight_decay,
        betas=training.adam_betas,
        device=job.device,
    )
    own = {"decoding": cell["task"]["decoding"]} if cell["task"].get("decoding") else {}
    evaluation = Evaluation(**{**cell["evaluation"], **own})
    quantizer = QUANTIZERS.get(quantization["name"])(quantization["params"], kind, job.device)
    quantizer.cache = Path(job.cache)
    quantizer.tools = job.tools
    return Context(
        job=job,
        kind=kind,
        task=task,
        retain=skills(task, evaluation, roots),
        method=METHODS.get(method["name"])(method["params"], setting),
        quantizer=quantizer,
        objective=OBJECTIVES.get(objective.get("name", SFT))(objective.get("params", {})),
        recipe=RECIPES.get(recipe.get("name", PLAIN))(recipe.get("params", {})),
        training=training,
        evaluation=evaluation,
        held_out=[load_task(name, roots) for name in cell.get("held_out", ())],
        probes=Probes(**cell["probes"]),
        seed=cell["seed"],
        steps=method["steps"] or 0,
        learning_rate=method["learning_rate"] or 0.0,
        device=torch.device(job.device),
        say=say,
        rank=Rank.of_job(job, number),
    )


def skills(task: Task, evaluation: Evaluation, roots: list[Path]) -> list[Task]:
    """Tasks scored before and after adaptation: those that the task names, then those of the sweep in its formats.

    Without those that need another kind of model: a classifier has no answer in words."""
    formats: dict[str, Format | None] = dict.fromkeys(task.definition.retain)
    formats |= {skill.name: skill.format for skill in evaluation.retain}
    found = [in_format(load_task(name, roots), form or "finetune") for name, form in formats.items()]
    kind = MODEL_KIND[task.definition.kind]
    return [skill for skill in found if MODEL_KIND[skill.definition.kind] == kind]


def outcome_of(error: BaseException, stage: str, folder: Path) -> Outcome:
    """The outcome for an exception; the traceback goes to the log, its end into the record.

    The log keeps the paths of this machine, the record does not: records are published.
    """
    traceback.print_exception(error)
    sys.stderr.flush()
    log = folder / LOG_FILE
    text = log.read_text(errors="replace") if log.exists() else "".join(traceback.format_exception(error))
    status, check, reason = ending(error)
    return Outcome(
        status=status,
        stage=stage,
        check=check,
        reason=provenance.redacted(reason, job=folder),
        log_tail=provenance.redacted(text, job=folder)[-LOG_TAIL_CHARACTERS:],
    )


def ending(error: BaseException) -> tuple[Status, str, str]:
    """Status, failed check (mostly "") and reason of the outcome for ``error``."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted", "", "the sweep was stopped"
    if isinstance(error, Unsupported):
        return "unsupported", "", str(error)
    if isinstance(error, Diverged):
        return "diverged", "pruned" if isinstance(error, Pruned) else "", str(error)
    if isinstance(error, CheckFailed):
        return "error", error.check, error.detail
    if is_out_of_memory(error):
        return "oom", "", first_line(error)
    return "error", "", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """First non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
