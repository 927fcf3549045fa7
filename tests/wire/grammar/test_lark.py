"""Sentences of Lark grammars, checked by xgrammar and llguidance."""

import json

import pytest

from frontier_mock.wire.grammar.author import Sentence, write_sentence
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.lark import is_lark, read_lark
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer, Json
from tests.wire.grammar import oracles

RING = TextRing(ByteTokenizer(), 16)

CALCULATOR = """
?start: sum
// sums of products
?sum: product
    | sum "+" product   -> add
    | sum "-" product   -> sub
?product: atom
    | product "*" atom  -> mul
?atom: NUMBER           -> number
     | "-" atom         -> neg
     | "(" sum ")"
NUMBER: /[0-9]+/
%ignore " "
"""
GRAMMARS = {
    "calculator": CALCULATOR,
    "range": 'start: WORD " " NUM\nWORD: /[a-z]+/\nNUM: ("0".."9")+',
    "counts": 'start: "a" ~ 3 "b"~2..4 "c"{2,4} ["d"] # c',
    "import": '%import common.INT\n%import common (WORD, CNAME)\nstart: INT "-" WORD "-" CNAME',
    "ways": 'start: "yes" | "no" | ',
    "case": 'start: "Select"i " " /[a-z]{3}\\/x/',
    "json": 'start: "v=" %json {"type": "integer"} ";"',
    "attributes": "start: x\nx[max_tokens=30]: /a+/",
}
UNKNOWN_TO_LLGUIDANCE = ("counts", "ways", "import", "attributes")
REFUSED = [
    *('start: "a" b', 'start: (("a"', "start", 'foo: "a"', "start: 'a'", "start: A & B\nA: /a/"),
    *('A.2: "x"\nstart: A', 'start{p}: "a"', "%declare A\nstart: A", "start: ~/a/", "start: /a"),
    *("import common", "start: /(?i:a)b/", '%llguidance {}\nstart: "a"'),
]


def say(text: str, chars: int, seed: int = 0) -> Sentence:
    def write_value(_schema: Json, number: int, _chars: int) -> str:
        return json.dumps(number)

    return write_sentence(read_lark(text), RING, seed, "test", chars, write_value=write_value)


@pytest.mark.parametrize("name", GRAMMARS)
def test_xgrammar_accepts_them(name: str) -> None:
    xgrammar = oracles.xgrammar()
    for seed, chars in ((0, 1), (1, 40), (2, 200)):
        sentence = say(GRAMMARS[name], chars, seed)
        assert sentence.whole
        assert xgrammar.match("lark", GRAMMARS[name], sentence.text), sentence


@pytest.mark.parametrize("name", [name for name in GRAMMARS if name not in UNKNOWN_TO_LLGUIDANCE])
def test_llguidance_accepts_them(name: str) -> None:
    for chars in (1, 40, 200):
        sentence = say(GRAMMARS[name], chars)
        assert oracles.guided_match("lark", GRAMMARS[name], sentence.text), sentence


def test_it_is_about_as_long_as_asked() -> None:
    assert 150 < len(say(CALCULATOR, 200).text) < 220


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_in_xgrammars_words(text: str) -> None:
    with pytest.raises(GrammarFault) as caught:
        read_lark(text)
    expected = oracles.xgrammar().error("lark", text)
    # The time of day of a regex's fault is within the text.
    assert str(caught.value).split(": [")[0] == expected.split(": [")[0]


def test_vllm_tells_the_notations_apart() -> None:
    assert is_lark(CALCULATOR)
    assert is_lark('start: "a" // ::= in a comment')
    assert not is_lark('# a rule\nroot ::= "a"')
