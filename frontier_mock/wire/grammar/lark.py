"""Grammars in Lark's notation, as xgrammar 0.2.8 reads them: vLLM takes them for `grammar`.

Read are rules and terminals, strings, ranges, regexes, groups, options, repetitions, aliases, JSON
schemas, `%import common` and `%ignore`, of which nothing is ever written. What xgrammar leaves out
(intersections, complements, templates, priorities, special tokens) is refused.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from frontier_mock.wire.grammar.faults import GrammarFault, lark_fault
from frontier_mock.wire.grammar.regex import RegexReader, read_regex
from frontier_mock.wire.grammar.tree import Builder, Chars, Grammar, Rule, Value

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*|//[^\n]*)*")
_WORD = re.compile(r"[!?]*[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]+")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"i?')
_REGEX = re.compile(r"/(?:[^/\\\n]|\\.)+/[imslux]*")
_SYMBOL = re.compile(r"\.\.|->|[:|()\[\]?*+~{},.&]")
_DIRECTIVE = re.compile(r"%[a-z]+")
_ATTRIBUTES = re.compile(r"\[[^\]\n]*=[^\]\n]*\](?=\s*:)")
_IMPORT = re.compile(r"[ \t]+common(?:\.(\w+)(?:[ \t]*->[ \t]*(\w+))?|[ \t]*\(([\w, \t]*)\))")
_START = "start"
_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*",
    "FLOAT": r"[0-9]+\.[0-9]+",
    "SIGNED_FLOAT": r"[+-]?[0-9]+\.[0-9]+",
    "NUMBER": r"[0-9]+(\.[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?[0-9]+(\.[0-9]+)?",
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
    "ESCAPED_STRING": r'"[^"\\\n]*"',
    "WS_INLINE": "[ \t]+",
    "WS": "[ \t\r\n]+",
    "NEWLINE": "\r?\n",
}
"""Terminals of Lark's own library, or enough of each."""


class _Token(NamedTuple):
    """A word of the grammar; kinds are name, number, text, regex, directive and the symbols."""

    kind: str
    text: str
    at: int


@dataclass(slots=True)
class _Group:
    """An open group, or a rule: its bracket, the ways before this one, this one's parts."""

    opened: str = ""
    ways: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)


def is_lark(text: str) -> bool:
    """Whether vLLM takes a grammar for Lark's: no line of it defines a rule as EBNF does."""
    lines = (re.sub(r"(#|//).*$", "", line) for line in text.split("\n"))
    return not any("::=" in line for line in lines)


def read_lark(text: str) -> Grammar:
    """The language of rule `start`. Raises GrammarFault in xgrammar's words."""
    return _Reader(text).read()


class _Reader:
    """Reads one grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._builder = Builder()
        self._used: dict[str, int] = {}

    def read(self) -> Grammar:
        while (token := self._peek()).kind:
            if token.kind == "directive":
                self._directive(token)
            elif token.kind == "name":
                self._rule(token)
            else:
                raise self._fault(token.at, "expected rule or terminal name")
        builder = self._builder
        if _START not in builder.rules:
            raise self._fault(0, "no start rule found")
        for name, at in self._used.items():
            if name not in builder.rules:
                raise self._fault(at, f"unknown name '{name}'")
        return builder.finish(builder.rules[_START])

    def _peek(self) -> _Token:
        blank = _BLANK.match(self._text, self._at)
        self._at = self._at if blank is None else blank.end()
        if self._at >= len(self._text):
            return _Token("", "", self._at)
        for kind, pattern in (
            ("name", _WORD),
            ("text", _STRING),
            ("regex", _REGEX),
            ("number", _NUMBER),
            ("directive", _DIRECTIVE),
        ):
            if (found := pattern.match(self._text, self._at)) is not None:
                return _Token(kind, found.group(), self._at)
        if (symbol := _SYMBOL.match(self._text, self._at)) is not None:
            return _Token(symbol.group(), symbol.group(), self._at)
        char = self._text[self._at]
        names = {"/": "unterminated regular expression", '"': "unterminated string literal"}
        raise self._fault(self._at, names.get(char, f"unexpected character '{char}'"))

    def _take(self, token: _Token) -> _Token:
        self._at = token.at + len(token.text)
        return self._peek()

    def _directive(self, token: _Token) -> None:
        end = self._text.find("\n", token.at)
        end = len(self._text) if end < 0 else end
        if token.text == "%import":
            found = _IMPORT.match(self._text, token.at + len(token.text))
            if found is None:
                raise self._fault(token.at, "only %import common is supported")
            self._import(token, found)
        elif token.text != "%ignore":
            raise self._fault(token.at, f"directive {token.text} is not supported")
        self._at = end

    def _import(self, token: _Token, found: re.Match[str]) -> None:
        single, alias, several = found.groups()
        for name in [single] if single else re.split(r"[, \t]+", (several or "").strip()):
            if name not in _COMMON:
                raise self._fault(token.at, f"unknown common terminal '{name}'")
            first = len(self._builder.nodes)
            body = RegexReader(_COMMON[name], self._builder).read()
            self._builder.define(alias if single and alias else name, first, body)

    def _rule(self, name: _Token) -> None:
        following = self._take(name)
        attributes = _ATTRIBUTES.match(self._text, following.at)
        if attributes is not None:
            self._at = attributes.end()
            following = self._peek()
        if following.kind == ".":
            raise self._fault(following.at, "rule and terminal priorities are not supported")
        if following.kind == "{":
            raise self._fault(following.at, "Lark templates are not supported")
        if following.kind != ":":
            raise self._fault(following.at, "expected ':' after rule name")
        self._take(following)
        first = len(self._builder.nodes)
        body = self._body()
        self._builder.define(name.text.lstrip("!?"), first, body)

    def _body(self) -> int:
        groups = [_Group()]
        while True:
            token = self._peek()
            group = groups[-1]
            if token.kind in ("(", "["):
                self._take(token)
                groups.append(_Group(token.kind))
            elif token.kind == "|":
                group.ways.append(self._way(group))
                group.parts = []
                self._take(token)
            elif token.kind in (")", "]") and group.opened == {")": "(", "]": "["}[token.kind]:
                node = self._closed(group)
                if token.kind == "]":
                    node = self._builder.repeat(node, 0, 1)
                groups.pop()
                self._take(token)
                self._add(groups[-1], node)
            elif token.kind == "->":
                self._take(self._take(token))
            elif token.kind == "" or self._begins_definition(token):
                if group.opened:
                    closing = ")" if group.opened == "(" else "]"
                    raise self._fault(token.at, f"expected '{closing}' after group")
                return self._closed(group)
            else:
                self._add(group, self._element(token))

    def _begins_definition(self, token: _Token) -> bool:
        if token.kind == "directive":
            return token.text not in ("%json", "%regex", "%lark")
        if token.kind != "name":
            return False
        rest = self._text[token.at + len(token.text) :]
        return re.match(r"(\.\d+)?\s*(\[[^\]\n]*=[^\]\n]*\])?\s*:", rest) is not None

    def _closed(self, group: _Group) -> int:
        return self._builder.choice([*group.ways, self._way(group)])

    def _way(self, group: _Group) -> int:
        if not group.parts:
            return self._builder.literal("")
        return self._builder.sequence(group.parts)

    def _element(self, token: _Token) -> int:
        builder = self._builder
        if token.kind == "name":
            self._take(token)
            if self._text.startswith("{", self._at) and not self._counts():
                raise self._fault(self._at, "Lark templates are not supported")
            self._used.setdefault(token.text, token.at)
            return builder.add(Rule(token.text))
        if token.kind == "text":
            return self._string(token)
        if token.kind == "regex":
            self._take(token)
            pattern = token.text[1 : token.text.rindex("/")].replace("\\/", "/")
            try:
                read_regex(pattern)
            except GrammarFault as fault:
                told = f"failed to compile regular expression: {fault}"
                raise self._fault(token.at, told) from None
            return RegexReader(pattern, builder).read()
        if token.text == "%json":
            return self._schema(token)
        if token.kind == "&":
            raise self._fault(token.at, "terminal intersection '&' is not supported")
        if token.kind == "~":
            raise self._fault(token.at, "regular-expression complement '~' is not supported")
        raise self._fault(token.at, f"unexpected token '{token.text}'")

    def _string(self, token: _Token) -> int:
        text = _unescaped(token.text.removesuffix("i"))
        following = self._take(token)
        if following.kind != "..":
            return self._builder.literal(text)
        last = self._take(following)
        high = _unescaped(last.text) if last.kind == "text" else ""
        if len(text) != 1 or len(high) != 1 or text > high:
            raise self._fault(token.at, "invalid character range")
        self._take(last)
        return self._builder.add(Chars(((ord(text), ord(high)),)))

    def _schema(self, token: _Token) -> int:
        start = token.at + len(token.text)
        blank = _BLANK.match(self._text, start)
        start = start if blank is None else blank.end()
        try:
            schema, self._at = json.JSONDecoder().raw_decode(self._text, start)
        except (ValueError, RecursionError):
            raise self._fault(token.at, "invalid JSON after %json") from None
        return self._builder.add(Value(schema))

    def _add(self, group: _Group, node: int) -> None:
        """Put a part into its group, repeated as the words after it say."""
        token = self._peek()
        if token.kind in _QUANTIFIERS:
            low, high = _QUANTIFIERS[token.kind]
            self._take(token)
            node = self._builder.repeat(node, low, high)
        elif token.kind == "~" or token.kind == "{":
            found = self._counts()
            if found is None:
                raise self._fault(token.at, "invalid repetition")
            self._at = found.end()
            least = found["low"] or found["only"] or "0"
            most = found["high"] if found["only"] is None else found["only"]
            low, high = int(least[:16]), int(most[:16]) if most else None
            if high is not None and low > high:
                raise self._fault(token.at, f"invalid repetition range {low}..{high}")
            node = self._builder.repeat(node, low, high)
        group.parts.append(node)

    def _counts(self) -> re.Match[str] | None:
        return _TILDE.match(self._text, self._at) or _BRACES.match(self._text, self._at)

    def _fault(self, at: int, message: str) -> GrammarFault:
        before = self._text[:at]
        line, column = before.count("\n") + 1, at - before.rfind("\n")
        return lark_fault(self._text, line, column, message)


_TILDE = re.compile(r"~\s*(?:(?P<low>\d+)\s*\.\.\s*(?P<high>\d+)|(?P<only>\d+))")
_BRACES = re.compile(r"\{\s*(?:(?P<low>\d*)\s*,\s*(?P<high>\d*)|(?P<only>\d+))\s*\}")


def _unescaped(quoted: str) -> str:
    try:
        text: str = json.loads(quoted)
    except ValueError:
        return re.sub(r"\\(.)", r"\1", quoted[1:-1])
    return text
