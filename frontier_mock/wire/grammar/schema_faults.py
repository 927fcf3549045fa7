"""JSON schemas that both xgrammar 0.2.8 and llguidance 1.9 refuse, in the words of either."""

import json

from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.tokenizer import Json

_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_MAPS = ("properties",)
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_RANGES = (
    ("minLength", "maxLength", "minLength {} is greater than maxLength {}"),
    ("minItems", "maxItems", "minItems is greater than maxItems: {} > {}"),
    ("minimum", "maximum", "Invalid range: minimum greater than maximum"),
)
_NO_SCHEMA = "schema must be an object or boolean"


class SchemaFault(GrammarFault):
    """Its text is xgrammar's, `guided` is llguidance's."""

    def __init__(self, xgrammar: str, guided: str, line: int = 4944) -> None:
        """`line` is the one of xgrammar's source that is named."""
        where = f"[00:00:00] /project/cpp/json_schema_converter.cc:{line}: "
        super().__init__(f"{where}{xgrammar}\n")
        self.guided = guided


def check_schema(schema: Json) -> None:
    """Raise SchemaFault for a schema, or one within it, that no compiler takes."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            shown = json.dumps(one)
            raise SchemaFault(f"Schema should be an object or bool, but got {shown}", _NO_SCHEMA)
        _check_one(one, schema)
        waiting += reversed(_inner(one))


def _inner(schema: dict[str, Json]) -> list[Json]:
    found: list[Json] = []
    for name in _MAPS:
        inner = schema.get(name, {})
        if not isinstance(inner, dict):
            raise _both(f"{name} must be an object")
        found += inner.values()
    for name in _LISTS:
        listed = schema.get(name, [])
        if not isinstance(listed, list):
            raise _both(f"{name} must be an array")
        found += listed
    if "items" in schema:
        items = schema["items"]
        if not isinstance(items, dict | bool):
            raise SchemaFault("items must be a boolean or an object", _NO_SCHEMA)
        found.append(items)
    if "additionalProperties" in schema:
        found.append(schema["additionalProperties"])
    return found


def _check_one(schema: dict[str, Json], root: Json) -> None:
    if "$ref" in schema:
        _check_reference(schema["$ref"], root)
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str):
            words = "type must be a string or array of strings"
            raise SchemaFault("Type should be a string", words)
        if kind not in _TYPES:
            raise SchemaFault(f'Unsupported type "{kind}"', f"Invalid type: {kind}")
    if schema.get("enum") == []:
        words = "Unsatisfiable schema: anyOf is empty"
        raise SchemaFault("enum array must not be empty", words)
    for low_name, high_name, words in _RANGES:
        low, high = schema.get(low_name), schema.get(high_name)
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            guided = f"{low_name} ({low}) is greater than {high_name} ({high})"
            raise SchemaFault(words.format(low, high), f"Unsatisfiable schema: {guided}")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        _check_pattern(pattern)


def _check_reference(target: Json, root: Json) -> None:
    if not isinstance(target, str):
        words = f"$ref must be a string, got {json.dumps(target)}"
        raise SchemaFault("$ref must be a string", words)
    if not target.startswith("#/"):
        return
    found = root
    for part in target[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        inner = found.get(name) if isinstance(found, dict) else None
        if inner is None:
            words = f"Pointer '{target[1:]}' does not exist"
            raise SchemaFault(f"Cannot find field {name} in {target}", words, 4950)
        found = inner


def _check_pattern(pattern: str) -> None:
    try:
        read_regex(pattern)
    except GrammarFault as fault:
        try:
            read_regex(pattern, guided=True)
        except GrammarFault as second:
            refused = SchemaFault("", _bare(str(second)))
            refused.args = fault.args
            raise refused from None


def _bare(told: str) -> str:
    """llguidance's report on a regex without the place in a grammar where it stood."""
    return told.partition(" (in regex): ")[2].partition("\n   1 | start: ")[0]


def _both(words: str) -> SchemaFault:
    return SchemaFault(words, words)
