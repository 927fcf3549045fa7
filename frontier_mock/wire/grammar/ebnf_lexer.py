"""The words of an EBNF grammar, as xgrammar 0.2.8 and llguidance's converter tell them apart."""

import re
from typing import NamedTuple

from frontier_mock.wire.grammar.faults import GrammarFault, lexer_fault, unconverted_fault
from frontier_mock.wire.grammar.tree import LAST_CODE_POINT, Ranges, inverted, normalised

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_.][\w.\-]*", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+")
_SYMBOL = re.compile(r"::=|\(=|[()|*+?{},=]")
_HEX = re.compile(r"x([0-9a-fA-F]+)|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7, "b": 8, "e": 27, "0": 0}
_ESCAPES |= {char: ord(char) for char in "?/'\"\\"}
_SET_ESCAPES = {char: ord(char) for char in ".-[]^$*+(){}|"}
_NAMED_SETS = frozenset("dDwWsS")
_GUIDED_ESCAPES = frozenset('"\\[]nrt')


class Token(NamedTuple):
    """A word: its kind, its text, where it is, and what it stands for.

    Kinds are name, number, text, set and the symbols themselves; "" is the end of the grammar, and
    "fault" something that is no word, `meaning` being what is said of it once a reader gets there.
    """

    kind: str
    text: str
    at: int
    meaning: str | Ranges | GrammarFault = ""


class Lexer:
    """Splits a grammar into its words."""

    def __init__(self, text: str, guided: bool) -> None:
        self._text = text
        self._guided = guided

    def tokens(self) -> list[Token]:
        """All words, the end included. Raises GrammarFault in xgrammar's words.

        Read for llguidance the list ends with a fault where one is.
        """
        found: list[Token] = []
        at = 0
        while True:
            blank = _BLANK.match(self._text, at)
            at = at if blank is None else blank.end()
            try:
                token = self._token(at, found)
            except GrammarFault as fault:
                if not self._guided:
                    raise
                token = Token("fault", "", at, fault)
            found.append(token)
            if token.kind in ("", "fault"):
                return found
            at += len(token.text)

    def place(self, at: int) -> tuple[int, int]:
        """(line, column) of a place, both from 1."""
        before = self._text[:at]
        return before.count("\n") + 1, at - before.rfind("\n")

    def _token(self, at: int, found: list[Token]) -> Token:
        text = self._text
        if at >= len(text):
            return Token("", "", at)
        if text[at] == '"':
            return self._string(at)
        if text[at] == "[":
            return self._set(at)
        if (symbol := _SYMBOL.match(text, at)) is not None:
            word = symbol.group()
            if word == "(=" and self._guided:
                word = "("
            if word == "::=" and not self._guided:
                self._check_assign(at, found)
            return Token(word, word, at)
        if (name := _NAME.match(text, at)) is not None:
            return Token("name", name.group(), at, name.group())
        if (number := _NUMBER.match(text, at)) is not None:
            return Token("number", number.group(), at, number.group())
        shown = f"'{text[at]}'" if text[at] == ":" else text[at]
        raise self._fault(at, f"Unexpected character: {shown}", "Expected name")

    def _check_assign(self, at: int, found: list[Token]) -> None:
        if not found:
            raise lexer_fault(*self.place(at), "Assign should not be the first token")
        if found[-1].kind != "name":
            where = self.place(found[-1].at)
            raise lexer_fault(*where, "Assign should be preceded by an identifier")

    def _string(self, start: int) -> Token:
        text, at, chars = self._text, start + 1, []
        while at < len(text) and text[at] != '"':
            if text[at] in "\r\n" and not self._guided:
                break
            code, at = self._char(at, in_set=False)
            chars.append(chr(code))
        if at >= len(text) or text[at] != '"':
            message = "Unexpected end of input"
            raise self._fault(at, 'Expect " in string literal', message)
        return Token("text", text[start : at + 1], start, "".join(chars))

    def _set(self, start: int) -> Token:
        text, at = self._text, start + 1
        negated = text.startswith("^", at)
        at += negated
        ranges: list[tuple[int, int]] = []
        problem: GrammarFault | None = None
        while at < len(text) and text[at] != "]":
            if text[at] in "\r\n" and not self._guided:
                where = self.place(at)
                raise lexer_fault(*where, "Character class should not contain newline")
            low, at = self._char(at, in_set=True)
            high = low
            if text.startswith("-", at) and at + 1 < len(text) and text[at + 1] != "]":
                high, at = self._char(at + 1, in_set=True)
            if low > high or low < 0:
                problem = problem or self._bad_set(start, low)
            ranges.append((low, max(low, high)))
        if at >= len(text):
            raise self._fault(at, "Unterminated character class", "Unexpected end of input")
        whole = text[start : at + 1]
        if problem is not None:
            return Token("set", whole, start, problem)
        return Token("set", whole, start, inverted(ranges) if negated else normalised(ranges))

    def _bad_set(self, start: int, low: int) -> GrammarFault:
        if low < 0:
            message = "Character class escape is not supported yet in EBNF"
        else:
            message = "Invalid character class: lower bound is larger than upper bound"
        return GrammarFault(message)

    def _char(self, at: int, in_set: bool) -> tuple[int, int]:
        """(code point, place after it) of a character; -1 for a named set, which is refused."""
        text = self._text
        if text[at] != "\\":
            return ord(text[at]), at + 1
        letter = text[at + 1 : at + 2]
        if self._guided and letter not in _GUIDED_ESCAPES and letter not in "xuU":
            shown = f"Invalid escape sequence \\{letter}"
            raise self._fault(at + 1, "", shown if letter else "Incomplete escape sequence")
        spelled = _HEX.match(text, at + 1)
        if spelled is not None:
            digits = next(group for group in spelled.groups() if group)
            code = int(digits[-12:], 16)
            return min(code, LAST_CODE_POINT), spelled.end()
        if letter and letter in _ESCAPES:
            return _ESCAPES[letter], at + 2
        if in_set and letter and letter in _SET_ESCAPES:
            return _SET_ESCAPES[letter], at + 2
        if in_set and letter and letter in _NAMED_SETS:
            return -1, at + 2
        more = text[at : at + 2] if in_set else ""
        shown = f"Invalid \\{letter} escape sequence: \\{text[at + 1 : at + 4]}"
        raise self._fault(at, f"Invalid escape sequence{more}", shown, at + 1)

    def _fault(
        self, at: int, xgrammar: str, guidance: str, guided_at: int | None = None
    ) -> GrammarFault:
        if self._guided:
            return unconverted_fault(self._text, at if guided_at is None else guided_at, guidance)
        return lexer_fault(*self.place(at), xgrammar)
