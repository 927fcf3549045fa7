"""KV events on the wire: from recorded cache changes to vLLM's and SGLang's msgpack.

Theory of operation
1. A `KvEventMapper` follows one engine's changes. It gives each block the digest the engine would
   give it (`wire.kv_hashes`), from the digest of the block before and the block's token ids, and
   remembers it until the block is removed. A block is known by a hash of its path of keys.
2. vLLM 0.33 sends one BlockStored per sequence and step, and one BlockRemoved per block; SGLang
   0.5.23 one of each per page, merged where they continue each other (`KVCacheEventRecorder`).
3. The payload is an array [seconds, events, rank]. How an event looks is the dialect:
   "vllm-map" (0.20 and later: every field, nulls included, hashes unsigned), "sglang-map" (nulls
   left out, hashes signed) and "array" (vLLM up to 0.19: the class name, then the values).
Source: vLLM 0.33 distributed/kv_events.py, SGLang 0.5.23 disaggregation/kv_events.py.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from frontier_mock.cluster.observed import KvBatch
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_recording import Removed, Stored
from frontier_mock.wire.kv_hashes import BlockHasher, as_signed
from frontier_mock.wire.kv_tokens import block_ids, mix_keys, namespace_and_session

DIALECTS: Final = ("vllm-map", "sglang-map", "array")
"""How events are written; see the top of this module."""

GPU: Final = "GPU"


class BlocksStored(NamedTuple):
    """Consecutive blocks that can be hit from now on.

    `hashes` and `parent` (of the block before the first, None if there is none) are digests;
    `token_ids` are those of all the blocks in a row.
    """

    hashes: list[bytes]
    parent: bytes | None
    token_ids: list[int]
    block_tokens: int
    cache_salt: str | None = None
    session_id: str | None = None
    adapter: str | None = None


class BlocksRemoved(NamedTuple):
    """Blocks that cannot be hit any more, by their digests."""

    hashes: list[bytes]


class AllCleared(NamedTuple):
    """No block can be hit any more."""


KvEvent = BlocksStored | BlocksRemoved | AllCleared


class KvEventMapper:
    """See the theory of operation at the top of this module; one per engine.

    `merges` is SGLang's way of making events, else vLLM's.
    """

    __slots__ = ("_known", "block_tokens", "hasher", "merges")

    def __init__(self, hasher: BlockHasher, block_tokens: int, *, merges: bool) -> None:
        self.hasher = hasher
        self.block_tokens = block_tokens
        self.merges = merges
        self._known: dict[int, bytes] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks told of as stored and not as removed."""
        return len(self._known)

    def event_hashes(self) -> list[int]:
        """The event hashes of those blocks, in the order in which they were stored."""
        event_hash = self.hasher.event_hash
        return [event_hash(digest) for digest in self._known.values()]

    def events(self, batch: KvBatch) -> list[KvEvent]:
        """What `batch`, the engine's next one, says."""
        events: list[KvEvent] = []
        for change in batch.changes:
            if isinstance(change, Stored):
                events.append(self._stored(change))
            elif isinstance(change, Removed):
                events += self._removed(change)
            else:
                self._known.clear()
                events.append(AllCleared())
        return list(_merged(events)) if self.merges else events

    def _stored(self, change: Stored) -> BlocksStored:
        known = self._known
        hasher = self.hasher
        first = change.first
        paths = path_ids(change.keys)
        namespace, session = namespace_and_session(change.submit)
        parent = known[paths[first - 1]] if first else None
        digest = hasher.root(namespace) if parent is None else parent
        digests = []
        tokens: list[int] = []
        rows = block_ids(change.submit, change.keys, first, self.block_tokens)
        for position, row in enumerate(rows, first):
            digest = hasher.next(digest, row, namespace, first=position == 0)
            known[paths[position]] = digest
            digests.append(digest)
            tokens += row
        salt, adapter = namespace
        name = None if adapter is None else adapter[0]
        return BlocksStored(digests, parent, tokens, self.block_tokens, salt, session, name)

    def _removed(self, change: Removed) -> list[BlocksRemoved]:
        paths = path_ids(change.keys)[change.first :]
        if self.merges:
            return [BlocksRemoved([self._known.pop(path) for path in paths])]
        return [BlocksRemoved([self._known.pop(path)]) for path in reversed(paths)]


def _merged(events: Sequence[KvEvent]) -> Iterator[KvEvent]:
    """Removals in a row as one, and what is stored right behind the last stored block with it."""
    tail: KvEvent | None = None
    for event in events:
        if isinstance(tail, BlocksRemoved) and isinstance(event, BlocksRemoved):
            tail.hashes.extend(event.hashes)
        elif (
            isinstance(tail, BlocksStored)
            and isinstance(event, BlocksStored)
            and event.parent == tail.hashes[-1]
            and event[4:] == tail[4:]
        ):
            tail.hashes.extend(event.hashes)
            tail.token_ids.extend(event.token_ids)
        else:
            if tail is not None:
                yield tail
            tail = event
    if tail is not None:
        yield tail


_BASE = 0x9E37_79B9_7F4A_7C15


def path_ids(keys: bytes) -> list[int]:
    """A 64-bit identity of each block of a path: a polynomial of the keys up to it.

    All prefixes at once, by dividing term i by the base to the i and multiplying the running sum
    back, modulo 2**64, where an odd base has an inverse.
    """
    mixed = mix_keys(np.frombuffer(keys, "<u8"))
    count = len(keys) // KEY_BYTES
    powers = np.full(count, _BASE, np.uint64)
    inverses = np.full(count, pow(_BASE, -1, 1 << 64), np.uint64)
    np.multiply.accumulate(powers, out=powers)
    np.multiply.accumulate(inverses, out=inverses)
    ids: list[int] = (np.cumsum(mixed * inverses, dtype=np.uint64) * powers).tolist()
    return ids


# The structs below are facts of the engines: names, order, defaults.


class _VllmStored(msgspec.Struct, tag="BlockStored", omit_defaults=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    session_id: str | None = None


class _VllmRemoved(msgspec.Struct, tag="BlockRemoved", omit_defaults=True):
    block_hashes: list[int | bytes]
    medium: str | None
    group_idx: int | None = None


class _SglangStored(msgspec.Struct, tag="BlockStored", omit_defaults=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class _SglangRemoved(msgspec.Struct, tag="BlockRemoved", omit_defaults=True):
    block_hashes: list[int]
    medium: str | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _ArrayStored(msgspec.Struct, tag="BlockStored", array_like=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class _ArrayRemoved(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[int | bytes]
    medium: str | None


class _ArrayCleared(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


_Payload = (
    _VllmStored
    | _VllmRemoved
    | _SglangStored
    | _SglangRemoved
    | _Cleared
    | _ArrayStored
    | _ArrayRemoved
    | _ArrayCleared
)


class KvEventWriter:
    """Writes events in one dialect. `as_bytes` sends whole digests in place of numbers."""

    __slots__ = ("_as_bytes", "_dialect", "_encode", "_hasher")

    def __init__(self, hasher: BlockHasher, dialect: str, *, as_bytes: bool = False) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"unknown KV event dialect {dialect!r}: one of {', '.join(DIALECTS)}")
        self._hasher = hasher
        self._dialect = dialect
        self._as_bytes = as_bytes
        self._encode = msgspec.msgpack.Encoder().encode

    def payload(self, seconds: float, events: Sequence[KvEvent], rank: int) -> bytes:
        """One batch; `seconds` is unix time."""
        return self._encode((seconds, [self._event(event) for event in events], rank))

    def _event(self, event: KvEvent) -> _Payload:
        dialect = self._dialect
        if isinstance(event, AllCleared):
            return _ArrayCleared() if dialect == "array" else _Cleared()
        if isinstance(event, BlocksRemoved):
            if dialect == "sglang-map":
                return _SglangRemoved(self._signed(event.hashes), GPU)
            hashes = [self._hash(digest) for digest in event.hashes]
            if dialect == "array":
                return _ArrayRemoved(hashes, GPU)
            return _VllmRemoved(hashes, GPU, 0)
        parent, tokens, size = event.parent, event.token_ids, event.block_tokens
        if dialect == "sglang-map":
            above = None if parent is None else self._signed([parent])[0]
            signed = self._signed(event.hashes)
            return _SglangStored(signed, above, tokens, size, None, GPU, *event[4:])
        hashes = [self._hash(digest) for digest in event.hashes]
        before = None if parent is None else self._hash(parent)
        if dialect == "array":
            return _ArrayStored(hashes, before, tokens, size, None, GPU, event.adapter)
        name = event.adapter
        extra: list[tuple[str, ...] | None] = [None if name is None else (name,)] * len(hashes)
        if event.cache_salt and parent is None:
            extra[0] = (*(extra[0] or ()), event.cache_salt)
        session = event.session_id
        return _VllmStored(hashes, before, tokens, size, None, GPU, name, extra, 0, session)

    def _hash(self, digest: bytes) -> int | bytes:
        return digest if self._as_bytes else self._hasher.event_hash(digest)

    def _signed(self, digests: Sequence[bytes]) -> list[int]:
        event_hash = self._hasher.event_hash
        return [as_signed(event_hash(digest)) for digest in digests]
