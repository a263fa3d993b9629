"""Memory by kind, and the state of the device. Kinds never share a ranked column."""

from __future__ import annotations

from harness.metrics.definition import MetricDef

QUANTITIES: tuple[MetricDef, ...] = (
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
        "rss_before_bytes",
        "RSS before",
        "B",
        "neither",
        "Resident set of the worker process before a stage (when the stage before it ended); before the first stage it "
        "is what the process brought that workers are forked from (libraries), and nothing of the cell.",
        "check",
        source="proc(5)",
    ),
    MetricDef(
        "rss_growth_bytes",
        "RSS growth",
        "B",
        "lower",
        "Peak resident set of the worker process within a stage, less the resident set before the stage (in records "
        "made before that was read: less the peak of the stage before).",
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
        "Peak bytes allocated by the CUDA caching allocator within a stage.",
        "memory",
        source="torch.cuda.max_memory_reserved",
    ),
    MetricDef(
        "rank_peak_rss_bytes",
        "peak RSS of a rank",
        "B",
        "lower",
        "Of a cell on several devices: largest peak resident set of its processes (ranks) while they train.",
        "memory",
        source="proc(5)",
    ),
    MetricDef(
        "rank_cuda_peak_bytes",
        "peak allocated of a rank",
        "B",
        "lower",
        "Of a cell on several devices: largest peak of live tensors in the CUDA caching allocator of its processes "
        "(ranks) while they train.",
        "memory",
        source="torch.cuda.max_memory_allocated",
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
        "Largest sampled proportional set size of the worker and its children; a peak between two samples is missed.",
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
        "Bytes of parameters, buffers and quantization state of the model in training.",
        "memory",
    ),
    MetricDef("gradient_bytes", "gradients", "B", "lower", "Bytes of the gradients after a backward pass.", "memory"),
    MetricDef(
        "optimizer_state_bytes",
        "optimizer state",
        "B",
        "lower",
        "Bytes of the optimizer's state, the largest of several counts: at the second step, each tenth of the run, "
        "its end.",
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
)
