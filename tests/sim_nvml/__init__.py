"""A simulated NVML library whose truth is known."""
