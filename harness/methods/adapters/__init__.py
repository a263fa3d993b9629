"""Bottleneck adapters: a narrow non-linear layer after or beside the feed-forward layer of every block."""
