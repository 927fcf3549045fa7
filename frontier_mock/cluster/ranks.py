"""How a server with data-parallel ranks spreads requests over them."""

from collections.abc import Sequence

from frontier_mock.core.commands import Submit
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

RANK_POLICIES = ("vllm", "round_robin", "total_requests")
"""Allowed values of `WorkerSpec.rank_policy`."""


class Ranks:
    """The load balancer inside of one server.

    "vllm" is that of vLLM 0.33's internal data parallelism (specs/vllm.md section 7): the lowest
    requests in flight, and once some wait a penalty for a full cache; the scan's start rotates. It
    sees the present, where vLLM sees counts up to 100 ms old, corrected by its own. The others are
    SGLang 0.5.23's `--load-balance-method`.
    """

    def __init__(self, policy: str, ranks: Sequence[Worker]) -> None:
        if policy not in RANK_POLICIES:
            allowed = ", ".join(RANK_POLICIES)
            raise ValueError(f"unknown rank policy {policy!r}: one of {allowed}")
        self._policy = policy
        self._ranks = ranks
        self._count = 0

    def choose(self, submit: Submit, now_ns: SimTime) -> int:
        """Number of the rank that gets `submit`."""
        n = len(self._ranks)
        if submit.rank >= 0:
            return submit.rank % n
        start = self._count % n
        self._count += 1
        if self._policy == "round_robin":
            return start
        order = [(start + i) % n for i in range(n)]
        if self._policy == "vllm":
            return min(order, key=lambda i: self._score(i, now_ns))
        return min(order, key=self._requests)

    def _requests(self, index: int) -> int:
        rank = self._ranks[index]
        return rank.in_frontend + rank.scheduler.num_live

    def _score(self, index: int, now_ns: SimTime) -> float:
        score = float(self._requests(index))
        rank = self._ranks[index]
        waiting = rank.scheduler.num_waiting
        if waiting:
            rank.settle(now_ns)
            usage = 1 - rank.kv.num_free / rank.kv.num_blocks
            score += waiting * 6 * max(0.0, usage - 0.5)
        return score
