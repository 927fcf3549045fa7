"""A grammar as a list of nodes, each made after the parts it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from frontier_mock.wire.tokenizer import Json

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, inclusive ranges of code points."""

LAST_CODE_POINT = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True, slots=True)
class Literal:
    """One text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chars:
    """Any one character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequenced:
    """All of its parts, one after the other; no part is the empty text."""

    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of its ways."""

    ways: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Its part `low` to `high` times; `high` None has no end."""

    part: int
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What the rule of that name stands for."""

    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value that is valid under `schema`."""

    schema: Json


@dataclass(frozen=True, slots=True)
class Prose:
    """Any text in which none of `without` occurs, of at most `most` characters."""

    without: tuple[str, ...] = ()
    most: int | None = None


Node = Literal | Chars | Sequenced | Choice | Repeat | Rule | Value | Prose


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language. `spans[name]` are the nodes made for a rule, the last of which is its body."""

    nodes: tuple[Node, ...]
    root: int
    rules: dict[str, int]
    spans: dict[str, tuple[int, int]]


@dataclass(slots=True)
class Builder:
    """Collects nodes; every method gives the number of the node that it made."""

    nodes: list[Node] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, node: Node) -> int:
        """One more node."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def literal(self, text: str) -> int:
        """A text."""
        return self.add(Literal(text))

    def sequence(self, parts: Sequence[int]) -> int:
        """Parts in a row; a single one stands for itself."""
        return parts[0] if len(parts) == 1 else self.add(Sequenced(tuple(parts)))

    def choice(self, ways: Sequence[int]) -> int:
        """One of some ways; a single one stands for itself."""
        return ways[0] if len(ways) == 1 else self.add(Choice(tuple(ways)))

    def repeat(self, part: int, low: int, high: int | None) -> int:
        """A part repeated."""
        return self.add(Repeat(part, low, high))

    def define(self, name: str, first: int, body: int) -> None:
        """Node `body` is what rule `name` stands for; its nodes began with number `first`."""
        self.rules[name] = body
        self.spans[name] = (first, len(self.nodes))

    def finish(self, root: int) -> Grammar:
        """The grammar whose sentences are those of node `root`."""
        return Grammar(tuple(self.nodes), root, self.rules, self.spans)


def normalised(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """The same characters as sorted ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def inverted(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """All other characters; surrogates are none."""
    others, following = [], 0
    for low, high in normalised([*ranges, SURROGATES]):
        if low > following:
            others.append((following, low - 1))
        following = high + 1
    if following <= LAST_CODE_POINT:
        others.append((following, LAST_CODE_POINT))
    return tuple(others)


def without_surrogates(ranges: Ranges) -> Ranges:
    """Those of the characters that a text can have."""
    first, last = SURROGATES
    if not any(low <= last and high >= first for low, high in ranges):
        return ranges
    kept = [(low, min(high, first - 1)) for low, high in ranges if low < first]
    kept += [(max(low, last + 1), high) for low, high in ranges if high > last]
    return normalised(kept)
