"""Virtual time for code that reads clocks and cannot be changed.

Patches `time.time`, `time.monotonic`, `time.perf_counter`, their `_ns` forms and `time.sleep`, and
for an actor `asyncio.sleep` as well, for as long as the context lasts. Whose time a call sees
depends on who calls:

* With a `VirtualTimeLoop`: the loop's own thread, and the threads it waits for, see its time. A
  `time.sleep` in the loop's thread lets time pass with nothing else running, as it would.
* With an `Actor`: whoever speaks for an actor (its context, and tasks and `asyncio.to_thread` calls
  begun in it) sees the time of the server's clock. The event loop's own timers stay real.

Everybody else sees the real clocks. Out of reach: names bound before (`from time import time`,
unless the module is listed in `modules`), `datetime.now`, C code, other processes.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeVar

from frontier_mock.client.actor import Actor
from frontier_mock.client.wrap import current_actor
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.drive.working_threads import working_thread
from frontier_mock.simtime import NS_PER_S, from_seconds

ResultT = TypeVar("ResultT")

_EPOCH_S = 1_767_225_600
"""Where `time.time` begins: 2026-01-01T00:00:00Z, so that two runs see equal dates."""

_OFFSETS_NS = {
    "time": _EPOCH_S * NS_PER_S,
    "monotonic": 0,
    "perf_counter": 0,
}

_real_sleep = time.sleep


@contextmanager
def patched_clocks(
    subject: VirtualTimeLoop | Actor | None = None, modules: Sequence[ModuleType] = ()
) -> Iterator[None]:
    """Patch until the end of the context; see above. The default is the running loop.

    Names that `modules` have bound to the real functions are patched as well. Raises TypeError if
    there is no subject.
    """
    if subject is None:
        running = asyncio.get_running_loop()
        if not isinstance(running, VirtualTimeLoop):
            raise TypeError("patched_clocks needs an Actor, or a VirtualTimeLoop that is running")
        subject = running
    with ExitStack() as stack:
        if isinstance(subject, VirtualTimeLoop):
            now_ns, sleep = _clock_of_loop(subject)
        else:
            now_ns, sleep = _clock_of_actor(subject)
            stack.enter_context(_real_timers())
            stack.enter_context(_patched(asyncio, "sleep", _async_sleep(subject), modules))
        for name, offset_ns in _OFFSETS_NS.items():
            real: Callable[[], float] = getattr(time, name)
            real_ns: Callable[[], int] = getattr(time, f"{name}_ns")
            virtual = _reader(now_ns, offset_ns, real)
            virtual_ns = _reader_ns(now_ns, offset_ns, real_ns)
            stack.enter_context(_patched(time, name, virtual, modules))
            stack.enter_context(_patched(time, f"{name}_ns", virtual_ns, modules))
        stack.enter_context(_patched(time, "sleep", _checked(sleep), modules))
        yield


Now = Callable[[], int | None]
"""Virtual time for whoever calls, None if it has no part in it."""


def _checked(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """Refuse what `time.sleep` refuses, as it does."""

    def checked(seconds: float) -> None:
        if math.isnan(seconds):
            raise ValueError("Invalid value NaN (not a number)")
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        if math.isinf(seconds):
            raise OverflowError("timestamp too large to convert to C PyTime_t")
        sleep(seconds)

    return checked


def _clock_of_loop(loop: VirtualTimeLoop) -> tuple[Now, Callable[[float], None]]:
    own = threading.get_ident()

    def takes_part() -> bool:
        if threading.get_ident() == own:
            return True
        thread = working_thread()
        return thread is not None and thread.loop is loop

    def sleep(seconds: float) -> None:
        thread = working_thread()
        if thread is not None and thread.loop is loop:
            thread.sleep(seconds)
        elif threading.get_ident() == own:
            loop.block(seconds)
        else:
            _real_sleep(seconds)

    return (lambda: loop.now_ns() if takes_part() else None), sleep


def _clock_of_actor(actor: Actor) -> tuple[Now, Callable[[float], None]]:
    def now_ns() -> int | None:
        name = current_actor()
        return None if name is None else from_seconds(actor.read_blocking(name))

    def sleep(seconds: float) -> None:
        name = current_actor()
        if name is None:
            _real_sleep(seconds)
        else:
            actor.sleep_blocking(seconds, name)

    return now_ns, sleep


def _async_sleep(actor: Actor) -> Callable[..., Any]:
    real = asyncio.sleep

    async def sleep(delay: float, result: Any = None) -> Any:
        name = current_actor()
        if name is None or delay <= 0:
            return await real(delay, result)
        await actor.sleep(delay, name)
        return result

    return sleep


@contextmanager
def _real_timers() -> Iterator[None]:
    """Keep the running loop's own clock, which is `time.monotonic`, real."""
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        yield
        return
    real = time.monotonic
    try:
        loop.time = real
    except AttributeError:
        # A loop in C, such as uvloop's, does not read Python's clock.
        yield
        return
    try:
        yield
    finally:
        del loop.time


def _reader(now_ns: Now, offset_ns: int, real: Callable[[], float]) -> Callable[[], float]:
    def read() -> float:
        now = now_ns()
        return real() if now is None else (now + offset_ns) / NS_PER_S

    return read


def _reader_ns(now_ns: Now, offset_ns: int, real: Callable[[], int]) -> Callable[[], int]:
    def read() -> int:
        now = now_ns()
        return real() if now is None else now + offset_ns

    return read


@contextmanager
def _patched(
    module: ModuleType, name: str, replacement: object, others: Sequence[ModuleType]
) -> Iterator[None]:
    """Replace a function where it is defined, and where `others` have taken it."""
    real = getattr(module, name)
    places = [(module, name)]
    places += [(other, n) for other in others for n, v in vars(other).items() if v is real]
    for place, attribute in places:
        setattr(place, attribute, replacement)
    try:
        yield
    finally:
        for place, attribute in places:
            setattr(place, attribute, real)
