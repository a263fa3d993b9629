"""transformers' ``Trainer`` with the method's hooks, a step clock and the guards of training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from harness.errors import CheckFailed, Diverged
from harness.meters.attribution import Attribution, optimizer_bytes
from runners.worker.memory import synchronize
from runners.worker.parallel import timed_forward, whole
from runners.worker.time_to_target import BestWeights, LiveCurve, TargetWatch
from runners.worker.trial_pruning import Pruning

if TYPE_CHECKING:
    from harness.spec import Training
    from runners.worker.context import Context

PROBED_STEPS = 8
"""Steps within which every trainable tensor must have received a gradient. LoRA's A has none at the first
step, because B is zero, and none at the second, because warm-up starts at learning rate zero."""
LION_BETAS = (0.9, 0.99)
"""Of the paper (arXiv 2302.06675)."""
SCHEDULES = {"wsd": "warmup_stable_decay"}
"""Schedules that transformers calls otherwise."""
ATTRIBUTED_STEP = 2
"""The step at which memory is attributed: optimizer state is there, and neither the first step's duration nor the
median of the steady ones holds the counting. State that grows later is counted again, between steps."""


class StepClock:
    """Durations of training steps: CUDA events on a GPU (one sync at the end), a monotonic clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.source = "torch.cuda.Event" if self.cuda else "time.perf_counter"
        self._begins: list[torch.cuda.Event | float] = []
        self._ends: list[torch.cuda.Event | float] = []
        self._ready: list[torch.cuda.Event | float] = []  # from when the next step's batch was waited for

    def _now(self) -> torch.cuda.Event | float:
        if not self.cuda:
            synchronize(self.device)
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has none
        event.record()
        return event

    def begin(self) -> None:
        """A step begins: its batch is there."""
        self._begins.append(self._now())

    def end(self) -> None:
        """A step ended: the optimizer has stepped."""
        self._ends.append(self._now())
        self._ready.append(self._ends[-1])

    def resume(self) -> None:
        """Something else was done after the last step: waiting for the next batch begins now."""
        self._ready[-1] = self._now()

    def step_ms(self) -> list[float]:
        """Durations of the steps, ms."""
        return self._between(self._begins, self._ends)

    def wait_ms(self) -> list[float]:
        """Time between the end of a step and the beginning of the next, ms: waiting for data."""
        return [0.0, *self._between(self._ready[:-1], self._begins[1:])]

    def _between(self, first: list[Any], second: list[Any]) -> list[float]:
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(first, second, strict=True)]
        return [(b - a) * 1e3 for a, b in zip(first, second, strict=True)]


def arguments(ctx: Context) -> TrainingArguments:
    """Trainer's arguments for the cell's budget. Nothing is logged, saved or reported by Trainer itself."""
    t = ctx.training
    return TrainingArguments(
        output_dir=str(ctx.folder / "trainer"),
        max_steps=ctx.method.loop_steps,
        per_device_train_batch_size=t.batch_size * ctx.rank.of,  # each rank computes its part of these rows
        gradient_accumulation_steps=t.gradient_accumulation,
        learning_rate=ctx.learning_rate,
        lr_scheduler_type=SCHEDULES.get(t.schedule, t.schedule),
        lr_scheduler_kwargs=schedule_arguments(t, ctx.method.loop_steps) or None,
        warmup_steps=round(t.warmup_fraction * ctx.method.loop_steps),
        weight_decay=t.weight_decay,
        adam_beta1=t.adam_betas[0],
        adam_beta2=t.adam_betas[1],
        max_grad_norm=t.max_grad_norm,
        **({"gradient_checkpointing": True} if t.gradient_checkpointing else {}),  # deprecated: False warns too
        bf16=ctx.job.cell["model"]["dtype"] == "bfloat16",
        use_cpu=ctx.device.type == "cpu",
        seed=ctx.seed,
        data_seed=ctx.seed,
        dataloader_pin_memory=ctx.device.type == "cuda",
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # our own guard stops at once; this one would hide the loss and sync the GPU
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_liger_kernel=ctx.switches.get("kernels") == "liger",
    )


@contextlib.contextmanager
def _own_adapters_allowed(model: PreTrainedModel) -> Iterator[None]:
    """Let Trainer take a quantized model whose adapter is not one of peft's.

    Trainer refuses it at construction, because usually nothing in it could train. Here the method has declared
    what trains, ``attach`` has counted it, and the gradient probe sees whether it does.
    """
    flag = "_hf_peft_config_loaded"
    own = getattr(model, "is_quantized", False) and not getattr(model, flag, False)
    if own:
        setattr(model, flag, True)
    try:
        yield
    finally:
        if own:
            setattr(model, flag, False)


class MatrixTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """The loop, with hooks instead of per-method branches.

    Attributes:
        losses: of every micro-batch, with what the method adds to the task's.
        task_losses: the task's own; empty where the method takes whole steps.
        samples: rows trained so far.
        tokens: trained so far, padding left out.
        computed_tokens: the same with padding, which is computed too.
    """

    def __init__(self, *, context: Context, hooks: Hooks, **kwargs: object) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        with _own_adapters_allowed(kwargs["model"]):
            super().__init__(callbacks=[hooks], **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss of a micro-batch is a mean; Trainer averages them
        self.context = context
        self.losses: list[torch.Tensor] = []
        hooks.curve = LiveCurve(self.losses) if context.job.live_losses and context.rank.alone else None
        self.task_losses: list[torch.Tensor] = []
        self.grad_norms: list[torch.Tensor] = []
        self.samples = self.tokens = self.computed_tokens = 0
        self._extra: dict[str, torch.Tensor] = {}
        self._micro_steps = context.steps * context.training.gradient_accumulation

    def create_optimizer(self, *args: object, **kwargs: object) -> torch.optim.Optimizer:
        """The method's optimizer, or AdamW over everything that trains."""
        if self.optimizer is None:
            self.optimizer = self.context.method.optimizer(self.model) or named_optimizer(
                self.context, [p for p in self.model.parameters() if p.requires_grad]
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The sweep's schedule; where the method has several phases, from its beginning in each."""
        phases = self.context.method.phases()
        if len(phases) == 1:
            usual: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return usual
        self.lr_scheduler: LRScheduler = restarting(optimizer or self.create_optimizer(), self.context.training, phases)
        return self.lr_scheduler

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """The objective's loss, through the recipe's and the method's ``loss`` hooks."""
        rank = self.context.rank
        first = len(self.losses) % self.context.training.gradient_accumulation == 0
        with timed_forward(rank, first=first, device=self.context.device):
            loss, task_loss = losses_of(self.context, rank.forward(model), inputs, self._extra)
        self.task_losses.append(task_loss.detach())
        return loss

    def _get_train_sampler(self, *args: object, **kwargs: object) -> object:
        """In the order of the recipe where it has one."""
        if self.context.recipe.declaration.ordered:
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def _clip_grad_norm(self, model: PreTrainedModel) -> object:
        """Clip, and keep the norm before clipping without waiting for the device."""
        norm = super()._clip_grad_norm(model)
        self.grad_norms.append(whole(torch.as_tensor(norm).detach()))
        return norm

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: object = None
    ) -> torch.Tensor:
        """One micro-batch: the method's own step if it has one, else forward and backward.

        Raises:
            Diverged: the loss is not finite. On a GPU the previous step's loss is checked, because it is available
                without waiting for the device.
        """
        self.tokens += inputs.pop("tokens")
        self.samples += inputs.pop("rows", len(inputs["input_ids"]))
        self.computed_tokens += inputs["input_ids"].numel()
        extra = inputs.pop("extra", {})
        self._extra = self._prepare_inputs(extra) if extra else {}
        inputs = self.context.recipe.batch(inputs, len(self.losses), self._micro_steps)
        own = self.context.method.training_step(model, self._prepare_inputs(inputs))
        with self._saved_elsewhere(), self.context.rank.accumulating(not self.accelerator.sync_gradients):
            loss = own if own is not None else super().training_step(model, inputs, num_items_in_batch)
        # the last window of an epoch may hold fewer micro-batches, and Trainer divides by what it holds
        window = 1 if own is not None else self.current_gradient_accumulation_steps
        self.losses.append(loss.detach() * window)
        look_at = -1 if loss.device.type == "cpu" else -2
        if len(self.losses) >= -look_at and not torch.isfinite(self.losses[look_at]):
            raise Diverged(
                f"the training loss became {self.losses[look_at].item()} at step {self.state.global_step + 1}"
            )
        if self.context.trial and len(self.losses) % 10 == 0:
            stop_if_hopeless(self.losses, self.grad_norms)
        return loss

    def _saved_elsewhere(self) -> contextlib.AbstractContextManager[object]:
        """Where the variant says so, what the backward pass needs waits in the host's memory."""
        if self.context.switches.get("offload") == "activations":
            return torch.autograd.graph.save_on_cpu(pin_memory=True)
        return contextlib.nullcontext()


def named_optimizer(ctx: Context, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or the optimizer that the sweep or the cell's variant names."""
    t, rate = ctx.training, ctx.learning_rate
    if t.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=t.weight_decay)
    if t.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=t.weight_decay)
    if t.optimizer == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        made: torch.optim.Optimizer = AdamW8bit(parameters, lr=rate, betas=t.adam_betas, weight_decay=t.weight_decay)
        return made
    if t.optimizer == "lion":
        from bitsandbytes.optim import Lion

        lion: torch.optim.Optimizer = Lion(parameters, lr=rate, betas=LION_BETAS, weight_decay=t.weight_decay)
        return lion
    return torch.optim.AdamW(parameters, lr=rate, betas=t.adam_betas, weight_decay=t.weight_decay, fused=True)


def schedule_arguments(training: Training, steps: int) -> dict[str, Any]:
    """Further arguments of transformers' schedule over so many steps; ``{}`` for most."""
    arguments: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": training.restart_cycles},
        "polynomial": {"power": training.polynomial_power, "lr_end": 0.0},
        "wsd": {"num_decay_steps": round(training.decay_fraction * steps)},
    }
    return arguments.get(training.schedule, {})


def restarting(
    optimizer: torch.optim.Optimizer, training: Training, phases: Sequence[int]
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule, which starts over, warm-up included, at the first step of every phase.

    Args:
        optimizer: whose groups' rates are scaled.
        training: names the schedule, and the share of a phase that is warm-up.
        phases: lengths in steps.
    """
    factors: list[float] = []
    for length in phases:
        one = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        made = get_scheduler(
            SCHEDULES.get(training.schedule, training.schedule),
            one,
            num_warmup_steps=round(training.warmup_fraction * length),
            num_training_steps=length,
            scheduler_specific_kwargs=schedule_arguments(training, length),
        )
        for _ in range(length):
            factors.append(float(made.get_last_lr()[0]))
            one.step()
            made.step()
    last = len(factors) - 1
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, last)])


def loss_of(
    ctx: Context, model: PreTrainedModel, batch: dict[str, torch.Tensor], extra: dict[str, torch.Tensor]
) -> torch.Tensor:
    """A forward pass and its loss: the objective's, then what the recipe and the method make of it."""
    return losses_of(ctx, model, batch, extra)[0]


def losses_of(
    ctx: Context, model: PreTrainedModel, batch: dict[str, torch.Tensor], extra: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a forward pass that is trained on, and the task's own without what recipe and method add to it."""
    outputs = model(**batch)
    loss = ctx.objective.loss(outputs, batch, extra, outputs.loss)
    task_loss = ctx.method.task_loss(outputs, batch) if loss is outputs.loss else loss
    loss = ctx.recipe.loss(loss, outputs.logits, batch["labels"], extra)
    return ctx.method.loss(outputs, batch, loss), task_loss


def _sums(parameter: torch.Tensor) -> tuple[float, float]:
    """Two sums that no training step leaves as they are, and that take no memory to remember."""
    values = whole(parameter.detach()).double()
    return float(values.sum()), float(values.square().sum())


SAID_EVERY_S = 5.0
"""Longest time between two words about the step, however slow training is."""
HOPELESS = 3.0
"""A trial whose loss is this many times that of its first steps is stopped: it only gets worse from there."""


def stop_if_hopeless(losses: list[torch.Tensor], grad_norms: list[torch.Tensor]) -> None:
    """End a trial of tuning that has no chance; its record says so and counts as the worst score.

    Raises:
        Diverged: the last five losses are far above the first five, or a gradient norm is not finite.
    """
    if grad_norms and not bool(torch.isfinite(grad_norms[-1])):
        raise Diverged(f"stopped early: the gradient norm became {float(grad_norms[-1])}")
    if len(losses) >= 10:
        first, last = torch.stack(losses[:5]).mean(), torch.stack(losses[-5:]).mean()
        if float(last) > HOPELESS * float(first):
            raise Diverged(f"stopped early: the loss rose from {float(first):.3g} to {float(last):.3g}")


class Hooks(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Calls the method's hooks and the guards at the right moments; reports training progress to the parent.

    Attributes:
        attribution: whose bytes the memory of a step is; None before :data:`ATTRIBUTED_STEP`, or the error.
        target: scores the validation split meanwhile, where the sweep states a target.
        pruning: does so too and may end a trial of tuning, where the sweep has a pruner.
        best: does so too and ends training where the sweep stops early.
        curve: the losses, where a tracker shows them meanwhile.
    """

    def __init__(self, context: Context, clock: StepClock) -> None:
        self.context = context
        self.clock = clock
        self.said_at = time.monotonic()
        self.silent: set[str] = set()
        self.curve: LiveCurve | None = None
        self.unprobed: dict[str, tuple[float, float]] = {}
        self.attribution: Attribution | Exception | None = None
        target = context.training.target
        self.target = TargetWatch(target, context.method.loop_steps, context.panel) if target is not None else None
        stopping = context.training.early_stopping
        self.best = BestWeights(stopping, context.method.loop_steps) if stopping is not None else None
        asked = context.job.cell.get("pruning")
        self.pruning = Pruning(asked, context.method.loop_steps) if asked is not None else None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: object,
    ) -> None:
        """Note which tensors the gradient probe waits for."""
        expects = self.context.method.expects_gradient
        self.silent = {n for n, p in model.named_parameters() if p.requires_grad and expects(n)}
        self.unprobed = {n: _sums(p) for n, p in model.named_parameters() if p.requires_grad and not expects(n)}
        if self.target is not None:
            self.target.begin()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: object,
    ) -> None:
        """Start the clock; the method chooses what trains now."""
        self.clock.begin()
        self.context.method.select(model, state.global_step)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: object,
    ) -> None:
        """Cross off the tensors that received a gradient."""
        if self.silent and state.global_step < PROBED_STEPS:
            for name, parameter in model.named_parameters():
                if name in self.silent and parameter.grad is not None and bool(whole(parameter.grad).any()):
                    self.silent.discard(name)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: Any,
    ) -> None:
        """The method's hook, and once the attribution of memory, while the gradients are still there."""
        step = state.global_step + 1
        if step == min(ATTRIBUTED_STEP, state.max_steps):
            try:
                self.attribution = Attribution.take(model, kwargs.get("optimizer"), self.context.method.held())
            except Exception as error:  # an instrument never harms the cell
                self.attribution = error
        self.context.method.on_step(model, step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel = None,
        **kwargs: Any,
    ) -> None:
        """Stop the clock; check the probe once; report progress."""
        self.clock.end()
        step = state.global_step
        tenth = step % max(1, state.max_steps // 10) == 0
        if tenth or step == state.max_steps:
            self.watch_state(kwargs.get("optimizer"))
        if step == min(PROBED_STEPS, state.max_steps):
            self.check_gradients(step)
        if self.target is not None and self.target.due(step):
            self.target.evaluate(self.context, step)
            self.clock.resume()
        if self.pruning is not None and self.pruning.due(step):
            self.pruning.look(self.context, step)
            self.clock.resume()
        if self.best is not None and self.best.due(step):
            control.should_training_stop = self.best.evaluate(self.context, step) or control.should_training_stop
            self.clock.resume()
        if tenth or time.monotonic() - self.said_at >= SAID_EVERY_S:
            self.said_at = time.monotonic()
            live = self.curve.report(self.clock) if self.curve is not None else {}
            self.context.say("progress", what="training", at=step, of=state.max_steps, **live)

    def watch_state(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the largest optimizer state seen; the next step does not wait for this."""
        if isinstance(self.attribution, Attribution) and optimizer is not None:
            try:
                grown = optimizer_bytes(optimizer)
            except Exception as error:  # an instrument never harms the cell
                self.attribution = error
            else:
                if grown > self.attribution.optimizer_state:
                    self.attribution = replace(self.attribution, optimizer_state=grown)
            self.clock.resume()

    def check_moved(self, model: PreTrainedModel) -> None:
        """Raise if a tensor that the gradient probe leaves out should have moved and is what it was.

        Raises:
            CheckFailed: ``unmoved``.
        """
        parameters = dict(model.named_parameters())
        expects = self.context.method.expects_change
        still = [n for n, sums in self.unprobed.items() if expects(n) and _sums(parameters[n]) == sums]
        if still:
            raise CheckFailed("unmoved", f"{len(still)} trained tensors never changed, for example {still[0]}")

    def check_gradients(self, step: int) -> None:
        """Raise if a trainable tensor never received a gradient.

        Raises:
            CheckFailed: ``gradient-probe``.
        """
        self.context.facts["gradient_probe_steps"] = step
        if self.silent:
            names = sorted(self.silent)
            raise CheckFailed(
                "gradient-probe",
                f"{len(names)} trainable tensors received no gradient in {step} steps, for example {names[0]}",
            )
