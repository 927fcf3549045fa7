"""Sentences of a grammar: deterministic for a seed, and about as long as asked.

Written from left to right with a stack of its own. Whoever is on the stack knows where its text
should end, so what one part cannot use the parts after it may. Where the language is narrower than
the length asked for, its ways are equally likely; where it is wider, those are taken that reach it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from frontier_mock.wire.grammar.dice import Dice
from frontier_mock.wire.grammar.measure import ENDLESS, Measures, measure
from frontier_mock.wire.grammar.palette import Palette
from frontier_mock.wire.grammar.tree import (
    Chars,
    Choice,
    Grammar,
    Literal,
    Prose,
    Ranges,
    Repeat,
    Rule,
    Sequenced,
    Value,
)
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

WriteValue = Callable[[Json, int, int], str]
"""JSON text for (schema, number of the value in its sentence, characters it should have)."""

LIMIT_CHARS = 1 << 17
"""Characters after which a sentence is given up that does not come to its end."""

_ITEM_CHARS = (8, 24)
_SHORT_CHARS = 8
_STEPS_BEFORE_HURRY = 20_000
_STEPS = 400_000
_WAYS_PER_STEP = 16


class Sentence(NamedTuple):
    """A text, and whether it is whole: one that grew beyond its limit ends anywhere."""

    text: str
    whole: bool


def write_sentence(
    grammar: Grammar,
    ring: TextRing,
    seed: int,
    stream: str,
    chars: int,
    limit: int = 0,
    write_value: WriteValue | None = None,
    measures: Measures | None = None,
) -> Sentence:
    """A sentence of about `chars` characters, given up beyond `limit`; 0 allows `LIMIT_CHARS`.

    `write_value` writes the JSON of a grammar that has `Value` nodes. `measures` are the grammar's
    if they are known; else it raises GrammarFault as `measure` does.
    """
    measures = measures or measure(grammar)
    author = Author(grammar, measures, ring, Dice(seed, stream), write_value or _no_value)
    return author.sentence(chars, limit or LIMIT_CHARS)


def _no_value(_schema: Json, _number: int, _chars: int) -> str:
    return "null"


class _Row:
    """Parts still to be written up to place `end`; `tails[i]` is (least, growing) of parts[i:]."""

    __slots__ = ("at", "end", "parts", "tails")

    def __init__(self, parts: Sequence[int], end: int, tails: Sequence[tuple[int, int]]) -> None:
        self.parts = parts
        self.at = 0
        self.end = end
        self.tails = tails


class _Times:
    """A part still to be written `left` times up to place `end`."""

    __slots__ = ("end", "left", "part")

    def __init__(self, part: int, left: int, end: int) -> None:
        self.part = part
        self.left = left
        self.end = end


class Author:
    """Writes one sentence."""

    def __init__(
        self,
        grammar: Grammar,
        measures: Measures,
        ring: TextRing,
        dice: Dice,
        write_value: WriteValue,
    ) -> None:
        self._nodes = grammar.nodes
        self._root = grammar.root
        self._rules = grammar.rules
        self._shortest, self._longest = measures
        self._ring = ring
        self._dice = dice
        self._write_value = write_value
        self._palettes: dict[Ranges, Palette] = {}
        self._tails: dict[int, list[tuple[int, int]]] = {}
        self._out: list[str] = []
        self._chars = 0
        self._values = 0
        self._steps = 0
        self._limit = 0
        self._stack: list[_Row | _Times] = []

    def sentence(self, chars: int, limit: int) -> Sentence:
        """A sentence of about `chars` characters, given up once it has `limit` of them."""
        if self._shortest[self._root][0] > ENDLESS:
            return Sentence("", True)
        self._limit = limit
        self._write(self._root, chars)
        while self._stack and self._chars < limit and self._steps < _STEPS:
            self._steps += 1
            top = self._stack[-1]
            if isinstance(top, _Row):
                self._next_part(top)
            else:
                self._next_time(top)
        return Sentence("".join(self._out), not self._stack and self._chars < limit)

    def _next_part(self, row: _Row) -> None:
        part = row.parts[row.at]
        least, growing = row.tails[row.at]
        row.at += 1
        if row.at == len(row.parts):
            self._stack.pop()
        own = self._shortest[part][0]
        end = self._chars + own
        slack = row.end - self._chars - least
        if slack > 0 and self._longest[part] > own:
            # Shares differ, or sentences would look alike.
            even = slack if growing == 1 else slack * self._dice.between(50, 150) // 100 // growing
            end += min(slack, even, self._longest[part] - own)
        self._write(part, end)

    def _next_time(self, times: _Times) -> None:
        times.left -= 1
        if not times.left:
            self._stack.pop()
        share = max(0, times.end - self._chars) // (times.left + 1)
        self._write(times.part, self._chars + share)

    def _write(self, number: int, end: int) -> None:
        """Write a node that should end at place `end`, or put it on the stack."""
        while True:
            node = self._nodes[number]
            if isinstance(node, Rule):
                number = self._rules[node.name]
            elif isinstance(node, Choice):
                number = self._way(number, node, end - self._chars)
            else:
                break
            self._steps += 1
        if isinstance(node, Literal):
            self._say(node.text)
        elif isinstance(node, Chars):
            self._say(self._palette(node.ranges).one(self._dice))
        elif isinstance(node, Sequenced):
            if node.parts:
                self._stack.append(_Row(node.parts, end, self._tails_of(number, node)))
        elif isinstance(node, Repeat):
            self._repeat(number, node, end)
        elif isinstance(node, Value):
            self._values += 1
            self._say(self._write_value(node.schema, self._values, max(0, end - self._chars)))
        else:
            self._say(self._prose(node, min(end, self._limit) - self._chars))

    def _way(self, number: int, node: Choice, room: int) -> int:
        shortest, longest = self._shortest, self._longest
        self._steps += len(node.ways) // _WAYS_PER_STEP
        if room <= shortest[number][0] or self._steps > _STEPS_BEFORE_HURRY:
            fitting = [way for way in node.ways if shortest[way] == shortest[number]]
            return fitting[self._dice.below(len(fitting))]
        fitting = [way for way in node.ways if shortest[way][0] <= room]
        if longest[number] > room:
            fitting = [way for way in fitting if longest[way] >= room] or fitting
        return fitting[self._dice.below(len(fitting))]

    def _repeat(self, number: int, node: Repeat, end: int) -> None:
        count = self._count(number, node, end - self._chars)
        palette = self._spoken(node.part)
        if palette is not None:
            self._say(palette.run(min(count, self._limit - self._chars), self._dice))
        elif count:
            self._stack.append(_Times(node.part, count, end))

    def _spoken(self, part: int) -> Palette | None:
        """What to say in one go where a part is repeated that is, or may be, a character."""
        node = self._nodes[part]
        if isinstance(node, Chars):
            return self._palette(node.ranges)
        for way in node.ways if isinstance(node, Choice) else ():
            inner = self._nodes[way]
            if isinstance(inner, Chars) and self._palette(inner.ranges).flows:
                return self._palette(inner.ranges)
        return None

    def _count(self, number: int, node: Repeat, room: int) -> int:
        """How often to say the part where there is room for so many characters."""
        least, most = self._shortest[node.part][0], self._longest[node.part]
        low, high = node.low, room if node.high is None else node.high
        if least == 0:
            # What can be empty need not be said so often.
            low, high = min(low, room + 1), min(high, room + 1)
        elif least > ENDLESS:
            return 0
        else:
            high = min(high, room // least)
        if high <= low or self._steps > _STEPS_BEFORE_HURRY:
            return max(0, low)
        if self._longest[number] <= room:
            most_times = high if node.high is not None else low + 1
            return self._dice.between(low, max(low, min(high, most_times)))
        if most >= ENDLESS:
            size = max(1, least, min(room, self._dice.between(*_ITEM_CHARS)))
        elif most <= _SHORT_CHARS:
            size = max(1, least)
        else:
            size = max(1, (least + most + 1) // 2)
        return min(max(1, low, room // size), high)

    def _tails_of(self, number: int, node: Sequenced) -> list[tuple[int, int]]:
        tails = self._tails.get(number)
        if tails is None:
            tails, least, growing = [], 0, 0
            for part in reversed(node.parts):
                own = self._shortest[part][0]
                least += own
                growing += self._longest[part] > own
                tails.append((least, growing))
            tails.reverse()
            self._tails[number] = tails
        return tails

    def _palette(self, ranges: Ranges) -> Palette:
        palette = self._palettes.get(ranges)
        if palette is None:
            palette = self._palettes[ranges] = Palette(ranges, self._ring)
        return palette

    def _prose(self, node: Prose, count: int) -> str:
        ring = self._ring
        count = count if node.most is None else min(count, node.most)
        text = ring.slice_chars(ring.starts[self._dice.below(len(ring.starts))], 0, max(0, count))
        for without in node.without:
            text = text.partition(without)[0]
        return text

    def _say(self, text: str) -> None:
        self._out.append(text)
        self._chars += len(text)
