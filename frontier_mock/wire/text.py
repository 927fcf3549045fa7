"""Synthetic output: text that is deterministic, counts exactly, and costs nothing until it is read.

A `TextRing` is one long periodic text whose tokens re-encode to themselves wherever it is cut. A
sequence's output is the ring read from a place of its own, so generating it stores one integer,
and rendering tokens i to j is one slice. The ring is ASCII without quotes and backslashes: a slice
of its bytes is already a JSON string.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frontier_mock import rng
from frontier_mock.wire.block_keys import Keys, hash_blocks, hash_windows
from frontier_mock.wire.tokenizer import TokenIds, Tokenizer

Positions = NDArray[np.int64]
"""Positions of a ring, in tokens."""


DISTINCT_TOKENS = 8
"""From so many tokens on the outputs of a prompt's choices differ from each other, if possible."""


class TextRing:
    """The periodic text of one tokenizer. Tables run over two periods, so no slice has to wrap.

    `offsets[i]` is where token i begins in `text`, in characters (which are bytes); `period` is
    the number of tokens and `period_chars` the number of characters after which all repeats.
    `keys[i]` is the key of the block of `block_tokens` tokens that begins at token i.
    """

    __slots__ = (
        "_group_of",
        "_groups",
        "_places",
        "_windows",
        "block_tokens",
        "chars",
        "data",
        "end_id",
        "id_set",
        "ids",
        "is_start",
        "keys",
        "offsets",
        "period",
        "period_chars",
        "start_ids",
        "starts",
        "text",
        "words",
    )

    def __init__(self, tokenizer: Tokenizer, block_tokens: int) -> None:
        """Render the tokenizer's words; `block_tokens` is the block size output keys are cut at.

        Raises ValueError if some run of the words does not encode back to itself.
        """
        once = list(tokenizer.generated_words())
        pieces = [tokenizer.token_text(token_id) for token_id in once]
        period_text = "".join(pieces)
        _require_stable(tokenizer, once, pieces)
        self.period = len(once)
        self.period_chars = len(period_text)
        self.ids = np.array(once * 2, np.uint32)
        self.text = period_text * 2
        self.data = self.text.encode("ascii")
        self.chars = frozenset(period_text)
        self.offsets = [0]
        for piece in pieces * 2:
            self.offsets.append(self.offsets[-1] + len(piece))
        self.words = tuple(dict.fromkeys(once))
        self.id_set = frozenset(once)
        self.starts = _word_starts(pieces)
        # Choices of one prompt take turns among starts that read differently from the outset.
        self._groups = _groups(self.starts, self.ids[: self.period])
        self._places = np.array([group[0] for group in self._groups], np.int64)
        self._group_of = {place: i for i, group in enumerate(self._groups) for place in group}
        self.start_ids = frozenset(once[start] for start in self.starts)
        self.is_start = np.zeros(self.period, np.bool_)
        self.is_start[self.starts] = True
        self._windows: dict[int, Windows] = {}
        self.end_id = tokenizer.eos_token_id
        self.block_tokens = block_tokens
        self.keys: Keys = np.tile(hash_windows(self.ids[: self.period], block_tokens), 2)

    def start_for(self, seed: int, key: int, choice: int) -> int:
        """Where the output of choice `choice` for the content `key` begins, a ring position."""
        first = self.starts[rng.draw_u64(seed, f"text/{key:x}", 0) % len(self.starts)]
        if not choice:
            return first
        group = self._groups[(self._group_of[first] + choice) % len(self._groups)]
        return group[choice // len(self._groups) % len(group)]

    def starts_for(self, seed: int, key: int, count: int) -> Positions:
        """Where the outputs of the first `count` choices begin."""
        first = self.start_for(seed, key, 0)
        if count > len(self._groups):
            return np.array([self.start_for(seed, key, i) for i in range(count)], np.int64)
        places = self._places[(self._group_of[first] + np.arange(count)) % len(self._groups)]
        places[0] = first
        return places

    def windows(self, num_tokens: int) -> "Windows":
        """Its runs of `num_tokens` tokens, ready to be searched; made when first asked for."""
        found = self._windows.get(num_tokens)
        if found is None:
            found = self._windows[num_tokens] = Windows(self.ids[: self.period], num_tokens)
        return found

    def chars_between(self, start: int, count: int) -> int:
        """Length of the text of `count` tokens from ring position `start`, in characters."""
        laps, rest = divmod(start + count, self.period)
        return laps * self.period_chars + self.offsets[rest] - self.offsets[start]

    def tokens_to_reach(self, start: int, chars: int) -> int:
        """Fewest tokens from ring position `start` whose text has at least `chars` characters."""
        laps, rest = divmod(self.offsets[start] + chars, self.period_chars)
        within = bisect_left(self.offsets, rest, 0, self.period + 1)
        return laps * self.period + within - start

    def slice_chars(self, start: int, first: int, last: int) -> str:
        """Characters `first` to `last` of the text that begins at ring position `start`."""
        begin = (self.offsets[start] + first) % self.period_chars
        count = last - first
        if count <= self.period_chars:
            return self.text[begin : begin + count]
        repeats = (begin + count) // self.period_chars + 1
        return (self.text[: self.period_chars] * repeats)[begin : begin + count]

    def slice_ids(self, start: int, first: int, last: int) -> TokenIds:
        """Ids `first` to `last` of the text that begins at ring position `start`."""
        begin = (start + first) % self.period
        if last - first <= self.period:
            return self.ids[begin : begin + last - first]
        return np.resize(np.roll(self.ids[: self.period], -begin), last - first)


class Windows:
    """Every run of `num_tokens` tokens of a ring, by its hash."""

    __slots__ = ("_at", "_keys", "_num_tokens", "_period")

    def __init__(self, ids: TokenIds, num_tokens: int) -> None:
        """`ids` are one period of the ring."""
        keys = hash_windows(ids, num_tokens)
        self._at = np.argsort(keys, kind="stable")
        self._keys = keys[self._at]
        self._num_tokens = num_tokens
        self._period = len(ids)

    def ends_of(self, window: TokenIds) -> list[int]:
        """Ring positions that follow a run equal to `window`, in order."""
        key = hash_blocks(window, self._num_tokens)[0]
        low, high = (
            np.searchsorted(self._keys, key, "left"),
            np.searchsorted(self._keys, key, "right"),
        )
        ends: list[int] = ((self._at[low:high] + self._num_tokens) % self._period).tolist()
        return ends


class SyntheticText:
    """The output of one sequence: `num_tokens` tokens, the last of which may be an end token.

    `end_id` is the id of that last token if it has no text of its own (end of sequence, stop
    token), else -1. `cut_chars` is where a stop string truncates the text, or -1. `hold_chars`
    is how many characters a stream keeps back while it might still be inside a stop string.
    """

    __slots__ = ("cut_chars", "end_id", "hold_chars", "num_tokens", "plain_tokens", "ring", "start")

    def __init__(
        self,
        ring: TextRing,
        start: int,
        num_tokens: int,
        end_id: int = -1,
        cut_chars: int = -1,
        hold_chars: int = 0,
    ) -> None:
        """See the class; `start` is a position of the ring."""
        self.ring = ring
        self.start = start
        self.num_tokens = num_tokens
        self.end_id = end_id
        self.cut_chars = cut_chars
        self.hold_chars = hold_chars
        special_end = end_id >= 0 or cut_chars >= 0
        self.plain_tokens = 0 if hold_chars else num_tokens - special_end
        """Up to this many tokens, text and ring agree: slices need no correction."""

    def ids(self, first: int, last: int) -> list[int]:
        """Ids of output tokens `first` to `last` (exclusive)."""
        ids: list[int] = self.ring.slice_ids(self.start, first, last).tolist()
        if self.end_id >= 0 and first < last == self.num_tokens:
            ids[-1] = self.end_id
        return ids

    def piece(self, first: int, last: int, final: bool = False) -> str:
        """Text that output tokens `first` to `last` add to what was sent before them.

        `final` says that no token follows, so that nothing is held back any longer.
        """
        ring = self.ring
        if last <= self.plain_tokens and last - first <= ring.period:
            begin = (self.start + first) % ring.period
            return ring.text[ring.offsets[begin] : ring.offsets[begin + last - first]]
        return ring.slice_chars(self.start, self.sent_chars(first), self.sent_chars(last, final))

    def sent_chars(self, tokens: int, final: bool = False) -> int:
        """Characters a stream has sent once `tokens` tokens are out (and, `final`, all of them)."""
        final = final or tokens >= self.num_tokens
        with_text = min(tokens, self.num_tokens - (self.end_id >= 0))
        chars = self.ring.chars_between(self.start, with_text)
        if not final:
            chars = max(0, chars - self.hold_chars)
        return chars if self.cut_chars < 0 else min(chars, self.cut_chars)

    def token_texts(self, first: int, last: int, tokenizer: Tokenizer) -> list[str]:
        """The text of each token on its own, for logprobs."""
        return [tokenizer.token_text(token_id) for token_id in self.ids(first, last)]


class FixedText(SyntheticText):
    """Output that is a text of its own: `pieces[i]` is what token `ids[i]` says.

    `num_tokens` of them are generated, the last of which is an end token if `end_id` is not -1.
    """

    __slots__ = ("_ids", "_offsets", "_text")

    def __init__(
        self,
        ring: TextRing,
        ids: Sequence[int],
        pieces: Sequence[str],
        num_tokens: int,
        end_id: int = -1,
        cut_chars: int = -1,
        hold_chars: int = 0,
    ) -> None:
        """`ring` is that of the same tokenizer, for whom it matters."""
        super().__init__(ring, 0, num_tokens, end_id, cut_chars, hold_chars)
        self.plain_tokens = 0
        self._ids = [*ids[: num_tokens - (end_id >= 0)], *([end_id] if end_id >= 0 else [])]
        self._text = "".join(pieces)
        self._offsets = [0]
        for piece in pieces:
            self._offsets.append(self._offsets[-1] + len(piece))

    def ids(self, first: int, last: int) -> list[int]:
        """Ids of output tokens `first` to `last` (exclusive)."""
        return self._ids[first:last]

    def piece(self, first: int, last: int, final: bool = False) -> str:
        """Text of output tokens `first` to `last`."""
        return self._text[self.sent_chars(first) : self.sent_chars(last, final)]

    def sent_chars(self, tokens: int, final: bool = False) -> int:
        """Characters of the first `tokens` tokens."""
        chars = self._offsets[min(tokens, self.num_tokens - (self.end_id >= 0))]
        if not final and tokens < self.num_tokens:
            chars = max(0, chars - self.hold_chars)
        return chars if self.cut_chars < 0 else min(chars, self.cut_chars)

    def spoken_ids(self) -> TokenIds:
        """The ids that have text."""
        return np.array(self._ids[: self.num_tokens - (self.end_id >= 0)], np.uint32)


def keys_after(text: SyntheticText, tail: TokenIds, salt: int) -> bytes:
    """`output_keys` of a text: of the blocks that it fills after a prompt with that `tail`."""
    if not isinstance(text, FixedText):
        with_text = text.num_tokens - (text.end_id >= 0)
        return output_keys(text.ring, text.start, with_text, tail, salt)
    keys = hash_blocks(np.concatenate([tail, text.spoken_ids()]), text.ring.block_tokens)
    if salt and len(keys):
        keys[0] ^= np.uint64(salt)
    return keys.tobytes()


def output_keys(ring: TextRing, start: int, num_tokens: int, tail: TokenIds, salt: int) -> bytes:
    """Keys of the blocks that output tokens fill, after a prompt whose last tokens are `tail`.

    `tail` are the prompt's tokens beyond its last full block; `salt` is mixed into the first of
    these blocks if the prompt has no full block of its own (pass 0 otherwise). Only the block
    that joins prompt and output is hashed, the others are looked up in the ring.
    """
    size = ring.block_tokens
    joined = size - len(tail)
    if num_tokens < joined:
        return b""
    first = hash_blocks(np.concatenate([tail, ring.slice_ids(start, 0, joined)]), size)
    if salt:
        first ^= np.uint64(salt)
    whole = (num_tokens - joined) // size
    begin = (start + joined) % ring.period
    if begin + whole * size <= len(ring.keys):
        keys: Keys = ring.keys[begin : begin + whole * size : size]
    else:
        keys = ring.keys[(begin + size * np.arange(whole)) % ring.period]
    return first.tobytes() + keys.tobytes()


def _groups(starts: Sequence[int], ids: TokenIds) -> list[list[int]]:
    """`starts` sorted by the tokens that follow them, in order of their first appearance."""
    keys = hash_windows(ids, DISTINCT_TOKENS)
    groups: dict[int, list[int]] = {}
    for start in starts:
        groups.setdefault(int(keys[start]), []).append(start)
    return list(groups.values())


def _word_starts(pieces: Sequence[str]) -> list[int]:
    """Positions at which a reader would accept a text to begin."""
    starts = [
        i
        for i, piece in enumerate(pieces)
        if (piece[0] == " " and len(piece) > 1) or (pieces[i - 1] == " " and piece != " ")
    ]
    return starts or list(range(len(pieces)))


def _require_stable(tokenizer: Tokenizer, ids: list[int], pieces: list[str]) -> None:
    text = "".join(pieces)
    if not text or not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
        raise ValueError("synthetic text must be printable ASCII without quotes and backslashes")
    wrapped = [*ids, *ids[:16]]
    again = tokenizer.encode(text + "".join(pieces[:16])).tolist()
    if again != wrapped:
        raise ValueError("synthetic text does not encode back to the tokens it was made from")
