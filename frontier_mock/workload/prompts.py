"""Prompts that are cheap as block keys and exact as text.

Theory of operation. Every prompt is a concatenation of *streams*, endless reproducible texts that
are never stored. A stream is a row of units of eight characters, each the base64 form of a 48-bit
number: a bijection of (stream, unit), salted by the name of the workload. Two units of a workload
are thus equal only if they are the same unit, and two blocks of eight or more tokens have equal
text only where they have equal origin. Offline, a block's key is computed from its origin alone, in
a microsecond for a whole prompt; live, the same prompt goes out as ASCII text, one token per
character under the byte-level tokenizer, and the server's keys, made from tokens, are equal exactly
where ours are. A live run therefore has the prefix hits of the offline run.

1. A `HashedPrompt` names its streams by the trace's prefix-chained hash ids, one per `id_tokens`
   tokens. Siblings differ in their first unit, so engine blocks inside a hash block never match by
   accident; a prompt that ends inside a hash block shares the full engine blocks before its end.
2. A `StreamPrompt` lists pieces (stream, tokens). Within one workload a stream has one length
   unless it is the last piece; blocks that straddle pieces are keyed by their rendered text.
3. Blocks of fewer than eight tokens, or that do not divide `id_tokens`, are keyed by their text.
"""

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from frontier_mock.core.prompt import KEY_BYTES

UNIT_TOKENS = 8
"""Tokens, and characters, of one unit."""

_BITS48 = (1 << 48) - 1
_SHIFT = 24
_ODD48_A, _ODD48_B = 0x9E3779B97F4B, 0xC2B2AE3D27D5
"""Odd, so that multiplication modulo 2**48 is a bijection; xor with a right shift is one too."""
_ODD64 = np.uint64(0x9E3779B97F4A7C15)
_STREAM_SHIFT = 21
"""Bits for the unit number within a stream: streams of up to 16 Mi tokens, 2**27 of them."""
_MAX_STREAM = (1 << (48 - _STREAM_SHIFT)) - 1
_FEW_UNITS = 8
"""Up to this many units plain integers are faster than numpy."""
_SHORT_TOKENS = 1024
_SHORT_TEXTS = 8192
"""How many short pieces are remembered as text: 8 MB at most."""

_U64 = npt.NDArray[np.uint64]


class TextPrompt(Protocol):
    """A `core.prompt.Prompt` that can also be sent over a wire."""

    @property
    def num_tokens(self) -> int:
        """Prompt length in tokens."""
        ...

    def block_keys(self, block_tokens: int) -> bytes:
        """As in `core.prompt.Prompt`."""
        ...

    def text(self, spoken: Mapping[int, str]) -> str:
        """ASCII text of exactly `num_tokens` characters, streams in `spoken` replaced by theirs."""
        ...


class Piece(NamedTuple):
    """The first `tokens` tokens of stream `stream`."""

    stream: int
    tokens: int


def salt_of(name: str) -> int:
    """The 48-bit salt of the workload called `name`."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little")


class HashedPrompt:
    """A prompt known by hash ids of `id_tokens`-token blocks, the last one possibly cut short."""

    __slots__ = ("id_tokens", "ids", "num_tokens", "salt")

    def __init__(
        self, salt: int, ids: npt.NDArray[np.int64], id_tokens: int, num_tokens: int
    ) -> None:
        """`ids` are small non-negative integers (`readers` renumbers large ones).

        Raises ValueError unless there are ceil(num_tokens / id_tokens) of them.
        """
        if len(ids) != -(-num_tokens // id_tokens):
            raise ValueError(f"{len(ids)} hash ids do not cover {num_tokens} tokens")
        self.salt = salt
        self.ids = ids
        self.id_tokens = id_tokens
        self.num_tokens = num_tokens

    def block_keys(self, block_tokens: int) -> bytes:
        """Keys of the full blocks, from (id, block within the id) where blocks divide ids."""
        if block_tokens < UNIT_TOKENS or self.id_tokens % block_tokens:
            return keys_of_text(self._bytes(), block_tokens)
        per_id = self.id_tokens // block_tokens
        count = self.num_tokens // block_tokens
        step, steps = _id_steps(per_id)
        keys = (self.ids.view(np.uint64) * step + np.uint64(self.salt << 16))[:, None] + steps
        return keys.tobytes()[: count * KEY_BYTES]

    def text(self, spoken: Mapping[int, str]) -> str:
        """The prompt as text; nothing in it can have been spoken by the engine."""
        return self._bytes().decode("ascii")

    def _bytes(self) -> bytes:
        units = -(-self.id_tokens // UNIT_TOKENS)
        origins = (self.ids * units)[:, None] + np.arange(units)
        text = _unit_text(origins.ravel().view(np.uint64), self.salt)
        if self.id_tokens % UNIT_TOKENS:
            rows = np.frombuffer(text, np.uint8).reshape(-1, units * UNIT_TOKENS)
            text = rows[:, : self.id_tokens].tobytes()
        return text[: self.num_tokens]


class _Cut(NamedTuple):
    """A prompt cut into blocks: the keys of the full ones, and the text of what is left over."""

    block_tokens: int
    keys: bytes
    rest: bytes


class StreamPrompt:
    """A prompt made of pieces: shared prefix, own input, earlier outputs.

    Keys of prompts of several pieces are kept, and a prompt grown from another starts from its
    keys, so that a conversation costs what its turns add and not the square of its length.
    """

    __slots__ = ("_cut", "_parent", "num_tokens", "pieces", "salt")

    def __init__(self, salt: int, pieces: Sequence[Piece]) -> None:
        """Raises ValueError for a stream number or a length that cannot be told apart."""
        total = 0
        for stream, tokens in pieces:
            if not (0 <= stream <= _MAX_STREAM and 0 < tokens <= UNIT_TOKENS << _STREAM_SHIFT):
                raise ValueError(f"stream {stream} of {tokens} tokens is out of range")
            total += tokens
        self.salt = salt
        self.pieces = tuple(pieces)
        self.num_tokens = total
        self._cut: _Cut | None = None
        self._parent: StreamPrompt | None = None

    def grown(self, pieces: Sequence[Piece]) -> "StreamPrompt":
        """This prompt followed by more pieces."""
        longer = StreamPrompt(self.salt, (*self.pieces, *pieces))
        longer._parent = self
        return longer

    def block_keys(self, block_tokens: int) -> bytes:
        """Keys of the full blocks, from (stream, offset) where a block lies within one piece."""
        if block_tokens < UNIT_TOKENS:
            return keys_of_text(self._bytes({}), block_tokens)
        pieces = self.pieces
        if len(pieces) == 1:
            stream, tokens = pieces[0]
            return _scatter(_offsets(stream, 0, tokens // block_tokens, block_tokens), self.salt)
        return self._cut_at(block_tokens).keys

    def text(self, spoken: Mapping[int, str]) -> str:
        """The prompt as text, with what the engine really said in place of its outputs.

        Raises ValueError if a spoken text has another length than its piece.
        """
        return self._bytes(spoken).decode("utf-8")

    def _cut_at(self, block_tokens: int) -> _Cut:
        cut = self._cut
        if cut is not None and cut.block_tokens == block_tokens:
            return cut
        keys, rest, pieces = b"", b"", self.pieces
        parent = self._parent
        if parent is not None:
            _, keys, rest = parent._cut_at(block_tokens)
            pieces = pieces[len(parent.pieces) :]
            self._parent = None
        parts = [keys]
        for stream, tokens in pieces:
            skip = min(block_tokens - len(rest), tokens) if rest else 0
            if skip:
                rest += _stream_text(stream, 0, skip, self.salt)
                if len(rest) == block_tokens:
                    parts.append(hashlib.blake2b(rest, digest_size=8).digest())
                    rest = b""
            count = (tokens - skip) // block_tokens
            if count:
                parts.append(_scatter(_offsets(stream, skip, count, block_tokens), self.salt))
            used = skip + count * block_tokens
            if used < tokens:
                rest += _stream_text(stream, used, tokens, self.salt)
        self._cut = cut = _Cut(block_tokens, b"".join(parts), rest)
        return cut

    def _bytes(self, spoken: Mapping[int, str]) -> bytes:
        parts = []
        for stream, tokens in self.pieces:
            said = spoken.get(stream)
            if said is None:
                if tokens <= _SHORT_TOKENS:
                    parts.append(_short_text(stream, tokens, self.salt))
                else:
                    parts.append(_stream_text(stream, 0, tokens, self.salt))
                continue
            if len(said) != tokens:
                raise ValueError(f"stream {stream}: {len(said)} characters for {tokens} tokens")
            parts.append(said.encode())
        return b"".join(parts)


@lru_cache(maxsize=_SHORT_TEXTS)
def _short_text(stream: int, tokens: int, salt: int) -> bytes:
    """The first tokens of a stream: each turn of a conversation says those of all before it."""
    return _stream_text(stream, 0, tokens, salt)


def _stream_text(stream: int, first: int, last: int, salt: int) -> bytes:
    lo, hi = first // UNIT_TOKENS, -(-last // UNIT_TOKENS)
    base = stream << _STREAM_SHIFT
    if hi - lo <= _FEW_UNITS:
        text = b"".join([_one_unit(base + unit, salt) for unit in range(lo, hi)])
    else:
        text = _unit_text(np.arange(base + lo, base + hi, dtype=np.uint64), salt)
    skip = first - lo * UNIT_TOKENS
    return text[skip : skip + last - first]


def keys_of_text(text: bytes, block_tokens: int) -> bytes:
    """Block keys by content: a multilinear hash of each full block's bytes modulo 2**64.

    Sixty-four bits over the few million blocks of a run: a collision has odds of one in a million.
    """
    count = len(text) // block_tokens
    cut = text[: count * block_tokens]
    dtype, width = (np.uint64, 8) if block_tokens % 8 == 0 else (np.uint8, 1)
    per_block = block_tokens // width
    words = np.frombuffer(cut, dtype).reshape(count, per_block).astype(np.uint64, copy=False)
    keys: _U64 = (words * _weights(per_block)).sum(axis=1, dtype=np.uint64)
    return keys.tobytes()


@cache
def _weights(count: int) -> _U64:
    """`count` odd multipliers with no structure: a Weyl sequence through xor-shift-multiply."""
    value = np.arange(1, count + 1, dtype=np.uint64) * _ODD64
    value ^= value >> np.uint64(31)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    return value | np.uint64(1)


def _offsets(stream: int, first: int, count: int, block_tokens: int) -> _U64:
    start = (stream << (_STREAM_SHIFT + 3)) + first
    return np.arange(start, start + count * block_tokens, block_tokens, dtype=np.uint64)


@cache
def _id_steps(per_id: int) -> tuple[np.uint64, _U64]:
    """Key distance from one hash id to the next, and of the blocks within one.

    A block's origin is id * per_id + block, and its key an odd multiple of that plus the salt, a
    bijection as in `_scatter`; taken apart, a prompt's keys are one outer sum.
    """
    steps = np.arange(per_id, dtype=np.uint64) * _ODD64
    return np.uint64(per_id * int(_ODD64) & ((1 << 64) - 1)), steps


def _scatter(origins: _U64, salt: int) -> bytes:
    """Keys of distinct origins: a bijection, so distinct; scattered, so unlike any other key."""
    return ((origins ^ np.uint64(salt << 16)) * _ODD64).tobytes()


def _unit_text(origins: _U64, salt: int) -> bytes:
    """Eight characters per origin below 2**48: base64 of its image under a 48-bit bijection."""
    value = origins ^ np.uint64(salt)
    for odd in (_ODD48_A, _ODD48_B):
        value *= np.uint64(odd)
        value &= np.uint64(_BITS48)
        value ^= value >> np.uint64(_SHIFT)
    six = value.view(np.uint8).reshape(-1, 8)[:, :6]
    return binascii.b2a_base64(six.tobytes(), newline=False)


def _one_unit(origin: int, salt: int) -> bytes:
    """`_unit_text` of a single origin, without numpy's overhead."""
    value = origin ^ salt
    for odd in (_ODD48_A, _ODD48_B):
        value = value * odd & _BITS48
        value ^= value >> _SHIFT
    return binascii.b2a_base64(value.to_bytes(6, "little"), newline=False)
