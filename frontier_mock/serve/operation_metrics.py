"""How long the operations of the control plane take, in virtual time, as /metrics shows it.

Names and buckets are vLLM 0.33's (`rl/online/metrics.py`, `serve/dev/sleep/metrics.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from frontier_mock.simtime import SimTime, to_seconds
from frontier_mock.wire.prometheus import Gauge, Histogram

_BUCKETS = (0.01, 0.1, 1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class OperationFamily:
    """One kind of operation: durations, and how many are under way, by name."""

    def __init__(self, prefix: str, what: str, created_s: float) -> None:
        self._prefix = prefix
        self._what = what
        self._created_s = created_s
        self._durations: dict[str, Histogram] = {}
        self._in_flight: dict[str, int] = {}

    @contextmanager
    def during(self, operation: str, now_ns: Callable[[], SimTime]) -> Iterator[None]:
        """Count what happens meanwhile as one operation."""
        began_ns = now_ns()
        self._in_flight[operation] = self._in_flight.get(operation, 0) + 1
        try:
            yield
        finally:
            self._in_flight[operation] -= 1
            found = self._durations.get(operation)
            if found is None:
                found = self._durations[operation] = Histogram(
                    f"{self._prefix}_duration_seconds",
                    f"Duration of one {self._what} operation.",
                    {"operation": operation},
                    _BUCKETS,
                    self._created_s,
                )
            found.observe(to_seconds(now_ns() - began_ns))

    def render(self) -> str:
        """Prometheus text; nothing before the first operation."""
        if not self._in_flight:
            return ""
        parts = [
            histogram.render(bare=i > 0) for i, histogram in enumerate(self._durations.values())
        ]
        gauge = Gauge(
            f"{self._prefix}s_in_flight",
            f"{self._what.capitalize()} operations currently awaited.",
            [{"operation": operation} for operation in self._in_flight],
        )
        gauge.values[:] = [float(count) for count in self._in_flight.values()]
        return "".join(parts) + gauge.render()


class OperationMetrics:
    """The two kinds that vLLM counts."""

    def __init__(self, created_s: float) -> None:
        name = "vllm:rl_weight_update_operation"
        self.weights = OperationFamily(name, "weight-transfer", created_s)
        self.sleep = OperationFamily("vllm:sleep_mode_operation", "sleep-mode", created_s)

    def render(self) -> str:
        """Prometheus text."""
        return self.weights.render() + self.sleep.render()
