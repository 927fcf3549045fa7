"""Token ids to block keys: the content hash that the prefix cache compares (see `core.prompt`).

A block's key is a multilinear hash of its token ids modulo 2**64 with fixed random multipliers. It
names content only; adapters and cache salts are
mixed into the first block, which separates every block after it because the cache compares paths.
Two unequal blocks collide with a chance of about 2**-60; no more is asked of a key than equality.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.wire.tokenizer import TokenIds

Keys = NDArray[np.uint64]
"""One 64-bit key per block."""

_MULTIPLIER_SEED = 0x6672_6F6E_7469_6572
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MAX_BLOCK_TOKENS = 1024


def _make_multipliers(count: int) -> Keys:
    generator = np.random.Generator(np.random.PCG64(_MULTIPLIER_SEED))
    return generator.integers(1 << 63, dtype=np.uint64, size=count) * np.uint64(2) + np.uint64(1)


_MULTIPLIERS = _make_multipliers(_MAX_BLOCK_TOKENS)


def hash_blocks(ids: TokenIds, block_tokens: int) -> Keys:
    """Keys of the full blocks of `ids`; a partial last block is ignored.

    Raises ValueError for block sizes above 1024, which no engine uses.
    """
    if not 1 <= block_tokens <= _MAX_BLOCK_TOKENS:
        raise ValueError(f"block size {block_tokens} is not between 1 and {_MAX_BLOCK_TOKENS}")
    count = len(ids) // block_tokens
    if not count:
        return np.empty(0, np.uint64)
    blocks = ids[: count * block_tokens].reshape(count, block_tokens).astype(np.uint64)
    keys: Keys = blocks @ _MULTIPLIERS[:block_tokens]
    keys += _GOLDEN
    return keys


def hash_windows(ids: TokenIds, block_tokens: int) -> Keys:
    """Key of the block that begins at each position of `ids`, wrapping round at the end."""
    wrapped = np.resize(ids, len(ids) + block_tokens).astype(np.uint64)
    keys = np.full(len(ids), _GOLDEN)
    for i in range(block_tokens):
        keys += wrapped[i : i + len(ids)] * _MULTIPLIERS[i]
    return keys


def salt_hash(cache_salt: str | None, adapter: str = "") -> int:
    """What to xor into the first block's key; 0 when there is neither salt nor adapter."""
    if not cache_salt and not adapter:
        return 0
    payload = f"{cache_salt or ''}\0{adapter}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(payload, digest_size=KEY_BYTES).digest(), "little")


def content_key(keys: Keys, tail: TokenIds, salt: int) -> int:
    """64-bit identity of a whole prompt: its full blocks, the tokens after them and the salt."""
    payload = keys.tobytes() + tail.tobytes() + salt.to_bytes(KEY_BYTES, "little")
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), "little")
