"""KV caches that note what becomes cached and what is forgotten, for KV events.

Theory of operation
1. Who wants no events gets the plain caches and pays nothing. These subclasses note every change of
   what a lookup could find, in the order in which it happens: blocks stored, blocks removed, all of
   them cleared. A block is stored once and removed once; a sequence's own copy of a block that is
   cached already is neither (decision 0001).
2. A change names blocks by the keys of their whole path from the root, which is what identifies
   them: equal keys on different paths are different blocks. Hashes and token ids are the wire's
   business (`wire.kv_events`).
3. Nothing is stamped here: the worker says when a step's output is taken in, and that is when the
   real engines publish (`Worker.on_output`, `cluster.observed`).
4. Blocks of generated text are stored when their sequence ends or is preempted, because that is
   when this engine makes them hittable. vLLM stores each as it fills; nobody can ask for them
   before the answer is out, except another sequence that says the same at the same time.
"""

from typing import NamedTuple

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.free_queue import FreeQueue
from frontier_mock.serving.kv_cache import BlockTable, KvCache
from frontier_mock.serving.prefix_tree import Extent
from frontier_mock.serving.radix_cache import RadixCache, RadixNode


class Stored(NamedTuple):
    """Blocks `first` and on of the path `keys` can be found from now on; `submit` computed them."""

    keys: bytes
    first: int
    submit: Submit | None


class Removed(NamedTuple):
    """Blocks `first` and on of the path `keys` are gone, the deepest first."""

    keys: bytes
    first: int


class Cleared(NamedTuple):
    """Nothing is cached any more."""


Change = Stored | Removed | Cleared


class RecordingKvCache(KvCache):
    """vLLM's cache, with its `changes` since somebody emptied that list."""

    __slots__ = ("_new_from", "changes")

    def __init__(self, num_blocks: int, block_tokens: int, prefix_caching: bool) -> None:
        super().__init__(num_blocks, block_tokens, prefix_caching)
        self.changes: list[Change] = []
        self.queue = _RecordingQueue(num_blocks, self.changes)
        self._new_from = 0

    def commit(self, table: BlockTable, keys: bytes, num_blocks: int) -> None:
        """As `KvCache.commit`, noting what was not cached before."""
        self._new_from = table.num_registered * KEY_BYTES
        super().commit(table, keys, num_blocks)
        end = table.num_registered * KEY_BYTES
        if self._new_from < end:
            self.changes.append(Stored(keys[:end], self._new_from // KEY_BYTES, self.writer))

    def reset(self) -> bool:
        """As `KvCache.reset`, noting it if it was done."""
        done = super().reset()
        if done:
            self.changes.append(Cleared())
        return done

    @property
    def blocks_before_eviction(self) -> int:
        """How many blocks `take` can give before anything cached goes."""
        head = self.queue.ends.next
        return 0 if head.keys else head.count

    def _follow(self, table: BlockTable, keys: bytes, start: int, end: int) -> int:
        self._new_from = super()._follow(table, keys, start, end)
        return self._new_from


class _RecordingQueue(FreeQueue):
    """The free queue of a recording cache: it knows what an allocation evicts."""

    __slots__ = ("_changes",)

    def __init__(self, num_blocks: int, changes: list[Change]) -> None:
        super().__init__(num_blocks)
        self._changes = changes

    def take(self, count: int) -> None:
        """As `FreeQueue.take`, noting the cached blocks that go."""
        extent = self.ends.next
        left = count
        while left:
            lost = min(extent.count, left)
            if extent.keys:
                self._changes.append(Removed(*_lost(extent, lost)))
            left -= lost
            extent = extent.next
        super().take(count)


def _lost(extent: Extent, count: int) -> tuple[bytes, int]:
    """The path to the deepest block of `extent`, and which is the first of its last `count`."""
    path = [extent.keys[: extent.count * KEY_BYTES]]
    above = extent.parent
    while above.parent is not above:
        path.append(above.keys)
        above = above.parent
    path.reverse()
    keys = b"".join(path)
    return keys, len(keys) // KEY_BYTES - count


class RecordingRadixCache(RadixCache):
    """SGLang's cache, with its `changes` since somebody emptied that list.

    It begins with `Cleared`, as SGLang's does: its tree resets itself when it is made.
    """

    __slots__ = ("changes",)

    def __init__(
        self, num_blocks: int, block_tokens: int, enabled: bool, policy: str = "lru"
    ) -> None:
        super().__init__(num_blocks, block_tokens, enabled, policy)
        self.changes: list[Change] = [Cleared()]

    def reset(self) -> bool:
        """As `RadixCache.reset`, noting it if it was done."""
        done = super().reset()
        if done:
            self.changes.append(Cleared())
        return done

    @property
    def blocks_before_eviction(self) -> int:
        """How many pages `take` can give before anything cached goes."""
        return self.num_available

    def _grow(
        self, node: RadixNode, depth: int, keys: bytes, inserted: int, priority: int
    ) -> tuple[RadixNode, int, RadixNode | None]:
        end, matched, leaf = super()._grow(node, depth, keys, inserted, priority)
        if leaf is not None:
            self.changes.append(Stored(self._path_keys(leaf), matched, self.writer))
        return end, matched, leaf

    def _remove(self, node: RadixNode) -> RadixNode:
        keys = self._path_keys(node)
        self.changes.append(Removed(keys, len(keys) // KEY_BYTES - node.count))
        return super()._remove(node)

    def _path_keys(self, node: RadixNode) -> bytes:
        return b"".join([above.keys for above in self._path(node)])
