"""Rules that make one task vector of several. A task vector is what training added to the base, as one flat vector.

All take ``tau`` ([models, entries], float32) and return one vector of ``entries``; a factor lambda comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def mean(tau: torch.Tensor) -> torch.Tensor:
    """Uniform soup (arXiv:2203.05482): the average of the models."""
    return tau.mean(dim=0)


def total(tau: torch.Tensor) -> torch.Tensor:
    """Task arithmetic (arXiv:2212.04089): the sum."""
    return tau.sum(dim=0)


def ties(tau: torch.Tensor, density: float) -> torch.Tensor:
    """TIES (arXiv:2306.01708): trim each to its largest entries, elect each entry's sign by the summed magnitude,
    average those that agree with it.
    """
    keep = max(1, round(density * tau.shape[1]))
    trimmed = torch.zeros_like(tau)
    for row, kept in zip(tau, trimmed, strict=True):
        largest = row.abs().topk(keep).indices
        kept[largest] = row[largest]
    elected = trimmed.sum(dim=0).sign()
    agreeing = torch.where(trimmed.sign() == elected, trimmed, torch.zeros_like(trimmed))
    count = (agreeing != 0).sum(dim=0).clamp(min=1)
    return agreeing.sum(dim=0) / count


def dare(tau: torch.Tensor, drop: float, seed: int) -> torch.Tensor:
    """DARE (arXiv:2311.03099): drop entries at random, rescale the others by 1 / (1 - drop), average."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(tau.shape, generator=generator) >= drop
    return (tau * kept / (1 - drop)).mean(dim=0)


def breadcrumbs(tau: torch.Tensor, sizes: Sequence[int], bottom: float, top: float) -> torch.Tensor:
    """Model Breadcrumbs (arXiv:2312.06795): of every tensor drop the ``bottom`` share of smallest entries and the
    ``top`` share of largest, sum the rest.
    """
    masked = []
    for part in torch.split(tau, list(sizes), dim=1):
        n = part.shape[1]
        rank = part.abs().argsort(dim=1).argsort(dim=1)
        inside = (rank >= round(bottom * n)) & (rank < n - round(top * n))
        masked.append(part * inside)
    return torch.cat(masked, dim=1).sum(dim=0)


EXTREME = 1e-4
"""Share of the smallest and of the largest magnitudes that PCB's released code pulls in before it compares sizes."""


def pcb(tau: torch.Tensor, density: float) -> torch.Tensor:
    """PCB (arXiv:2410.02396): entries weighted by how large they are within a model and how well models agree on them.

    As in the released code: magnitudes are clamped to all but their extremes, S_i = exp(N norm(|tau_i|)^2) *
    tanh(tau_i * sum_j tau_j) with norm bringing a model's magnitudes to [0, 1], S is cut from below so that the highest
    ``density`` of it is left, brought to [0, 1] per model, and the result is sum(S tau) / sum(S).
    """
    magnitudes = clamped(tau.abs(), EXTREME, EXTREME)
    score = torch.exp(len(tau) * unit_range(magnitudes).square()) * torch.tanh(tau * tau.sum(dim=0))
    weight = unit_range(clamped(score, 1 - density, 0.0))
    total_weight = weight.sum(dim=0).clamp(min=1e-12)
    return (weight * tau.sign() * magnitudes).sum(dim=0) / total_weight


def clamped(rows: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Every row with its ``low`` share of smallest values, and its ``high`` share of largest, at the limits."""
    n = rows.shape[1]
    ordered = rows.sort(dim=1).values
    least = ordered[:, min(n - 1, int(n * low)), None]
    most = ordered[:, max(0, int(n * (1 - high) - 1)), None]
    return torch.minimum(torch.maximum(rows, least), torch.maximum(most, least))


def unit_range(rows: torch.Tensor) -> torch.Tensor:
    """Every row brought to [0, 1]; a constant row to zeros."""
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    return (rows - low) / (high - low).clamp(min=1e-30)
