"""Bottleneck adapters: a narrow non-linear layer after or parallel to the feed-forward layer of every block."""
