"""Run something several times and insist that it happens the same way."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from frontier_mock.core.events import Event
from frontier_mock.testing.cluster import MockCluster, MockSpec, open_cluster, run_virtual

ResultT = TypeVar("ResultT")

_EVENTS_BEFORE = 3
"""Events shown before the first one that differs."""


class NotDeterministic(AssertionError):
    """Two runs differed; the message shows the first event in which they did."""


def check_determinism(
    scenario: Callable[[MockCluster], Awaitable[ResultT]],
    spec: MockSpec | None = None,
    *,
    runs: int = 2,
    limit_s: float | None = None,
) -> ResultT:
    """Run `scenario` on `runs` fresh clusters, each on a fresh loop, and compare.

    Compared are the engines' event logs and what the scenario returned (anything with `==`: put in
    it what must not change, such as texts and times). Returns that. Call it from a plain function,
    not from a coroutine. Raises NotDeterministic.
    """
    if runs < 2:
        raise ValueError(f"runs: {runs} cannot be compared, at least 2")

    async def once() -> tuple[str, Sequence[Event], ResultT]:
        async with open_cluster(spec) as cluster:
            result = await scenario(cluster)
            return cluster.digest(), list(cluster.events), result

    digest, events, result = run_virtual(once(), limit_s=limit_s)
    for number in range(2, runs + 1):
        again = run_virtual(once(), limit_s=limit_s)
        if again[0] != digest:
            raise NotDeterministic(_difference(events, again[1], number))
        if again[2] != result:
            raise NotDeterministic(
                f"runs 1 and {number} have equal event logs but different results:\n"
                f"  run 1: {result!r}\n  run {number}: {again[2]!r}"
            )
    return result


def _difference(first: Sequence[Event], other: Sequence[Event], number: int) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b),
        min(len(first), len(other)),
    )
    lines = [f"runs 1 and {number} differ from event {at} on (of {len(first)} and {len(other)}):"]
    lines += [f"  both:  {event}" for event in first[max(0, at - _EVENTS_BEFORE) : at]]
    lines.append(f"  run 1: {first[at] if at < len(first) else 'nothing more'}")
    lines.append(f"  run {number}: {other[at] if at < len(other) else 'nothing more'}")
    return "\n".join(lines)
