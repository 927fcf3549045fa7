"""In which order SGLang looks at its waiting requests: `--schedule-policy`.

The waiting queue is a list that a policy sorts in place, stably, at every pass that may admit; what
one pass did to the order, the next one starts from. Rules and thresholds are those of SGLang
0.5.23, managers/schedule_policy.py (SchedulePolicy).
"""

from collections.abc import Callable
from typing import Final

from frontier_mock.rng import draw_u64
from frontier_mock.serving.radix_cache import RadixCache, RadixNode
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec

POLICIES: Final = ("fcfs", "lpm", "dfs-weight", "lof", "random")
"""Values of --schedule-policy that are simulated. Priorities are a switch of their own."""

_CACHE_AWARE: Final = ("lpm", "dfs-weight")

_MATCHED_AT_MOST: Final = 128
"""With more requests waiting, lpm does not look at the cache and keeps the order as it is."""

_IN_BATCH_CHECK_TOKENS: Final = 32
"""Requests with at most this much cached are compared with the other waiting ones."""

_IN_BATCH_DEFER_TOKENS: Final = 32
"""Sharing this much uncached prefix with an earlier waiting request puts a request last."""

_REFRESH_PASSES: Final = 32
"""Policies that do not look at the cache mark waiting prefixes as accessed every so many passes."""

_UNBOUNDED: Final = 1 << 60


class WaitingOrder:
    """Sorts the waiting queue before a pass; `passes` counts the calls that found somebody."""

    __slots__ = ("_keys_of", "_kv", "_policy", "_refresh", "_sign", "_spec", "passes")

    def __init__(
        self,
        spec: SglangSchedulerSpec,
        kv: RadixCache,
        keys_of: Callable[[Sequence, int], bytes],
    ) -> None:
        """`keys_of(seq, pages)` gives the page keys of a sequence's prompt and output so far."""
        if spec.schedule_policy not in POLICIES:
            raise ValueError(
                f"unknown schedule policy {spec.schedule_policy!r}: one of {', '.join(POLICIES)}"
            )
        self._spec = spec
        self._kv = kv
        self._keys_of = keys_of
        # Without a tree there is nothing to be aware of.
        aware = spec.schedule_policy in _CACHE_AWARE
        self._policy = spec.schedule_policy if kv.enabled or not aware else "fcfs"
        self._sign = 1 if spec.schedule_low_priority_values_first else -1
        self._refresh = (
            self._policy not in _CACHE_AWARE
            and kv.enabled
            and spec.radix_eviction_policy == "lru"
            and not spec.classic
        )
        self.passes = 0

    def arrange(self, waiting: list[Sequence]) -> None:
        """Bring `waiting` into the policy's order."""
        if not waiting:
            return
        policy = self._policy
        ranked = self._spec.enable_priority_scheduling
        sign = self._sign
        if policy == "fcfs":
            if ranked:
                waiting.sort(key=lambda seq: (sign * seq.priority, seq.entered))
        elif policy == "lof":
            if ranked:
                waiting.sort(key=lambda seq: (sign * seq.priority, -seq.max_new))
            else:
                waiting.sort(key=lambda seq: -seq.max_new)
        elif policy == "random":
            self._shuffle(waiting)
        elif policy == "dfs-weight":
            matches, _ = self._match(waiting)
            nodes = [node for node, _ in matches]
            waiting[:] = [waiting[i] for i in _depth_first(self._kv.root, nodes)]
        elif len(waiting) <= _MATCHED_AT_MOST:
            matches, deferred = self._match(waiting)
            rank = {
                seq.rid: 1.0 if seq.rid in deferred else -float(min(tokens, seq.goal - 1))
                for seq, (_, tokens) in zip(waiting, matches, strict=True)
            }
            waiting.sort(key=lambda seq: rank[seq.rid])
        if self._refresh and self.passes % _REFRESH_PASSES == 0:
            for seq in reversed(waiting[:_MATCHED_AT_MOST]):
                self._match_one(seq)
        self.passes += 1

    def _match_one(self, seq: Sequence) -> tuple[RadixNode, int]:
        pages = seq.goal // self._spec.page_size
        node, matched = self._kv.match(self._keys_of(seq, pages), pages)
        return node, matched * self._spec.page_size

    def _match(self, waiting: list[Sequence]) -> tuple[list[tuple[RadixNode, int]], set[int]]:
        """(node, cached tokens) of each, and the rids of those that an earlier one will serve."""
        page = self._spec.page_size
        tree = RadixCache(_UNBOUNDED, page, True)
        matches: list[tuple[RadixNode, int]] = []
        deferred: set[int] = set()
        for seq in waiting:
            node, tokens = self._match_one(seq)
            matches.append((node, tokens))
            if tokens <= _IN_BATCH_CHECK_TOKENS:
                pages = seq.goal // page
                keys = self._keys_of(seq, pages)[: pages * 8]
                if tree.match(keys, pages)[1] * page >= _IN_BATCH_DEFER_TOKENS:
                    deferred.add(seq.rid)
                else:
                    tree.insert(keys)
        return matches, deferred

    def _shuffle(self, waiting: list[Sequence]) -> None:
        """A permutation drawn from the pass's own stream."""
        name = f"sglang/random/{self.passes}"
        seed = self._spec.random_seed
        waiting.sort(key=lambda seq: (draw_u64(seed, name, seq.rid), seq.rid))


def _depth_first(root: RadixNode, nodes: list[RadixNode]) -> list[int]:
    """Indices of `nodes` in depth-first order of the tree, heaviest subtree first.

    A subtree weighs as many requests as end in it; equals keep the order of the children. Requests
    that end in a node come after those that end below it.
    """
    ending: dict[RadixNode, list[int]] = {}
    weight: dict[RadixNode, int] = {}
    for index, node in enumerate(nodes):
        ending.setdefault(node, []).append(index)
        while True:
            weight[node] = weight.get(node, 0) + 1
            if node is root:
                break
            node = node.parent
    order: list[int] = []
    stack: list[tuple[RadixNode, bool]] = [(root, False)]
    while stack:
        node, below_done = stack.pop()
        if below_done:
            order.extend(ending.get(node, ()))
            continue
        children = [child for child in node.children.values() if child in weight]
        children.sort(key=lambda child: -weight[child])
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(children))
    return order
