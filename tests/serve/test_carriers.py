"""Where a request may name its actor."""

import pytest

from frontier_mock.serve.carriers import actor_and_legs, actor_of


@pytest.mark.parametrize(
    ("headers", "actor"),
    [
        ({}, None),
        ({"tracestate": "fmock=a1"}, "a1"),
        ({"tracestate": "vendor=x, fmock=a1 ,other=fmock=2"}, "a1"),
        ({"tracestate": "notfmock=a1"}, None),
        ({"tracestate": "fmock="}, None),
        ({"x-request-id": "fmock-a1--9f"}, "a1"),
        ({"x-request-id": "fmock-a-1--9f--x"}, "a-1"),
        ({"x-request-id": "fmock-a1"}, None),
        ({"x-request-id": "fmock---9f"}, None),
        ({"x-request-id": "chat-9f"}, None),
        ({"tracestate": "fmock=a1", "x-request-id": "fmock-a2--9f"}, "a1"),
        ({"tracestate": "vendor=x", "x-request-id": "fmock-a2--9f"}, "a2"),
    ],
)
def test_first_carrier_wins(headers: dict[str, str], actor: str | None) -> None:
    assert actor_of(headers) == actor


@pytest.mark.parametrize(
    ("name", "actor", "legs"),
    [
        (None, None, 1),
        ("a1", "a1", 1),
        ("a1;legs=2", "a1", 2),
        ("a;legs=1;legs=3", "a;legs=1", 3),
        ("a1;legs=", "a1;legs=", 1),
        ("a1;legs=0", "a1;legs=0", 1),
        ("a1;legs=65", "a1;legs=65", 1),
        ("a1;legs=two", "a1;legs=two", 1),
        (";legs=2", None, 2),
    ],
)
def test_carrier_may_say_how_many_requests_become_of_one(
    name: str | None, actor: str | None, legs: int
) -> None:
    assert actor_and_legs(name) == (actor, legs)
