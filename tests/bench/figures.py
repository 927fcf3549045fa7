"""What a figure is, and the machine's own baseline to read it against."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `goal` is the issue's; `higher_is_better` says which side is good."""

    name: str
    value: float
    unit: str
    goal: float
    higher_is_better: bool
    note: str = ""

    def met(self) -> bool:
        """Whether the value is on the good side of the goal."""
        return self.value >= self.goal if self.higher_is_better else self.value <= self.goal


def best_of(repeats: int, action: Callable[[], float]) -> tuple[float, float]:
    """(best, median) of the seconds that `action` reports over `repeats` runs."""
    seconds = sorted(action() for _ in range(repeats))
    return seconds[0], seconds[len(seconds) // 2]


def bare_loop_s() -> float:
    """Seconds for 10 million rounds of an empty Python loop, the best of twenty short samples."""
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(500_000):
            pass
        best = min(best, time.perf_counter() - start)
    return best * 20


def bare_heap_s() -> float:
    """Seconds for a million heap pushes and pops of tuples, the engine's least possible work."""
    start = time.perf_counter()
    heap: list[tuple[int, int]] = []
    for i in range(1000):
        heappush(heap, (i * 7919 % 1000, i))
    for i in range(1_000_000):
        t, _ = heappop(heap)
        heappush(heap, (t + 1000, i))
    return time.perf_counter() - start
