"""Named random streams: one per purpose, so that adding a draw in one place changes no other.

Two forms. `stream` returns a numpy generator, for code that draws many numbers in sequence.
`draw` hashes (seed, name, index) into one number, for a draw that belongs to one request and must
not depend on how many other requests came before it.
"""

import hashlib

import numpy as np

_U64 = 1 << 64


def _digest(seed: int, name: str, index: int) -> int:
    payload = f"{seed}/{name}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), "little")


def stream(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for the purpose `name` (for example "workload/arrivals")."""
    return np.random.Generator(np.random.PCG64(_digest(seed, name, 0)))


def draw(seed: int, name: str, index: int) -> float:
    """The `index`-th number of stream `name`, uniform on [0, 1), independent of all others."""
    return _digest(seed, name, index) / _U64


def draw_u64(seed: int, name: str, index: int) -> int:
    """The `index`-th 64-bit integer of stream `name`."""
    return _digest(seed, name, index)
