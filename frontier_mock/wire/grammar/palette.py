"""Which characters of a set to write: readable ones where there are any."""

import unicodedata

from frontier_mock.wire.grammar.dice import Dice
from frontier_mock.wire.grammar.tree import Ranges
from frontier_mock.wire.text import TextRing

_PRINTABLE = range(0x20, 0x7F)
_BROAD = 60
_SCANNED = 512
_UNWRITABLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


class Palette:
    """The characters to write for one set, which has some."""

    __slots__ = ("_pool", "_ring", "_whole", "flows")

    def __init__(self, ranges: Ranges, ring: TextRing) -> None:
        """`ring` is what text is taken from where the set has words."""
        self._ring = ring
        self._pool = _pool(ranges)
        chars = set(self._pool)
        self._whole = ring.chars <= chars
        letters = {char for char in ring.chars if char.isalpha()}
        self.flows = bool(letters) and letters <= chars

    def one(self, dice: Dice) -> str:
        """Some character of the set."""
        return self._pool[dice.below(len(self._pool))]

    def run(self, count: int, dice: Dice) -> str:
        """`count` characters of the set, words where it has letters."""
        if not self.flows or count < 1:
            return "".join(self.one(dice) for _ in range(count))
        ring = self._ring
        start = ring.starts[dice.below(len(ring.starts))]
        if self._whole:
            return ring.slice_chars(start, 0, count)
        pool = set(self._pool)
        found, first = "", 0
        while len(found) < count:
            text = ring.slice_chars(start, first, first + 2 * count)
            found += "".join(char for char in text if char in pool)
            first += 2 * count
        return found[:count]


def _pool(ranges: Ranges) -> str:
    """Candidates: printable ASCII, else what any font shows, else whatever there is."""
    plain = "".join(chr(code) for code in _PRINTABLE if any(a <= code <= b for a, b in ranges))
    if len(plain) >= _BROAD:
        return "".join(char for char in plain if char.isalnum() or char == " ") or plain
    if plain:
        return plain.strip() or plain
    some = [chr(code) for low, high in ranges for code in range(low, min(high, low + _SCANNED) + 1)]
    return "".join(c for c in some if unicodedata.category(c) not in _UNWRITABLE) or "".join(some)
