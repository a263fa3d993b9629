"""One cell on several devices of a machine: its processes (ranks), and what they do together while the cell trains.

The worker forks the ranks, waits asleep, and answers for how they end. Rank 0 runs every stage and writes the record;
the others load, train and end. Between ranks there is torch.distributed (gloo on CPUs, NCCL on GPUs) with torch's own
``DistributedDataParallel`` and ``fully_shard``. transformers' Trainer sees one process: it draws the rows of a whole
micro-batch, and each rank computes its part of them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from harness.errors import CheckFailed, Unsupported
from harness.meters.memory import peak_rss_bytes
from harness.record import Outcome
from runners.worker.job import Job, write_atomically
from runners.worker.memory import synchronize
from runners.worker.process import Rank, Say, die_with_parent

if TYPE_CHECKING:
    from runners.worker.context import Context

GRACE_S = 5.0
"""After one rank failed, the others get this long: their own errors, or signals, say which of them was first."""
WAITS_AT_MOST = timedelta(days=7)
"""Of one rank for another; the cell's own limit ends both before."""
SAME = 1e-6
"""Largest relative difference between the ranks' sums over a trained tensor."""
STAGES = ("load", "quantize", "recipe", "targets", "prepare", "attach", "train", "gather")
"""Stages of the ranks other than 0."""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor with all its parts; every rank must ask for it. Others are returned as they are."""
    gather = getattr(tensor, "full_tensor", None)
    found: torch.Tensor = gather() if gather is not None else tensor
    return found


# --- processes ------------------------------------------------------------------------------------------
class Stopped(BaseException):
    """SIGTERM reached the worker that waits for its ranks."""


@dataclass(frozen=True)
class Loss:
    """How the ranks of a cell ended when it was not well.

    Attributes:
        outcome: of the rank that failed first; None if one of them died without a word.
        reason: in words.
    """

    outcome: Outcome | None
    reason: str


def run(job: Job, say: Say, body: Callable[[Job, Say, int], None]) -> Loss | None:
    """Run the ranks of a job to their end; what went wrong, or None.

    Rank 0 is started first. The others follow with its first stage, so that the idle baseline of its meters is idle.
    Whatever happens here, no rank outlives this call.

    Args:
        body: runs one rank: job, ``say``, number.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    ranks = [
        context.Process(target=_rank, args=(job, theirs, body, number), name=f"rank-{number}")
        for number in range(job.ranks)
    ]
    killed: set[int] = set()
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        ranks[0].start()
        _watch(ranks, ours, say)
    except Stopped:
        for rank in _alive(ranks):
            rank.terminate()
        _until(time.monotonic() + GRACE_S, ranks)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number, rank in enumerate(ranks):
            if rank.is_alive():
                killed.add(number)
                rank.kill()
        for rank in _started(ranks):
            rank.join()
        signal.signal(signal.SIGTERM, previous)
    return _loss(job, {n: int(r.exitcode or 0) for n, r in enumerate(ranks) if r.pid is not None}, killed)


def _rank(job: Job, channel: Connection, body: Callable[[Job, Say, int], None], number: int) -> None:
    """Main function of a rank."""

    def say(event: str, **more: object) -> None:
        if number == 0:
            channel.send({"event": event, **more})

    die_with_parent()
    body(job, say, number)


def _watch(ranks: Sequence[ForkProcess], channel: Connection, say: Say) -> None:
    """Sleep until all ranks have ended, or one has failed and the others had time to say why."""
    until: float | None = None
    while alive := _alive(ranks):
        if until is None and any(rank.exitcode for rank in _started(ranks)):
            until = (
                time.monotonic() + GRACE_S
            )  # a rank that ends after this check is in `alive`, and its end wakes the wait
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            return
        for ready in wait([channel, *(rank.sentinel for rank in alive)], left):
            if ready is channel:
                said = channel.recv()
                say(**said)
                if said["event"] == "stage":
                    for rank in ranks:
                        if rank.pid is None:
                            rank.start()
    while channel.poll():
        say(**channel.recv())


def _started(ranks: Sequence[ForkProcess]) -> list[ForkProcess]:
    return [rank for rank in ranks if rank.pid is not None]


def _alive(ranks: Sequence[ForkProcess]) -> list[ForkProcess]:
    return [rank for rank in _started(ranks) if rank.is_alive()]


def _until(end: float, ranks: Sequence[ForkProcess]) -> None:
    while (alive := _alive(ranks)) and (left := end - time.monotonic()) > 0:
        wait([rank.sentinel for rank in alive], left)


def _stop(_signum: int, _frame: object) -> None:
    raise Stopped


def outcome_file(job: Job, number: int) -> Path:
    """Where a rank leaves how it ended, if it did not end well."""
    return Path(job.folder) / f"rank-{number}.json"


def leave(job: Job, number: int, outcome: Outcome) -> None:
    """Write how this rank ended; the clock is the same for all processes of a machine."""
    text = json.dumps({"at": time.monotonic(), "outcome": outcome.model_dump(mode="json")})
    write_atomically(outcome_file(job, number), text.encode())


def _loss(job: Job, codes: dict[int, int], killed: set[int]) -> Loss | None:
    """A rank that was killed by a signal counts before one that failed, since the others fail with it."""
    if not any(codes.values()):
        return None
    died = [n for n, code in codes.items() if code < 0 and n not in killed and not outcome_file(job, n).exists()]
    if died:
        names = ", ".join(f"rank {n} by {signal.Signals(-codes[n]).name}" for n in died)
        return Loss(None, f"killed while {job.ranks} ranks trained together: {names}")
    left = [json.loads(p.read_text()) for n in codes if (p := outcome_file(job, n)).exists()]
    if left:
        first = min(left, key=lambda one: float(one["at"]))
        outcome = Outcome.model_validate(first["outcome"])
        return Loss(outcome, outcome.reason)
    return Loss(None, f"a rank ended without a word; exit codes: {', '.join(map(str, codes.values()))}")


# --- around training ------------------------------------------------------------------------------------
def begin(ctx: Context) -> None:
    """Join the ranks, see that they start alike, and put the strategy around the model.

    Raises:
        CheckFailed: ``ranks``: what they are to train differs.
        Unsupported: a group of parameters that cannot be sharded together.
    """
    rank = ctx.rank
    if rank.alone or not ctx.trains:
        return
    if ctx.device.type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks are on one machine
    distributed.init_process_group(
        "gloo" if ctx.device.type == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=f"file://{ctx.folder / 'rendezvous'}",
        rank=rank.number,
        world_size=rank.of,
        timeout=WAITS_AT_MOST,
    )
    _check_alike(ctx, "before training")
    if rank.strategy == "ddp":
        rank.wrapped = nn.parallel.DistributedDataParallel(
            ctx.model,
            device_ids=[0] if ctx.device.type == "cuda" else None,
            broadcast_buffers=False,
            init_sync=False,  # every rank read the same files and drew from the same seed, which was checked
        )
    else:
        _shard(ctx)


def _check_alike(ctx: Context, when: str) -> None:
    """Sums over every trained tensor, exchanged between the ranks."""
    own = {n: _sum(p) for n, p in ctx.model.named_parameters() if p.requires_grad}
    found: list[dict[str, float]] = [{} for _ in range(ctx.rank.of)]
    distributed.all_gather_object(found, own)
    for number, other in enumerate(found):
        names = [n for n in own if n not in other or abs(own[n] - other[n]) > SAME * max(1.0, abs(own[n]))]
        if names or own.keys() != other.keys():
            name = (names or sorted(other.keys() - own.keys()))[0]
            raise CheckFailed("ranks", f"rank {ctx.rank.number} and rank {number} differ {when}, for example in {name}")


def _sum(parameter: torch.Tensor) -> float:
    values = parameter.detach().double()
    return float((values * torch.linspace(0.5, 1.5, values.numel(), device=values.device).view_as(values)).sum())


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)
"""Attributes of a module in which ``fully_shard`` leaves something."""


def _shard(ctx: Context) -> None:
    """``fully_shard`` around every layer and around the model; what it changes is noted, to be undone later."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    layers = [module for module in ctx.model.modules() if type(module).__name__ in _layer_names(ctx.model)]
    kept = [*layers, ctx.model]
    for module in ctx.model.modules():
        hooks = {name: module.__dict__[name].copy() for name in _HOOKS if name in module.__dict__}
        ctx.rank.plain[module] = (type(module), hooks)
    mesh = init_device_mesh(ctx.device.type, (ctx.rank.of,))
    policy = CPUOffloadPolicy() if ctx.rank.offload else OffloadPolicy()
    try:
        for module in kept:
            fully_shard(module, mesh=mesh, offload_policy=policy)
    except (ValueError, NotImplementedError) as error:
        raise Unsupported(f"fully_shard does not take this model: {error}") from error


def _layer_names(model: nn.Module) -> set[str]:
    """Class names of the layers that transformers keeps on one device."""
    found: set[str] = set()
    for module in model.modules():
        found |= set(getattr(module, "_no_split_modules", None) or ())
    return found


def gather(ctx: Context) -> None:
    """Stage ``gather``: what the ranks trained, on rank 0 as a model of one process; the ranks part.

    Raises:
        CheckFailed: ``ranks``: they trained different models.
    """
    rank = ctx.rank
    if not ctx.trains:
        return
    if rank.strategy == "ddp":
        _check_alike(ctx, "after training")
        rank.wrapped = None
    else:
        _unshard(ctx)
    distributed.barrier()
    distributed.destroy_process_group()
    if rank.number == 0:
        ctx.model = ctx.method.finish(ctx.model)
        ctx.model.eval()


def _unshard(ctx: Context) -> None:
    """All parameters whole again, on rank 0; classes and hooks of the modules as before."""
    for module in ctx.model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not hasattr(parameter, "full_tensor"):
                continue
            values = parameter.detach().full_tensor().to(ctx.device)
            if ctx.rank.number == 0:
                module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    for module, (kind, hooks) in ctx.rank.plain.items():
        module.__class__ = kind
        for name, entries in hooks.items():
            module.__dict__[name] = entries
    ctx.rank.plain = {}


@dataclass(frozen=True)
class Together:
    """Results of training, from all ranks.

    Attributes:
        losses: of every micro-batch, mean over the ranks.
        tokens: without padding, all ranks together; ``samples`` likewise.
    """

    losses: torch.Tensor
    tokens: int
    samples: int


def collect(ctx: Context, losses: Sequence[torch.Tensor], *, tokens: int, samples: int, step_ms: list[float]) -> Any:
    """Exchange what each rank measured in training; on rank 0 it becomes metrics, series and a fact of the cell."""
    own: dict[str, Any] = {
        "losses": torch.stack(list(losses)).float().cpu().tolist(),
        "tokens": tokens,
        "samples": samples,
        "step_ms": step_ms,
        "forward_ms": ctx.rank.forward_ms,
        "memory": _memory(ctx.device),
    }
    found: list[dict[str, Any]] = [{} for _ in range(ctx.rank.of)]
    distributed.all_gather_object(found, own)
    if ctx.rank.number == 0:
        _record(ctx, found)
    return Together(
        torch.tensor([one["losses"] for one in found]).mean(0),
        sum(one["tokens"] for one in found),
        sum(one["samples"] for one in found),
    )


def _memory(device: torch.device) -> dict[str, int]:
    """Peaks of this process since the stage began, bytes by kind."""
    found = {"peak_rss_bytes": peak_rss_bytes()} if Path("/proc/self/status").exists() else {}
    if device.type == "cuda":
        found["cuda_allocated_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        found["cuda_reserved_peak_bytes"] = torch.cuda.max_memory_reserved(device)
    return found


def _record(ctx: Context, found: list[dict[str, Any]]) -> None:
    steps = [statistics.median(one["step_ms"]) for one in found]
    forward = [statistics.median(one["forward_ms"]) for one in found]
    ctx.facts["ranks"] = {
        "strategy": ctx.rank.strategy,
        "backend": distributed.get_backend(),
        "tokens": [one["tokens"] for one in found],
        "step_ms": steps,
        "forward_ms": forward,
        **{kind: [one["memory"][kind] for one in found] for kind in found[0]["memory"]},
    }
    for number, one in enumerate(found):
        ctx.series[f"step_ms_rank{number}"] = tuple(one["step_ms"])
    for kind, name in (
        ("peak_rss_bytes", "rank_peak_rss_bytes"),
        ("cuda_allocated_peak_bytes", "rank_cuda_peak_bytes"),
    ):
        values = [one["memory"].get(kind) for one in found]
        if None in values:
            ctx.record_missing(name, "not_supported", source="ranks", note="this device or system does not count it")
        else:
            ctx.record(name, max(values), source=kind, n=len(values), details={"ranks": values})
    middle = statistics.median(forward)
    ctx.record("straggler_ratio", max(forward) / middle, source="time.perf_counter", n=len(forward))


@contextlib.contextmanager
def timed_forward(rank: Rank, *, first: bool, device: torch.device) -> Iterator[None]:
    """Add the time of a forward pass to its step's; with one process nothing is timed."""
    if rank.alone:
        yield
        return
    begin_s = time.perf_counter()
    yield
    synchronize(device)
    took = (time.perf_counter() - begin_s) * 1e3
    if first:
        rank.forward_ms.append(took)
    else:
        rank.forward_ms[-1] += took
