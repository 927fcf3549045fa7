"""Cached blocks as a radix tree of extents: runs of blocks that live and die together.

A path from the root spells a sequence of block keys; an extent is one edge of that tree, a run of
consecutive blocks without a branch. Everything the cache does to blocks it does to whole extents,
so its cost follows the number of distinct prefixes rather than the number of blocks. Extents are
cut only where two sequences turn out to differ, or where one of them stops.
"""

from frontier_mock.core.prompt import KEY_BYTES


class Extent:
    """A run of blocks: an edge of the prefix tree, or a nameless stretch of the free queue.

    `keys` holds the block keys of a cached run and is empty for uncached blocks; `count` is the
    number of blocks either way. In the free queue `keys` may go on beyond `count`, with those of
    blocks evicted since. `refs` is the number of open sequences whose prefix includes this
    run. `prev` and `next` are meaningful only while the extent is in the free queue, which for a
    cached run means while `refs` is zero. `children` is indexed by the child's first block key;
    a root is its own parent.
    """

    __slots__ = ("children", "count", "keys", "next", "parent", "prev", "refs")

    parent: "Extent"
    prev: "Extent"
    next: "Extent"

    def __init__(self, keys: bytes, count: int, refs: int, parent: "Extent | None") -> None:
        self.keys = keys
        self.count = count
        self.refs = refs
        self.children: dict[bytes, Extent] = {}
        self.parent = self if parent is None else parent


def common_blocks(keys: bytes, start: int, run: bytes, limit: int) -> int:
    """How many of the first `limit` blocks of `run` are also in `keys` from byte `start` on.

    Compares slices, never single blocks: a binary search in which each probe looks only at the
    part that is still undecided. The first block must be equal already (the caller found `run` by
    it), so the answer is at least 1.
    """
    if keys.startswith(run[: limit * KEY_BYTES], start):
        return limit
    low, high = 1, limit - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if keys.startswith(run[low * KEY_BYTES : middle * KEY_BYTES], start + low * KEY_BYTES):
            low = middle
        else:
            high = middle - 1
    return low


def split_extent(extent: Extent, blocks: int) -> Extent:
    """Cut the first `blocks` blocks off `extent` and return them as its new parent.

    The deeper part keeps its identity, because a block table points at the deepest extent of its
    sequence. The free queue is the caller's business.
    """
    keys = extent.keys
    cut = blocks * KEY_BYTES
    top = Extent(keys[:cut], blocks, extent.refs, extent.parent)
    top.parent.children[keys[:KEY_BYTES]] = top
    top.children[keys[cut : cut + KEY_BYTES]] = extent
    extent.keys = keys[cut:]
    extent.count -= blocks
    extent.parent = top
    return top
