"""The parts of a regex below its structure: escapes, sets of characters, kinds of groups."""

from frontier_mock.wire.grammar import classes
from frontier_mock.wire.grammar.faults import (
    GrammarFault,
    ebnf_fault,
    guided_refusal,
    guided_regex_fault,
    regex_fault,
)
from frontier_mock.wire.grammar.tree import LAST_CODE_POINT, Ranges, inverted, normalised

_HEX = frozenset("0123456789abcdefABCDEF")
_FLAGS = "imsUuxR-"
_SPELLED = {"x": 2, "u": 4, "U": 8}
"""How many hex digits follow these letters."""

_ENDS = "Az"
"""Anchors of llguidance, which say nothing about a whole output."""


class Atoms:
    """Reads atoms of one pattern; every method gives what it found and the place after it."""

    def __init__(self, pattern: str, guided: bool) -> None:
        self._pattern = pattern
        self._guided = guided

    def escape(self, start: int, in_set: bool = False) -> tuple[Ranges | None, int]:
        """The characters that an escape stands for; None if it stands for no character.

        Raises GrammarFault.
        """
        pattern = self._pattern
        if start + 1 >= len(pattern):
            message = "incomplete escape sequence, reached end of pattern prematurely"
            raise self._fault(start + 1, "Escape sequence is not finished.", start, message, 1)
        letter = pattern[start + 1]
        if letter in classes.ESCAPED:
            return classes.ESCAPED[letter], start + 2
        if letter in _SPELLED and (found := self._code_point(start, letter)) is not None:
            return classes.one(found[0]), found[1]
        if letter == "c" and not self._guided:
            return self._control(start)
        if letter in classes.CONTROLS and not (letter == "0" and self._guided):
            return classes.one(ord(classes.CONTROLS[letter])), start + 2
        if letter == "b" and in_set:
            return classes.one(8), start + 2
        if letter in "bB":
            raise self._boundary(start, letter)
        if letter in "pP" and (self._guided or not in_set):
            return self._property(start)
        if letter in "0123456789" or (letter == "k" and not in_set):
            message = "backreferences are not supported"
            xgrammar = "Backreference is not supported yet."
            raise self._fault(start + 1, xgrammar, start, message)
        if self._guided and letter in _ENDS:
            return None, start + 2
        if self._guided and letter.isascii() and letter.isalnum():
            raise guided_regex_fault(pattern, start, start + 2, "unrecognized escape sequence")
        return classes.one(ord(letter)), start + 2

    def charset(self, start: int) -> tuple[Ranges, int]:
        """The characters of the set that begins with the bracket at `start`."""
        pattern = self._pattern
        at = start + 1
        negated = pattern.startswith("^", at)
        at += negated
        if pattern.startswith("]", at) and (self._guided or not negated):
            if not self._guided:
                message = "Empty character class is not allowed in regex."
                raise regex_fault(at + 1, message)
            at, first = at + 1, [(0x5D, 0x5D)]
        else:
            first = []
        ranges: list[tuple[int, int]] = first
        narrow = False
        while not pattern.startswith("]", at):
            if at >= len(pattern):
                last = len(pattern) + 1
                raise self._fault(last, "Unclosed '['", start, "unclosed character class", 1)
            named = self._posix(at) if self._guided else None
            if named is not None:
                found, at = named
                narrow = True
            else:
                narrow = narrow or pattern.startswith("\\p", at)
                found, at = self._member(at)
            ranges += found
        found = normalised(ranges) if not negated else inverted(ranges)
        if negated and narrow:
            # Only within ASCII does `classes.PROPERTIES` say all that is excluded.
            found = tuple((low, min(high, 0x7F)) for low, high in found if low <= 0x7F)
        return found, at + 1

    def group_kind(self, start: int) -> tuple[int, bool, str]:
        """(place of the body, whether only flags were set, flags) of the group at `start`."""
        pattern = self._pattern
        at = start + 2
        if at >= len(pattern):
            message = "Group modifier is not finished."
            raise self._fault(at + 1, message, start, "unclosed group", 1)
        if pattern.startswith(("=", "!", "<=", "<!"), at):
            behind = pattern[at] == "<"
            xgrammar = f"Look{'behind' if behind else 'ahead'} is not supported yet."
            message = "look-around, including look-ahead and look-behind, is not supported"
            raise self._fault(at + 1, xgrammar, start, message, 4 if behind else 3)
        if pattern[at] == ":":
            return at + 1, False, ""
        if pattern[at] == "<" or (self._guided and pattern.startswith("P<", at)):
            return self._named(pattern.index("<", at), start)
        if not self._guided:
            raise regex_fault(at + 1, "Group modifier flag is not supported yet.")
        end = at
        while end < len(pattern) and pattern[end] in _FLAGS:
            end += 1
        if pattern.startswith((")", ":"), end):
            return end + 1, pattern[end] == ")", pattern[at:end].partition("-")[0]
        raise guided_regex_fault(pattern, end, end + 1, "unrecognized flag")

    def _named(self, at: int, start: int) -> tuple[int, bool, str]:
        end = self._pattern.find(">", at)
        name = self._pattern[at + 1 : end] if end >= 0 else ""
        if name.isidentifier():
            return end + 1, False, ""
        bad = at + 1
        while bad < len(self._pattern) and self._pattern[bad].isidentifier():
            bad += 1
        message = "invalid capture group character"
        raise self._fault(bad + 1, "Invalid named capturing group.", bad, message, 1)

    def _member(self, at: int) -> tuple[Ranges, int]:
        """One member of a set, or a range of them."""
        start = at
        low, at = self._single(at)
        pattern = self._pattern
        ends = pattern.startswith("-", at) and not pattern.startswith("]", at + 1)
        if not ends or at + 1 >= len(pattern) or len(low) != 1 or low[0][0] != low[0][1]:
            return low, at
        high, end = self._single(at + 1)
        if len(high) != 1 or high[0][0] != high[0][1]:
            message = "invalid range boundary, must be a literal"
            raise self._reversed(at + 1 if self._guided else start, end, message)
        if low[0][0] > high[0][0]:
            message = "invalid character class range, the start must be <= the end"
            raise self._reversed(start, end, message)
        return ((low[0][0], high[0][0]),), end

    def _single(self, at: int) -> tuple[Ranges, int]:
        if self._pattern[at] != "\\":
            return classes.one(ord(self._pattern[at])), at + 1
        found, end = self.escape(at, in_set=True)
        return found or (), end

    def _posix(self, at: int) -> tuple[Ranges, int] | None:
        if not self._pattern.startswith("[:", at):
            return None
        end = self._pattern.find(":]", at)
        ranges = classes.POSIX.get(self._pattern[at + 2 : end]) if end >= 0 else None
        return None if ranges is None else (ranges, end + 2)

    def _code_point(self, start: int, letter: str) -> tuple[int, int] | None:
        """A character by its number; None where xgrammar does not see one in `\\x{..}`."""
        pattern = self._pattern
        at = start + 2
        if pattern.startswith("{", at) and (self._guided or letter == "u"):
            end = pattern.find("}", at)
            digits, end = pattern[at + 1 : max(end, at)], end + 1
        elif pattern.startswith("{", at):
            return None
        else:
            end = at + _SPELLED[letter]
            digits = pattern[at:end]
            if len(digits) < _SPELLED[letter]:
                digits = ""
        if not digits or not _HEX.issuperset(digits):
            message = "incomplete escape sequence, reached end of pattern prematurely"
            raise self._fault(start + 1, "Escape sequence is not finished.", start, message)
        code = min(int(digits[-12:], 16), LAST_CODE_POINT + 1)
        if self._guided and not classes.one(code):
            message = "hexadecimal literal is not a Unicode scalar value"
            raise guided_regex_fault(pattern, start + 2, end, message)
        return code, end

    def _control(self, start: int) -> tuple[Ranges, int]:
        letter = self._pattern[start + 2 : start + 3]
        if not letter:
            raise regex_fault(start + 1, "Escape sequence is not finished.")
        if not (letter.isascii() and letter.isalpha()):
            raise regex_fault(start + 3, "Invalid control character escape sequence.")
        return classes.one(ord(letter) % 32), start + 3

    def _property(self, start: int) -> tuple[Ranges, int]:
        pattern = self._pattern
        if not self._guided:
            message = "Unicode character class escape sequence is not supported yet."
            raise regex_fault(start + 1, message)
        at = start + 2
        end = pattern.find("}", at) if pattern.startswith("{", at) else at
        name = pattern[at + 1 : end] if end > at else pattern[at : at + 1]
        ranges = classes.PROPERTIES.get(name.rpartition("=")[2].lstrip("^"))
        if ranges is None:
            raise guided_regex_fault(pattern, start, end + 1, "Unicode property not found")
        if (pattern[start + 1] == "P") != name.startswith("^"):
            ranges = tuple(r for r in ((0x30, 0x39), (0x61, 0x7A)) if r not in ranges)[:1]
        return ranges, end + 1

    def _boundary(self, start: int, letter: str) -> GrammarFault:
        if not self._guided:
            return regex_fault(start + 1, "Word boundary is not supported yet.")
        name = "WordUnicode" if letter == "b" else "WordUnicodeNegate"
        problem = f"lookarounds not supported yet; {name} in regex /{self._pattern}/"
        return guided_refusal(self._pattern, problem)

    def _reversed(self, first: int, last: int, message: str) -> GrammarFault:
        if self._guided:
            return guided_regex_fault(self._pattern, first, last, message)
        problem = "Invalid character class: lower bound is larger than upper bound"
        return ebnf_fault(1, len("root ::= ") + first + 1, problem)

    def _fault(
        self, position: int, xgrammar: str, first: int, guidance: str, length: int = 2
    ) -> GrammarFault:
        if not self._guided:
            return regex_fault(position, xgrammar)
        return guided_regex_fault(self._pattern, first, first + length, guidance)
