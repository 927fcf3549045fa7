"""EBNF (GBNF) grammars as xgrammar 0.2.8 reads them, or llguidance's converter, vLLM's second try.

A grammar's words are told apart first and its rules found, then each rule is read: that is the
order in which xgrammar finds fault. Groups nest on a stack of this reader's own.
"""

from dataclasses import dataclass, field

from frontier_mock.wire.grammar.ebnf_lexer import Lexer, Token
from frontier_mock.wire.grammar.faults import (
    UNCONVERTED,
    ConversionFault,
    GrammarFault,
    ebnf_fault,
    guided_range_fault,
    unconverted_fault,
)
from frontier_mock.wire.grammar.tree import Builder, Chars, Grammar, Prose, Rule, without_surrogates

_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MACROS = frozenset(("TagDispatch", "TokenTagDispatch"))
_ELEMENTS = ("name", "text", "set")
_ROOT = "root"


def read_ebnf(text: str, guided: bool = False) -> Grammar:
    """The language of rule `root`. Raises GrammarFault in xgrammar's words, or llguidance's."""
    builder = Builder()
    return builder.finish(EbnfReader(text, builder, guided).read())


@dataclass(slots=True)
class _Group:
    """An open group, or a rule: the ways before this one, and this one's parts so far."""

    ways: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)


class EbnfReader:
    """Reads one grammar into a builder, whose other rules do not begin with `prefix`."""

    def __init__(self, text: str, builder: Builder, guided: bool = False, prefix: str = "") -> None:
        self._text = text
        self._guided = guided
        self._prefix = prefix
        self._lexer = Lexer(text, guided)
        self._tokens = self._lexer.tokens()
        self._at = 0
        self._builder = builder
        self._names: dict[str, None] = {}

    def read(self) -> int:
        """The node of rule `root`. Raises GrammarFault."""
        self._find_rules()
        while self._token().kind:
            self._rule()
        rules = self._builder.rules
        for name in self._names:
            if self._prefix + name not in rules:
                raise ConversionFault(f"{UNCONVERTED}Rule '{name}' not found")
        if self._prefix + _ROOT not in rules:
            raise ConversionFault(f"{UNCONVERTED}No 'root' rule found")
        return rules[self._prefix + _ROOT]

    def _find_rules(self) -> None:
        """Note the names of all rules, which may be used before they are defined."""
        if self._guided:
            return
        for token, following in zip(self._tokens, self._tokens[1:], strict=False):
            if token.kind == "name" and following.kind == "::=":
                if token.text in self._names:
                    raise self._fault(token, f'Rule "{token.text}" is defined multiple times')
                self._names[token.text] = None
        if _ROOT not in self._names:
            raise ebnf_fault(1, 1, 'The root rule with name "root" is not found')

    def _token(self, ahead: int = 0) -> Token:
        token = self._tokens[min(self._at + ahead, len(self._tokens) - 1)]
        if token.kind == "fault" and not ahead and isinstance(token.meaning, GrammarFault):
            raise token.meaning
        return token

    def _rule(self) -> None:
        name = self._token()
        if name.kind != "name":
            raise self._fault(name, "Expect rule name", "Expected name")
        self._at += 1
        assign = self._token()
        if assign.kind != "::=":
            raise self._fault(assign, "Expect ::=", "Expected ::=")
        self._at += 1
        first = len(self._builder.nodes)
        body = self._body()
        self._builder.define(self._prefix + name.text, first, body)
        if self._token().kind == "(=":
            # What follows the rule: the grammar says so elsewhere as well.
            self._skip_group()

    def _body(self) -> int:
        groups = [_Group()]
        while True:
            token = self._token()
            group = groups[-1]
            if token.kind == "(":
                self._at += 1
                groups.append(_Group())
                if self._token().kind == ")":
                    groups[-1].parts.append(self._builder.literal(""))
            elif token.kind == "|":
                group.ways.append(self._way(group))
                group.parts = []
                self._at += 1
            elif token.kind == ")" and len(groups) > 1:
                node = self._builder.choice([*group.ways, self._way(group)])
                groups.pop()
                self._at += 1
                self._add(groups[-1], node)
            elif token.kind in ("", "(=", ")") or self._begins_rule(token):
                if len(groups) > 1:
                    raise self._fault(token, "Expect )", "Expected ')'")
                return self._builder.choice([*group.ways, self._way(group)])
            elif len(groups) > 1 and self._guided and token.kind not in _ELEMENTS:
                raise self._fault(token, "", "Expected ')'")
            else:
                self._add(group, self._element(token))

    def _begins_rule(self, token: Token) -> bool:
        return token.kind == "name" and self._token(1).kind == "::="

    def _way(self, group: _Group) -> int:
        if not group.parts:
            if not self._guided:
                raise self._not_element(self._token())
            return self._builder.literal("")
        return self._builder.sequence(group.parts)

    def _not_element(self, token: Token) -> GrammarFault:
        return self._fault(token, f"Expect element, but got {token.text}", "Expected name")

    def _element(self, token: Token) -> int:
        builder = self._builder
        if token.kind == "name":
            self._at += 1
            if token.text in _MACROS and self._token().kind == "(":
                return builder.add(Prose(tuple(self._skip_group())))
            if self._guided:
                self._names[token.text] = None
            elif token.text not in self._names:
                raise self._fault(token, f'Rule "{token.text}" is not defined')
            return builder.add(Rule(self._prefix + token.text))
        if token.kind == "text" and isinstance(token.meaning, str):
            self._at += 1
            return builder.literal(token.meaning)
        if token.kind == "set":
            if isinstance(token.meaning, GrammarFault):
                line, column = self._place(token)
                raise ebnf_fault(line, column + 1, str(token.meaning))
            self._at += 1
            assert isinstance(token.meaning, tuple)
            return builder.add(Chars(without_surrogates(token.meaning)))
        raise self._not_element(token)

    def _add(self, group: _Group, node: int) -> None:
        """Put a part into its group, repeated as the words after it say."""
        token = self._token()
        if token.kind in _QUANTIFIERS:
            low, high = _QUANTIFIERS[token.kind]
            self._at += 1
            node = self._builder.repeat(node, low, high)
        elif token.kind == "{":
            node = self._counted(node)
        group.parts.append(node)

    def _counted(self, node: int) -> int:
        self._at += 1
        low = self._number()
        high: int | None = low
        if self._token().kind == ",":
            self._at += 1
            high = None if self._token().kind == "}" else self._number("Expected '}'")
        elif self._token().kind != "}":
            message = "Expect ',' or '}' in repetition range"
            raise self._fault(self._token(), message, "Expected ',' or '}'")
        token = self._token()
        if token.kind != "}":
            raise self._fault(token, "Expect }", "Expected '}'")
        if high is not None and low > high:
            if self._guided:
                raise guided_range_fault(low, high)
            bound = self._tokens[self._at - 1]
            message = f"Lower bound is larger than upper bound: {low} > {high}"
            raise self._fault(bound, message)
        self._at += 1
        return self._builder.repeat(node, low, high)

    def _number(self, guidance: str = "Expected integer") -> int:
        token = self._token()
        if token.kind != "number" or token.text.startswith("-"):
            raise self._fault(token, f"Expect integer, but got {token.text}", guidance)
        self._at += 1
        return int(token.text[:16])

    def _skip_group(self) -> list[str]:
        """Pass over a group in parentheses; the texts in it."""
        texts, depth = [], 0
        while self._token().kind:
            token = self._token()
            depth += (token.kind in ("(", "(=")) - (token.kind == ")")
            if token.kind == "text" and isinstance(token.meaning, str) and token.meaning:
                texts.append(token.meaning)
            self._at += 1
            if not depth:
                break
        return texts

    def _place(self, token: Token) -> tuple[int, int]:
        return self._lexer.place(token.at)

    def _fault(self, token: Token, xgrammar: str, guidance: str = "") -> GrammarFault:
        if self._guided:
            return unconverted_fault(self._text, token.at, guidance)
        return ebnf_fault(*self._place(token), xgrammar)
