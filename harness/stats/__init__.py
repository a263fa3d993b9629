"""Statistics of comparisons: intervals, paired tests, ranks, power, equivalence, change points.

Pure functions on arrays. They raise ValueError for empty input, arms of different length, and NaN.
"""

from harness.stats.calibration import Bin, Calibration, calibration_error
from harness.stats.changes import (
    RELATIVE_FLOORS,
    Alarm,
    ChangePoint,
    Noise,
    any_split,
    change_points,
    mann_whitney,
    noise,
    permutation_test,
    provisional_alarm,
)
from harness.stats.equivalence import Equivalence, tost, tost_from, tost_ratio
from harness.stats.families import (
    Pairwise,
    RankInterval,
    benjamini_hochberg,
    holm,
    pairwise,
    rank_intervals,
    significantly_better,
)
from harness.stats.intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    seeds_items_interval,
    standard_error,
    wilson,
)
from harness.stats.paired import (
    Bootstrap,
    Comparison,
    Flips,
    Significance,
    compare,
    compare_rates,
    flips,
    mcnemar,
    paired_bootstrap,
    paired_t,
)
from harness.stats.percentiles import TOO_FEW, Percentile, TooFew, fewest_for, percentile
from harness.stats.pooled import Pooled, false_alarm_rate, pooled_paired
from harness.stats.power import difference_variance, fewest_flips, mde, mde_from_error, mde_of_flips, sample_size
from harness.stats.rows import Effect, FittedRows, fit_rows, simultaneous_p

__all__ = [
    "RELATIVE_FLOORS",
    "TOO_FEW",
    "Alarm",
    "Bin",
    "Bootstrap",
    "Calibration",
    "ChangePoint",
    "Comparison",
    "Effect",
    "Equivalence",
    "FittedRows",
    "Flips",
    "Interval",
    "Noise",
    "Pairwise",
    "Percentile",
    "Pooled",
    "RankInterval",
    "Significance",
    "TooFew",
    "any_split",
    "benjamini_hochberg",
    "bootstrap_interval",
    "calibration_error",
    "change_points",
    "compare",
    "compare_rates",
    "difference_variance",
    "false_alarm_rate",
    "fewest_flips",
    "fewest_for",
    "fit_rows",
    "flips",
    "holm",
    "mann_whitney",
    "mcnemar",
    "mde",
    "mde_from_error",
    "mde_of_flips",
    "mean_interval",
    "noise",
    "paired_bootstrap",
    "paired_t",
    "pairwise",
    "percentile",
    "permutation_test",
    "pooled_paired",
    "provisional_alarm",
    "rank_intervals",
    "sample_size",
    "seeds_items_interval",
    "significantly_better",
    "simultaneous_p",
    "standard_error",
    "tost",
    "tost_from",
    "tost_ratio",
    "wilson",
]
