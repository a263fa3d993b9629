"""The losses of the objectives as pure functions of tensors. Every one is compared with TRL's in the tests.

Names: B pairs or rows, T tokens of a row, V vocabulary, N positions that carry a label. ``policy`` is the model that
trains, ``reference`` the one it is compared with. Log-probabilities are in nat and summed over a completion's tokens
unless a docstring says otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

IGNORED = -100
"""Label of a position that carries no loss (PyTorch's convention)."""

Direction = Literal["forward", "reverse"]


def labelled_logits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict a labelled token, and those tokens.

    Args:
        logits: [B, T', V] with T' >= T: a soft prompt adds virtual positions in front, which are dropped.
        labels: [B, T], :data:`IGNORED` where there is no loss.

    Returns:
        logits [N, V] in float32 and labels [N], row by row.
    """
    width = labels.shape[1]
    wanted = labels[:, 1:]
    mask = wanted != IGNORED
    return logits[:, -width:][:, :-1][mask].float(), wanted[mask]


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of every labelled token, [B, T-1]; 0 where there is no label. Arguments as above."""
    width = labels.shape[1]
    wanted = labels[:, 1:]
    mask = wanted != IGNORED
    logp = logits[:, -width:][:, :-1].float().log_softmax(-1)
    taken = logp.gather(-1, wanted.masked_fill(~mask, 0)[..., None])[..., 0]
    return taken * mask


def sequence_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each row's labelled tokens, summed, [B]; and how many they are, [B]."""
    lengths = (labels[:, 1:] != IGNORED).sum(-1)
    return token_log_probs(logits, labels).sum(-1), lengths


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the labelled tokens of weight x negative log-likelihood. ``weights`` [N]; all 1 gives the plain loss.

    The divisor is the number of tokens and not the sum of the weights, so that a weight of 0 takes a token out of the
    sum without making the others count for more.
    """
    predicted, wanted = labelled_logits(logits, labels)
    nll = functional.cross_entropy(predicted, wanted, reduction="none")
    return (weights.to(nll.dtype) * nll).sum() / max(1, nll.numel())


def dpo(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Direct preference optimization, [B] (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m), where m is the log ratio of the chosen completion less that
    of the rejected one, and e the share of pairs that are taken to be labelled the wrong way round.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    right, wrong = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    chosen_lengths: torch.Tensor,
    rejected_lengths: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Identity preference optimization, [B] (Azar et al. 2023, arXiv:2310.12036, equation 17, with tau = ``beta``).

    (m - 1 / (2 beta))^2. m is taken per token: each log ratio is divided by its completion's length. The paper's
    equation has sums, which make the target depend on the length; TRL states that its authors meant the mean.
    """
    chosen = (policy_chosen - reference_chosen) / chosen_lengths.clamp(min=1)
    rejected = (policy_rejected - reference_rejected) / rejected_lengths.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)).square()


def orpo_ratio(chosen_mean: torch.Tensor, rejected_mean: torch.Tensor) -> torch.Tensor:
    """Odds-ratio term of ORPO, [B], without its weight (Hong et al. 2024, arXiv:2403.07691, equations 4 to 7).

    -log sigmoid(log odds(chosen) - log odds(rejected)) with odds(y) = p / (1 - p).

    Args:
        chosen_mean: mean log-probability per token of the chosen completions; below 0.
        rejected_mean: the same of the rejected ones.
    """
    log_odds = (chosen_mean - rejected_mean) - (_log1mexp(chosen_mean) - _log1mexp(rejected_mean))
    return -functional.logsigmoid(log_odds)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation: by expm1 near 0, by log1p below -log 2."""
    near = x > -0.6931471805599453
    # each branch gets an argument that is safe for it, for its gradient is computed even where it is not taken
    small = torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -1.0))))
    large = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x)))
    return torch.where(near, small, large)


def simpo(chosen_mean: torch.Tensor, rejected_mean: torch.Tensor, *, beta: float, gamma: float) -> torch.Tensor:
    """SimPO, [B] (Meng et al. 2024, arXiv:2405.14734, equation 6): -log sigmoid(beta (chosen - rejected) - gamma).

    Both are mean log-probabilities per token; there is no reference. ``gamma`` is the margin itself, in the unit of
    beta x log-probability.
    """
    return -functional.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def kto(
    policy: torch.Tensor,
    reference: torch.Tensor,
    good: torch.Tensor,
    mismatched_policy: torch.Tensor,
    mismatched_reference: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """KTO, [B] (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8), less the constant lambda of the paper.

    weight x (1 - sigmoid(beta (r - z))) for desirable completions, weight x (1 - sigmoid(beta (z - r))) for the
    others. r is a completion's log ratio; z estimates KL(policy || reference) by the mean log ratio over completions
    that belong to other prompts, not below 0 and without a gradient.

    Args:
        good: [B], whether each completion is desirable.
        mismatched_policy: log-probabilities of other prompts' completions, [B].
        mismatched_reference: the same under the reference.
    """
    z = (mismatched_policy - mismatched_reference).mean().clamp(min=0).detach()
    ratio = policy - reference
    desirable = desirable_weight * (1 - torch.sigmoid(beta * (ratio - z)))
    undesirable = undesirable_weight * (1 - torch.sigmoid(beta * (z - ratio)))
    return torch.where(good.bool(), desirable, undesirable)


def top_log_probs(logits: torch.Tensor, k: int, *, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most likely tokens of each position, [N, k], and their log-probabilities at ``temperature``, [N, k].

    ``k`` above the vocabulary gives all of it.
    """
    logp = (logits.float() / temperature).log_softmax(-1)
    values, indices = logp.topk(min(k, logp.shape[-1]), dim=-1)
    return indices, values


def divergence(
    student_logits: torch.Tensor,
    teacher_indices: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    *,
    temperature: float = 1.0,
    direction: Direction = "forward",
) -> torch.Tensor:
    """Kullback-Leibler divergence between teacher and student, [N], in nat.

    Over k + 1 outcomes: the teacher's k most likely tokens, and any other token. With k = V there is no other token
    and the divergence is the whole one; with fewer it is a lower bound of it, since merging outcomes never raises a
    divergence.

    Args:
        student_logits: [N, V].
        teacher_indices: [N, k] token ids, as :func:`top_log_probs` gives them.
        teacher_log_probs: [N, k], at the same temperature.
        direction: ``forward`` is KL(teacher || student), ``reverse`` is KL(student || teacher).
    """
    whole = (student_logits.float() / temperature).log_softmax(-1)
    student = whole.gather(-1, teacher_indices)
    teacher = teacher_log_probs
    if teacher_indices.shape[-1] < student_logits.shape[-1]:
        others = whole.scatter(-1, teacher_indices, float("-inf")).logsumexp(-1, keepdim=True)
        student = torch.cat([student, others], -1)
        teacher = torch.cat([teacher, _rest(teacher)], -1)
    if direction == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    return (student.exp() * (student - teacher)).sum(-1)


SMALLEST_REST = 1e-7
"""Probability of "any other token" at least: float32 cannot tell less from rounding, and its log must be finite."""


def _rest(log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probability of all outcomes that are not listed, [N, 1]."""
    return (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST).log()
