"""An engine made slower on purpose: every step takes longer by the same time.

SGLang 0.5.23's `/slow_down`, which sleeps in every forward pass; a fault to try routers with.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from frontier_mock.cost.protocol import (
    Chunk,
    DecodeLine,
    DraftedCost,
    LockstepCost,
    LockstepRun,
    RankBatch,
    StepCost,
)
from frontier_mock.simtime import SimTime

CostT = TypeVar("CostT", bound=StepCost)


def slowed(cost: CostT, extra_ns: SimTime) -> CostT:
    """The prices of `cost` plus `extra_ns` for each step; itself for 0."""
    return cast(CostT, _Slowed(cost, extra_ns)) if extra_ns else cost


class _Slowed:
    """The prices of another cost model plus `extra_ns` for each step."""

    def __init__(self, cost: StepCost, extra_ns: SimTime) -> None:
        self._cost = cost
        self._extra_ns = extra_ns

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """See `StepCost`."""
        line = self._cost.decode(num_seqs, kv_tokens)
        return line._replace(base_ns=line.base_ns + self._extra_ns)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """See `StepCost`."""
        return self._cost.mixed(num_decodes, decode_kv_tokens, chunks) + self._extra_ns

    def drafted(self, batch: RankBatch) -> int:
        """See `DraftedCost`, which the other cost model must be."""
        return cast(DraftedCost, self._cost).drafted(batch) + self._extra_ns

    def drafted_run(
        self, seqs: NDArray[np.int64], tokens: NDArray[np.int64], kv_tokens: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """See `DraftedCost`, which the other cost model must be."""
        return cast(DraftedCost, self._cost).drafted_run(seqs, tokens, kv_tokens) + self._extra_ns

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        """See `LockstepCost`, which the other cost model must be."""
        return cast(LockstepCost, self._cost).lockstep(batches) + self._extra_ns

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        """See `LockstepCost`, which the other cost model must be."""
        run = cast(LockstepCost, self._cost).lockstep_run(batches)
        return run._replace(first_ns=run.first_ns + self._extra_ns)
