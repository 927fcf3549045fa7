"""Sentences of regexes: matched by `re`, by llguidance and by xgrammar; refusals in their words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.wire.grammar.author import Sentence, write_sentence
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer
from tests.wire.grammar import oracles

RING = TextRing(ByteTokenizer(), 16)

BYTE = r"(25[0-5]|(2[0-4]|1\d|[1-9]|)\d)"
PATTERNS = [
    "[a-z]+",
    r"\d{3}-\d{4}",
    rf"({BYTE}\.){{3}}{BYTE}",
    r"[a-z0-9.]{1,20}@\w{6,10}\.com\n",
    "yes|no|maybe",
    r'\{"name": "[^"\\]*", "age": (0|[1-9]\d?)\}',
    ".*",
    "(a|b)*abb",
    "(ab?c{2,3}){4}",
    "(a+)+b",
    "[^a-z]{5,}",
    "é+[ñ-ü]*",
    r"\s+x",
    "(?:foo|bar)(?:, (?:foo|bar))*",
    "a{0}b",
    "",
    "(a|)b",
    r"[^\x00-\x7f]{3}",
    "(((((a)))))*",
    r"[\-\]]{4}",
    r"(\d{4})-(0[1-9]|1[0-2])",
    "^abc$",
    r"[ \t\n]*\{[ \t]*\}",
    "(a*)*(b|c*){3,}",
    "([0-9]{1,3},)*[0-9]{1,3}",
    r"[A-Z][a-z]*( [A-Z][a-z]*)*\.",
    r"\W\D\S",
    "a+?b{2,3}?",
]
ENDLESS = {"[a-z]+", ".*", "(a|b)*abb", "[^a-z]{5,}", "(((((a)))))*", "(a+)+b"}

GUIDED = [
    "a**",
    r"\p{L}+\P{L}",
    "(?i)abc",
    "(?P<n>a)b",
    "a{2}{3}",
    "(?x: a b )c",
    r"\p{Lu}[^\p{L}]{3}",
]
"""What xgrammar refuses and llguidance takes."""

REFUSED = [
    *("[a-z", "a(b", "a{3,1}", "(?=x)y", "(?!x)y", "(?<=x)y", "*a", r"(a)\1", r"\bfoo", "[z-a]"),
    *("a)", "a{,3}", "a{", "a{b}", "{2}", "(?#c)x", "[a-\\d]", "(?P<n>a)(?P=n)", r"\B"),
]
XGRAMMAR_ONLY = [*GUIDED, "a+*", "(?", "[]", "\\c", "\\c1", r"\x4", "ab{3,1}", "x+y*z?b{3,1}", "{"]


def say(pattern: str, chars: int, seed: int = 0, guided: bool = False) -> Sentence:
    return write_sentence(read_regex(pattern, guided), RING, seed, "test", chars)


def refusal(pattern: str, guided: bool) -> str:
    with pytest.raises(GrammarFault) as caught:
        read_regex(pattern, guided)
    return str(caught.value)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("chars", [1, 5, 40, 300])
def test_sentences_match(pattern: str, chars: int) -> None:
    for seed in range(3):
        sentence = say(pattern, chars, seed)
        assert sentence.whole
        assert re.fullmatch(pattern, sentence.text, re.DOTALL)
        assert sentence == say(pattern, chars, seed)
        if pattern in ENDLESS:
            assert len(sentence.text) == max(chars, len(say(pattern, 0).text))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_llguidance_accepts_them(pattern: str) -> None:
    assert oracles.guided_match("regex", pattern, say(pattern, 40).text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_xgrammar_accepts_them(pattern: str) -> None:
    assert oracles.xgrammar().match("regex", pattern, say(pattern, 40).text)


@pytest.mark.parametrize("pattern", GUIDED)
def test_what_only_llguidance_takes(pattern: str) -> None:
    refusal(pattern, guided=False)
    assert oracles.guided_match("regex", pattern, say(pattern, 12, guided=True).text)


@pytest.mark.parametrize("pattern", REFUSED)
def test_refusals_in_llguidances_words(pattern: str) -> None:
    assert refusal(pattern, guided=True) == oracles.guided_error("regex", pattern)


@pytest.mark.parametrize("pattern", [*REFUSED, *XGRAMMAR_ONLY])
def test_refusals_in_xgrammars_words(pattern: str) -> None:
    assert refusal(pattern, guided=False) == oracles.xgrammar().error("regex", pattern)


def test_seeds_differ() -> None:
    assert len({say("(foo|bar|baz){3}", 9, seed).text for seed in range(40)}) > 10


@pytest.mark.parametrize(
    ("pattern", "whole"),
    [
        ("a{1000000000}", False),
        ("(a{1000}){1000}", False),
        ("(a?){1000000000}", True),
        ("((((a{100}){100}){100}){100}){100}", False),
        ("(" * 20_000 + "a" + ")" * 20_000, True),
        ("(a|b)*" * 2_000, True),
        ("(((((a*)*)*)*)*)*", True),
        ("[a-z]{1,1000000}", True),
        ("(a|a?)+" * 50, True),
    ],
)
def test_hostile_patterns_come_to_an_end(pattern: str, whole: bool) -> None:
    sentence = write_sentence(read_regex(pattern), RING, 0, "test", 256, limit=3000)
    assert sentence.whole is whole
    assert len(sentence.text) <= 3000


LITERALS = st.sampled_from(["a", "b", "[0-9]", r"\.", "[^x]", ".", "é"])
REGEXES = st.recursive(
    LITERALS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda ways: f"({'|'.join(ways)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=12,
)


@given(REGEXES, st.integers(0, 60), st.integers(0, 3))
def test_any_regex_is_matched(pattern: str, chars: int, seed: int) -> None:
    sentence = say(pattern, chars, seed)
    assert sentence.whole
    assert re.fullmatch(pattern, sentence.text, re.DOTALL)
