"""Operations: what is asked of an engine, as opposed to a sequence, and takes virtual time.

Pausing, flushing, loading weights: each is a command, or none, fed at its canonical moment; then a
wait until the engine has followed it; then, maybe, a delay. `Agenda` knows what is pending.
"""

import asyncio
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from frontier_mock.core.commands import Command, Flush, Pause
from frontier_mock.core.events import Controlled
from frontier_mock.core.words import Word
from frontier_mock.drive.protocol import Ticket
from frontier_mock.simtime import SimTime


class Done(NamedTuple):
    """How an operation ended: what `feed` returned (-1 without a command), and when it was over."""

    result: int
    t_ns: SimTime


class Halt(NamedTuple):
    """One sequence of a request is to end with what it has, unless it has ended by then."""

    ticket: Ticket
    position: int

    @property
    def actor(self) -> str | None:
        """In whose turn it comes: the request's own, which must be fed before it."""
        return self.ticket.actor


class Heard(NamedTuple):
    """A word that has come in from another process."""

    word: Word

    @property
    def actor(self) -> str | None:
        """Nobody's turn."""
        return None


class Operation:
    """One of them on its way; `future` resolves to `Done`, or fails if the engine stops first."""

    __slots__ = ("actor", "command", "delay_ns", "future", "result")

    def __init__(
        self,
        command: Command | None,
        delay_ns: SimTime,
        actor: str | None,
        future: "asyncio.Future[Done]",
    ) -> None:
        self.command = command
        self.delay_ns = delay_ns
        self.actor = actor
        self.future = future
        self.result = -1

    def awaits(self) -> tuple[int, str] | None:
        """The worker, and what `Controlled` has to say of it, before the delay begins."""
        command = self.command
        if isinstance(command, Pause):
            return command.worker, "rest"
        if isinstance(command, Flush) and command.retract:
            return command.worker, "flush"
        return None

    def resolve(self, t_ns: SimTime) -> None:
        """Tell whoever asked, if he still waits."""
        if not self.future.done():
            self.future.set_result(Done(self.result, t_ns))

    def fail(self, error: BaseException) -> None:
        """The engine will never get to it."""
        if not self.future.done():
            self.future.set_exception(error)


class Agenda:
    """Operations that were asked for and are not over.

    `ranks` names the engines of the server whose first one is given: what is asked of a server is
    over when all of them have followed.
    """

    def __init__(self, ranks: Callable[[int], Sequence[int]]) -> None:
        self._ranks = ranks
        self._timers: list[tuple[SimTime, int, Operation]] = []
        self._waiting: list[tuple[set[int], str, Operation]] = []
        self._pending: dict[Operation, None] = {}
        self._serial = 0

    @property
    def next_ns(self) -> SimTime | None:
        """When the next delay is over."""
        return self._timers[0][0] if self._timers else None

    def asked(self, operation: Operation) -> None:
        """Its command is on its way."""
        self._pending[operation] = None

    def begin(self, operation: Operation, t_ns: SimTime) -> None:
        """Its command was fed just now, and what that led to is yet to be `observe`d."""
        awaited = operation.awaits()
        if awaited is None:
            self._start_delay(operation, t_ns)
        else:
            worker, what = awaited
            self._waiting.append((set(self._ranks(worker)), what, operation))

    def observe(self, event: Controlled) -> None:
        """The engine followed a command. A pause that was lifted before the rest is over too."""
        kept = []
        for entry in self._waiting:
            missing, what, operation = entry
            if event.what == what or (what, event.what) == ("rest", "resume"):
                missing.discard(event.worker)
            if missing:
                kept.append(entry)
            else:
                self._start_delay(operation, event.t_ns)
        self._waiting = kept

    def pop_due(self, now_ns: SimTime) -> list[Operation]:
        """Those whose delay is over at `now_ns`, in order."""
        due = []
        while self._timers and self._timers[0][0] <= now_ns:
            operation = heappop(self._timers)[2]
            del self._pending[operation]
            due.append(operation)
        return due

    def clear(self) -> list[Operation]:
        """Forget, and return, all of them."""
        pending = list(self._pending)
        self._pending.clear()
        self._waiting.clear()
        self._timers.clear()
        return pending

    def _start_delay(self, operation: Operation, t_ns: SimTime) -> None:
        self._serial += 1
        heappush(self._timers, (t_ns + operation.delay_ns, self._serial, operation))
