"""vLLM's structured outputs: checks in its order and words, and who writes what then comes.

The checks are those of `SamplingParams._validate_structured_outputs` in vLLM 0.33. The backend
"auto" is xgrammar, and where that refuses llguidance, whose word is the last; "xgrammar" and
"guidance" are one of them alone. Any other backend is taken for "auto".
"""

import json
import re
from collections.abc import Callable

from frontier_mock.wire.errors import ApiError, invalid
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.grammar.ebnf import read_ebnf
from frontier_mock.wire.grammar.faults import ConversionFault, GrammarFault
from frontier_mock.wire.grammar.lark import is_lark, read_lark
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.grammar.schema_faults import SchemaFault, check_schema
from frontier_mock.wire.grammar.tags import read_tags
from frontier_mock.wire.grammar.tree import Grammar
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured import Write, choice_writer, grammar_writer, json_writer
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

XGRAMMAR, GUIDANCE = "xgrammar", "guidance"
"""Backends of --structured-outputs-config that are not "auto"."""

_BAD_TAG = "Invalid structural tag specification."
_MAX_NESTING = 64
_TAG_NESTING = 16
_LARK = re.compile(r"(?m)^\s*(%llguidance\b|start\s*:)")
"""By this llguidance knows its own notation."""

_ANY_OBJECT: Json = {"type": "object"}


def vllm_writer(fields: Fields, served: ServedModel) -> Write | None:
    """How the output of a request with these fields is written; None if it is free text.

    Raises a late ApiError for a shape that vLLM refuses.
    """
    ring, backend = served.ring, served.structured_backend
    own = fields.get("structured_outputs")
    if isinstance(own, dict):
        return _constrained(own, ring, backend)
    wanted = fields.get("response_format")
    if not isinstance(wanted, dict):
        return None
    kind = wanted.get("type")
    if kind == "json_object":
        return json_writer(_ANY_OBJECT, ring)
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return _json(schema or _ANY_OBJECT, ring, backend)
    if kind == "structural_tag":
        return _written(_tags(json.dumps(wanted), backend), ring)
    return None


def _constrained(own: dict[str, Json], ring: TextRing, backend: str) -> Write | None:
    choices = own.get("choice")
    if isinstance(choices, list):
        if not choices:
            raise _refused("Choice '[]' cannot be an empty list")
        return choice_writer(choices)
    for name in ("grammar", "json", "structural_tag"):
        given = own.get(name)
        if isinstance(given, str) and not given.strip():
            raise _refused(f"structured_outputs.{name} cannot be an empty string")
    if own.get("json_object") is False:
        raise _refused(
            "structured_outputs.json_object must be True if set; omit structured_outputs to "
            "disable structured outputs"
        )
    if own.get("json_object"):
        return json_writer(_ANY_OBJECT, ring)
    if own.get("json") is not None:
        return _json(own["json"], ring, backend)
    for name, read in _READERS.items():
        given = own.get(name)
        if isinstance(given, str):
            return _written(read(given, backend), ring)
    return None


def _written(grammar: Grammar, ring: TextRing) -> Write:
    try:
        return grammar_writer(grammar, ring)
    except GrammarFault as fault:
        raise _refused(f"Grammar error: {fault}") from None


def _json(schema: Json, ring: TextRing, backend: str) -> Write:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise _refused("Invalid JSON grammar specification.") from None
    _check_nesting(schema, _MAX_NESTING)
    try:
        check_schema(schema)
    except SchemaFault as fault:
        if backend == XGRAMMAR:
            raise _refused(f"Failed to transform json schema into a grammar: {fault}") from None
        raise _refused(f"Grammar error: {fault.guided}") from None
    return json_writer(schema, ring)


def _regex(pattern: str, backend: str) -> Grammar:
    if "\0" in pattern:
        raise _refused("structured_outputs.regex must not contain a NUL character ('\\x00')")
    return _compiled(
        pattern, read_regex, backend, "Failed to transform regex into a grammar: {fault}"
    )


def _grammar(text: str, backend: str) -> Grammar:
    words = "Invalid grammar specification."
    if not is_lark(text):
        return _compiled(text, read_ebnf, backend, words)
    try:
        return read_lark(text)
    except GrammarFault as fault:
        if backend == XGRAMMAR:
            raise _refused(words) from None
        if _LARK.search(text) is None:
            # llguidance takes it for EBNF then.
            return _guided(text, read_ebnf)
        raise _refused(f"Grammar error: {fault}") from None


def _compiled(spec: str, read: Callable[[str, bool], Grammar], backend: str, words: str) -> Grammar:
    """What the backend's compilers read; `words` are vLLM's where xgrammar alone refuses."""
    if backend != GUIDANCE:
        try:
            return read(spec, False)
        except GrammarFault as fault:
            if backend == XGRAMMAR:
                raise _refused(words.format(fault=fault)) from None
    return _guided(spec, read)


def _guided(spec: str, read: Callable[[str, bool], Grammar]) -> Grammar:
    try:
        return read(spec, True)
    except ConversionFault as fault:
        raise _refused(f"Invalid grammar specification: {fault}") from None
    except GrammarFault as fault:
        raise _refused(f"Grammar error: {fault}") from None


def _tags(text: str, backend: str) -> Grammar:
    try:
        described: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        if backend == XGRAMMAR:
            raise _refused(_BAD_TAG) from None
        raise _refused(f"Invalid grammar specification: {error}") from None
    _check_nesting(described, _MAX_NESTING + _TAG_NESTING)
    if backend == GUIDANCE and not (isinstance(described, dict) and "structures" in described):
        raise _refused(f"Invalid grammar specification: {_guided_word(described)}")
    try:
        return read_tags(described)
    except GrammarFault:
        if backend == XGRAMMAR:
            raise _refused(_BAD_TAG) from None
        raise _refused(f"Invalid grammar specification: {_guided_word(described)}") from None


def _guided_word(described: Json) -> str:
    """What comes of tags that xgrammar refuses: llguidance knows the older form alone."""
    if not isinstance(described, dict):
        kind = "list" if isinstance(described, list) else "string"
        return f"{kind} indices must be integers or slices, not str"
    for name in ("triggers", "structures"):
        if name not in described:
            return f"'{name}'"
    structures, triggers = described["structures"], described["triggers"]
    listed = structures if isinstance(structures, list) else []
    for structure in listed:
        begin = str(structure.get("begin")) if isinstance(structure, dict) else ""
        named = triggers if isinstance(triggers, list) else []
        if not any(begin.startswith(str(one)) for one in named):
            return f"Trigger {begin} not found in triggers {triggers}"
    return "No structural tags found in the grammar spec."


_READERS: dict[str, Callable[[str, str], Grammar]] = {
    "regex": _regex,
    "grammar": _grammar,
    "structural_tag": _tags,
}


def _check_nesting(value: Json, limit: int) -> None:
    level: list[Json] = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for one in level
            for inner in (
                one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            )
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _refused(
        "The JSON schema is nested too deeply: objects and arrays may nest at most "
        f"{_MAX_NESTING} levels"
    )


def _refused(message: str) -> ApiError:
    return invalid(message, late=True)
