"""The quantities themselves: one :class:`MetricDef` each. :mod:`harness.metrics` says how they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]
Family = Literal["accuracy", "retention", "memory", "time", "energy", "size", "compute", "check"]


@dataclass(frozen=True)
class MetricDef:
    """One quantity.

    Attributes:
        name: field name in records, boards and CSV headers; carries the unit.
        label: column header for people.
        unit: SI or field unit; ``"1"`` for a pure number, ``"fraction"`` for a rate in [0, 1].
        better: which direction is good.
        definition: one sentence a reader of the board understands.
        source: where the definition comes from.
        family: group on the board.
        digits: significant digits shown.
        version: raised whenever the way the value is computed changes.
    """

    name: str
    label: str
    unit: str
    better: Better
    definition: str
    family: Family
    source: str = "peft-matrix protocol 1"
    digits: int = 3
    version: int = 1


_MILLER = "Miller 2024, arXiv:2411.00640"

QUANTITIES: tuple[MetricDef, ...] = (
    # accuracy of the adapted model, on the task's test split
    MetricDef("accuracy", "accuracy", "fraction", "higher", "Share of test items answered right.", "accuracy"),
    MetricDef(
        "accuracy_norm",
        "accuracy, per byte",
        "fraction",
        "higher",
        "Share of multiple-choice items whose right option has the highest log-likelihood per byte of its text.",
        "accuracy",
        source="EleutherAI lm-evaluation-harness, acc_norm",
    ),
    MetricDef(
        "macro_f1",
        "macro F1",
        "fraction",
        "higher",
        "Unweighted mean over the classes of 2 TP / (2 TP + FP + FN) on the test split.",
        "accuracy",
    ),
    MetricDef(
        "matthews",
        "Matthews",
        "1",
        "higher",
        "Correlation of predicted and right classes on the test split, any number of classes.",
        "accuracy",
        source="Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006",
    ),
    MetricDef(
        "answer_nll",
        "answer NLL",
        "nat",
        "lower",
        "Mean negative log-likelihood of the right answer, summed over its tokens, per test item.",
        "accuracy",
    ),
    MetricDef(
        "merged_accuracy",
        "merged accuracy",
        "fraction",
        "higher",
        "Accuracy of the model after its adapter was merged into the base, scored again.",
        "accuracy",
    ),
    MetricDef(
        "merge_error_max",
        "merge error, max",
        "1",
        "lower",
        "Largest absolute logit difference between the unmerged and the merged model on the probe batch.",
        "check",
    ),
    MetricDef(
        "merge_error_mean",
        "merge error, mean",
        "1",
        "lower",
        "Mean absolute logit difference between the unmerged and the merged model on the probe batch.",
        "check",
    ),
    MetricDef(
        "validation_nll",
        "validation NLL",
        "nat",
        "lower",
        "Mean negative log-likelihood of the right answer on the validation split, after training.",
        "accuracy",
    ),
    MetricDef(
        "train_loss", "train loss", "nat", "lower", "Mean training loss over the last tenth of the steps.", "accuracy"
    ),
    # retention
    MetricDef(
        "retained_accuracy",
        "retained",
        "fraction",
        "higher",
        "Mean accuracy on the skills the base model had before, scored after adaptation.",
        "retention",
        source=_MILLER + " for the paired error",
    ),
    MetricDef(
        "base_retained_accuracy",
        "base skills",
        "fraction",
        "higher",
        "Mean accuracy of the base model on those same skills and items, before any adaptation.",
        "retention",
    ),
    # size
    MetricDef("trainable_parameters", "trainable", "1", "lower", "Parameters that receive updates.", "size", digits=6),
    MetricDef(
        "total_parameters",
        "parameters",
        "1",
        "lower",
        "Logical parameters of the adapted model; packed quantized weights are counted unpacked.",
        "size",
        digits=6,
    ),
    MetricDef(
        "adapter_bytes",
        "adapter size",
        "B",
        "lower",
        "Bytes on disk of what fine-tuning produced (adapter, or the whole model).",
        "size",
    ),
    MetricDef(
        "base_bytes",
        "base size",
        "B",
        "lower",
        "Real bytes of the base model's tensors in memory after quantization, inner tensors counted.",
        "size",
    ),
    # time
    MetricDef("stage_s", "stage time", "s", "lower", "Wall time of a stage, monotonic clock, device synced.", "time"),
    MetricDef(
        "train_s",
        "train time",
        "s",
        "lower",
        "Wall time of the training steps alone: no data preparation, evaluation or saving.",
        "time",
    ),
    MetricDef("step_ms", "step", "ms", "lower", "Median duration of a training step, the first ones left out.", "time"),
    MetricDef(
        "first_step_ms",
        "first step",
        "ms",
        "lower",
        "Duration of the first training step, which allocates optimizer state and may compile.",
        "time",
    ),
    MetricDef("data_wait_ms", "data wait", "ms", "lower", "Median time a step waits for its batch.", "time"),
    MetricDef(
        "train_tokens_per_s",
        "train tokens/s",
        "1/s",
        "higher",
        "Non-padding tokens trained per second of training steps.",
        "time",
    ),
    MetricDef(
        "train_samples_per_s",
        "train samples/s",
        "1/s",
        "higher",
        "Examples trained per second of training steps.",
        "time",
    ),
    # memory
    MetricDef(
        "peak_rss_bytes",
        "peak RSS",
        "B",
        "lower",
        "Peak resident set of the worker process within a stage (VmHWM, reset at its start).",
        "memory",
        source="proc(5)",
    ),
    MetricDef(
        "cuda_allocated_peak_bytes",
        "peak allocated",
        "B",
        "lower",
        "Peak bytes of live tensors in the CUDA caching allocator within a stage.",
        "memory",
        source="torch.cuda.max_memory_allocated",
    ),
    MetricDef(
        "cuda_reserved_peak_bytes",
        "peak reserved",
        "B",
        "lower",
        "Peak bytes held by the CUDA caching allocator within a stage.",
        "memory",
        source="torch.cuda.max_memory_reserved",
    ),
    # latency
    MetricDef(
        "latency_ms",
        "latency p50",
        "ms",
        "lower",
        "Median time of one forward pass of the probe batch (classification) after warm-up.",
        "time",
        digits=3,
    ),
    MetricDef("ttft_ms", "TTFT p50", "ms", "lower", "Median time from request to first generated token.", "time"),
    MetricDef(
        "tpot_ms",
        "TPOT p50",
        "ms",
        "lower",
        "Median over requests of (end-to-end - TTFT) / (tokens - 1), fixed output length.",
        "time",
    ),
    # energy
    MetricDef(
        "energy_gross_j",
        "energy, gross",
        "J",
        "lower",
        "Energy of the assigned devices over the window, idle power included.",
        "energy",
    ),
    MetricDef(
        "energy_net_j",
        "energy, net",
        "J",
        "lower",
        "Gross energy less idle power times the window. Secondary: ranks use gross.",
        "energy",
    ),
    MetricDef(
        "energy_idle_w",
        "idle power",
        "W",
        "neither",
        "Mean power of the assigned devices with a live context and no work, before and after the cell.",
        "energy",
    ),
    MetricDef(
        "power_mean_w", "mean power", "W", "neither", "Gross energy over the energy window's own length.", "energy"
    ),
    MetricDef(
        "cpu_package_j",
        "CPU energy",
        "J",
        "lower",
        "Energy of the CPU packages over the window (RAPL), cores and uncore included, DRAM not.",
        "energy",
        source="Linux powercap, intel-rapl",
    ),
    MetricDef(
        "dram_j",
        "DRAM energy",
        "J",
        "lower",
        "Energy of the DRAM over the window (RAPL), where the platform has that domain.",
        "energy",
        source="Linux powercap, intel-rapl",
    ),
    # more kinds of memory; kinds never share a ranked column
    MetricDef(
        "device_used_peak_bytes",
        "peak device used",
        "B",
        "lower",
        "Largest sampled memory in use on the assigned devices, by all contexts and the driver.",
        "memory",
        source="NVML nvmlDeviceGetMemoryInfo",
    ),
    MetricDef(
        "pss_peak_bytes",
        "peak PSS",
        "B",
        "lower",
        "Largest sampled proportional set size of the worker and its children, shared pages divided among users.",
        "memory",
        source="proc(5), smaps_rollup",
    ),
    MetricDef(
        "cgroup_peak_bytes",
        "peak cgroup",
        "B",
        "lower",
        "Peak memory charged to the worker's control group within a stage, page cache included.",
        "memory",
        source="Linux cgroup memory controller",
    ),
    MetricDef(
        "inactive_split_peak_bytes",
        "peak inactive split",
        "B",
        "lower",
        "Peak bytes of free pieces of split blocks in the CUDA caching allocator: fragmentation.",
        "memory",
        source="torch.cuda.memory_stats",
    ),
    MetricDef(
        "alloc_retries",
        "allocator retries",
        "1",
        "lower",
        "Failed allocations that succeeded after the cache was flushed; above 0 the stage's timing is disturbed.",
        "memory",
        source="torch.cuda.memory_stats",
    ),
    MetricDef(
        "ooms",
        "OOMs",
        "1",
        "lower",
        "Out-of-memory errors raised by the CUDA caching allocator within a stage.",
        "memory",
        source="torch.cuda.memory_stats",
    ),
    MetricDef(
        "weights_bytes",
        "weights",
        "B",
        "lower",
        "Bytes held by parameters, buffers and quantization state of the model in training.",
        "memory",
    ),
    MetricDef("gradient_bytes", "gradients", "B", "lower", "Bytes held by gradients after a backward pass.", "memory"),
    MetricDef(
        "optimizer_state_bytes",
        "optimizer state",
        "B",
        "lower",
        "Bytes held by the optimizer's state after its first step.",
        "memory",
    ),
    MetricDef(
        "activation_peak_bytes",
        "activations",
        "B",
        "lower",
        "Peak allocated less weights, gradients and optimizer state: activations and temporary buffers.",
        "memory",
    ),
    # state of the device during a stage
    MetricDef(
        "gpu_temperature_start_c",
        "GPU start",
        "degC",
        "neither",
        "Temperature of the hottest assigned GPU at the start of a stage.",
        "check",
    ),
    MetricDef(
        "gpu_temperature_end_c",
        "GPU end",
        "degC",
        "neither",
        "Temperature of the hottest assigned GPU at the end of a stage.",
        "check",
    ),
    MetricDef(
        "sm_clock_mhz", "SM clock", "MHz", "neither", "Mean sampled SM clock of the assigned GPUs in a stage.", "check"
    ),
    MetricDef(
        "power_limit_w", "power limit", "W", "neither", "Enforced power limit, summed over the assigned GPUs.", "check"
    ),
    MetricDef(
        "throttled_fraction",
        "throttled",
        "fraction",
        "lower",
        "Share of samples in which heat or the hardware slowed an assigned GPU; above 0 the cell is unranked.",
        "check",
    ),
    MetricDef(
        "foreign_processes",
        "foreign processes",
        "1",
        "lower",
        "Most compute processes of others seen at once on the assigned GPUs; above 0 the cell is unranked.",
        "check",
    ),
    # compute
    MetricDef(
        "step_flops",
        "FLOPs per step",
        "1",
        "lower",
        "Floating-point operations of one training step, forward and backward, by operator count.",
        "compute",
        source="torch.utils.flop_counter",
    ),
    MetricDef(
        "mfu",
        "MFU",
        "fraction",
        "higher",
        "FLOPs per step over step time, as a share of the device peak stated in the hardware profile.",
        "compute",
        source="Chowdhery et al. 2022, arXiv:2204.02311, appendix B",
    ),
)
