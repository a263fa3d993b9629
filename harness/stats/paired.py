"""Two arms scored on the same items: tests, intervals, and the comparison a reader is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from harness.stats._checks import Floats, cluster_codes, fraction, is_binary, same_length, seeds_by_items, vector
from harness.stats.intervals import (
    RESAMPLES,
    Interval,
    mean_variance,
    percentile_ends,
    resampled_means,
    satterthwaite,
    seed_variance,
    wilson,
)
from harness.stats.power import POWER, mde_from_error, mde_of_flips


class Flips(NamedTuple):
    """Items two arms scored differently.

    Attributes:
        gained: wrong in B, right in A.
        lost: right in B, wrong in A ("negative flips" where B is the older model).
        n: items compared.
    """

    gained: int
    lost: int
    n: int


@dataclass(frozen=True)
class Significance:
    """A test's outcome: its statistic, its two-sided p value, the pairs or values behind it, and its name."""

    statistic: float
    p: float
    n: int
    method: str


def flips(a: ArrayLike, b: ArrayLike) -> Flips:
    """Count the items whose correctness differs.

    Args:
        a: 0/1 or bool, shape (items,).
        b: likewise, the reference arm.

    Raises:
        ValueError: values other than 0 and 1, or arms of different length.
    """
    first, second = vector(a, "a"), vector(b, "b")
    same_length(first, second, "a and b")
    if not is_binary(first, second):
        raise ValueError("flips and McNemar's test need right or wrong (0 or 1) for every item")
    return Flips(int((first > second).sum()), int((first < second).sum()), len(first))


def mcnemar(a: ArrayLike, b: ArrayLike) -> Significance:
    """Exact McNemar test: are the discordant items split evenly? (McNemar 1947, binomial form.)

    The statistic is the number gained; no discordant item at all gives p = 1.

    Raises:
        ValueError: as :func:`flips`.
    """
    found = flips(a, b)
    p = float(mcnemar_p(np.array(found.gained), np.array(found.lost)))
    return Significance(float(found.gained), p, found.n, "exact McNemar")


def mcnemar_p(gained: NDArray[np.int64], lost: NDArray[np.int64]) -> Floats:
    """Two-sided binomial p values of discordant counts, any shape: twice the smaller tail of an even split."""
    tail = scipy.stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    return np.asarray(np.minimum(1.0, 2 * tail), dtype=np.float64)


def paired_t(a: ArrayLike, b: ArrayLike) -> Significance:
    """Student's paired t test, e.g. on log p of the right answer, which sees drift long before accuracy does.

    Differences that are all zero give t = 0, p = 1; all equal and not zero, an infinite t and p = 0.

    Raises:
        ValueError: fewer than two pairs, different lengths, NaN.
    """
    first, second = vector(a, "a", at_least=2), vector(b, "b", at_least=2)
    same_length(first, second, "a and b")
    difference = first - second
    se = math.sqrt(mean_variance(difference, None)[0])
    t = _ratio(float(difference.mean()), se)
    return Significance(t, 2 * float(scipy.special.stdtr(len(difference) - 1, -abs(t))), len(difference), "paired t")


def _ratio(effect: float, se: float) -> float:
    if se > 0:
        return effect / se
    return 0.0 if effect == 0 else math.copysign(math.inf, effect)


@dataclass(frozen=True)
class Bootstrap:
    """A paired bootstrap: the interval of the effect and the two-sided p value."""

    interval: Interval
    p: float


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Resample items (or clusters of items), the same for both arms, and seeds of each arm; take percentiles.

    Swapping the arms mirrors the result, and with one seed each the order of the items does not matter.
    Below about ten seeds the percentiles understate the seeds' share: :func:`compare` has a t interval for that.

    Args:
        a: shape (items,) or (seeds, items).
        b: likewise, over the same items in the same order; its number of seeds may differ.
        clusters: a label an item, shape (items,).

    Raises:
        ValueError: fewer than two items or clusters, different items, NaN, or the arms differ by the same on
            every item, of which resampling can say nothing.
    """
    first, second, codes = _arms(a, b, clusters)
    difference = first.mean(axis=0) - second.mean(axis=0)
    one_sample = first.shape[0] == second.shape[0] == 1
    if one_sample and difference.min() == difference.max():
        raise ValueError(f"bootstrap: the arms differ by {difference[0]:g} on every item, nothing to resample")
    sign = _orientation(difference) or (-1.0 if first.tobytes() < second.tobytes() else 1.0)
    arms: tuple[Floats, ...] = (first, second) if sign > 0 else (second, first)
    if one_sample:
        arms = ((sign * difference if codes is not None else np.sort(sign * difference))[None, :],)
    means = resampled_means(arms, codes, resamples=resamples, seed=seed)
    draws = means[0] if one_sample else means[0] - means[1]
    if one_sample and codes is None and not _orientation(difference):
        draws = np.concatenate([draws, -draws])  # differences that mirror themselves have means that do
    low, high = percentile_ends(draws, level)
    if sign < 0:
        low, high = -high, -low
    # (count + 1) / (draws + 1): Davison & Hinkley 1997; a p of zero cannot be simulated
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    what = "seeds and items" if max(first.shape[0], second.shape[0]) > 1 else "items"
    if codes is not None:
        what = what.replace("items", "clusters")
    estimate = float(difference.mean())
    return Bootstrap(Interval(estimate, low, high, len(difference), f"paired bootstrap of {what}", level), p)


def _orientation(difference: Floats) -> float:
    """+1 or -1, the other for mirrored differences, in any order; 0 if they mirror themselves.

    A against B and B against A are resampled the same way round, so that their intervals mirror each other.
    """
    ordered = np.sort(difference)
    against_mirrored = ordered + ordered[::-1]  # sort(d) - sort(-d)
    unequal = np.flatnonzero(against_mirrored)
    return float(np.sign(against_mirrored[unequal[0]])) if len(unequal) else 0.0


def _arms(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None) -> tuple[Floats, Floats, NDArray[np.int64] | None]:
    first, second = seeds_by_items(a, "a", at_least=2), seeds_by_items(b, "b", at_least=2)
    same_length(first, second, "a and b")
    return first, second, cluster_codes(clusters, first.shape[1])


@dataclass(frozen=True)
class Comparison:
    """Result of the comparison of A with B.

    Attributes:
        effect: A less B, in the unit of the scores (a fraction for right or wrong).
        low: lower end of its interval.
        high: upper end.
        p: two-sided p value of "no difference".
        mde: smallest true effect this comparison would find 8 times in 10; None where nothing varies.
        n_pairs: items scored by both arms; None for an unpaired comparison.
        n_seeds: training seeds of A and of B.
        discordant: items scored differently (one seed each, right or wrong), else None.
        method: test and interval used.
        sentence: the same for a reader.
        level: coverage of the interval; 1 - level is the significance level.
        paired: False where only aggregates existed.
    """

    effect: float
    low: float
    high: float
    p: float
    mde: float | None
    n_pairs: int | None
    n_seeds: tuple[int, int]
    discordant: int | None
    method: str
    sentence: str
    level: float = 0.95
    paired: bool = True

    @property
    def told_apart(self) -> bool:
        """True where the p value and the interval both exclude "no difference"."""
        return self.p < 1 - self.level and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class _Found:
    """A comparison before it is put into words."""

    effect: float
    low: float
    high: float
    p: float
    mde: float | None
    method: str


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    names: tuple[str, str] = ("A", "B"),
    unit: str = "",
    level: float = 0.95,
    method: Literal["auto", "bootstrap"] = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two arms on the items both scored.

    Right-or-wrong scores of one seed each: exact McNemar test, with the adjusted Wald interval of Bonett & Price
    (2012). Anything else: a t test on the per-item differences, clustered where asked (Miller 2024), to whose
    variance each arm's seeds are added (two-way random effects, Satterthwaite degrees of freedom).
    ``bootstrap`` resamples seeds and items together instead.

    Args:
        a: shape (items,) or (seeds, items); 0/1, or any score such as log p of the right answer.
        b: likewise, over the same items in the same order.
        clusters: a label an item, shape (items,), where items share a passage or a template.
        names: how the sentence calls the arms.
        unit: unit in the sentence for scores that are not right or wrong.

    Raises:
        ValueError: fewer than two items or clusters, other items, NaN; for ``bootstrap``, one difference on all items.
    """
    first, second, codes = _arms(a, b, clusters)
    fraction(level, "level")
    seeds = (first.shape[0], second.shape[0])
    binary, single = is_binary(first, second), seeds == (1, 1)
    flipped = flips(first[0], second[0]) if binary and single else None
    found = _by_t(first, second, codes, level)
    if method == "bootstrap":
        drawn = paired_bootstrap(first, second, clusters=clusters, level=level, resamples=resamples, seed=seed)
        found = _by_bootstrap(drawn, found)
    elif flipped is not None and codes is None:
        found = _by_flips(flipped, found, level)
    elif binary and found.low == found.high:  # right or wrong, and the arms agree on every item
        found = _by_flips(_uniform_flips(found.effect, first.shape[1]), found, level)
    if binary:  # a difference of two shares; few seeds can make t's interval wider than that
        found = replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))
    n = first.shape[1]
    discordant = None if flipped is None else flipped.gained + flipped.lost
    facts = [_items_text(n, discordant), _seed_text(seeds)]
    return Comparison(
        effect=found.effect,
        low=found.low,
        high=found.high,
        p=found.p,
        mde=found.mde,
        n_pairs=n,
        n_seeds=seeds,
        discordant=discordant,
        method=found.method,
        sentence=_sentence(found, names, "points" if binary else unit, level, facts),
        level=level,
    )


def _by_bootstrap(drawn: Bootstrap, found: _Found) -> _Found:
    """The comparison with the interval and the p value of a bootstrap."""
    low, high, method = drawn.interval.low, drawn.interval.high, drawn.interval.method
    return replace(found, low=low, high=high, p=drawn.p, method=method)


def _by_t(first: Floats, second: Floats, codes: NDArray[np.int64] | None, level: float) -> _Found:
    """t test and interval on per-item differences, with the variance that seeds add."""
    difference = first.mean(axis=0) - second.mean(axis=0)
    variance, df_items = mean_variance(difference, codes)
    parts = [(variance, float(df_items))]
    parts += [(seed_variance(arm), arm.shape[0] - 1.0) for arm in (first, second) if arm.shape[0] > 1]
    se, df = satterthwaite(parts)
    effect = float(difference.mean())
    half = -float(scipy.special.stdtrit(df, (1 - level) / 2)) * se
    p = 2 * float(scipy.special.stdtr(df, -abs(_ratio(effect, se))))
    over = "items" if codes is None else "clusters of items"
    method = f"paired t over {over}" if len(parts) == 1 else f"paired t over seeds and {over}"
    mde = mde_from_error(se, df, alpha=1 - level) if se > 0 else None
    return _Found(effect, effect - half, effect + half, p, mde, method)


def _by_flips(found: Flips, by_t: _Found, level: float) -> _Found:
    """Exact McNemar test with the adjusted Wald interval (Bonett & Price 2012): a flip is added each way.

    The interval keeps its width where no item, or every item, is discordant.
    """
    n = found.n + 2
    gained, lost = (found.gained + 1) / n, (found.lost + 1) / n
    half = float(scipy.stats.norm.isf((1 - level) / 2)) * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
    centre = gained - lost
    effect = (found.gained - found.lost) / found.n
    p = float(mcnemar_p(np.array(found.gained), np.array(found.lost)))
    floor = mde_of_flips(found.n, alpha=1 - level)
    mde = floor if by_t.mde is None else max(floor, by_t.mde)
    # shrinking towards zero never moves the ends past the estimate, except by rounding and at +-1
    low, high = max(-1.0, min(centre - half, effect)), min(1.0, max(centre + half, effect))
    return _Found(effect, low, high, p, mde, "exact McNemar, adjusted Wald interval")


def _uniform_flips(effect: float, n: int) -> Flips:
    return Flips(round(n * max(effect, 0.0)), round(n * max(-effect, 0.0)), n)


def compare_rates(
    successes_a: int,
    n_a: int,
    successes_b: int,
    n_b: int,
    *,
    names: tuple[str, str] = ("A", "B"),
    level: float = 0.95,
) -> Comparison:
    """Compare two rates of which only the counts are known. Unpaired, and marked so: pairing would see more.

    Score test with pooled variance (Pearson's chi-squared), hybrid score interval (Newcombe 1998, method 10).

    Raises:
        ValueError: counts that are not possible.
    """
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    effect = a.estimate - b.estimate
    low = effect - math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = effect + math.hypot(a.high - a.estimate, b.estimate - b.low)
    pooled = (successes_a + successes_b) / (n_a + n_b)
    se_null = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    p = 2 * float(scipy.stats.norm.sf(abs(_ratio(effect, se_null))))
    # a success and a failure more for each arm (Agresti & Caffo 2000), so that rates of 0 or 1 have a spread as well
    likely = (successes_a + successes_b + 2) / (n_a + n_b + 4)
    mde = mde_from_error(math.sqrt(likely * (1 - likely) * (1 / n_a + 1 / n_b)), alpha=1 - level)
    found = _Found(effect, low, high, p, mde, "unpaired: score test, Newcombe interval")
    facts = [f"{n_a:,} and {n_b:,} items, unpaired because no samples were kept"]
    return Comparison(
        effect=effect,
        low=low,
        high=high,
        p=p,
        mde=mde,
        n_pairs=None,
        n_seeds=(1, 1),
        discordant=None,
        method=found.method,
        sentence=_sentence(found, names, "points", level, facts),
        level=level,
        paired=False,
    )


def _items_text(shared: int, discordant: int | None) -> str:
    return f"{shared:,} shared items" + ("" if discordant is None else f", {discordant:,} scored differently")


def _seed_text(seeds: tuple[int, int]) -> str:
    if seeds == (1, 1):
        return "one seed each, so another training run may differ by more"
    if 1 in seeds:
        return f"{seeds[0]} and {seeds[1]} seeds: one arm's training noise is unknown"
    return f"{seeds[0]} seeds each" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"


def _sentence(found: _Found, names: tuple[str, str], unit: str, level: float, facts: list[str]) -> str:
    """The comparison in words; scores that are fractions are given in points."""
    scale = 100.0 if unit == "points" else 1.0

    def told(value: float, spec: str = ".1f") -> str:
        return format(scale * value, spec if unit == "points" else spec.replace(".1f", ".3g"))

    tail = f" {unit}" if unit else ""
    evidence = (
        f"{100 * level:g} % interval {told(found.low, '+.1f')} to {told(found.high, '+.1f')}, "
        f"{_p_text(found.p)}, {'; '.join(facts)}"
    )
    seen = "" if found.mde is None else f"{told(found.mde)}{tail} ({100 * POWER:g} % power)"
    if found.p < 1 - level and not found.low <= 0 <= found.high:
        word = "above" if found.effect > 0 else "below"
        more = f" The smallest effect this comparison could have seen is {seen}." if seen else ""
        return f"{names[0]} is {told(abs(found.effect))}{tail} {word} {names[1]} ({evidence}).{more}"
    apart = f"{names[0]} and {names[1]} are not significantly different"
    if not seen:
        return f"{apart}: they score the same on every item ({evidence})."
    return (
        f"{apart}: the smallest effect this comparison could have seen is {seen}, "
        f"the measured one is {told(found.effect, '+.1f')}{tail} ({evidence})."
    )


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
