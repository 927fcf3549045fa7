"""Which rank of several everybody waits for, and for how many steps it stays the same one."""

from collections.abc import Sequence
from typing import NamedTuple

from frontier_mock.cost.protocol import DecodeLine, RankBatch


class SlowestRank(NamedTuple):
    """Attention of the slowest rank now, its growth per step, and the steps that both hold for."""

    now_ns: float
    growth_ns: float
    steps: int


def slowest_rank(ranks: Sequence[tuple[RankBatch, DecodeLine]]) -> SlowestRank:
    """The upper envelope of the ranks' decode attention, from the present step to its first bend.

    `ranks` are those with decodes, at least one, each with the line that holds at its context. A
    rank's context grows by one token per sequence and step.
    """
    now = [line.base_ns + line.slope_ns * batch.kv_tokens for batch, line in ranks]
    growth = [line.slope_ns * batch.num_decodes for batch, line in ranks]
    leader = max(range(len(ranks)), key=lambda i: (now[i], growth[i]))
    steps = min((line.kv_max - batch.kv_tokens) // batch.num_decodes for batch, line in ranks) + 1
    for i in range(len(ranks)):
        gains = growth[i] - growth[leader]
        if gains > 0:
            steps = min(steps, int((now[leader] - now[i]) / gains) + 1)
    return SlowestRank(now[leader], growth[leader], max(steps, 1))
