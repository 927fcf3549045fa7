"""Output of a prescribed shape: a regex, a grammar, a schema, tags, or one of a few choices.

What a model constrained by a grammar would write is made up here, deterministically, and about as
long as the answer would otherwise have been where the shape allows it. Shapes that an engine
refuses are refused in its words: vLLM tries xgrammar first and reports what llguidance says then,
SGLang has xgrammar alone.
"""

import json
from collections.abc import Callable

from frontier_mock import rng
from frontier_mock.wire.errors import invalid
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.grammar.author import Sentence, write_sentence
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.grammar.tree import Grammar
from frontier_mock.wire.json_author import write_json
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

Write = Callable[[int, int, int, int], Sentence]
"""The text for (seed, content key of the prompt, choice, characters it should have)."""


def writer_of(fields: Fields, ring: TextRing) -> Write | None:
    """How the output of a vLLM request with these fields is written; None if it is free text.

    Raises a late ApiError for a shape that vLLM refuses.
    """
    own = fields.get("structured_outputs")
    if isinstance(own, dict):
        return _vllm_writer(own, ring)
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return json_writer({"type": "object"}, ring)
    if isinstance(wanted, dict) and kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return json_writer(schema or {"type": "object"}, ring)
    return None


def sglang_writer(shape: dict[str, Json], ring: TextRing) -> Write | None:
    """The same for a constraint of SGLang's. Raises ValueError as its grammar backend reports."""
    pattern = shape.get("regex")
    if isinstance(pattern, str):
        try:
            return grammar_writer(read_regex(pattern), ring)
        except GrammarFault as fault:
            raise ValueError(f"Failed to compile regex grammar: {fault}") from None
    return _simple_writer(shape, ring)


def _vllm_writer(own: dict[str, Json], ring: TextRing) -> Write | None:
    pattern = own.get("regex")
    if isinstance(pattern, str):
        return grammar_writer(_vllm_regex(pattern), ring)
    return _simple_writer(own, ring)


def _vllm_regex(pattern: str) -> Grammar:
    if "\0" in pattern:
        message = "structured_outputs.regex must not contain a NUL character ('\\x00')"
        raise invalid(message, late=True)
    try:
        return read_regex(pattern)
    except GrammarFault:
        pass
    try:
        return read_regex(pattern, guided=True)
    except GrammarFault as fault:
        raise invalid(f"Grammar error: {fault}", late=True) from None


def _simple_writer(shape: dict[str, Json], ring: TextRing) -> Write | None:
    """Choices and JSON, which both engines have."""
    choices = shape.get("choice")
    if isinstance(choices, list) and choices:
        words = [str(choice) for choice in choices]

        def choose(seed: int, key: int, choice: int, _chars: int) -> Sentence:
            word = words[rng.draw_u64(seed, f"choice/{key:x}", choice) % len(words)]
            return Sentence(word, True)

        return choose
    schema = shape.get("json")
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return None
    if schema is not None or shape.get("json_object"):
        return json_writer(schema or {"type": "object"}, ring)
    return None


def grammar_writer(grammar: Grammar, ring: TextRing) -> Write:
    """Writes sentences of a grammar."""

    def write(seed: int, key: int, choice: int, chars: int) -> Sentence:
        stream = f"grammar/{key:x}/{choice}"

        def write_value(schema: Json, number: int, room: int) -> str:
            return write_json(schema, ring, seed, f"{stream}/{number}", room)

        return write_sentence(grammar, ring, seed, stream, chars, write_value=write_value)

    return write


def json_writer(schema: Json, ring: TextRing) -> Write:
    """Writes JSON that is valid under `schema`."""

    def write(seed: int, key: int, choice: int, chars: int) -> Sentence:
        return Sentence(write_json(schema, ring, seed, f"json/{key:x}/{choice}", chars), True)

    return write


def call_writer(schema: Json, ring: TextRing, frame: str) -> Write:
    """Writes a call whose arguments are valid under `schema`, in `frame` in the place of %s."""

    def write(seed: int, key: int, choice: int, _chars: int) -> Sentence:
        arguments = write_json(schema, ring, seed, f"json/{key:x}/{choice}")
        return Sentence(frame.replace("%s", arguments, 1), True)

    return write
