"""The paged KV cache of one engine: who holds how many blocks, what is cached, what goes first.

Theory of operation
1. A block is *free* (in the free queue, cached or not), *referenced* (part of a cached prefix that
   an open sequence includes) or *private* (held by one sequence and not cached: the block still
   being filled, or a copy of something cached already). Private blocks have no identity here; they
   are a count.
2. Cached blocks form a tree of extents (`prefix_tree`). A sequence's table is the deepest extent of
   its cached prefix: everything from the root down to it is referenced once by that sequence. So a
   child never has more references than its parent, and an unreferenced extent has no referenced
   descendant.
3. An extent is in the free queue exactly when nobody references it. The queue holds the same order
   as vLLM 0.33 (`BlockPool.free_blocks`, `get_new_blocks`, `touch`): uncached blocks return to the
   front, cached ones to the back, the tail of a sequence first (`free_queue`).
4. Splitting an extent changes neither what is cached nor the order of blocks.
5. Content computed twice at the same time is cached once (`docs/decisions/0001-duplicate-blocks`).

`num_blocks` counts usable blocks: vLLM's null block is the caller's to subtract.
"""

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.free_queue import FreeQueue
from frontier_mock.serving.prefix_tree import Extent, common_blocks, split_extent


class Match:
    """A cached prefix found by `KvCache.lookup`; good until the cache next changes.

    `num_blocks` is its length; `num_evictable` says how many of those blocks are in the free queue
    and will leave it when the match is opened. `extent` is the deepest extent reached and
    `extent_blocks` how many of its blocks belong to the match.
    """

    __slots__ = ("extent", "extent_blocks", "num_blocks", "num_evictable")

    def __init__(
        self, extent: Extent, extent_blocks: int, num_blocks: int, num_evictable: int
    ) -> None:
        self.extent = extent
        self.extent_blocks = extent_blocks
        self.num_blocks = num_blocks
        self.num_evictable = num_evictable


class BlockTable:
    """What the cache knows of one open sequence.

    `extent` is the deepest extent of its cached prefix (the root when there is none) and
    `num_registered` that prefix's length in blocks. `num_duplicates` counts blocks the sequence
    holds besides: its own copies of blocks somebody else had cached and was still using.
    """

    __slots__ = ("extent", "num_duplicates", "num_registered")

    def __init__(self, extent: Extent, num_registered: int) -> None:
        self.extent = extent
        self.num_registered = num_registered
        self.num_duplicates = 0


class KvCache:
    """`num_blocks` blocks of `block_tokens` tokens each, with or without prefix caching.

    `num_free` counts the blocks in the free queue, evictable cached ones included; `num_private`
    the blocks taken and neither registered nor given back. `root` and `queue` are the state itself,
    public for those who want to list what is cached. `writer` is what the sequence behind the next
    `commit` or `close` was submitted as; only a cache that records its changes asks
    (`serving.kv_recording`).
    """

    __slots__ = (
        "_no_match",
        "block_tokens",
        "num_blocks",
        "num_free",
        "num_private",
        "prefix_caching",
        "queue",
        "root",
        "writer",
    )

    def __init__(self, num_blocks: int, block_tokens: int, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.num_free = num_blocks
        self.num_private = 0
        self.root = Extent(b"", 0, 0, None)
        self.queue = FreeQueue(num_blocks)
        self._no_match = Match(self.root, 0, 0, 0)
        self.writer: Submit | None = None

    @property
    def num_cached(self) -> int:
        """Blocks that a lookup could find. Walks the tree."""
        count = 0
        walk = list(self.root.children.values())
        while walk:
            extent = walk.pop()
            count += extent.count
            walk.extend(extent.children.values())
        return count

    def lookup(self, keys: bytes, max_blocks: int) -> Match:
        """The longest cached prefix of `keys`, at most `max_blocks` long. Changes nothing."""
        end = max_blocks * KEY_BYTES
        if end > len(keys):
            end = len(keys)
        extent = self.root
        extent_blocks = num_evictable = start = 0
        while start < end:
            child = extent.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            extent = child
            extent_blocks = child.count
            if start + extent_blocks * KEY_BYTES > end or not keys.startswith(child.keys, start):
                limit = min(extent_blocks, (end - start) // KEY_BYTES)
                extent_blocks = common_blocks(keys, start, child.keys, limit)
            start += extent_blocks * KEY_BYTES
            if not child.refs:
                num_evictable += extent_blocks
            if extent_blocks < child.count:
                break
        if not start:
            return self._no_match
        return Match(extent, extent_blocks, start // KEY_BYTES, num_evictable)

    def open(self, match: Match) -> BlockTable:
        """Begin a sequence with the blocks `match` found, taking them out of the free queue."""
        root = self.root
        deepest = match.extent
        if match.extent_blocks < deepest.count:
            deepest = self._split(deepest, match.extent_blocks)
        extent = deepest
        while extent is not root:
            if not extent.refs:
                self.queue.remove(extent)
                self.num_free -= extent.count
            extent.refs += 1
            extent = extent.parent
        return BlockTable(deepest, match.num_blocks)

    def take(self, count: int) -> None:
        """Take `count` blocks from the head of the free queue, evicting what they cached.

        Raises ValueError if fewer are free; then nothing is taken.
        """
        if count > self.num_free:
            raise ValueError(f"cannot take {count} blocks, {self.num_free} are free")
        self.queue.take(count)
        self.num_free -= count
        self.num_private += count

    def commit(self, table: BlockTable, keys: bytes, num_blocks: int) -> None:
        """Register the sequence's first `num_blocks` blocks, now full, as far as `keys` reach.

        Blocks registered before are left alone. The number of free blocks does not change.
        """
        if not self.prefix_caching:
            return
        start = table.num_registered * KEY_BYTES
        end = min(num_blocks * KEY_BYTES, len(keys) // KEY_BYTES * KEY_BYTES)
        if start >= end:
            return
        if table.extent.children:
            start = self._follow(table, keys, start, end)
        if start < end:
            extent = table.extent
            added = keys[start:end]
            count = len(added) // KEY_BYTES
            if extent.refs == 1 and not extent.children:
                # The only open sequence here is this one and nothing hangs below: grow in place.
                extent.keys += added
                extent.count += count
            else:
                table.extent = Extent(added, count, 1, extent)
                extent.children[added[:KEY_BYTES]] = table.extent
            self.num_private -= count
        table.num_registered = end // KEY_BYTES

    def close(self, table: BlockTable, num_blocks: int, keys: bytes, committed: int) -> None:
        """End a sequence that holds `num_blocks` blocks, the first `committed` of them full.

        Full blocks are registered first, as far as `keys` (of prompt and output) reach. Private
        blocks go to the front of the free queue; cached ones nobody else references go to the
        back, deepest first. The table must not be used again.
        """
        if committed > table.num_registered:
            self.commit(table, keys, committed)
        root = self.root
        num_freed = private = num_blocks - table.num_registered + table.num_duplicates
        assert 0 <= private <= self.num_private
        extent = table.extent
        while extent is not root:
            extent.refs -= 1
            if not extent.refs:
                self.queue.append(extent)
                num_freed += extent.count
            extent = extent.parent
        if private:
            self.queue.prepend_uncached(private)
            self.num_private -= private
        self.num_free += num_freed

    def reset(self) -> bool:
        """Forget everything cached; False, and nothing done, while any block is in use."""
        if self.num_free != self.num_blocks:
            return False
        self.root.children.clear()
        self.queue.clear(self.num_blocks)
        return True

    def check(self) -> None:
        """Assert block conservation and the laws of tree and free queue; for tests, not speed."""
        places = self._check_queue()
        num_referenced = 0
        num_waiting = 0
        walk = list(self.root.children.values())
        while walk:
            extent = walk.pop()
            parent = extent.parent
            assert 0 < extent.count * KEY_BYTES <= len(extent.keys)
            assert extent.count * KEY_BYTES == len(extent.keys) or not extent.refs
            assert parent.children[extent.keys[:KEY_BYTES]] is extent
            if parent is not self.root:
                assert extent.refs <= parent.refs
            if extent.refs:
                num_referenced += extent.count
                assert extent not in places
            else:
                num_waiting += 1
                assert places[extent] < places.get(parent, len(places))
            walk.extend(extent.children.values())
        assert num_waiting == sum(1 for extent in places if extent.keys)
        assert self.num_private >= 0
        assert self.num_free + num_referenced + self.num_private == self.num_blocks

    def _check_queue(self) -> dict[Extent, int]:
        """Assert that the ring is sound and adds up to `num_free`; each extent's place in it."""
        ends = self.queue.ends
        places: dict[Extent, int] = {}
        before, extent = ends, ends.next
        while extent is not ends:
            assert extent.prev is before
            assert extent.count > 0
            places[extent] = len(places)
            before, extent = extent, extent.next
        assert ends.prev is before
        assert sum(extent.count for extent in places) == self.num_free
        return places

    def _split(self, extent: Extent, blocks: int) -> Extent:
        """Cut the first `blocks` blocks off `extent`, keeping every block's place in the queue."""
        top = split_extent(extent, blocks)
        if not top.refs:
            self.queue.insert_after(extent, top)
        return top

    def _follow(self, table: BlockTable, keys: bytes, start: int, end: int) -> int:
        """Move `table` down what others have cached of `keys[start:end]`; return where that ends.

        The sequence's own copies of these blocks never become hittable. Where the cached copy is
        in use they stay with the sequence as duplicates. Where it lies in the free queue the two
        change places: which of two equal blocks is held and which is free makes no difference, so
        the sequence holds the cached one and an uncached block stands in the queue in its place.
        """
        while start < end:
            child = table.extent.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                break
            blocks = common_blocks(
                keys, start, child.keys, min(child.count, (end - start) // KEY_BYTES)
            )
            if blocks < child.count:
                child = self._split(child, blocks)
            if child.refs:
                table.num_duplicates += blocks
            else:
                self.queue.insert_after(child, Extent(b"", blocks, 0, self.queue.ends))
                self.queue.remove(child)
                self.num_private -= blocks
            child.refs += 1
            table.extent = child
            start += blocks * KEY_BYTES
        return start
