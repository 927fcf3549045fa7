"""SGLang's radix tree with a host tier and storage behind it (`--hicache-storage-backend`).

Theory of operation
1. What has been copied to the host is written to storage next, unless it is there already.
2. A request that enters the queue asks storage for what follows its prefix on GPU and host, if that
   is `threshold_tokens` at least, its prefix is on the host, and no more than half of the host
   belongs to such fetches. What is found there comes to the host, which makes room for it.
3. A request whose turn it is may have to wait for its fetch: `best_effort` takes what has come,
   `wait_complete` waits for all, `timeout` until a deadline that begins when it first has to wait.
   Others pass it. What has come is part of the tree then, on the host only, and goes on as such.

Simplified: a lookup takes no time of its own; what is found too little, or finds no room, is not
asked for again; a page that is being written to storage may leave the host.

Source: SGLang 0.5.23, mem_cache/unified_radix_cache.py, managers/scheduler.py.
"""

from heapq import heappush
from typing import NamedTuple

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.radix_cache import RadixNode
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.chunks import path_names
from frontier_mock.serving.tiers.host_radix import HostRadixCache
from frontier_mock.serving.tiers.lane import Lane
from frontier_mock.serving.tiers.specs import HostTierSpec, StorageSpec
from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.serving.tiers.storage import Prefetch, ReadLane, StoragePool
from frontier_mock.simtime import SimTime, from_seconds


class Span(NamedTuple):
    """Tokens `first` to `last` of a prompt."""

    first: int
    last: int


class StoredRadixCache(HostRadixCache):
    """See the theory of operation at the top of this module.

    `pool` may be replaced by one that engines share before anything has happened.
    """

    __slots__ = (
        "_abandoned",
        "_asked_pages",
        "_fetched",
        "_fetches",
        "_fetching",
        "_names",
        "_pins",
        "_read_lane",
        "_seen_ns",
        "_write_lane",
        "asked_tokens",
        "attached",
        "fetched_pages",
        "found_pages",
        "lost",
        "num_fetches",
        "num_writes",
        "policy",
        "pool",
        "storage",
        "storage_hit_tokens",
        "unwanted_pages",
        "written_pages",
    )

    def __init__(self, num_blocks: int, block_tokens: int, policy: str, tier: HostTierSpec) -> None:
        super().__init__(num_blocks, block_tokens, policy, tier)
        if tier.storage is None:
            raise ValueError("a host tier without storage is a HostRadixCache")
        self.storage: StorageSpec = tier.storage
        self.pool = StoragePool()
        self.attached = True
        self.policy = tier.storage.policy
        self._read_lane = ReadLane(tier.storage.load, tier.page_bytes)
        self._write_lane = Lane(tier.storage.store)
        self._fetches: dict[int, Prefetch] = {}
        self._abandoned: list[Prefetch] = []
        self._fetched: dict[int, Span] = {}
        self._pins: dict[RadixNode, int] = {}
        self._names: list[list[bytes]] = []
        self._asked_pages = 0
        self._fetching = 0
        self._seen_ns: SimTime = 0
        self.asked_tokens = 0
        self.found_pages = 0
        self.lost = {"below_threshold": 0, "host_capacity": 0, "deadline": 0, "storage_transfer": 0}
        self.unwanted_pages = 0
        self.fetched_pages = 0
        self.written_pages = 0
        self.num_fetches = 0
        self.num_writes = 0
        self.storage_hit_tokens = 0

    @property
    def fetching(self) -> bool:
        """Whether room on the host is kept for what is fetched."""
        return self._fetching > 0

    # To storage ------------------------------------------------------------------------------

    def begin_copies(self, t_ns: SimTime) -> None:
        """As `HostRadixCache.begin_copies`; remembers what goes on to storage."""
        pending = self._pending
        if pending:
            self._names.append([name for node in pending for name in self._names_of(node)])
        super().begin_copies(t_ns)

    def _names_of(self, node: RadixNode) -> list[bytes]:
        keys = b"".join([above.keys for above in self._path(node)])
        last = len(keys) // KEY_BYTES
        return path_names(keys, last, last - node.count)

    def end_copies(self, t_ns: SimTime) -> None:
        """As `HostRadixCache.end_copies`; what is on the host now is written to storage."""
        before = len(self._copies)
        super().end_copies(t_ns)
        for _ in range(before - len(self._copies)):
            names = self.pool.missing(self._names.pop(0))
            if names and self.attached:
                num_bytes = len(names) * self.page_bytes
                self.pool.put(names, self._write_lane.book(t_ns, num_bytes))
                self.num_writes += 1
                self.written_pages += len(names)

    # From storage ----------------------------------------------------------------------------

    def arrives(self, seq: Sequence, keys: bytes, limit: int, t_ns: SimTime) -> None:
        """`seq` enters the queue: fetch what storage has of its first `limit` pages."""
        _, pages, below = self.match_all(keys, limit)
        first = pages + below.pages
        asked = limit - first
        anchor, spec = below.node, self.storage
        if asked * self.block_tokens < spec.threshold_tokens or not self.attached:
            return
        if anchor is not self.root and anchor not in self._in_host:
            return
        if self._asked_pages >= self._tier.num_pages // 2:
            return
        if seq.cached_tokens < 0:
            self.asked_tokens += asked * self.block_tokens
        found = self.pool.reach(path_names(keys, limit, first), t_ns)
        self.found_pages += found
        if found * self.block_tokens < spec.threshold_tokens:
            self.lost["below_threshold"] += found
            return
        self._pin(anchor)
        short = found - (self._tier.num_pages - self.host_used)
        if short > 0:
            self._evict_host(short)
        room = min(found, self._tier.num_pages - self.host_used)
        if room * self.block_tokens < spec.threshold_tokens:
            self.lost["host_capacity"] += found
            self._unpin(anchor)
            return
        self.lost["host_capacity"] += found - room
        self.host_used += room
        self._fetching += room
        self._asked_pages += asked
        wanted = keys[first * KEY_BYTES : (first + room) * KEY_BYTES]
        fetch = Prefetch(anchor, first, wanted, room, asked, t_ns)
        self._read_lane.book(fetch, t_ns)
        self.num_fetches += 1
        self._fetches[seq.rid] = fetch
        heappush(self.alarms, (fetch.end_ns, self.owner))

    def ready(self, seq: Sequence, t_ns: SimTime) -> bool:
        """Whether `seq` may be admitted at `t_ns`; if so, what has come for it is on the host."""
        fetch = self._fetches.get(seq.rid)
        if fetch is None:
            return True
        spec = self.storage
        if t_ns < fetch.end_ns:
            if self.policy == "wait_complete":
                return False
            if self.policy == "timeout":
                if fetch.deadline_ns < 0:
                    wait_s = spec.timeout_base_s + fetch.requested * spec.timeout_per_page_s
                    fetch.deadline_ns = t_ns + from_seconds(wait_s)
                    heappush(self.alarms, (fetch.deadline_ns, self.owner))
                if t_ns < fetch.deadline_ns:
                    return False
        del self._fetches[seq.rid]
        done = self._read_lane.done_pages(fetch, t_ns)
        for end_ns in self._read_lane.give_up(fetch, t_ns):
            heappush(self.alarms, (end_ns, self.owner))
        self._return_room(fetch)
        self.lost["deadline" if self.policy == "timeout" else "storage_transfer"] += (
            fetch.pages - done
        )
        self.fetched_pages += done
        there = self._insert_host(fetch.anchor, fetch.keys[: done * KEY_BYTES]) if done else 0
        self._unpin(fetch.anchor)
        if done > there:
            page = self.block_tokens
            self._fetched[seq.rid] = Span((fetch.first + there) * page, (fetch.first + done) * page)
        return True

    def take_fetched(self, seq: Sequence, hit: int, host: int) -> tuple[int, int]:
        """Of `hit` cached tokens, the last `host` from the host: those that are left to count as
        the host's, and those that came from storage."""
        span = self._fetched.pop(seq.rid, None)
        if span is None:
            return host, 0
        last = min(hit, span.last)
        stored = max(0, last - span.first)
        return host - max(0, last - max(hit - host, span.first)), stored

    def leaves(self, seq: Sequence) -> None:
        """`seq` is gone; what is fetched for it comes all the same, and is thrown away."""
        self._fetched.pop(seq.rid, None)
        fetch = self._fetches.pop(seq.rid, None)
        if fetch is not None:
            self._abandoned.append(fetch)
            self._throw_away(self._seen_ns)

    def _throw_away(self, t_ns: SimTime) -> None:
        left = []
        for fetch in self._abandoned:
            if fetch.end_ns > t_ns:
                left.append(fetch)
                continue
            self._return_room(fetch)
            self._unpin(fetch.anchor)
            self.unwanted_pages += fetch.pages
        self._abandoned = left

    def _return_room(self, fetch: Prefetch) -> None:
        self.host_used -= fetch.pages
        self._fetching -= fetch.pages
        self._asked_pages -= fetch.requested

    def _insert_host(self, anchor: RadixNode, keys: bytes) -> int:
        """Put `keys` below `anchor` on the host; how many pages were there already."""
        self._now += 1 << 20
        anchor.accessed = self._now
        node, start, end, there = anchor, 0, len(keys), 0
        while start < end:
            child = node.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            self._now += 1 << 20
            child.accessed = self._now
            blocks = self._common(keys, start, end, child)
            if blocks < child.count:
                child = self._split(child, blocks)
            if child in self._in_host:
                there += blocks
            else:
                self._in_host.add(child)
                self.host_used += blocks
            start += blocks * KEY_BYTES
            node = child
        if start < end:
            leaf = self._new_node(keys[start:], node, 0)
            node.children[keys[start : start + KEY_BYTES]] = leaf
            self._in_host.add(leaf)
            self._gone.add(leaf)
            self.host_used += leaf.count
            self._list_host_leaf(leaf)
        return there

    # Holding ---------------------------------------------------------------------------------

    def _pin(self, node: RadixNode) -> None:
        """Keep `node` on the host."""
        self._pins[node] = self._pins.get(node, 0) + 1

    def _unpin(self, node: RadixNode) -> None:
        self._pins[node] -= 1
        if not self._pins[node]:
            del self._pins[node]
            self._list_host_leaf(node)

    def _is_host_leaf(self, node: RadixNode) -> bool:
        return super()._is_host_leaf(node) and node not in self._pins

    def reset(self) -> bool:
        """As `HostRadixCache.reset`; storage keeps what it has."""
        if self._fetches or not super().reset():
            return False
        for fetch in self._abandoned:
            self._return_room(fetch)
        self._abandoned.clear()
        self._pins.clear()
        self.host_used = 0
        return True

    def change(self, verb: str, policy: str) -> None:
        """What `core.commands.Storage` says."""
        if verb == "clear":
            self.pool.clear()
        else:
            self.attached = verb == "attach"
        self.policy = policy or self.policy

    # For the cluster and for reports -----------------------------------------------------------

    def advance(self, t_ns: SimTime) -> tuple[list[Sequence], list[Sequence]]:
        """As `HostRadixCache.advance`; lets go of what was fetched for requests that are gone."""
        self._seen_ns = t_ns
        self._throw_away(t_ns)
        return super().advance(t_ns)

    def stats(self) -> tuple[TierStats, ...]:
        """What the host tier has done so far, and what storage has done for this engine."""
        page = self.block_tokens
        return (
            *super().stats(),
            TierStats(
                "storage",
                self.asked_tokens,
                self.storage_hit_tokens,
                self.num_fetches,
                self._read_lane.num_bytes,
                self._read_lane.busy_ns,
                self.num_writes,
                self._write_lane.num_bytes,
                self._write_lane.busy_ns,
                (sum(self.lost.values()) + self.unwanted_pages) * page,
                len(self.pool) * page,
                self.pool.capacity * page,
                self.found_pages * page,
                self.fetched_pages * page,
                self.written_pages * page,
                {reason: pages * page for reason, pages in self.lost.items()},
            ),
        )

    def _reserved_pages(self) -> int:
        return self._fetching
