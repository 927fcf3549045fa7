"""One deadline on the wall clock: the event loop's own timer, or a finer one where precision pays.

An event loop rounds its timers to milliseconds (asyncio's poll up, libuv's to the nearest). A
timerfd fires at the nanosecond it was set for and is one more readable descriptor to the loop, at
the price of one system call per deadline.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Protocol

from frontier_mock.simtime import NS_PER_S

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_EXPIRATIONS_BYTES = 8


class Alarm(Protocol):
    """Rings once for the latest deadline set."""

    def set(self, wall_ns: int) -> None:
        """Ring at `wall_ns` instead of at whatever was set before."""
        ...

    def cancel(self) -> None:
        """Do not ring."""
        ...

    def close(self) -> None:
        """Never ring again."""
        ...


class LoopAlarm:
    """The loop's timer. `wall_ns` is the clock that deadlines are on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wall_ns: Callable[[], int],
        ring: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._wall_ns = wall_ns
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, wall_ns: int) -> None:
        """As `Alarm.set`."""
        self.cancel()
        delay_s = (wall_ns - self._wall_ns()) / NS_PER_S
        self._timer = self._loop.call_later(max(delay_s, 0.0), self._ring)

    def cancel(self) -> None:
        """As `Alarm.cancel`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """As `Alarm.close`."""
        self.cancel()


class FineAlarm:
    """A timerfd, for deadlines on `time.monotonic_ns`. Linux only: OSError elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        try:
            library = ctypes.CDLL(None, use_errno=True)
            self._settime = library.timerfd_settime
            self._fd: int = library.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        except (AttributeError, TypeError):
            raise OSError("this system has no timerfd") from None
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        loop.add_reader(self._fd, self._expired)

    def set(self, wall_ns: int) -> None:
        """As `Alarm.set`; the past rings at once."""
        seconds, nanoseconds = divmod(max(wall_ns, 1), NS_PER_S)
        self._set(seconds, nanoseconds)

    def cancel(self) -> None:
        """As `Alarm.cancel`."""
        self._set(0, 0)

    def close(self) -> None:
        """As `Alarm.close`."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _set(self, seconds: int, nanoseconds: int) -> None:
        # struct itimerspec: interval, then value; both are two longs.
        spec = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        if self._fd >= 0:
            self._settime(self._fd, _TFD_TIMER_ABSTIME, spec, None)

    def _expired(self) -> None:
        try:
            os.read(self._fd, _EXPIRATIONS_BYTES)
        except BlockingIOError:
            # Set anew or cancelled since it expired.
            return
        self._ring()
