"""The free queue: the exact order in which free blocks are handed out, as a ring of extents.

Invariant: *a cached extent comes after all its descendants.* It holds because
1. a sequence is closed leaf first, and appends to the back only extents that just lost their last
   reference; descendants of such an extent off the sequence's own path had none before (a child is
   never referenced more often than its parent), so they are further ahead in the queue already;
2. opening a prefix takes whole paths from the root out, so a parent never waits behind a child
   that left;
3. a split puts the upper part right behind the lower part, where its blocks were.
So the extent at the head has no children left, and taking blocks from its deep end evicts in the
order vLLM's block-by-block queue does: it appends a freed request tail block first.
"""

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.prefix_tree import Extent


class FreeQueue:
    """A circular doubly linked list of extents around a sentinel, `ends`.

    `ends.next` is the head (next to be taken), `ends.prev` the back. A cached extent stands for
    its blocks deepest first. An extent without keys is a count of uncached blocks.
    """

    __slots__ = ("ends",)

    def __init__(self, num_blocks: int) -> None:
        self.ends = Extent(b"", 0, 0, None)
        self.clear(num_blocks)

    def clear(self, num_blocks: int) -> None:
        """Forget the order: `num_blocks` uncached blocks are all there is."""
        ends = self.ends
        ends.prev = ends.next = ends
        self.prepend_uncached(num_blocks)

    def prepend_uncached(self, count: int) -> None:
        """Put `count` uncached blocks at the head, to be reused first."""
        ends = self.ends
        head = ends.next
        if head is not ends and not head.keys:
            head.count += count
        elif count:
            self.insert_after(ends, Extent(b"", count, 0, ends))

    def append(self, extent: Extent) -> None:
        """Put `extent` at the back, to be reused last."""
        ends = self.ends
        last = ends.prev
        extent.prev = last
        extent.next = ends
        last.next = ends.prev = extent

    def insert_after(self, place: Extent, extent: Extent) -> None:
        """Put `extent` right behind `place`."""
        behind = place.next
        extent.prev = place
        extent.next = behind
        place.next = behind.prev = extent

    def remove(self, extent: Extent) -> None:
        """Take `extent` out from wherever it is, and cut off the keys of blocks evicted there."""
        if len(extent.keys) > extent.count * KEY_BYTES:
            extent.keys = extent.keys[: extent.count * KEY_BYTES]
        before, behind = extent.prev, extent.next
        before.next = behind
        behind.prev = before

    def take(self, count: int) -> None:
        """Take `count` blocks from the head; cached ones leave the tree. `count` must be there.

        An extent that loses only its deep end keeps all its keys while it stays in the queue:
        blocks go one by one, and copying the rest each time would cost more than all else here.
        """
        ends = self.ends
        head = ends.next
        while count:
            if head.count > count:
                head.count -= count
                break
            count -= head.count
            if head.keys:
                del head.parent.children[head.keys[:KEY_BYTES]]
            # A stale match or a closed table may still hold what leaves here: without this it would
            # keep every later eviction alive through `next`.
            gone, head = head, head.next
            gone.next = head.prev = ends
        ends.next = head
