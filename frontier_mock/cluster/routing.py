"""The offline stand-in for a router: policies of the field, seen at arrival time."""

from collections.abc import Sequence

from frontier_mock.core.prompt import Prompt
from frontier_mock.rng import draw_u64
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

POLICIES = ("round_robin", "random", "least_loaded", "power_of_two", "prefix_aware")
"""Allowed values of the scenario key `cluster.router.policy`."""

_IMBALANCE = 4
"""`prefix_aware` follows the cache unless the load gap exceeds this many sequences per worker."""


class Router:
    """Chooses a server for a prompt. `load` is what a router can know: sequences not yet ended.

    A server is its engines, more than one if it has data-parallel ranks.
    """

    def __init__(self, policy: str, seed: int, servers: Sequence[Sequence[Worker]]) -> None:
        if policy not in POLICIES:
            raise ValueError(f"unknown router policy {policy!r}: one of {', '.join(POLICIES)}")
        self._policy = policy
        self._seed = seed
        self._servers = servers
        self._count = 0

    def use(self, servers: Sequence[Sequence[Worker]]) -> None:
        """From now on choose among these."""
        self._servers = servers

    def choose(self, prompt: Prompt, now_ns: SimTime) -> int:
        """Number of the server that gets `prompt`, which arrives at `now_ns`."""
        count = self._count
        self._count = count + 1
        n = len(self._servers)
        if n == 1:
            return 0
        if self._policy == "round_robin":
            return count % n
        if self._policy == "random":
            return draw_u64(self._seed, "router/random", count) % n
        if self._policy == "power_of_two":
            first = draw_u64(self._seed, "router/first", count) % n
            second = (first + 1 + draw_u64(self._seed, "router/second", count) % (n - 1)) % n
            return min(first, second, key=lambda i: (self._load(i), i))
        if self._policy == "least_loaded":
            return min(range(n), key=lambda i: (self._load(i), i))
        return self._prefix_aware(prompt, now_ns)

    def _load(self, index: int) -> int:
        return sum(
            rank.in_frontend + rank.expected + rank.scheduler.num_live
            for rank in self._servers[index]
        )

    def _prefix_aware(self, prompt: Prompt, now_ns: SimTime) -> int:
        """Longest cached prefix first, least loaded where the gap is large or nothing is cached."""
        n = len(self._servers)
        loads = [self._load(i) for i in range(n)]
        if max(loads) - min(loads) > _IMBALANCE * n:
            return min(range(n), key=lambda i: (loads[i], i))
        hits = cached_by_server(self._servers, prompt, now_ns)
        return min(range(n), key=lambda i: (-hits[i], loads[i], i))


def cached_by_server(
    servers: Sequence[Sequence[Worker]], prompt: Prompt, now_ns: SimTime
) -> list[int]:
    """How much of `prompt` each server would find cached at `now_ns`, the present, in tokens.

    Of a server with several ranks, the one that would find most.
    """
    keys_by_block: dict[int, bytes] = {}
    hits = []
    for server in servers:
        most = 0
        for worker in server:
            worker.settle(now_ns)
            block = worker.spec.block_size
            keys = keys_by_block.get(block)
            if keys is None:
                keys = keys_by_block[block] = prompt.block_keys(block)
            found = worker.kv.lookup(keys, (prompt.num_tokens - 1) // block).num_blocks * block
            most = max(most, found)
        hits.append(most)
    return hits
