"""Hashes of cached blocks, equal to those of the engines, byte for byte.

vLLM 0.33 (`v1/core/kv_cache_utils.hash_block_tokens`): the digest of the tuple (digest of the block
before, token ids, extra keys or None), serialised by pickle or by canonical CBOR. The first block's
predecessor is the digest of a seed string: PYTHONHASHSEED if it is set, "vllm-none-hash" for the
SHA-256 family. For xxHash vLLM draws a seed; here it is up to the caller, so that runs repeat.

SGLang 0.5.23 (`mem_cache/utils.get_hash_str`): SHA-256 of the digest of the page before and the
token ids as 32-bit little-endian numbers. With a cache salt the chain begins with the digest of it.
"""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

ALGORITHMS: Final = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
"""vLLM's --prefix-caching-hash-algo."""

DEFAULT_SEED: Final = "vllm-none-hash"
"""What vLLM derives the first predecessor from, for the SHA-256 family."""


class Namespace(NamedTuple):
    """What besides tokens tells blocks apart: a cache salt, and an adapter as (name, path)."""

    cache_salt: str | None = None
    adapter: tuple[str, str] | None = None


PLAIN: Final = Namespace()

_PICKLE_PROTOCOL: Final = 5
"""vLLM takes Python's highest, which is 5 since 3.8."""

_SALT_TAG: Final = b"sglang-cache-salt-v1\0"
_EVENT_HASH_BITS: Final = 64


class BlockHasher(Protocol):
    """One engine's chain of block digests."""

    def root(self, namespace: Namespace) -> bytes:
        """What stands before the first block."""
        ...

    def next(
        self, before: bytes, token_ids: Sequence[int], namespace: Namespace, *, first: bool
    ) -> bytes:
        """Digest of a block, the `first` of its path or a later one."""
        ...

    def event_hash(self, digest: bytes) -> int:
        """The number events and routers call the block by: unsigned, 64 bits."""
        ...


class VllmHasher:
    """vLLM's: `algorithm` is one of `ALGORITHMS`, `seed` the string behind the first predecessor.

    Raises ValueError for another algorithm and ModuleNotFoundError for xxHash if that is missing.
    """

    __slots__ = ("_digest", "_none_hash", "_serialise")

    def __init__(self, algorithm: str = "sha256", seed: str = DEFAULT_SEED) -> None:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown hash {algorithm!r}: one of {', '.join(ALGORITHMS)}")
        self._serialise = canonical_cbor if algorithm.endswith("_cbor") else _pickled
        self._digest = _sha256 if algorithm.startswith("sha256") else _xxh3_128()
        self._none_hash = self._digest(self._serialise(seed))

    def root(self, namespace: Namespace) -> bytes:
        """NONE_HASH, whatever the namespace."""
        return self._none_hash

    def next(
        self, before: bytes, token_ids: Sequence[int], namespace: Namespace, *, first: bool
    ) -> bytes:
        """Digest of the tuple (before, token ids, extra keys or None).

        Extra keys are an adapter's name and path, and in the first block the salt.
        """
        salt, adapter = namespace
        extra: tuple[tuple[str, ...], ...] = ()
        if adapter is not None:
            extra = (("lora", *adapter),)
        if salt and first:
            extra += (("cache_salt", salt),)
        return self._digest(self._serialise((before, tuple(token_ids), extra or None)))

    def event_hash(self, digest: bytes) -> int:
        """The digest's last 64 bits (VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1, the default)."""
        return int.from_bytes(digest[-_EVENT_HASH_BITS // 8 :], "big")


class SglangHasher:
    """SGLang's. Adapters have ids of their own there, drawn at random; here they are names."""

    __slots__ = ()

    def root(self, namespace: Namespace) -> bytes:
        """Nothing, or the digest of the salt."""
        salt, adapter = namespace
        if salt is None and adapter is None:
            return b""
        own = b"" if adapter is None else "\0".join(("lora", *adapter, "")).encode()
        return hashlib.sha256(_SALT_TAG + own + (salt or "").encode()).digest()

    def next(
        self, before: bytes, token_ids: Sequence[int], namespace: Namespace, *, first: bool
    ) -> bytes:
        """Digest of `before` and the tokens, four bytes each."""
        tokens = b"".join([token.to_bytes(4, "little") for token in token_ids])
        return hashlib.sha256(before + tokens).digest()

    def event_hash(self, digest: bytes) -> int:
        """The digest's first 64 bits; SGLang itself says it as a signed number."""
        return int.from_bytes(digest[: _EVENT_HASH_BITS // 8], "big")


def as_signed(event_hash: int) -> int:
    """The same 64 bits as a signed number."""
    return event_hash - (1 << 64) if event_hash >> 63 else event_hash


def canonical_cbor(value: object) -> bytes:
    """RFC 8949 section 4.2.1, for what block hashes are made of.

    Raises TypeError for anything but None, unsigned integers, bytes, text and sequences of them.
    """
    if value is None:
        return b"\xf6"
    if isinstance(value, int) and not isinstance(value, bool):
        return _cbor_head(0, value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return _cbor_head(3, len(text)) + text
    if isinstance(value, tuple | list):
        return _cbor_head(4, len(value)) + b"".join([canonical_cbor(item) for item in value])
    raise TypeError(f"no block hash contains a {type(value).__name__}")


def _cbor_head(major: int, number: int) -> bytes:
    if number < 0:
        raise TypeError(f"{number} is negative; no block hash contains such")
    if number < 24:
        return bytes((major << 5 | number,))
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * size:
            return bytes((major << 5 | code,)) + number.to_bytes(size, "big")
    raise TypeError(f"{number} has more than 64 bits")


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=_PICKLE_PROTOCOL)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _xxh3_128() -> Callable[[bytes], bytes]:
    from xxhash import xxh3_128_digest

    return xxh3_128_digest
