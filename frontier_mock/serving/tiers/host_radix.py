"""SGLang's radix tree with a host tier (HiCache): nodes on the GPU, in host memory, or in both.

Theory of operation
1. The part of a path that is on the GPU is its beginning. A node that leaves the GPU stays in the
   tree if host memory has a copy, and is gone otherwise.
2. Write-through: what has been inserted `threshold` times is copied to the host, with all above it
   that is not yet. It counts as copied at once and is locked until the copy has ended.
3. Host memory gives up whole leaves that are there only, in the order of the GPU's policy. Where
   that does not make room, nothing is copied.
4. A prompt about to be admitted brings back what only the host has of its prefix, if that is
   `LOAD_BACK_TOKENS` at least and the GPU has room. The step that computes the prompt's rest waits
   for it layer by layer. The host keeps its copy.
5. What a sequence has computed itself of a node that only the host has becomes the GPU's copy.
6. Copies that are asked for between two decisions of the scheduler move together, from the next
   decision on. When they end, what they locked may go.

Simplified: a load-back holds no lock of its own, since the request that caused it has one. Write
back (`--hicache-write-policy write_back`) is not simulated. `stored_radix` puts storage behind it.

Source: SGLang 0.5.23, mem_cache/unified_cache/unified_tree_core.py, unified_radix_cache.py.
"""

from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.radix_cache import RadixCache, RadixNode
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.lane import Lane
from frontier_mock.serving.tiers.specs import HostTierSpec
from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.simtime import SimTime

LOAD_BACK_TOKENS: Final = 10
"""Fewer than these are computed rather than loaded (unified_radix_cache.py)."""


class HostMatch(NamedTuple):
    """The node that ends a cached prefix, and its last `pages` pages: those only the host has."""

    node: RadixNode
    pages: int


class _Copy:
    """Nodes on their way to the host."""

    __slots__ = ("end_ns", "nodes")

    def __init__(self, end_ns: SimTime, nodes: list[RadixNode]) -> None:
        self.end_ns = end_ns
        self.nodes = nodes


class HostRadixCache(RadixCache):
    """See the theory of operation at the top of this module; also a `protocol.Tier`."""

    __slots__ = (
        "_adopted",
        "_copies",
        "_gone",
        "_host_leaves",
        "_in_host",
        "_listed",
        "_load_lane",
        "_pending",
        "_pending_pages",
        "_store_lane",
        "_tier",
        "alarms",
        "dropped",
        "hit_tokens",
        "host_used",
        "num_loads",
        "num_stores",
        "owner",
        "query_tokens",
    )

    def __init__(self, num_blocks: int, block_tokens: int, policy: str, tier: HostTierSpec) -> None:
        super().__init__(num_blocks, block_tokens, True, policy)
        self._tier = tier
        self._load_lane, self._store_lane = Lane(tier.load), Lane(tier.store)
        self._in_host: set[RadixNode] = set()
        self._gone: set[RadixNode] = set()
        self._listed: set[RadixNode] = set()
        self._host_leaves: list[tuple[tuple[int, int], int, RadixNode]] = []
        self._pending: list[RadixNode] = []
        self._pending_pages = 0
        self._copies: list[_Copy] = []
        self._adopted = 0
        self.host_used = 0
        self.dropped = 0
        self.query_tokens = 0
        self.hit_tokens = 0
        self.num_loads = 0
        self.num_stores = 0
        self.alarms: list[tuple[SimTime, int]] = []
        self.owner = 0

    # Looking up ------------------------------------------------------------------------------

    def match(self, keys: bytes, max_blocks: int) -> tuple[RadixNode, int]:
        """As `RadixCache.match`, of what is on the GPU."""
        node, pages, _ = self.match_all(keys, max_blocks)
        return node, pages

    def match_all(self, keys: bytes, max_blocks: int) -> tuple[RadixNode, int, HostMatch]:
        """What is on the GPU, as `match` says it, and what follows on the host."""
        deepest, pages = super().match(keys, max_blocks)
        node, below = deepest, 0
        while node in self._gone:
            below += node.count
            node = node.parent
        return node, pages - below, HostMatch(deepest, below)

    # Growing ---------------------------------------------------------------------------------

    def checkpoint(
        self,
        node: RadixNode,
        protected: int,
        keys: bytes,
        prompt_pages: int,
        inserted: int,
        priority: int,
    ) -> RadixNode:
        """As `RadixCache.checkpoint`; what was used often enough goes to the host."""
        self._adopted = 0
        end = super().checkpoint(node, protected, keys, prompt_pages, inserted, priority)
        # Pages that became the GPU's copy of what the host has were no second copies.
        self.num_private += self._adopted
        self.num_available -= self._adopted
        depth = 0
        for above in self._path(end):
            depth += above.count
            if depth > inserted and above.hits >= self._tier.threshold:
                self._back_up(above)
        return end

    def _grow(
        self, node: RadixNode, depth: int, keys: bytes, inserted: int, priority: int
    ) -> tuple[RadixNode, int, RadixNode | None]:
        self._adopt(node, keys)
        return super()._grow(node, depth, keys, inserted, priority)

    def _adopt(self, node: RadixNode, keys: bytes) -> None:
        """Give what is computed of nodes below `node` that only the host has to the GPU."""
        start, end = 0, len(keys)
        while start < end:
            child = node.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                return
            blocks = self._common(keys, start, end, child)
            if child in self._gone:
                if blocks < child.count:
                    child = self._split(child, blocks)
                self._gone.discard(child)
                self._adopted += blocks
                self.num_private -= blocks
                if child.locks:
                    self.num_protected += blocks
                else:
                    self.num_evictable += blocks
            elif blocks < child.count:
                return
            node = child
            start += blocks * KEY_BYTES
        self.settle(node)

    def _split(self, node: RadixNode, blocks: int) -> RadixNode:
        top = super()._split(node, blocks)
        for kind in (self._in_host, self._gone):
            if node in kind:
                kind.add(top)
        # A copy under way has locked the lower half, and so the whole path.
        return top

    # To the host -----------------------------------------------------------------------------

    def _back_up(self, node: RadixNode) -> None:
        """Copy `node` to the host, and what above it is not there, from the top."""
        chain = []
        while node is not self.root and node not in self._in_host:
            chain.append(node)
            node = node.parent
        for one in reversed(chain):
            short = one.count - (self._tier.num_pages - self.host_used)
            if short > 0 and self._evict_host(short) < short:
                self.dropped += one.count
                return
            self._in_host.add(one)
            self.host_used += one.count
            self.lock(one)
            self._pending.append(one)
            self._pending_pages += one.count

    @property
    def copying(self) -> bool:
        """Whether copies to the host hold pages."""
        return bool(self._pending or self._copies)

    def begin_copies(self, t_ns: SimTime) -> None:
        """Let what was asked for since the last time move, all together."""
        if not self._pending:
            return
        end_ns = self._store_lane.book(t_ns, self._pending_pages * self._tier.page_bytes)
        self.num_stores += 1
        self._copies.append(_Copy(end_ns, self._pending))
        self._pending, self._pending_pages = [], 0
        heappush(self.alarms, (end_ns, self.owner))

    def end_copies(self, t_ns: SimTime) -> None:
        """Let go of what has moved by `t_ns`."""
        while self._copies and self._copies[0].end_ns <= t_ns:
            for node in self._copies.pop(0).nodes:
                self.unlock(node)

    def _evict_host(self, pages: int) -> int:
        """Give up host leaves until `pages` pages are; returns how many were."""
        leaves = self._host_leaves
        freed = 0
        while freed < pages and leaves:
            key, serial, node = heappop(leaves)
            if not self._is_host_leaf(node):
                self._listed.discard(node)
                continue
            current = self._key(node)
            if current != key:
                heappush(leaves, (current, serial, node))
                continue
            self._listed.discard(node)
            self._in_host.discard(node)
            self._gone.discard(node)
            freed += node.count
            self._list_host_leaf(self._remove(node))
        self.host_used -= freed
        return freed

    def _is_host_leaf(self, node: RadixNode) -> bool:
        return node in self._gone and not node.children and not node.locks

    def _list_host_leaf(self, node: RadixNode) -> None:
        if self._is_host_leaf(node) and node not in self._listed:
            self._serial += 1
            self._listed.add(node)
            heappush(self._host_leaves, (self._key(node), self._serial, node))

    # And back --------------------------------------------------------------------------------

    def load_back(self, found: HostMatch) -> bool:
        """Bring what `match_all` found on the host to the GPU; whether that was done."""
        pages = found.pages
        if pages * self.block_tokens < LOAD_BACK_TOKENS:
            return False
        self.lock(found.node)
        self.make_room(pages)
        done = self.num_available >= pages
        if done:
            node = found.node
            while node in self._gone:
                self._gone.discard(node)
                node = node.parent
            self.num_available -= pages
            self.num_protected += pages
            self.num_loads += 1
        self.unlock(found.node)
        return done

    def carry(self, pages: int) -> SimTime:
        """How long it takes to bring back so many pages in a step."""
        return self._load_lane.carry(pages * self._tier.page_bytes)

    @property
    def page_bytes(self) -> int:
        """One GPU's share of a page."""
        return self._tier.page_bytes

    @property
    def layers(self) -> int:
        """In how many parts a load comes."""
        return self._tier.layers

    # Holding ---------------------------------------------------------------------------------

    def lock(self, node: RadixNode) -> None:
        """As `RadixCache.lock`; on the host it keeps from being given up as well."""
        while node is not self.root:
            if not node.locks and node not in self._gone:
                self.num_evictable -= node.count
                self.num_protected += node.count
            node.locks += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock` of `node`."""
        while node is not self.root:
            node.locks -= 1
            if not node.locks:
                if node in self._gone:
                    self._list_host_leaf(node)
                else:
                    self.num_evictable += node.count
                    self.num_protected -= node.count
                    self.settle(node)
            node = node.parent

    def settle(self, node: RadixNode) -> None:
        """Put `node` up for eviction from the GPU if nothing locks it or lies below it there."""
        if node.queued or node is self.root or not self._is_leaf(node):
            return
        self._serial += 1
        node.queued = True
        heappush(self._leaves, (self._key(node), self._serial, node))

    def _is_leaf(self, node: RadixNode) -> bool:
        if node.locks or node in self._gone:
            return False
        return all(child in self._gone for child in node.children.values())

    def evict(self, pages: int) -> int:
        """As `RadixCache.evict`; what the host has stays there."""
        leaves = self._leaves
        if self._policy == "mru":
            leaves[:] = [(self._key(node), serial, node) for _, serial, node in leaves]
            heapify(leaves)
        evicted = 0
        while evicted < pages and leaves:
            key, serial, node = heappop(leaves)
            if not self._is_leaf(node):
                node.queued = False
                continue
            current = self._key(node)
            if current != key:
                heappush(leaves, (current, serial, node))
                continue
            evicted += node.count
            node.queued = False
            if node in self._in_host:
                self._gone.add(node)
                self._list_host_leaf(node)
                self.settle(node.parent)
            else:
                self.settle(self._remove(node))
        self.num_evictable -= evicted
        self.num_available += evicted
        return evicted

    def reset(self) -> bool:
        """As `RadixCache.reset`; the host forgets as well."""
        if self._copies or self._pending or not super().reset():
            return False
        self._in_host.clear()
        self._gone.clear()
        self._listed.clear()
        self._host_leaves.clear()
        self.host_used = 0
        return True

    # For the cluster and for reports -----------------------------------------------------------

    def advance(self, t_ns: SimTime) -> tuple[list[Sequence], list[Sequence]]:
        """Nobody waits by name: see `end_copies`, and then the scheduler's next decision."""
        return [], []

    def forget_all(self, t_ns: SimTime) -> None:
        """Nothing: `reset` does it for both."""

    def stats(self) -> tuple[TierStats, ...]:
        """What the host tier has done so far."""
        page = self.block_tokens
        return (
            TierStats(
                "cpu",
                self.query_tokens,
                self.hit_tokens,
                self.num_loads,
                self._load_lane.num_bytes,
                self._load_lane.busy_ns,
                self.num_stores,
                self._store_lane.num_bytes,
                self._store_lane.busy_ns,
                self.dropped * page,
                self.host_used * page,
                self._tier.num_pages * page,
            ),
        )

    def _reserved_pages(self) -> int:
        """Pages of the host that are kept for what is not in the tree yet."""
        return 0

    def check(self) -> None:
        """Assert page conservation in both tiers, and the laws of the tree; for tests."""
        evictable = protected = host = 0
        walk = [self.root]
        seen = set()
        while walk:
            node = walk.pop()
            for child in node.children.values():
                assert child.parent is node
                assert child.locks <= node.locks or node is self.root
                walk.append(child)
            if node is self.root:
                continue
            seen.add(node)
            gone = node in self._gone
            assert not gone or node in self._in_host
            if node in self._in_host:
                host += node.count
                assert node.parent is self.root or node.parent in self._in_host
            if gone:
                assert all(child in self._gone for child in node.children.values())
                assert not self._is_host_leaf(node) or node in self._listed
                continue
            if node.locks:
                protected += node.count
            else:
                evictable += node.count
                assert node.queued or not self._is_leaf(node)
        assert self._in_host <= seen
        assert self._gone <= seen
        assert host + self._reserved_pages() == self.host_used <= self._tier.num_pages
        assert (evictable, protected) == (self.num_evictable, self.num_protected)
        assert min(self.num_available, self.num_private) >= 0
        counted = self.num_available + evictable + protected + self.num_private
        assert counted == self.num_blocks
