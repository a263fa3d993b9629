"""BA-LoRA's penalties (arXiv:2408.04556): consistency C, diversity D, spectrum S."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 3
"""Singular values that should carry most of a batch of answers."""


def classifying(z: Tensor, z0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, D and S of a classifier's logits.

    C is the mean squared difference of the normalised logits, D the sum of the squared covariances between classes
    over the batch, divided by their number.

    Args:
        z: of the tuned model, [batch, classes].
        z0: of the original one.
    """
    unit, unit0 = (torch.nn.functional.normalize(values, dim=-1) for values in (z, z0))
    centred = z - z.mean(0)
    covariance = centred.T @ centred / max(1, len(z) - 1)
    between = covariance - torch.diag(covariance.diagonal())
    return (unit - unit0).square().mean(), between.square().sum() / z.shape[-1], spectrum(z)


def generating(z: Tensor, z0: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, D and S of a language model's logits.

    C is KL(p0 || p), a sum over positions and a mean over sequences, as its weight in the released code expects
    (``batchmean`` of [batch, positions, words]); D is the negative entropy of p, a mean over positions; S is that of
    whole sequences, one a row, in which positions that are not kept are zero.

    Args:
        z: of the tuned model, [batch, positions, words].
        z0: of the original one.
        kept: which positions count, bool, [batch, positions].
    """
    log_p, log_p0 = torch.log_softmax(z[kept], -1), torch.log_softmax(z0[kept], -1)
    consistency = (log_p0.exp() * (log_p0 - log_p)).sum() / len(z)
    diversity = (log_p.exp() * log_p).sum(-1).mean()
    return consistency, diversity, spectrum((z * kept[..., None]).flatten(1))


def spectrum(rows: Tensor) -> Tensor:
    """The negative share of the largest singular values in the sum of all: of :data:`LARGEST`, or of fewer if there are
    not more than that, because the share of all of them is always one.

    From the Gram matrix of the shorter side: sequences times words are too many for a decomposition.
    """
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    squares = torch.linalg.eigvalsh(gram).flip(0)
    values = squares.clamp(min=float(squares.detach().max()) * 1e-10 + 1e-30).sqrt()
    share: Tensor = values[: max(1, min(LARGEST, len(values) - 1))].sum() / values.sum()
    return -share
