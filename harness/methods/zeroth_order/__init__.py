"""Zeroth-order fine-tuning: forward passes instead of a backward one."""
