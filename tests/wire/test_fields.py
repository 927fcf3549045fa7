"""The request schema against pydantic itself: same verdicts, same conversions, same words."""

import json
from collections.abc import Callable
from typing import Annotated, Literal, Required

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from frontier_mock.wire import fields
from frontier_mock.wire.control import optional_request_ids, request_ids
from frontier_mock.wire.errors import ApiError, Problem
from frontier_mock.wire.fields import Check


class Turn(TypedDict, total=False):
    """Stands for the openai package's message types."""

    role: Required[Literal["user"]]
    content: Required[str | list[int]]
    name: str


class Options(BaseModel):
    """Stands for vLLM's StreamOptions."""

    include_usage: bool | None = False


PAIRS: dict[str, tuple[Check, TypeAdapter[object]]] = {
    "string": (fields.string, TypeAdapter(str)),
    "boolean": (fields.boolean, TypeAdapter(bool)),
    "number": (fields.number, TypeAdapter(float)),
    "integer": (fields.integer(), TypeAdapter(int)),
    "bounded": (fields.integer(-1, 5), TypeAdapter(Annotated[int, Field(ge=-1, le=5)])),
    "nullable": (fields.nullable(fields.string), TypeAdapter(str | None)),
    "list": (fields.list_of(fields.integer()), TypeAdapter(list[int])),
    "short list": (
        fields.list_of(fields.string, 2),
        TypeAdapter(Annotated[list[str], Field(max_length=2)]),
    ),
    "mapping": (fields.mapping_of(fields.number), TypeAdapter(dict[str, float])),
    "literal": (fields.literal("a", "b", "c"), TypeAdapter(Literal["a", "b", "c"])),
    "one literal": (fields.literal("a"), TypeAdapter(Literal["a"])),
    "typed dict": (
        fields.typed_dict(
            {
                "role": fields.literal("user"),
                "content": fields.union(fields.string, fields.list_of(fields.integer())),
                "name": fields.string,
            },
            ("role", "content"),
        ),
        TypeAdapter(Turn),
    ),
    "model": (
        fields.model({"include_usage": fields.nullable(fields.boolean)}),
        TypeAdapter(Options),
    ),
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.sampled_from([2**62, -(2**63), 2**70]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, 5.0, 1.5, float("inf")]),
    st.sampled_from(
        ["", "a", "b", "5", " 7 ", "-3", "1.5", "1e3", "nan", "true", "No", "off", "T"]
    ),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(
        st.sampled_from(["include_usage", "role", "content", "name"]), SCALARS, max_size=3
    ),
)


def ours(check: Check, value: object) -> tuple[object, list[tuple[object, ...]]]:
    problems: list[Problem] = []
    converted = check(value, ("body",), problems)
    return converted, [(p.kind, p.loc[1:], p.message, p.context) for p in problems]


def _clean(loc: tuple[object, ...]) -> tuple[object, ...]:
    """Without the names of union branches, which vLLM leaves out too."""
    return tuple(part for part in loc if part not in ("str", "list[int]"))


def theirs(adapter: TypeAdapter[object], value: object) -> tuple[object, list[tuple[object, ...]]]:
    try:
        converted = adapter.validate_python(value, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        return None, [(e["type"], _clean(e["loc"]), e["msg"], e.get("ctx")) for e in found]
    return (converted.model_dump() if isinstance(converted, BaseModel) else converted), []


@pytest.mark.parametrize("name", PAIRS)
@given(value=VALUES)
def test_checks_agree_with_pydantic(name: str, value: object) -> None:
    check, adapter = PAIRS[name]
    converted, problems = ours(check, value)
    expected, expected_problems = theirs(adapter, value)
    assert problems == expected_problems
    if not problems and name not in ("model", "typed dict"):
        assert repr(converted) == repr(expected)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none())))
def test_json_is_read_as_python_reads_it(value: list[object]) -> None:
    assert fields.load_json(json.dumps(value).encode()) == value


_TEXT = (
    b'{"a": [1, -0, 2.5, 3e10, "x\\u00e9\\n", null, true], "b": {"c": "\xc3\xa9", "c": 2}, '
    b'"d": "\\ud83d\\ude00", "e": 18446744073709551616, "f": 1e400, "g": NaN}'
)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(_TEXT) - 1),
            st.sampled_from([b"", *(bytes([c]) for c in b'{}[]",:0-.eE\\u tn\x00\x1f\x80\xff')]),
            st.booleans(),
        ),
        max_size=3,
    )
)
def test_bodies_are_what_the_standard_library_makes_of_them(
    edits: list[tuple[int, bytes, bool]],
) -> None:
    text = _TEXT
    for at, put, instead in edits:
        text = text[:at] + put + text[at + instead :]
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is a fault, too
        expected = repr(value)
    except (ValueError, RecursionError):
        with pytest.raises(ApiError):
            fields.load_json(text)
    else:
        assert repr(fields.load_json(text)) == expected


NESTED = b'{"request_ids":' + b"[" * 100_000


@pytest.mark.parametrize("read", [request_ids, optional_request_ids])
def test_bodies_read_without_a_schema_may_be_nested_without_end(
    read: Callable[[bytes], list[str]],
) -> None:
    with pytest.raises(ApiError) as refused:
        read(NESTED)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"cache_salt": "a\\ud800"}',
        b'{"messages": [{"content": "\\udc00"}]}',
        b'{"tools": {"\\ud800": 1}}',
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_is(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        fields.load_json(body)
    assert refused.value.status == 400
    assert b"surrogates not allowed" in refused.value.body()
    assert fields.load_json(b'{"a": "\\ud83d\\ude00", "b": NaN}')
