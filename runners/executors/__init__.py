"""Executors: this machine, Ray, Slurm."""
