"""Where cells run: on this machine, on Ray, on Slurm."""
