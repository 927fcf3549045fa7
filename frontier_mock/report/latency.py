"""Latency statistics over values with multiplicities.

Percentiles are those of `numpy.percentile` (linear interpolation between the two nearest ranks),
which is what vLLM's and SGLang's own benchmark tools print, taken over the list in which each value
stands as often as its weight says. The list is never built: an hour of eight workers has tens of
millions of inter-token gaps but only as many distinct ones as there were steps.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99))
"""Percentiles of every latency in the result."""


class LatencyStats(TypedDict):
    """One latency in milliseconds, or None throughout where there is no sample."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


_COUNT_BITS = 20
"""Room for a weight beside a value in one word: batches are smaller, gaps shorter than 2.4 h."""


def _sorted_pairs(values: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Both sorted by value. Packed into one word they sort in a third of an argsort's time."""
    if not len(values):
        return values, counts
    if values.min() >= 0 and values.max() >> (63 - _COUNT_BITS) == 0 == counts.max() >> _COUNT_BITS:
        packed = (values << _COUNT_BITS) | counts
        packed.sort()
        return packed >> _COUNT_BITS, packed & ((1 << _COUNT_BITS) - 1)
    order = np.argsort(values)
    return values[order], counts[order]


COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
"""The statistics of a latency, in the order in which reports show them."""


def in_columns(stats: LatencyStats) -> tuple[float | None, ...]:
    """The values of `COLUMNS`."""
    return (
        stats["mean"],
        stats["p50"],
        stats["p90"],
        stats["p95"],
        stats["p99"],
        stats["max"],
    )


class Sample:
    """Values in nanoseconds with how often each occurs, sorted."""

    __slots__ = ("_ranks", "values_ns", "weights")

    def __init__(self, values_ns: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Without `weights` each value counts once; values of weight 0 are left out."""
        values = np.asarray(values_ns, np.int64)
        if weights is None:
            self.values_ns: Ints = np.sort(values)
            self.weights: Ints = np.ones(len(values), np.int64)
        else:
            counts = np.asarray(weights, np.int64)
            some = counts > 0
            self.values_ns, self.weights = _sorted_pairs(values[some], counts[some])
        self._ranks: Ints = np.cumsum(self.weights)

    @property
    def count(self) -> int:
        """How many values there are, each counted as often as it occurs."""
        return int(self._ranks[-1]) if len(self._ranks) else 0

    def quantiles_ns(self, quantiles: Sequence[float]) -> Floats:
        """The `quantiles` (0 to 1) of a sample that is not empty."""
        position = np.asarray(quantiles, np.float64) * (self.count - 1)
        below = np.floor(position).astype(np.int64)
        above = np.ceil(position).astype(np.int64)
        low = self.values_ns[np.searchsorted(self._ranks, below, side="right")]
        high = self.values_ns[np.searchsorted(self._ranks, above, side="right")]
        exact: Floats = low + (high - low) * (position - below)
        return exact

    def stats_ms(self) -> LatencyStats:
        """Mean, percentiles and maximum in milliseconds."""
        if not self.count:
            return LatencyStats(mean=None, p50=None, p90=None, p95=None, p99=None, max=None)
        total = float(np.dot(self.values_ns.astype(np.float64), self.weights))
        p50, p90, p95, p99 = (self.quantiles_ns([q for _, q in QUANTILES]) / 1e6).tolist()
        return LatencyStats(
            mean=total / self.count / 1e6,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(self.values_ns[-1]) / 1e6,
        )
