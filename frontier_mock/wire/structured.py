"""Output of a prescribed shape: text that is valid JSON under a schema, or one of a few choices.

What a model constrained by a grammar would write is made up here, deterministically, in the way
`json.dumps` writes it. Of JSON Schema this knows types, enum, const, $ref, anyOf, oneOf, allOf,
properties, required, items, prefixItems and the bounds on lengths, counts and numbers; `pattern`
and `format` are not looked at, and regex, grammar and structural_tag do not shape the text.
"""

import json
from collections.abc import Callable, Sequence

from frontier_mock import rng
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

Write = Callable[[int, int, int], str | Sequence[int]]
"""The text, or the token ids, for (seed, content key of the prompt, choice)."""

_MAX_DEPTH = 12
_STRING_CHARS = (6, 40)
_ITEMS = (1, 3)
_NUMBERS = (0, 100)


def writer_of(fields: Fields, ring: TextRing) -> Write | None:
    """How the output of a request with these fields is written; None if it is free text."""
    own = fields.get("structured_outputs")
    if isinstance(own, dict):
        return _constrained(own, ring)
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return json_writer({"type": "object"}, ring)
    if isinstance(wanted, dict) and kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return json_writer(schema or {"type": "object"}, ring)
    return None


def _constrained(own: dict[str, Json], ring: TextRing) -> Write | None:
    choices = own.get("choice")
    if isinstance(choices, list) and choices:
        words = [str(choice) for choice in choices]

        def choose(seed: int, key: int, choice: int) -> str:
            return words[rng.draw_u64(seed, f"choice/{key:x}", choice) % len(words)]

        return choose
    schema = own.get("json")
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return None
    if schema is not None or own.get("json_object"):
        return json_writer(schema or {"type": "object"}, ring)
    return None


def json_writer(schema: Json, ring: TextRing, frame: str = "%s") -> Write:
    """Writes JSON that is valid under `schema`, put into `frame` in the place of %s."""

    def write(seed: int, key: int, choice: int) -> str:
        value = _Author(schema, ring, seed, f"json/{key:x}/{choice}").value(schema, 0)
        return frame.replace("%s", json.dumps(value), 1)

    return write


class _Author:
    """Makes up one value; every draw is one of a stream of its own."""

    def __init__(self, root: Json, ring: TextRing, seed: int, stream: str) -> None:
        self._root = root
        self._ring = ring
        self._seed = seed
        self._stream = stream
        self._draws = 0

    def value(self, schema: Json, depth: int) -> Json:
        """Any value that `schema` allows."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None if schema is False or depth > _MAX_DEPTH else self._string({})
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        allowed = schema.get("enum")
        if isinstance(allowed, list) and allowed:
            return allowed[self._draw(0, len(allowed) - 1)]
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind is None:
            kind = _implied(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "integer":
            return self._number(schema)
        if kind == "number":
            number = self._number(schema)
            return number + 0.5 if _upper(schema) > number + 0.5 else number
        if kind == "boolean":
            return self._draw(0, 1) == 1
        return None if kind == "null" else self._string(schema)

    def _resolved(self, schema: dict[str, Json]) -> dict[str, Json]:
        """The schema with references followed and alternatives decided."""
        for _ in range(_MAX_DEPTH):
            target = schema.get("$ref")
            if isinstance(target, str):
                found = _pointed_at(self._root, target)
                rest = {name: value for name, value in schema.items() if name != "$ref"}
                schema = {**found, **rest}
                continue
            for name in ("anyOf", "oneOf"):
                ways = schema.get(name)
                if isinstance(ways, list) and ways:
                    way = next((w for w in ways if not _is_null(w)), ways[0])
                    rest = {key: value for key, value in schema.items() if key != name}
                    schema = {**rest, **way} if isinstance(way, dict) else rest
                    break
            else:
                parts = schema.get("allOf")
                if not isinstance(parts, list):
                    return schema
                schema = _merged(schema, [p for p in parts if isinstance(p, dict)])
        return schema

    def _object(self, schema: dict[str, Json], depth: int) -> Json:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            required = schema.get("required")
            names = [str(name) for name in required] if isinstance(required, list) else ["text"]
            return {name: self._string({}) for name in names}
        required = schema.get("required")
        needed = {str(name) for name in required} if isinstance(required, list) else set()
        shown = [name for name in properties if name in needed or depth < 2]
        return {name: self.value(properties[name], depth + 1) for name in shown}

    def _array(self, schema: dict[str, Json], depth: int) -> Json:
        first = schema.get("prefixItems")
        if isinstance(first, list):
            return [self.value(item, depth + 1) for item in first]
        low, high = _bound(schema, "minItems"), _bound(schema, "maxItems")
        high = _ITEMS[1] if high is None else min(high, _ITEMS[1])
        low = min(_ITEMS[0], high) if low is None else low
        items = schema.get("items", {"type": "string"})
        count = self._draw(low, max(low, high))
        return [self.value(items, depth + 1) for _ in range(count)]

    def _number(self, schema: dict[str, Json]) -> int:
        low = _bound(schema, "minimum")
        if low is None:
            over = _bound(schema, "exclusiveMinimum")
            low = over + 1 if over is not None else None
        high = int(_upper(schema)) if _upper(schema) != float("inf") else None
        if low is None:
            low = min(_NUMBERS[0], high) if high is not None else _NUMBERS[0]
        if high is None:
            high = low + _NUMBERS[1]
        step = _bound(schema, "multipleOf") or 1
        first = -(-low // step)
        last = max(first, high // step)
        return self._draw(first, last) * step

    def _string(self, schema: dict[str, Json]) -> str:
        low = _bound(schema, "minLength") or 0
        high = _bound(schema, "maxLength")
        length = self._draw(*_STRING_CHARS)
        length = max(low, length if high is None else min(length, high))
        start = self._ring.starts[self._draw(0, len(self._ring.starts) - 1)]
        return self._ring.slice_chars(start, 0, length)

    def _draw(self, low: int, high: int) -> int:
        self._draws += 1
        return low + rng.draw_u64(self._seed, self._stream, self._draws) % (high - low + 1)


def _implied(schema: dict[str, Json]) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _is_null(schema: Json) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _pointed_at(root: Json, pointer: str) -> dict[str, Json]:
    """What a local reference such as #/$defs/Name names; anything goes if it names nothing."""
    found = root
    for part in pointer.removeprefix("#").split("/")[1:]:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _merged(schema: dict[str, Json], parts: list[dict[str, Json]]) -> dict[str, Json]:
    """One schema that asks for what all of `allOf` ask for, as far as objects go."""
    whole = {name: value for name, value in schema.items() if name != "allOf"}
    for part in parts:
        for name, value in part.items():
            mine = whole.get(name)
            if isinstance(mine, dict) and isinstance(value, dict):
                whole[name] = {**mine, **value}
            elif isinstance(mine, list) and isinstance(value, list) and name == "required":
                whole[name] = [*mine, *value]
            else:
                whole[name] = value
    return whole


def _bound(schema: dict[str, Json], name: str) -> int | None:
    value = schema.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _upper(schema: dict[str, Json]) -> float:
    limits = []
    for name, less in (("maximum", 0.0), ("exclusiveMaximum", 1.0)):
        value = schema.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            limits.append(value - less)
    return min(limits, default=float("inf"))
