"""What a worker shows of itself."""

from typing import NamedTuple

from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.simtime import SimTime


class Gauges(NamedTuple):
    """A worker's state at one instant, as its /metrics would show it."""

    running: int
    waiting: int
    kv_usage: float
    num_blocks: int
    free_blocks: int
    query_tokens: int
    hit_tokens: int
    preemptions: int
    steps: int
    busy_ns: SimTime
    tiers: tuple[TierStats, ...] = ()
