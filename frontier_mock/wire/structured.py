"""Output of a prescribed shape: a regex, a grammar, a schema, tags, or one of a few choices.

What a model constrained by a grammar would write is made up here, deterministically, and about as
long as the answer would otherwise have been where the shape allows it. Shapes that an engine
refuses are refused in its words: vLLM tries xgrammar first and reports what llguidance says then
(`wire.structured_vllm`), SGLang has xgrammar alone.
"""

import json
from collections.abc import Callable, Mapping

from frontier_mock import rng
from frontier_mock.wire.grammar.author import LIMIT_CHARS, Sentence, write_sentence
from frontier_mock.wire.grammar.ebnf import read_ebnf
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.measure import measure
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.grammar.schema_faults import check_schema
from frontier_mock.wire.grammar.tags import read_tags
from frontier_mock.wire.grammar.tree import Grammar
from frontier_mock.wire.json_author import write_json
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

Write = Callable[[int, int, int, int], Sentence]
"""The text for (seed, content key of the prompt, choice, characters it should have)."""

_ANY_JSON = "$$ANY$$"
_Read = Callable[[str], Grammar]


class ConstraintError(ValueError):
    """A constraint that SGLang's grammar backend refuses; its text is what the client is told."""


def sglang_writer(shape: Mapping[str, Json], ring: TextRing) -> Write | None:
    """How the output under a constraint of SGLang's is written; None if it is free text.

    `shape` has one of json_schema, regex, ebnf, structural_tag and choice. Raises ConstraintError
    for what SGLang's grammar backend refuses, in its words.
    """
    for kind, read in _SGLANG.items():
        spec = shape.get(kind)
        if isinstance(spec, str) and spec:
            try:
                return grammar_writer(read(spec), ring)
            except GrammarFault as fault:
                raise ConstraintError(f"Failed to compile {kind} grammar: {fault}") from None
    schema = shape.get("json_schema")
    if isinstance(schema, str) and schema:
        return json_writer(_sglang_schema(schema), ring)
    choices = shape.get("choice")
    return choice_writer(choices) if isinstance(choices, list) and choices else None


def _sglang_schema(text: str) -> Json:
    if text == _ANY_JSON:
        return {"type": "object"}
    try:
        schema: Json = json.loads(text)
        check_schema(schema)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"Failed to compile json grammar: {error}") from None
    return schema


def _tags(text: str) -> Grammar:
    try:
        described: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarFault(str(error)) from None
    return read_tags(described)


_SGLANG: Mapping[str, _Read] = {"regex": read_regex, "ebnf": read_ebnf, "structural_tag": _tags}


def choice_writer(choices: list[Json]) -> Write:
    """Writes one of some texts."""
    words = [str(choice) for choice in choices]

    def choose(seed: int, key: int, choice: int, _chars: int) -> Sentence:
        word = words[rng.draw_u64(seed, f"choice/{key:x}", choice) % len(words)]
        return Sentence(word, True)

    return choose


def grammar_writer(grammar: Grammar, ring: TextRing) -> Write:
    """Writes sentences of a grammar. Raises GrammarFault for one that is too large."""
    measures = measure(grammar)

    def write(seed: int, key: int, choice: int, chars: int) -> Sentence:
        stream = f"grammar/{key:x}/{choice}"

        def write_value(schema: Json, number: int, room: int) -> str:
            return write_json(schema, ring, seed, f"{stream}/{number}", room)

        return write_sentence(
            grammar, ring, seed, stream, chars, write_value=write_value, measures=measures
        )

    return write


def json_writer(schema: Json, ring: TextRing) -> Write:
    """Writes JSON that is valid under `schema`."""

    def write(seed: int, key: int, choice: int, chars: int) -> Sentence:
        text = write_json(schema, ring, seed, f"json/{key:x}/{choice}", chars)
        return Sentence(text, len(text) < LIMIT_CHARS)

    return write


def call_writer(schema: Json, ring: TextRing, frame: str) -> Write:
    """Writes a call whose arguments are valid under `schema`, in `frame` in the place of %s."""

    def write(seed: int, key: int, choice: int, _chars: int) -> Sentence:
        arguments = write_json(schema, ring, seed, f"json/{key:x}/{choice}")
        return Sentence(frame.replace("%s", arguments, 1), True)

    return write
