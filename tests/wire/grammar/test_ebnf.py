"""Sentences of EBNF grammars and structural tags, checked by xgrammar and llguidance themselves."""

import json
import re
from typing import Any

import pytest

from frontier_mock.wire.grammar import measure as measuring
from frontier_mock.wire.grammar.author import Sentence, write_sentence
from frontier_mock.wire.grammar.ebnf import read_ebnf
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.tags import read_tags
from frontier_mock.wire.grammar.tree import Grammar
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer, Json
from tests.wire.grammar import oracles

RING = TextRing(ByteTokenizer(), 16)

SQL = """
root ::= select_statement
select_statement ::= "SELECT " column " from " table " where " condition
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "
condition ::= column "= " number
number ::= "1 " | "2 "
"""
JSON = r"""
# JSON, in the way of llama.cpp's examples
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
""".replace("ws     ::= |", 'ws     ::= "" |')
ARITHMETIC = """root ::= expr
expr ::= term (("+" | "-") term)*
term ::= factor (("*" | "/") factor)*
factor ::= [0-9]+ | "(" expr ")"
"""
GRAMMARS = {
    "sql": SQL,
    "json": JSON,
    "arithmetic": ARITHMETIC,
    "left": 'root ::= root "x" | "y"',
    "right": 'root ::= "x" root | ""',
    "dyck": 'root ::= "(" root ")" root | ""',
    "answer": 'root ::= "Yes." | "No: " [a-z ]+ "."',
    "repeat": 'root ::= item{2,4} "!"\nitem ::= "<" [A-Z]{3} ">"',
    "escapes": r'root ::= "\x41\u00e9\n\t\"\\" [\]\-\x41-\x43^]{5} [^a-z]',
    "blank": 'root ::= ws "a" ws\nws ::= [ \\t\\n] ws | ""',
}
ENDLESS = ("json", "arithmetic", "left", "right", "dyck", "answer")
UNKNOWN_TO_LLGUIDANCE = ("escapes",)

REFUSED = [
    *('root ::= "a" b', 'roo ::= "a"', 'root ::= "a', "root ::= [a", 'root ::= ("a"'),
    *(
        'root ::= "a" )',
        'root ::= "\\q"',
        "root ::= 'a'",
        'root ::= "a"{2}{3}',
        'root ::= "x" // c',
    ),
    *('root ::= (="a") "a"', 'root ::= "a"{2', 'root ::= "a"{-1}', 'root ::= "a"{', "root ::= *"),
    *('root ::= "a"{2,', "{", "root", '::= "a"', 'root ::= "a" = "b"', "root ::= a:b"),
    *(
        "root ::= [\\w]",
        'root ::= "\\d"',
        SQL.replace("_statement\ns", "_statementinvalidsyntax\ns"),
    ),
]
XGRAMMAR_ONLY = [
    *("root ::= ", 'root ::= "a"{3,1}', 'root ::= "a"\nroot ::= "b"', 'root ::= | "a"'),
    *('root ::= "a" | ', 'root ::= ("a" | )', "root ::= [z-a]", 'root ::= "a"{,3}', ""),
    *(
        'root ::= "a" ::= "b"',
        "root ::= []a]",
        "root ::= [\\c]",
        "root ::= [a\n]",
        'root ::= "a\n"',
    ),
]

CALL: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BEGIN = '{"name": "f", "arguments": '
TAG: Json = {
    "begin": "<call>" + BEGIN,
    "content": {"type": "json_schema", "json_schema": CALL},
    "end": "}</call>",
}
TAGS: dict[str, Any] = {
    "constant": {"type": "const_string", "value": "abc"},
    "schema": {"type": "json_schema", "json_schema": CALL},
    "sequence": {
        "type": "sequence",
        "elements": [
            {"type": "const_string", "value": "<think>"},
            {"type": "any_text", "excludes": ["</think>"]},
            {"type": "const_string", "value": "</think>"},
            {"type": "regex", "pattern": "[0-9]{4}"},
        ],
    },
    "or": {
        "type": "or",
        "elements": [
            {"type": "grammar", "grammar": SQL},
            {"type": "grammar", "grammar": ARITHMETIC},
        ],
    },
    "tag": {
        "type": "tag",
        "begin": "<a>",
        "content": {"type": "any_text"},
        "end": ["</a>", "</b>"],
    },
    "triggered": {"type": "triggered_tags", "triggers": ["<call>"], "tags": [TAG]},
    "at least one": {
        "type": "triggered_tags",
        "triggers": ["<call>"],
        "tags": [TAG],
        "at_least_one": True,
        "stop_after_first": True,
    },
    "separated": {"type": "tags_with_separator", "tags": [TAG], "separator": "\n"},
    "star": {"type": "star", "content": {"type": "const_string", "value": "ab"}},
    "repeat": {
        "type": "repeat",
        "min": 2,
        "max": 3,
        "content": {"type": "regex", "pattern": "x|y"},
    },
    "qwen": {"type": "qwen_xml_parameter", "json_schema": CALL},
    "short": {"type": "any_text", "max_chars": 7},
}
BAD_TAGS: list[Json] = [
    *({"format": {"type": "foo"}}, {"type": "structural_tag"}, [], "x"),
    {"format": {"type": "sequence", "elements": []}},
    {"format": {"type": "or", "elements": []}},
    {"format": {"type": "regex", "pattern": "[a"}},
    {"format": {"type": "grammar", "grammar": "roo ::= 1"}},
    {"format": {"type": "triggered_tags", "triggers": ["<x"], "tags": [TAG]}},
]


def say(grammar: Grammar, chars: int, seed: int = 0) -> Sentence:
    def write_value(_schema: Json, number: int, _chars: int) -> str:
        return json.dumps({"city": f"No {number}"})

    return write_sentence(grammar, RING, seed, "test", chars, write_value=write_value)


def refusal(text: str, guided: bool) -> str:
    with pytest.raises(GrammarFault) as caught:
        read_ebnf(text, guided)
    return str(caught.value).strip()


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("chars", [1, 60, 300])
def test_xgrammar_accepts_them(name: str, chars: int) -> None:
    xgrammar = oracles.xgrammar()
    for seed in range(3):
        sentence = say(read_ebnf(GRAMMARS[name]), chars, seed)
        assert sentence.whole
        assert xgrammar.match("ebnf", GRAMMARS[name], sentence.text), sentence


@pytest.mark.parametrize("name", [name for name in GRAMMARS if name not in UNKNOWN_TO_LLGUIDANCE])
def test_llguidance_accepts_them(name: str) -> None:
    for chars in (1, 60, 300):
        sentence = say(read_ebnf(GRAMMARS[name]), chars)
        assert oracles.guided_match("grammar", GRAMMARS[name], sentence.text), sentence


@pytest.mark.parametrize("name", ENDLESS)
def test_they_are_about_as_long_as_asked(name: str) -> None:
    for chars in (60, 300):
        lengths = [len(say(read_ebnf(GRAMMARS[name]), chars, seed).text) for seed in range(10)]
        assert 0.6 * chars <= sum(lengths) / 10 <= 1.2 * chars


def test_json_is_json() -> None:
    for seed in range(20):
        assert isinstance(json.loads(say(read_ebnf(JSON), 200, seed).text), dict)


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_in_llguidances_words(text: str) -> None:
    with pytest.raises(ValueError, match="Failed to convert") as caught:
        oracles.guided_error("grammar", text)
    assert refusal(text, guided=True) == str(caught.value)


@pytest.mark.parametrize("text", [*REFUSED, *XGRAMMAR_ONLY])
def test_refusals_in_xgrammars_words(text: str) -> None:
    assert refusal(text, guided=False) == oracles.xgrammar().error("ebnf", text).strip()


def test_what_only_llguidance_takes() -> None:
    for text in ("root ::= ", 'root ::= | "a"', 'root ::= "a" | ', "root ::= [a\n]"):
        sentence = say(read_ebnf(text, guided=True), 5)
        assert oracles.guided_match("grammar", text, sentence.text)


def test_a_fault_in_a_range_is_told_as_llguidance_does() -> None:
    text = 'root ::= "a"{3,1}'
    assert refusal(text, guided=True) in oracles.guided_error("grammar", text)


@pytest.mark.parametrize(
    "text",
    [
        "root ::= root",
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
        "root ::= r0\n"
        + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60))
        + 'r60 ::= "x"',
        "root ::= r0\n"
        + "".join(f'r{i} ::= "a" | r{i + 1}\n' for i in range(3000))
        + 'r3000 ::= "x"',
        'root ::= "x"{1000000000}',
        'root ::= root root | "a"?',
        "root ::= " + " | ".join(["root root"] * 2000) + ' | "x"',
    ],
)
def test_hostile_grammars_come_to_an_end(text: str) -> None:
    sentence = write_sentence(read_ebnf(text), RING, 0, "test", 200, limit=2000)
    assert len(sentence.text) <= 2000


def test_a_grammar_that_takes_too_long_to_measure_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "_MAX_LOOKS", 1000)
    rules = (f'r{i} ::= "a" r{(i * 7 + 1) % 200} | r{(i * 11) % 200} "b"' for i in range(199))
    text = "\n".join(["root ::= r0", *rules, 'r199 ::= "x"'])
    with pytest.raises(GrammarFault, match="Grammar preprocessing timed out"):
        measuring.measure(read_ebnf(text))


@pytest.mark.parametrize("name", TAGS)
def test_structural_tags(name: str) -> None:
    described = json.dumps({"type": "structural_tag", "format": TAGS[name]})
    xgrammar = oracles.xgrammar()
    for seed, chars in ((0, 1), (1, 80), (2, 300)):
        sentence = say(read_tags(json.loads(described)), chars, seed)
        assert xgrammar.match("structural_tag", described, sentence.text), sentence


def test_the_older_form_of_tags() -> None:
    structure = {"begin": "<f>", "schema": CALL, "end": "</f>"}
    text = say(read_tags({"structures": [structure], "triggers": ["<f"]}), 200).text
    assert re.search(r'<f>\{"city": "No \d"\}</f>', text)
    assert 100 < len(text) < 260


@pytest.mark.parametrize("described", BAD_TAGS)
def test_bad_tags_are_refused_in_xgrammars_words(described: Json) -> None:
    with pytest.raises(GrammarFault) as caught:
        read_tags(described)
    expected = oracles.xgrammar().error("structural_tag", json.dumps(described))
    assert str(caught.value).strip() == expected.strip()
