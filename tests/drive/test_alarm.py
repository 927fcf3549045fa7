"""Alarms: one ring for the latest deadline, none once cancelled or closed, on either kind."""

import asyncio
import sys
import time
from collections.abc import Callable

import pytest

from frontier_mock.drive.alarm import Alarm, FineAlarm, LoopAlarm
from frontier_mock.simtime import NS_PER_MS, NS_PER_S

Make = Callable[[Callable[[], None]], Alarm]


def loop_alarm(ring: Callable[[], None]) -> Alarm:
    return LoopAlarm(asyncio.get_running_loop(), time.monotonic_ns, ring)


def fine_alarm(ring: Callable[[], None]) -> Alarm:
    return FineAlarm(asyncio.get_running_loop(), ring)


BOTH = pytest.mark.parametrize(
    "make",
    [
        loop_alarm,
        pytest.param(
            fine_alarm,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's"),
        ),
    ],
)


@BOTH
@pytest.mark.parametrize("ahead_ns", [3 * NS_PER_MS, 0, -NS_PER_S])
async def test_rings_at_its_deadline_and_at_once_for_the_past(make: Make, ahead_ns: int) -> None:
    rung = asyncio.Event()
    alarm = make(rung.set)
    deadline_ns = time.monotonic_ns() + ahead_ns
    alarm.set(deadline_ns)
    await rung.wait()
    # asyncio's own timers may be early by the resolution of its clock.
    assert time.monotonic_ns() >= deadline_ns - NS_PER_MS
    alarm.close()


@BOTH
async def test_last_deadline_counts_and_cancelled_ones_do_not(make: Make) -> None:
    rings: list[str] = []
    done = asyncio.Event()
    first = make(lambda: rings.append("first"))
    second = make(lambda: (rings.append("second"), done.set())[0])
    cancelled = make(lambda: rings.append("cancelled"))
    now_ns = time.monotonic_ns()
    first.set(now_ns + NS_PER_MS)
    first.set(now_ns + 3600 * NS_PER_S)
    cancelled.set(now_ns)
    cancelled.cancel()
    second.set(now_ns + 3600 * NS_PER_S)
    second.set(now_ns + 5 * NS_PER_MS)
    await done.wait()
    assert rings == ["second"]
    for alarm in (first, second, cancelled):
        alarm.close()
        alarm.close()
    second.set(now_ns)
    second.cancel()
