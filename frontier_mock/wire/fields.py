"""A request schema in plain functions: pydantic's lax rules and its words, at a tenth of the cost.

A check takes a value, says where it stands and returns it converted, or appends a `Problem`. The
conversions are pydantic 2's: 1.0 is an int, "5" is a number, 0 and "true" are bools.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping

import msgspec

from frontier_mock.wire.errors import (
    ApiError,
    Loc,
    Problem,
    malformed_json,
    schema_error,
    unreadable_body,
)
from frontier_mock.wire.tokenizer import Json

Check = Callable[[Json, Loc, list[Problem]], Json]
"""Returns the converted value, or appends to the list of problems."""

Fields = dict[str, Json]
"""Fields of a request that passed their checks; absent ones are absent."""

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
_NOT_INT = "Input should be a valid integer"
_NOT_FLOAT = "Input should be a valid number"
_NOT_BOOL = "Input should be a valid boolean"

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1

_decode = msgspec.json.Decoder().decode


def load_json(body: bytes) -> Json:
    """The body's JSON value; raises ApiError as FastAPI does when there is none."""
    try:
        value: Json = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # It is stricter than the standard library, whose verdict and words FastAPI passes on.
        value = _load_as_fastapi(body)
    return value


def _load_as_fastapi(body: bytes) -> Json:
    if not body:
        raise schema_error([Problem("missing", ("body",), "Field required", None)])
    try:
        value: Json = json.loads(body)
    except json.JSONDecodeError as error:
        raise malformed_json(error.pos, error.msg) from None
    except (ValueError, RecursionError):
        raise unreadable_body() from None
    try:
        # Escapes can make half a surrogate pair, which nothing behind us could hash or send.
        # Pydantic lets it pass; the engines then fail wherever they first encode it.
        for text in _strings(value):
            text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, str(error), "BadRequestError") from None
    return value


def _strings(value: Json) -> Iterator[str]:
    """Every string of a JSON value, names of members included."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def load_object(body: bytes) -> dict[str, Json]:
    """The body's JSON object; raises ApiError if it is anything else."""
    value = load_json(body)
    if not isinstance(value, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise schema_error([Problem("model_attributes_type", ("body",), message, value)])
    return value


def check_fields(
    body: dict[str, Json], table: Mapping[str, Check], required: tuple[str, ...] = ()
) -> Fields:
    """The known fields of `body`, converted. Raises ApiError naming every problem in table order.

    Unknown fields are ignored, as vLLM ignores them.
    """
    problems: list[Problem] = []
    fields: Fields = {}
    for name, value in body.items():
        check = table.get(name)
        if check is not None:
            fields[name] = check(value, ("body", name), problems)
    for name in required:
        if name not in body:
            problems.append(Problem("missing", ("body", name), "Field required", body))
    if problems:
        order = {name: i for i, name in enumerate(table)}
        raise schema_error(sorted(problems, key=lambda problem: order[str(problem.loc[1])]))
    return fields


def string(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """A string."""
    if not isinstance(value, str):
        problems.append(Problem("string_type", loc, "Input should be a valid string", value))
    return value


def boolean(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """A bool, or what pydantic takes for one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        message = f"{_NOT_BOOL}, unable to interpret input"
        problems.append(Problem("bool_parsing", loc, message, value))
    elif isinstance(value, int | float) and INT64_MIN <= value <= INT64_MAX and value == int(value):
        if value in (0, 1):
            return value == 1
        message = f"{_NOT_BOOL}, unable to interpret input"
        problems.append(Problem("bool_parsing", loc, message, value))
    else:
        problems.append(Problem("bool_type", loc, _NOT_BOOL, value))
    return value


def number(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """A float."""
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e308 else _huge_number(value, loc, problems)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = f"{_NOT_FLOAT}, unable to parse string as a number"
            problems.append(Problem("float_parsing", loc, message, value))
    else:
        problems.append(Problem("float_type", loc, _NOT_FLOAT, value))
    return value


def _huge_number(value: int | float, loc: Loc, problems: list[Problem]) -> Json:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def integer(low: int | None = None, high: int | None = None) -> Check:
    """An int between `low` and `high` inclusive."""

    def check(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        whole = _whole(value, loc, problems)
        if not isinstance(whole, int):
            return value
        if low is not None and whole < low:
            message = f"Input should be greater than or equal to {low}"
            problems.append(Problem("greater_than_equal", loc, message, value, {"ge": low}))
        elif high is not None and whole > high:
            message = f"Input should be less than or equal to {high}"
            problems.append(Problem("less_than_equal", loc, message, value, {"le": high}))
        return whole

    return check


def _whole(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            message = "Input should be a finite number"
            problems.append(Problem("finite_number", loc, message, value))
        elif not value.is_integer():
            message = f"{_NOT_INT}, got a number with a fractional part"
            problems.append(Problem("int_from_float", loc, message, value))
        elif abs(value) >= 2.0**63:
            message = "Unable to parse input string as an integer, exceeded maximum size"
            problems.append(Problem("int_parsing_size", loc, message, value))
        else:
            return int(value)
    elif isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = f"{_NOT_INT}, unable to parse string as an integer"
            problems.append(Problem("int_parsing", loc, message, value))
    else:
        problems.append(Problem("int_type", loc, _NOT_INT, value))
    return value


def nullable(check: Check) -> Check:
    """`check`, or null."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        return None if value is None else check(value, loc, problems)

    return checked


def list_of(check: Check, max_length: int | None = None) -> Check:
    """A list whose items pass `check`."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        if not isinstance(value, list):
            problems.append(Problem("list_type", loc, "Input should be a valid list", value))
            return value
        if max_length is not None and len(value) > max_length:
            message = (
                f"List should have at most {max_length} items after validation, not {len(value)}"
            )
            context: dict[str, Json] = {
                "field_type": "List",
                "max_length": max_length,
                "actual_length": len(value),
            }
            problems.append(Problem("too_long", loc, message, value, context))
            return value
        return [check(item, (*loc, i), problems) for i, item in enumerate(value)]

    return checked


def mapping(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """An object, whatever is in it."""
    if not isinstance(value, dict):
        problems.append(Problem("dict_type", loc, "Input should be a valid dictionary", value))
    return value


def mapping_of(check: Check) -> Check:
    """An object whose values pass `check`."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        if not isinstance(value, dict):
            return mapping(value, loc, problems)
        return {key: check(item, (*loc, key), problems) for key, item in value.items()}

    return checked


def model(table: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """An object with known fields; other keys are kept as they are."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        if not isinstance(value, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            problems.append(Problem("model_attributes_type", loc, message, value))
            return value
        return _members(value, table, required, loc, problems)

    return checked


def typed_dict(
    table: Mapping[str, Check], required: tuple[str, ...] = (), dataclass_name: str = ""
) -> Check:
    """The same with the words pydantic has for a TypedDict, or for a dataclass if one is named."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        if isinstance(value, dict):
            return _members(value, table, required, loc, problems)
        if not dataclass_name:
            return mapping(value, loc, problems)
        message = f"Input should be a dictionary or an instance of {dataclass_name}"
        context: dict[str, Json] = {"class_name": dataclass_name}
        problems.append(Problem("dataclass_type", loc, message, value, context))
        return value

    return checked


def _members(
    value: dict[str, Json],
    table: Mapping[str, Check],
    required: tuple[str, ...],
    loc: Loc,
    problems: list[Problem],
) -> Json:
    converted = dict(value)
    for name, check in table.items():
        if name in value:
            converted[name] = check(value[name], (*loc, name), problems)
        elif name in required:
            problems.append(Problem("missing", (*loc, name), "Field required", value))
    return converted


def literal(*allowed: str) -> Check:
    """One of a few strings."""
    quoted = [f"'{word}'" for word in allowed]
    expected = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"

    def check(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        if not isinstance(value, str) or value not in allowed:
            message = f"Input should be {expected}"
            problems.append(Problem("literal_error", loc, message, value, {"expected": expected}))
        return value

    return check


def union(*branches: Check) -> Check:
    """The first branch that accepts the value; if none does, the problems of all of them."""

    def checked(value: Json, loc: Loc, problems: list[Problem]) -> Json:
        collected: list[Problem] = []
        for branch in branches:
            found: list[Problem] = []
            converted = branch(value, loc, found)
            if not found:
                return converted
            collected += found
        problems += collected
        return value

    return checked


def int_field(fields: Fields, name: str, default: int) -> int:
    """An int that passed its check, `default` if absent or null."""
    value = fields.get(name)
    return value if isinstance(value, int) else default


def float_field(fields: Fields, name: str, default: float) -> float:
    """A float that passed its check, `default` if absent or null."""
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else default


def flag_field(fields: Fields, name: str, default: bool = False) -> bool:
    """A bool that passed its check, `default` if absent or null."""
    value = fields.get(name)
    return value if isinstance(value, bool) else default


def text_field(fields: Fields, name: str) -> str | None:
    """A string that passed its check, or None."""
    value = fields.get(name)
    return value if isinstance(value, str) else None


def optional_int_field(fields: Fields, name: str) -> int | None:
    """An int that passed its check, or None."""
    value = fields.get(name)
    return value if isinstance(value, int) else None


def ints_field(fields: Fields, name: str) -> tuple[int, ...]:
    """A list of ints that passed its check, empty if absent."""
    value = fields.get(name)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list) else ()


def strings_field(fields: Fields, name: str) -> tuple[str, ...]:
    """A string or list of strings that passed its check, empty if absent."""
    value = fields.get(name)
    if isinstance(value, str):
        return (value,)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()
