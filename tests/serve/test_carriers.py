"""Where a request may name its actor."""

import pytest

from frontier_mock.serve.carriers import actor_of


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
