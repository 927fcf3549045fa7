"""JSON of schemas, checked by jsonschema; what compilers say of schemas that are none."""

import json
from typing import Any

import jsonschema
import pytest

from frontier_mock.wire.grammar.author import LIMIT_CHARS
from frontier_mock.wire.grammar.schema_faults import SchemaFault, check_schema
from frontier_mock.wire.json_author import write_json
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer, Json
from tests.wire.grammar import oracles

RING = TextRing(ByteTokenizer(), 16)

SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    *({"type": "string", "format": name} for name in ("date", "ipv4", "ipv6", "uuid", "email")),
    *({"type": "string", "format": name} for name in ("time", "hostname", "uri", "date-time")),
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "code": {"type": "string", "pattern": "x{3}"}},
        "required": ["name", "code"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/A"}], "$defs": {"A": {"enum": ["a", "b"]}}},
]
BAD: list[Json] = [
    *({"type": "foo"}, {"properties": {"foo": "bar"}}, {"$ref": "#/$defs/X"}, {"type": 5}),
    *({"type": "integer", "minimum": 5, "maximum": 2}, {"type": "string", "pattern": "[a"}),
    *({"type": "string", "minLength": 5, "maxLength": 2}, {"enum": []}, {"anyOf": 3}, {"$ref": 5}),
    *(
        {"type": ["foo", "string"]},
        {"type": "array", "items": 3},
        {"properties": 5},
        {"allOf": [5]},
    ),
    *({"type": "array", "minItems": 3, "maxItems": 1}, {"additionalProperties": 3}),
    {"type": "object", "properties": {"a": {"type": "strin"}}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("chars", [0, 10, 200])
def test_what_is_written_is_valid(schema: dict[str, Any], chars: int) -> None:
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    check_schema(schema)
    for seed in range(4):
        text = write_json(schema, RING, seed, "test", chars)
        validator.validate(json.loads(text))
        if schema == {"type": "string"} and chars:
            assert abs(len(text) - chars) <= 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
        {
            "$defs": {"a": {"type": "array", "minItems": 1000, "items": {"$ref": "#/$defs/a"}}},
            "$ref": "#/$defs/a",
        },
    ],
)
def test_endless_values_are_cut(schema: Json) -> None:
    assert len(write_json(schema, RING, 0, "test", 200)) == LIMIT_CHARS


@pytest.mark.parametrize("schema", BAD)
def test_refusals_in_llguidances_words(schema: dict[str, Any]) -> None:
    module = oracles.llguidance()
    with pytest.raises(SchemaFault) as caught:
        check_schema(schema)
    assert caught.value.guided == module.LLMatcher.validate_grammar(
        module.LLMatcher.grammar_from_json_schema(schema)
    )


@pytest.mark.parametrize("schema", BAD)
def test_refusals_in_xgrammars_words(schema: Json) -> None:
    with pytest.raises(SchemaFault) as caught:
        check_schema(schema)
    expected = oracles.xgrammar().error("json", json.dumps(schema))
    assert str(caught.value).strip() == expected.strip()
