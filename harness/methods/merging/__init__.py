"""Post-training steps: compress a model, average it, move it to another base."""
