"""Lateness: how far behind virtual time the bytes left, measured and never fed back."""

from bisect import bisect_left

from frontier_mock.simtime import NS_PER_MS, NS_PER_S, SimTime

BUCKETS_S = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 5.0),
)
"""Upper bounds of the drift histogram, in virtual seconds."""


class Drift:
    """Histogram of the virtual time between an event and its delivery."""

    __slots__ = ("_scale", "counts", "late", "late_ns", "max_ns", "sum_ns", "total")

    def __init__(self, *, late_ms: float, scale: float) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0
        self.sum_ns = 0
        self.max_ns = 0
        self.late = 0
        self.late_ns = int(late_ms * NS_PER_MS * scale)
        self._scale = scale

    def observe(self, lateness_ns: SimTime) -> None:
        """One delivery left `lateness_ns` of virtual time after its event."""
        self.counts[bisect_left(BUCKETS_S, lateness_ns / NS_PER_S)] += 1
        self.total += 1
        self.sum_ns += lateness_ns
        if lateness_ns > self.max_ns:
            self.max_ns = lateness_ns
        if lateness_ns > self.late_ns:
            self.late += 1

    def quantile_s(self, q: float) -> float:
        """Upper bound, in virtual seconds, of the bucket that holds quantile `q`; 0 if empty."""
        rank = q * self.total
        seen = 0
        for bound, count in zip(BUCKETS_S, self.counts, strict=False):
            seen += count
            if seen >= rank and seen > 0:
                return bound
        return self.max_ns / NS_PER_S

    def verdict(self) -> str:
        """One line for the log at exit."""
        if self.total == 0:
            return "drift: no step was delivered"
        share = 100.0 * self.late / self.total
        limit_ms = self.late_ns / NS_PER_MS / self._scale
        word = "kept up" if share < 1.0 else "fell behind"
        return (
            f"drift: {word}; {self.total} deliveries, p50 <= {self.quantile_s(0.5):g} s, "
            f"p99 <= {self.quantile_s(0.99):g} s, max {self.max_ns / NS_PER_S:.4f} s virtual; "
            f"{self.late} ({share:.1f} %) more than {limit_ms:g} ms real late"
        )
