"""SGLang's KV cache: pages, a radix tree over them, locks, and eviction of whole leaves.

Theory of operation
1. A page is *available*, part of a tree node, or *private* (held by one sequence and not in the
   tree). A tree node's pages are *protected* while a sequence locks a path through it, *evictable*
   otherwise; `num_free` is available plus evictable, what an allocation can get at most.
2. Nodes are SGLang's own: insertion makes one leaf out of everything that is new, a match or an
   insertion that ends inside a node splits it there. Eviction frees whole leaves, so where nodes
   are cut decides how much an eviction frees; the cutting here is therefore SGLang's to the page.
3. A lock on a node locks the whole path to the root. A sequence holds one lock, on the node where
   its cached prefix ends, and moves it down at every `checkpoint`.
4. What a sequence inserts and the tree has already, it gives back at once and shares the tree's
   copy from then on (unlike vLLM, which keeps the duplicate).
5. The order of eviction is a key per leaf, by policy; for LRU the time of the last access, where
   time is a count of accesses. One match stamps its path with one time, the deepest node latest.
   A split stamps the lower half too, although nobody asked for it; SGLang does.
6. Every policy's key only grows (save MRU's), so one heap with at most one entry per node suffices:
   an entry whose key is out of date when it comes up goes back with the present one.

Source of every rule: SGLang 0.5.23, mem_cache/unified_cache/unified_tree_core.py and
components/full.py; specs/sglang_and_routers.md section 8.5.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.prefix_tree import common_blocks

_TICK: Final = 1 << 20
"""Accesses are this far apart, which leaves room for the nodes of one path between them."""

_PROTECTED_HITS: Final = 2
"""Insertions that move a node to SLRU's protected segment."""


class RadixNode:
    """One run of pages in the tree: `keys` spells them, `count` says how many they are.

    `locks` is the number of sequences whose path includes this node. `accessed` and `created` are
    times in access counts, `hits` the number of sequences that inserted it, `queued` whether the
    eviction heap has an entry for it.
    """

    __slots__ = (
        "accessed",
        "children",
        "count",
        "created",
        "hits",
        "keys",
        "locks",
        "parent",
        "priority",
        "queued",
    )

    parent: "RadixNode"

    def __init__(self, keys: bytes, parent: "RadixNode | None", now: int, priority: int) -> None:
        self.keys = keys
        self.count = len(keys) // KEY_BYTES
        self.children: dict[bytes, RadixNode] = {}
        self.parent = self if parent is None else parent
        self.locks = 0
        self.accessed = now
        self.created = now + _TICK
        self.hits = 0
        self.priority = priority
        self.queued = False


class PrefixHit(NamedTuple):
    """How many pages of a prompt are cached."""

    num_blocks: int


_Key = tuple[int, int]

_EVICTION_KEYS: Final[dict[str, Callable[[RadixNode], _Key]]] = {
    "lru": lambda node: (0, node.accessed),
    "lfu": lambda node: (node.hits, node.accessed),
    "slru": lambda node: (int(node.hits >= _PROTECTED_HITS), node.accessed),
    "fifo": lambda node: (0, node.created),
    "filo": lambda node: (0, -node.created),
    "mru": lambda node: (0, -node.accessed),
    "priority": lambda node: (node.priority, node.accessed),
}

EVICTION_POLICIES: Final = tuple(_EVICTION_KEYS)
"""Values of --radix-eviction-policy that are simulated."""


class RadixCache:
    """`num_blocks` pages of `block_tokens` tokens each, with or without the tree.

    Attributes count pages: `num_available`, `num_evictable`, `num_protected`, `num_private` add up
    to `num_blocks`. `writer` is what the sequence behind the next `checkpoint` was submitted as;
    only a cache that records its changes asks (`serving.kv_recording`).
    """

    __slots__ = (
        "_key",
        "_leaves",
        "_now",
        "_policy",
        "_serial",
        "block_tokens",
        "enabled",
        "num_available",
        "num_blocks",
        "num_evictable",
        "num_private",
        "num_protected",
        "root",
        "writer",
    )

    def __init__(
        self, num_blocks: int, block_tokens: int, enabled: bool, policy: str = "lru"
    ) -> None:
        if policy not in _EVICTION_KEYS:
            allowed = ", ".join(EVICTION_POLICIES)
            raise ValueError(f"unknown radix eviction policy {policy!r}: one of {allowed}")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.enabled = enabled
        self.num_available = num_blocks
        self.num_evictable = 0
        self.num_protected = 0
        self.num_private = 0
        self._policy = policy
        self._key = _EVICTION_KEYS[policy]
        self._now = 0
        self._serial = 0
        self._leaves: list[tuple[_Key, int, RadixNode]] = []
        self.root = RadixNode(b"", None, 0, 0)
        self.writer: Submit | None = None

    @property
    def num_cached(self) -> int:
        """Pages that a lookup could find."""
        return self.num_evictable + self.num_protected

    @property
    def num_free(self) -> int:
        """Pages an allocation can get: available ones and those eviction would free."""
        return self.num_available + self.num_evictable

    # Looking up ------------------------------------------------------------------------------

    def lookup(self, keys: bytes, max_blocks: int) -> PrefixHit:
        """How much of `keys` is cached, at most `max_blocks` pages. Changes nothing."""
        end = min(max_blocks * KEY_BYTES, len(keys))
        node = self.root
        start = 0
        while start < end:
            child = node.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            blocks = self._common(keys, start, end, child)
            start += blocks * KEY_BYTES
            if blocks < child.count:
                break
            node = child
        return PrefixHit(start // KEY_BYTES)

    def match(self, keys: bytes, max_blocks: int) -> tuple[RadixNode, int]:
        """The node that ends the longest cached prefix of `keys`, and that prefix's pages.

        Marks the path as accessed and splits a node that the prefix ends within.
        """
        end = min(max_blocks * KEY_BYTES, len(keys))
        node = self.root
        if not end or not self.enabled:
            return node, 0
        start = 0
        while start < end:
            child = node.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            blocks = self._common(keys, start, end, child)
            start += blocks * KEY_BYTES
            if blocks < child.count:
                node = self._split(child, blocks)
                break
            node = child
        self._now = now = self._now + _TICK
        upwards = node
        while upwards is not self.root:
            upwards.accessed = now
            now -= 1
            upwards = upwards.parent
        return node, start // KEY_BYTES

    def _common(self, keys: bytes, start: int, end: int, child: RadixNode) -> int:
        """How many pages of `child` continue `keys[start:end]`; at least one does."""
        if end - start >= len(child.keys) and keys.startswith(child.keys, start):
            return child.count
        return common_blocks(keys, start, child.keys, min(child.count, (end - start) // KEY_BYTES))

    # Growing ---------------------------------------------------------------------------------

    def insert(
        self, keys: bytes, inserted: int = 0, priority: int = 0
    ) -> tuple[RadixNode, int, RadixNode | None]:
        """Put all of `keys` in the tree; its pages beyond what is there come from private ones.

        `inserted` is how many pages the same sequence has inserted before, whose hits were counted
        then. Returns the node at the end, the pages that were there already, and the leaf that was
        added, if any: it is unlocked and not yet up for eviction, see `settle`.
        """
        self._now += _TICK
        return self._grow(self.root, 0, keys, inserted, priority)

    def _grow(
        self, node: RadixNode, depth: int, keys: bytes, inserted: int, priority: int
    ) -> tuple[RadixNode, int, RadixNode | None]:
        """`insert` from `node` on, which ends `depth` pages below the root; `keys` follow it."""
        start, end = 0, len(keys)
        counted = (inserted - depth) * KEY_BYTES
        while start < end:
            child = node.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            self._now += _TICK
            child.accessed = self._now
            blocks = self._common(keys, start, end, child)
            node = self._split(child, blocks) if blocks < child.count else child
            if node.priority < priority:
                node.priority = priority
            start += blocks * KEY_BYTES
            if start > counted:
                node.hits += 1
        matched = depth + start // KEY_BYTES
        if start == end:
            return node, matched, None
        leaf = self._new_node(keys[start:] if start else keys, node, priority)
        node.children[keys[start : start + KEY_BYTES]] = leaf
        if end > counted:
            leaf.hits = 1
        self.num_evictable += leaf.count
        self.num_private -= leaf.count
        return leaf, matched, leaf

    def _path(self, node: RadixNode) -> list[RadixNode]:
        """The nodes from the root's child down to `node`."""
        path = []
        while node is not self.root:
            path.append(node)
            node = node.parent
        path.reverse()
        return path

    def settle(self, node: RadixNode) -> None:
        """Put `node` up for eviction if nothing locks it and it has no children."""
        if not (node.locks or node.children or node.queued) and node is not self.root:
            self._serial += 1
            node.queued = True
            heappush(self._leaves, (self._key(node), self._serial, node))

    def _new_node(self, keys: bytes, parent: RadixNode, priority: int) -> RadixNode:
        self._now += 2 * _TICK
        return RadixNode(keys, parent, self._now - _TICK, priority)

    def _split(self, node: RadixNode, blocks: int) -> RadixNode:
        """Cut the first `blocks` pages off `node` as its new parent, and return that."""
        cut = blocks * KEY_BYTES
        keys = node.keys
        top = self._new_node(keys[:cut], node.parent, node.priority)
        top.created = node.created
        top.hits = node.hits
        top.locks = node.locks
        top.children[keys[cut : cut + KEY_BYTES]] = node
        top.parent.children[keys[:KEY_BYTES]] = top
        node.keys = keys[cut:]
        node.count -= blocks
        node.parent = top
        self._now += _TICK
        node.accessed = self._now
        return top

    # Holding ---------------------------------------------------------------------------------

    def lock(self, node: RadixNode) -> None:
        """Protect the path from `node` to the root from eviction."""
        root = self.root
        while node is not root:
            if not node.locks:
                self.num_evictable -= node.count
                self.num_protected += node.count
            node.locks += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock` of `node`."""
        root = self.root
        while node is not root:
            node.locks -= 1
            if not node.locks:
                self.num_evictable += node.count
                self.num_protected -= node.count
                if not node.children:
                    self.settle(node)
            node = node.parent

    def checkpoint(
        self,
        node: RadixNode,
        protected: int,
        keys: bytes,
        prompt_pages: int,
        inserted: int,
        priority: int,
    ) -> RadixNode:
        """Insert what a sequence computed below its locked `node`, and lock where it ends instead.

        `keys` are those of its pages after the first `protected`, which are the tree's down to
        `node`. Pages of `keys` that the tree turns out to have as well become available. With
        output among them the leaf is split where the prompt's `prompt_pages` full pages end, so
        that output can be evicted before its prompt; 0 means not to.
        """
        self._now += _TICK
        depth = 0
        for above in self._path(node):
            self._now += _TICK
            above.accessed = self._now
            if above.priority < priority:
                above.priority = priority
            depth += above.count
            if depth > inserted:
                above.hits += 1
        end, matched, _ = self._grow(node, protected, keys, inserted, priority)
        duplicates = matched - protected
        if duplicates > 0:
            self.num_private -= duplicates
            self.num_available += duplicates
        if 0 < prompt_pages < protected + len(keys) // KEY_BYTES:
            self._part_prompt(end, prompt_pages, priority + 1)
        self.lock(end)
        self.unlock(node)
        return end

    def _part_prompt(self, end: RadixNode, prompt_pages: int, priority: int) -> None:
        """Insert the first `prompt_pages` pages of the path to `end` again, which only splits."""
        depth = 0
        for node in self._path(end):
            self._now += _TICK
            node.accessed = self._now
            depth += node.count
            if depth > prompt_pages:
                node = self._split(node, prompt_pages - depth + node.count)
            if node.priority < priority:
                node.priority = priority
            if depth >= prompt_pages:
                return

    # Allocating ------------------------------------------------------------------------------

    def make_room(self, pages: int) -> None:
        """Evict leaves until `pages` are available or nothing evictable is left."""
        shortfall = pages - self.num_available
        if shortfall > 0 and self.num_evictable:
            self.evict(shortfall)

    def take(self, pages: int) -> None:
        """Make `pages` available pages private. Raises ValueError if there are fewer."""
        if pages > self.num_available:
            raise ValueError(f"cannot take {pages} pages, {self.num_available} are available")
        self.num_available -= pages
        self.num_private += pages

    def give(self, pages: int) -> None:
        """Make `pages` private pages available again."""
        assert 0 <= pages <= self.num_private
        self.num_private -= pages
        self.num_available += pages

    def evict(self, pages: int) -> int:
        """Free whole leaves, first in the policy's order first, until `pages` are; returns them."""
        leaves = self._leaves
        if self._policy == "mru":
            leaves[:] = [(self._key(node), serial, node) for _, serial, node in leaves]
            heapify(leaves)
        evicted = 0
        while evicted < pages and leaves:
            key, serial, node = heappop(leaves)
            if node.locks or node.children:
                node.queued = False
                continue
            current = self._key(node)
            if current != key:
                heappush(leaves, (current, serial, node))
                continue
            evicted += node.count
            self.settle(self._remove(node))
        self.num_evictable -= evicted
        self.num_available += evicted
        return evicted

    def _remove(self, node: RadixNode) -> RadixNode:
        """Take a leaf out of the tree; returns what it hung from."""
        parent = node.parent
        del parent.children[node.keys[:KEY_BYTES]]
        return parent

    def reset(self) -> bool:
        """Forget everything cached; False, and nothing done, while anything is held."""
        if self.num_private or self.num_protected:
            return False
        self.root.children.clear()
        self._leaves.clear()
        self.num_available = self.num_blocks
        self.num_evictable = 0
        return True

    def check(self) -> None:
        """Assert page conservation and the laws of tree and heap; for tests, not speed."""
        evictable = protected = 0
        queued = {id(node): node for _, _, node in self._leaves}
        assert len(queued) == len(self._leaves)
        assert all(node.queued for node in queued.values())
        walk = [self.root]
        while walk:
            node = walk.pop()
            locks = 0
            for first, child in node.children.items():
                assert child.parent is node
                assert child.keys[:KEY_BYTES] == first
                assert child.count * KEY_BYTES == len(child.keys) > 0
                assert child.locks <= node.locks or node is self.root
                locks += child.locks
                walk.append(child)
            if node is self.root:
                continue
            assert locks <= node.locks
            if node.locks:
                protected += node.count
            else:
                evictable += node.count
                assert node.children or id(node) in queued
        assert (evictable, protected) == (self.num_evictable, self.num_protected)
        assert min(self.num_available, self.num_private) >= 0
        counted = self.num_available + evictable + protected + self.num_private
        assert counted == self.num_blocks
