"""What is wrong with a grammar, in the words of the compilers that engines hand it to."""

import json

_STAMP = "[00:00:00] /project/cpp/"


class GrammarFault(ValueError):
    """A grammar that a compiler refuses; its text is what the compiler says."""


class ConversionFault(GrammarFault):
    """A grammar that llguidance cannot even convert to its own notation."""


UNCONVERTED = "Failed to convert the grammar from GBNF to Lark: "
_SHOWN = 20


def unconverted_fault(text: str, at: int, message: str) -> ConversionFault:
    """llguidance 1.9's converter of EBNF, which stumbled at place `at` of the text."""
    line = text.count("\n", 0, at) + 1
    before, after = text[max(0, at - _SHOWN) : at], text[at : at + _SHOWN]
    return ConversionFault(f"{UNCONVERTED}{message} at line {line}, {before!r} ^ {after!r}")


def guided_range_fault(low: int, high: int) -> GrammarFault:
    """llguidance on a repetition that may not be often enough, without the text around it."""
    return GrammarFault(f"range end must be >= start, got ({low}, {high})")


def regex_fault(position: int, message: str) -> GrammarFault:
    """xgrammar 0.2.8 on a regex; `position` counts from 1. Its time of day is always midnight."""
    where = f"regex_converter.cc:83: Regex parsing error at position {position}: "
    return GrammarFault(f"{_STAMP}{where}{message}\n")


def ebnf_fault(line: int, column: int, message: str) -> GrammarFault:
    """xgrammar's parser of EBNF, which also reads what it makes of a regex."""
    where = f"grammar_parser.cc:820: EBNF parser error at line {line}, column {column}: "
    return GrammarFault(f"{_STAMP}{where}{message}\n")


def lexer_fault(line: int, column: int, message: str) -> GrammarFault:
    """xgrammar's reader of EBNF's words."""
    where = f"grammar_parser.cc:106: EBNF lexer error at line {line}, column {column}: "
    return GrammarFault(f"{_STAMP}{where}{message}\n")


def lark_fault(text: str, line: int, column: int, message: str) -> GrammarFault:
    """xgrammar on a grammar in Lark's notation, with the line in question below."""
    shown = text.split("\n")[line - 1]
    caret = " " * (column - 1) + "^"
    return GrammarFault(f"Lark error at line {line}, column {column}: {message}\n{shown}\n{caret}")


def guided_regex_fault(pattern: str, first: int, last: int, message: str) -> GrammarFault:
    """llguidance 1.9 on a regex, whose characters `first` to `last` Rust's parser objects to."""
    caret = " " * first + "^" * max(1, last - first)
    problem = f"regex parse error:\n    {pattern}\n    {caret}\nerror: {message}"
    return guided_refusal(pattern, problem)


def guided_refusal(pattern: str, problem: str) -> GrammarFault:
    """llguidance on a regex that Rust's parser takes and its own engine does not."""
    quoted = json.dumps(pattern, ensure_ascii=False)
    where = f"   1 | start: /{pattern}/\n              ^\n"
    return GrammarFault(f"at 1(8): invalid regex {quoted} (in regex): {problem}\n{where}")
