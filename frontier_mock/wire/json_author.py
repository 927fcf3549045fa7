"""JSON of a prescribed shape: values valid under a schema, written as `json.dumps` does.

Of JSON Schema this knows types, enum, const, $ref, anyOf, oneOf, allOf, properties, required,
items, prefixItems, pattern, common formats and the bounds on lengths, counts and numbers.
"""

import json

from frontier_mock import rng
from frontier_mock.wire.grammar.author import LIMIT_CHARS, write_sentence
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.regex import read_regex
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json

_MAX_DEPTH = 12
_STRING_CHARS = (6, 40)
_SHORT_STRING_CHARS = (1, 4)
_ITEMS = (1, 3)
_NUMBERS = (0, 100)
_MAX_VALUES = LIMIT_CHARS // 3
"""So many values have at least `LIMIT_CHARS` characters with what stands between them."""

_DAY = r"20[0-2]\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]\d|\d)"
_HOST = r"[a-z][a-z0-9]{2,10}\.(com|org|net)"
_FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "duration": r"P[1-9]\dDT[1-9]H",
    "email": rf"[a-z][a-z0-9]{{2,10}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "ipv6": r"([1-9a-f][0-9a-f]{3}:){7}[1-9a-f][0-9a-f]{3}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "uri": rf"https://{_HOST}/[a-z]{{1,12}}",
    "uri-reference": r"/[a-z]{1,12}",
    "json-pointer": r"/[a-z]{1,12}",
    "relative-json-pointer": r"[1-9]/[a-z]{1,12}",
}
"""Texts of the formats that xgrammar 0.2.8 keeps to, as regexes."""


def write_json(schema: Json, ring: TextRing, seed: int, stream: str, chars: int = 0) -> str:
    """JSON that is valid under `schema`: about `chars` characters of it where strings may stretch.

    With 0 the strings are as long as they happen to be. What has `LIMIT_CHARS` characters is the
    beginning of something longer.
    """
    text = ""
    for usual in (_STRING_CHARS, _SHORT_STRING_CHARS):
        author = _Author(schema, ring, seed, stream, usual)
        text = json.dumps(author.value(schema, 0))
        if not chars or not author.stretchable or len(text) >= LIMIT_CHARS:
            break
        if len(text) <= chars:
            more = (chars - len(text)) // author.stretchable
            text = json.dumps(_Author(schema, ring, seed, stream, usual, more).value(schema, 0))
            break
    return text[:LIMIT_CHARS]


class _Author:
    """Makes up one value; every draw is one of a stream of its own."""

    def __init__(
        self,
        root: Json,
        ring: TextRing,
        seed: int,
        stream: str,
        usual: tuple[int, int] = _STRING_CHARS,
        more: int = 0,
    ) -> None:
        """Strings of no prescribed length have a `usual` one and so many `more` characters."""
        self._root = root
        self._ring = ring
        self._seed = seed
        self._stream = stream
        self._more = more
        self._usual = usual
        self._draws = 0
        self._values = 0
        self.stretchable = 0

    def value(self, schema: Json, depth: int) -> Json:
        """Any value that `schema` allows."""
        self._values += 1
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
        made: list[Json] = []
        while len(made) < count and self._values < _MAX_VALUES:
            made.append(self.value(items, depth + 1))
        return made

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
        shaped = self._shaped(schema, low, high)
        if shaped is not None:
            return shaped
        self.stretchable += 1
        length = self._draw(*self._usual) + self._more
        length = max(low, length if high is None else min(length, high))
        length = min(length, LIMIT_CHARS)
        start = self._ring.starts[self._draw(0, len(self._ring.starts) - 1)]
        return self._ring.slice_chars(start, 0, length)

    def _shaped(self, schema: dict[str, Json], low: int, high: int | None) -> str | None:
        """A string that keeps to the schema's pattern or format, if there is one we can read."""
        pattern = schema.get("pattern")
        if not isinstance(pattern, str):
            pattern = _FORMATS.get(str(schema.get("format")))
        if pattern is None:
            return None
        self._draws += 1
        wanted = max(low, self._usual[1])
        chars = wanted if high is None else min(wanted, high)
        try:
            grammar = read_regex(pattern)
        except GrammarFault:
            return None
        stream = f"{self._stream}/{self._draws}"
        return write_sentence(grammar, self._ring, self._seed, stream, chars).text

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
