"""How short, and about how long, the sentences of each node can be, in characters."""

from collections import deque
from typing import NamedTuple

from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.tree import (
    Chars,
    Choice,
    Grammar,
    Literal,
    Node,
    Prose,
    Repeat,
    Rule,
    Sequenced,
    Value,
)

ENDLESS = 1 << 40
"""More characters than any output has: longer lengths are taken for this one."""

NO_SENTENCE = (1 << 60, 0)
"""The shortest sentence of a node that has none."""

_SHORTEST_VALUE = 2
_MAX_RAISES = 24
_MAX_LOOKS = 200_000
"""Nodes looked at before a grammar is given up: about half a second."""

_SPACE = 0x20
_NO_BREAK_SPACE = 0xA0


class Measures(NamedTuple):
    """Per node: (characters, rules passed through) of its shortest sentence, and most characters.

    Of two ways with equally short sentences the one through fewer rules comes to an end, so always
    taking the least pair always does. What is longest is a hint: a rule that leads to itself
    counts as endless.
    """

    shortest: list[tuple[int, int]]
    longest: list[int]


def measure(grammar: Grammar) -> Measures:
    """Measure all nodes: rules in turn, and whoever mentions a rule that changed again.

    Raises GrammarFault for a grammar whose rules depend on each other too much.
    """
    shortest = [NO_SENTENCE] * len(grammar.nodes)
    longest = [0] * len(grammar.nodes)
    users = _users(grammar)
    raises = dict.fromkeys(grammar.rules, 0)
    # Rules mostly use those after them.
    waiting = deque(reversed(grammar.rules))
    queued = set(waiting)
    looks = 0
    while waiting:
        name = waiting.popleft()
        queued.discard(name)
        body = grammar.rules[name]
        looks += grammar.spans[name][1] - grammar.spans[name][0]
        if looks > _MAX_LOOKS:
            raise GrammarFault("Grammar preprocessing timed out")
        before = shortest[body], longest[body]
        _measure_span(grammar, *grammar.spans[name], shortest, longest)
        if longest[body] > before[1]:
            raises[name] += 1
            if raises[name] > _MAX_RAISES:
                longest[body] = ENDLESS
        if (shortest[body], longest[body]) != before:
            fresh = [user for user in users[name] if user not in queued]
            waiting.extend(fresh)
            queued.update(fresh)
    _measure_span(grammar, 0, len(grammar.nodes), shortest, longest)
    return Measures(shortest, longest)


def _users(grammar: Grammar) -> dict[str, list[str]]:
    users: dict[str, dict[str, None]] = {name: {} for name in grammar.rules}
    for name, (first, last) in grammar.spans.items():
        for node in grammar.nodes[first:last]:
            if isinstance(node, Rule):
                users[node.name][name] = None
    return {name: list(found) for name, found in users.items()}


def _measure_span(
    grammar: Grammar,
    first: int,
    last: int,
    shortest: list[tuple[int, int]],
    longest: list[int],
) -> None:
    for i in range(first, last):
        node = grammar.nodes[i]
        least, most = _measured(node, grammar, shortest, longest)
        shortest[i] = min(shortest[i], least)
        longest[i] = max(longest[i], min(most, ENDLESS))


def _measured(
    node: Node, grammar: Grammar, shortest: list[tuple[int, int]], longest: list[int]
) -> tuple[tuple[int, int], int]:
    if isinstance(node, Literal):
        # Nobody wants an output that is made long with white space.
        return (len(node.text), 0), 0 if node.text.isspace() else len(node.text)
    if isinstance(node, Chars):
        return ((1, 0), int(not _is_blank(node))) if node.ranges else (NO_SENTENCE, 0)
    if isinstance(node, Value):
        return (_SHORTEST_VALUE, 0), ENDLESS
    if isinstance(node, Prose):
        return (0, 0), ENDLESS if node.most is None else node.most
    if isinstance(node, Rule):
        body = grammar.rules[node.name]
        chars, rules = shortest[body]
        return (chars, rules + 1), longest[body]
    if isinstance(node, Choice):
        return (
            min((shortest[way] for way in node.ways), default=NO_SENTENCE),
            max((longest[way] for way in node.ways), default=0),
        )
    if isinstance(node, Sequenced):
        parts = [shortest[part] for part in node.parts]
        least = _bounded(sum(chars for chars, _ in parts), max((r for _, r in parts), default=0))
        return least, sum(longest[part] for part in node.parts)
    return _repeated(node, shortest[node.part], longest[node.part])


def _repeated(node: Repeat, part: tuple[int, int], most: int) -> tuple[tuple[int, int], int]:
    least = _bounded(node.low * part[0], part[1]) if node.low else (0, 0)
    high = ENDLESS if node.high is None else node.high
    return least, most * high


def _is_blank(node: Chars) -> bool:
    return all(high <= _SPACE or low == high == _NO_BREAK_SPACE for low, high in node.ranges)


def _bounded(chars: int, rules: int) -> tuple[int, int]:
    """A sum of lengths, kept apart from that of a node without sentences."""
    return (min(chars, ENDLESS), rules) if chars < NO_SENTENCE[0] else NO_SENTENCE
