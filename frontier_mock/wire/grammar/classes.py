"""Named sets of characters, as the compilers of regexes know them."""

from frontier_mock.wire.grammar.tree import LAST_CODE_POINT, Ranges, inverted

DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0))
ANYTHING: Ranges = inverted(())
ASCII: Ranges = ((0, 0x7F),)

ESCAPED: dict[str, Ranges] = {
    "d": DIGITS,
    "D": inverted(DIGITS),
    "w": WORD,
    "W": inverted(WORD),
    "s": SPACE,
    "S": inverted(SPACE),
}
"""What a letter after a backslash stands for (xgrammar 0.2.8 `regex_converter.cc`)."""

CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
"""Letters after a backslash that stand for one character."""

_LETTERS: Ranges = ((0x41, 0x5A), (0x61, 0x7A))
_PUNCTUATION: Ranges = ((0x21, 0x23), (0x25, 0x2A), (0x2C, 0x2F), (0x3A, 0x3B), (0x3F, 0x40))

PROPERTIES: dict[str, Ranges] = {
    "L": _LETTERS,
    "Letter": _LETTERS,
    "Alphabetic": _LETTERS,
    "Lu": ((0x41, 0x5A),),
    "Uppercase": ((0x41, 0x5A),),
    "Ll": ((0x61, 0x7A),),
    "Lowercase": ((0x61, 0x7A),),
    "N": DIGITS,
    "Nd": DIGITS,
    "P": _PUNCTUATION,
    "Z": ((0x20, 0x20),),
    "Zs": ((0x20, 0x20),),
    "White_Space": ((0x20, 0x20),),
    "Latin": _LETTERS,
    "Greek": ((0x3B1, 0x3C9),),
    "Cyrillic": ((0x410, 0x44F),),
    "Han": ((0x4E00, 0x9FFF),),
    "Hiragana": ((0x3041, 0x3096),),
    "Katakana": ((0x30A1, 0x30FA),),
    "Hangul": ((0xAC00, 0xD7A3),),
}
"""Members of Unicode's properties: all in ASCII, or else some of those that the name is for."""

POSIX: dict[str, Ranges] = {
    "alpha": _LETTERS,
    "alnum": (*DIGITS, *_LETTERS),
    "digit": DIGITS,
    "lower": ((0x61, 0x7A),),
    "upper": ((0x41, 0x5A),),
    "space": SPACE,
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
    "word": WORD,
}
"""What [:name:] stands for inside a set."""


def one(code: int) -> Ranges:
    """A single character; none for a surrogate, which no output can have."""
    writable = code <= LAST_CODE_POINT and not 0xD800 <= code <= 0xDFFF
    return ((code, code),) if writable else ()
