"""Power of a comparison: minimum detectable effects, and the items that a wanted effect needs.

Everything rests on one relation, Miller 2024 (arXiv:2411.00640):
n = (z_{alpha/2} + z_beta)^2 * variance / effect^2, where ``variance`` is that of the per-item difference.
With K answers drawn for each item it is omega^2 + sigma_A^2 / K_A + sigma_B^2 / K_B in that paper's symbols.
"""

from __future__ import annotations

import math

import scipy

from harness.stats._checks import fraction

ALPHA = 0.05
POWER = 0.8


def difference_variance(rate_a: float, rate_b: float | None = None, *, correlation: float = 0.0) -> float:
    """Variance of the per-item difference of two 0/1 scores.

    Args:
        rate_a: expected share of right answers of one arm, in [0, 1].
        rate_b: of the other; the same where None.
        correlation: between the two arms' scores on one item; 0 is the unpaired comparison.

    Raises:
        ValueError: a rate outside [0, 1], or a correlation outside [-1, 1].
    """
    rate_b = rate_a if rate_b is None else rate_b
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1 and -1 <= correlation <= 1):
        raise ValueError(f"rates must be in [0, 1] and the correlation in [-1, 1]: {rate_a}, {rate_b}, {correlation}")
    var_a, var_b = rate_a * (1 - rate_a), rate_b * (1 - rate_b)
    return var_a + var_b - 2 * correlation * math.sqrt(var_a * var_b)


def mde(n: int, variance: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Minimum detectable effect: the smallest true difference found with probability ``power``.

    Args:
        n: items, each scored by both arms.
        variance: of the per-item difference, e.g. from :func:`difference_variance`.
        alpha: two-sided significance level.

    Raises:
        ValueError: ``n`` < 1 or a negative variance.
    """
    if n < 1 or variance < 0:
        raise ValueError(f"mde: {n} item(s) with variance {variance} is not possible")
    return mde_from_error(math.sqrt(variance / n), alpha=alpha, power=power)


def mde_from_error(se: float, df: float = math.inf, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Minimum detectable effect of a comparison whose effect has standard error ``se`` on ``df`` degrees of freedom."""
    tail = scipy.special.stdtrit(df, fraction(alpha, "alpha") / 2) + scipy.special.stdtrit(
        df, 1 - fraction(power, "power")
    )
    return -float(tail) * se


def sample_size(effect: float, variance: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Items needed to find a true difference of ``effect`` with probability ``power``.

    Raises:
        ValueError: an effect of zero, or a variance that is not positive.
    """
    if effect == 0 or variance <= 0:
        raise ValueError(f"sample_size: effect {effect} with variance {variance} has no answer")
    return math.ceil((mde_from_error(1.0, alpha=alpha, power=power) / effect) ** 2 * variance)


def fewest_flips(alpha: float = ALPHA) -> int:
    """Discordant items, all one way, below which an exact McNemar test cannot reach ``alpha``: six at 5 %."""
    return math.ceil(1 - math.log2(fraction(alpha, "alpha")))


def mde_of_flips(n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest effect an exact McNemar test on ``n`` items can find, however well the two arms agree.

    One-sided flips arrive as a Poisson count; its mean must be high enough for at least :func:`fewest_flips`
    of them to be seen with probability ``power``.
    """
    needed = float(scipy.stats.chi2.ppf(fraction(power, "power"), 2 * fewest_flips(alpha))) / 2
    return min(1.0, needed / n)
