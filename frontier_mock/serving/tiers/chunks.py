"""Chunks: several blocks stored and found as one, and which of them are worth storing."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.tiers.pool import Pool


def chunk_keys(block_keys: bytes, per_chunk: int) -> bytes:
    """Keys of the full chunks of `per_chunk` blocks each that `block_keys` spell."""
    if per_chunk == 1:
        return block_keys
    size = per_chunk * KEY_BYTES
    full = len(block_keys) // size * size
    return b"".join(
        [
            hashlib.blake2b(block_keys[at : at + size], digest_size=KEY_BYTES).digest()
            for at in range(0, full, size)
        ]
    )


def path_names(keys: bytes, last: int, first: int = 0) -> list[bytes]:
    """A name for each of chunks `first` to `last` of `keys` that tells its whole path."""
    path = hashlib.blake2b(keys[: first * KEY_BYTES], digest_size=16)
    names = []
    for at in range(first * KEY_BYTES, last * KEY_BYTES, KEY_BYTES):
        path.update(keys[at : at + KEY_BYTES])
        names.append(path.digest())
    return names


class OfferCounts:
    """How often chunks have been offered, where a tier wants that more than once (vLLM's
    `store_threshold`). Remembers the `limit` chunks offered last. `skipped` counts refusals."""

    __slots__ = ("_counts", "_limit", "_threshold", "skipped")

    def __init__(self, threshold: int, limit: int) -> None:
        self._threshold = threshold
        self._limit = limit
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self.skipped = 0

    def admitted(self, keys: bytes, first: int, last: int, pool: Pool) -> Iterable[tuple[int, int]]:
        """Which of chunks `first` to `last` may be stored, or are already, as ranges."""
        if self._threshold < 2:
            return [(first, last)]
        ranges: list[tuple[int, int]] = []
        names = path_names(keys, last)
        self._count(names[first:])
        for at in range(first, last):
            known = self._counts.get(names[at], 0) >= self._threshold
            if not known and not pool.reach(keys, at, at + 1).chunks:
                self.skipped += 1
            elif ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], at + 1)
            else:
                ranges.append((at, at + 1))
        return ranges

    def _count(self, names: list[bytes]) -> None:
        """Count one offer, without forgetting any of what is offered for another part of it."""
        counts = self._counts
        old = {name for name in names if name in counts}
        for name in names:
            if name in old:
                counts.move_to_end(name)
                counts[name] += 1
        spare = len(counts) - len(old)
        for name in names:
            if name in old:
                continue
            if len(counts) >= self._limit:
                if not spare:
                    continue
                counts.popitem(last=False)
                spare -= 1
            counts[name] = 1
