"""Intruder dimensions: singular directions of a tuned matrix that its base does not have (arXiv:2410.21228)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy, and only for types
    import torch

LARGEST = 10
"""Number of leading singular vectors of the tuned matrix that are compared, the paper's k."""
ALIKE = 0.5
"""A vector whose largest absolute cosine with the base's singular vectors is below this is an intruder."""


def intruder_dimensions(before: torch.Tensor, after: torch.Tensor) -> int:
    """How many of the leading left singular vectors of ``after`` resemble no left singular vector of ``before``.

    Args:
        before: the base's weight, [outputs, inputs].
        after: the tuned one, of the same shape.

    Returns:
        0 to :data:`LARGEST`.
    """
    import torch

    known, sizes, _ = torch.linalg.svd(before.float(), full_matrices=False)
    # vectors whose singular value is zero but for rounding are an arbitrary basis of the null space: not the base's
    known = known[:, sizes > sizes[0] * torch.finfo(torch.float32).eps * max(before.shape)]
    now, _, _ = torch.linalg.svd(after.float(), full_matrices=False)
    cosines = (known.T @ now[:, :LARGEST]).abs()
    return int((cosines.amax(dim=0) < ALIKE).sum())
