"""A block-by-block prefix cache, as plain as can be, to keep the extent tree honest.

It follows vLLM 0.33's block pool one block at a time: a list of free blocks, a dictionary from
prefix to block. The one rule that is ours is what happens to content that is cached already when a
second copy of it is full (docs/decisions/0001-duplicate-blocks.md).
"""

from dataclasses import dataclass, field

from frontier_mock.core.prompt import KEY_BYTES


@dataclass(eq=False)
class Block:
    """One physical block; `prefix` is the key path it is cached under, None if it is not."""

    refs: int = 0
    prefix: bytes | None = None


@dataclass
class Sequence:
    """An open sequence: its cached prefix, its private blocks, its spare copies."""

    cached: list[Block] = field(default_factory=list)
    private: list[Block] = field(default_factory=list)
    spare: list[Block] = field(default_factory=list)


class BlockPool:
    """`num_blocks` blocks; `free` is in eviction order, its first block the next to go."""

    def __init__(self, num_blocks: int) -> None:
        self.free = [Block() for _ in range(num_blocks)]
        self.cached: dict[bytes, Block] = {}

    def lookup(self, keys: bytes, max_blocks: int) -> list[Block]:
        hit: list[Block] = []
        for end in range(KEY_BYTES, min(max_blocks * KEY_BYTES, len(keys)) + 1, KEY_BYTES):
            block = self.cached.get(keys[:end])
            if block is None:
                break
            hit.append(block)
        return hit

    def open(self, hit: list[Block]) -> Sequence:
        for block in hit:
            if block.refs == 0:
                self.free.remove(block)
            block.refs += 1
        return Sequence(cached=list(hit))

    def take(self, sequence: Sequence, count: int) -> None:
        for _ in range(count):
            block = self.free.pop(0)
            if block.prefix is not None:
                del self.cached[block.prefix]
                block.prefix = None
            block.refs = 1
            sequence.private.append(block)

    def commit(self, sequence: Sequence, keys: bytes, num_blocks: int) -> None:
        for index in range(len(sequence.cached), min(num_blocks, len(keys) // KEY_BYTES)):
            prefix = keys[: (index + 1) * KEY_BYTES]
            own = sequence.private.pop(0)
            theirs = self.cached.get(prefix)
            if theirs is None:
                own.prefix = prefix
                self.cached[prefix] = own
                sequence.cached.append(own)
                continue
            if theirs.refs:
                sequence.spare.append(own)
            else:
                own.refs = 0
                self.free[self.free.index(theirs)] = own
            theirs.refs += 1
            sequence.cached.append(theirs)

    def close(self, sequence: Sequence, keys: bytes, committed: int) -> None:
        self.commit(sequence, keys, committed)
        uncached = sequence.private + sequence.spare
        for block in uncached:
            block.refs = 0
        self.free[:0] = uncached
        for block in reversed(sequence.cached):
            block.refs -= 1
            if block.refs == 0:
                self.free.append(block)

    def eviction_order(self) -> list[bytes | None]:
        return [block.prefix for block in self.free]
