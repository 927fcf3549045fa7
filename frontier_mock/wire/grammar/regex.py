"""Regexes as xgrammar 0.2.8 reads them, or as llguidance 1.9 does, which vLLM falls back on.

Iterative, so that no depth of groups is too much. Both take a regex for the whole output: `^` and
`$` say nothing more. Flags for letter case and the like are not looked at, as what is written in
the case of the pattern matches under them too.
"""

from dataclasses import dataclass, field

from frontier_mock.wire.grammar import classes
from frontier_mock.wire.grammar.faults import (
    GrammarFault,
    ebnf_fault,
    guided_refusal,
    guided_regex_fault,
    lexer_fault,
    regex_fault,
)
from frontier_mock.wire.grammar.regex_atoms import Atoms
from frontier_mock.wire.grammar.tree import Builder, Chars, Grammar, Ranges

_MAX_COUNT = 10**15
"""xgrammar's bound on numbers."""


def read_regex(pattern: str, guided: bool = False) -> Grammar:
    """The language of a regex. Raises GrammarFault in xgrammar's words, or llguidance's."""
    builder = Builder()
    return builder.finish(RegexReader(pattern, builder, guided).read())


@dataclass(slots=True)
class _Group:
    """An open group: where it began, the ways before this one, and this one's parts so far."""

    start: int
    ways: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    verbose: bool = False


class RegexReader:
    """Reads one regex into a builder."""

    def __init__(self, pattern: str, builder: Builder, guided: bool = False) -> None:
        self._pattern = pattern
        self._builder = builder
        self._guided = guided
        self._atoms = Atoms(pattern, guided)
        self._at = 0
        self._column = len("root ::= ") + 1
        self._groups = [_Group(0)]
        self._repeatable = False
        self._repeated = False

    def read(self) -> int:
        """The node of the whole pattern. Raises GrammarFault."""
        pattern = self._pattern
        while self._at < len(pattern):
            self._element(pattern[self._at])
        if len(self._groups) > 1:
            start = self._groups[-1].start
            if not self._guided:
                raise regex_fault(len(pattern) + 1, "The parenthesis is not closed.")
            raise guided_regex_fault(pattern, start, start + 1, "unclosed group")
        return self._closed(self._groups.pop())

    def _element(self, char: str) -> None:
        group = self._groups[-1]
        if char == "(":
            self._open()
        elif char == ")":
            self._close()
        elif char == "|":
            group.ways.append(self._row(group))
            group.parts = []
            self._passed(1, repeatable=False)
        elif char in "*+?" or char == "{":
            self._quantify(char, group)
        elif char in "^$":
            self._anchor(char)
        elif group.verbose and char.isspace():
            self._at += 1
        else:
            self._atom(char, group)

    def _atom(self, char: str, group: _Group) -> None:
        builder = self._builder
        if char == "[":
            ranges, self._at = self._atoms.charset(self._at)
        elif char == "\\":
            found, self._at = self._atoms.escape(self._at)
            if found is None:
                return
            ranges = found
        elif char == ".":
            ranges = classes.ANYTHING
            self._at += 1
        else:
            ranges = classes.one(ord(char))
            self._at += 1
        self._column += len('"x" ')
        group.parts.append(_char_node(builder, ranges))
        self._repeatable, self._repeated = True, False

    def _anchor(self, char: str) -> None:
        rest = self._pattern[self._at + 1 :].strip("$)")
        if self._guided and (rest and not rest.startswith("|") if char == "$" else self._at):
            name = "End" if char == "$" else "Start"
            problem = f"lookarounds not supported yet; {name} in regex /{self._pattern}/"
            raise guided_refusal(self._pattern, problem)
        self._at += 1

    def _open(self) -> None:
        pattern, start = self._pattern, self._at
        verbose = self._groups[-1].verbose
        self._at += 1
        self._column += 1
        self._repeatable = False
        if pattern.startswith("?", self._at):
            body, alone, flags = self._atoms.group_kind(start)
            self._at = body
            if "x" in flags:
                verbose = True
            if alone:
                self._groups[-1].verbose = verbose
                return
        self._groups.append(_Group(start, verbose=verbose))

    def _close(self) -> None:
        if len(self._groups) == 1:
            if not self._guided:
                raise regex_fault(self._at + 1, "Unmatched ')'")
            raise guided_regex_fault(self._pattern, self._at, self._at + 1, "unopened group")
        node = self._closed(self._groups.pop())
        self._groups[-1].parts.append(node)
        self._passed(1, repeatable=True)

    def _passed(self, count: int, *, repeatable: bool) -> None:
        self._at += count
        self._column += count + 1
        self._repeatable, self._repeated = repeatable, False

    def _closed(self, group: _Group) -> int:
        return self._builder.choice([*group.ways, self._row(group)])

    def _row(self, group: _Group) -> int:
        return self._builder.sequence(group.parts) if group.parts else self._builder.literal("")

    def _quantify(self, char: str, group: _Group) -> None:
        if char == "{" and not self._guided and not self._repeated:
            low, high, length = self._counts(self._at)
        elif not self._repeatable:
            raise self._nothing_to_repeat(char)
        elif self._repeated and not self._guided:
            message = "Two consecutive repetition modifiers are not allowed."
            raise regex_fault(self._at + 1, message)
        elif char == "{":
            low, high, length = self._counts(self._at)
        else:
            low, high, length = int(char == "+"), 1 if char == "?" else None, 1
        if not self._repeatable:
            raise self._nothing_to_repeat(char)
        group.parts[-1] = self._builder.repeat(group.parts[-1], low, high)
        self._at += length
        self._column += length
        if self._pattern.startswith("?", self._at):
            self._at += 1
        self._repeated = True

    def _nothing_to_repeat(self, char: str) -> GrammarFault:
        if not self._guided:
            return ebnf_fault(1, self._column, f"Expect element, but got {char}")
        message = "repetition operator missing expression"
        return guided_regex_fault(self._pattern, self._at, self._at + 1, message)

    def _counts(self, start: int) -> tuple[int, int | None, int]:
        """(low, high, characters) of a repetition in braces at `start`."""
        pattern = self._pattern
        low, at = _digits(pattern, start + 1)
        if not low:
            raise self._bad_count(start, at, "repetition quantifier expects a valid decimal")
        high: str | None = low
        if pattern.startswith(",", at):
            high, at = _digits(pattern, at + 1)
            high = high or None
        if not pattern.startswith("}", at):
            raise self._bad_count(start, at, "unclosed counted repetition")
        self._check_counts(start, at + 1, low, high)
        return int(low), None if high is None else int(high), at + 1 - start

    def _bad_count(self, start: int, at: int, message: str) -> GrammarFault:
        if not self._guided:
            return regex_fault(at + 1, "Invalid repetition count.")
        if at >= len(self._pattern) or message.startswith("unclosed"):
            start, at, message = start, start, "unclosed counted repetition"
        return guided_regex_fault(self._pattern, at, at + 1, message)

    def _check_counts(self, start: int, end: int, low: str, high: str | None) -> None:
        for number in (low, high or "0"):
            if self._guided and (len(number) > 10 or int(number) >= 1 << 32):
                first = self._pattern.index(number, start)
                last = first + len(number)
                raise guided_regex_fault(self._pattern, first, last, "decimal literal invalid")
            if not self._guided and (len(number) > 16 or int(number) > _MAX_COUNT):
                column = self._column - 1 + len("{") + min(16, len(number))
                message = f"Integer is too large: parsed {number[:16]}, max allowed is {_MAX_COUNT}"
                raise lexer_fault(1, column, message)
        if high is None or int(low) <= int(high):
            return
        if self._guided:
            message = "invalid repetition count range, the start must be <= the end"
            raise guided_regex_fault(self._pattern, start, end, message)
        message = f"Lower bound is larger than upper bound: {low} > {high}"
        raise ebnf_fault(1, self._column - 1 + len(f"{{{low},"), message)


def _char_node(builder: Builder, ranges: Ranges) -> int:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return builder.literal(chr(ranges[0][0]))
    return builder.add(Chars(ranges))


def _digits(text: str, at: int) -> tuple[str, int]:
    end = at
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return text[at:end], end
