"""JSON bodies as SGLang reads them: with orjson, which is stricter than the standard library.

What is no number in JSON (NaN, Infinity, 1e999) is no body either, in orjson's words (SGLang 0.5.23
`ORJSONRequest`); the rest is `wire.fields`.
"""

import json
import re

import msgspec

from frontier_mock.wire import fields
from frontier_mock.wire.errors import malformed_json
from frontier_mock.wire.tokenizer import Json

_CONSTANTS = {
    "NaN": (0, "unexpected character, expected a JSON value"),
    "Infinity": (0, "unexpected character, expected a JSON value"),
    "-Infinity": (1, "no digit after sign"),
}
"""Where orjson stops at what only the standard library takes for a number, and what it says."""

_decode = msgspec.json.Decoder().decode

_TOO_LARGE = "number is infinity when parsed as double"


class _UnfitError(Exception):
    def __init__(self, literal: str) -> None:
        self.literal = literal


def load_object(body: bytes) -> dict[str, Json]:
    """The body's JSON object. Raises ApiError if it is anything else."""
    value = load_json(body)
    return value if isinstance(value, dict) else fields.load_object(body)


def load_json(body: bytes) -> Json:
    """The body's JSON value. Raises ApiError if there is none."""
    try:
        value: Json = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = fields.load_json(body)
        _check_numbers(body)
    return value


def _check_numbers(body: bytes) -> None:
    try:
        json.loads(body, parse_constant=_refuse, parse_float=_finite)
    except _UnfitError as unfit:
        offset, words = _CONSTANTS.get(unfit.literal, (0, _TOO_LARGE))
        raise malformed_json(_position(body, unfit.literal) + offset, words) from None


def _refuse(literal: str) -> float:
    raise _UnfitError(literal)


def _finite(literal: str) -> float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise _UnfitError(literal)
    return value


def _position(body: bytes, literal: str) -> int:
    """Where `literal` first stands outside of strings."""
    text = body.decode("utf-8", "replace")
    for found in re.finditer(rf'"(?:[^"\\]|\\.)*"|{re.escape(literal)}', text):
        if found.group() == literal:
            return found.start()
    return 0
