"""One asyncio loop around the engine: stamps, journals and feeds commands, and wakes subscribers.

Theory of operation
-------------------
The engine moves only inside `_pump`, a plain callback of the event loop, never in reaction to a
request: `submit` and `abort` put a command in the inbox and make sure a pump is due. Whatever the
clock, one pump is: feed, advance, fold the new events, tell the subscribers.

* Real and scaled clocks: a command is stamped when it is submitted; the pump catches up with the
  wall and arms one timer for the next moment at which anybody outside could see something.
* On a `VirtualTimeLoop` the clock is the loop's, and the pump waits until an instant has nothing
  left to say: all of its commands are then fed at once, in canonical order.
* Warp: the Timekeeper decides. Between external effects the engine runs at core speed, a bounded
  number of moves per pump, so that sockets are polled in between.

Subscribers are called in the pump and may fail: a failure costs that request, never the clock. A
failure of the engine itself ends the driver, which then answers everybody (`dead`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from frontier_mock.core.commands import Abort, Command, Submit
from frontier_mock.core.events import Controlled, Event
from frontier_mock.core.words import Word
from frontier_mock.drive.alarm import Alarm, FineAlarm, LoopAlarm
from frontier_mock.drive.delivery import Delivery
from frontier_mock.drive.drift import Drift
from frontier_mock.drive.leases import Feed, Resume, StallError, Wait
from frontier_mock.drive.operations import Agenda, Done, Halt, Heard, Operation
from frontier_mock.drive.pace import ClockSpec, Pace
from frontier_mock.drive.protocol import (
    Engine,
    Folder,
    LateError,
    ShutdownError,
    Subscriber,
    Ticket,
)
from frontier_mock.drive.stall_log import StallLog
from frontier_mock.drive.timekeeper import Timekeeper
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.simtime import NS_PER_MS, NS_PER_S, SimTime, from_ms, from_seconds

logger = logging.getLogger("frontier_mock")

_MOVES_PER_PUMP = 256
"""Warp: decisions taken before sockets are polled again."""

_DISARMED = -1

Item = tuple[Ticket | Operation | Halt | Heard, bool]
"""What waits in the inbox: a request, an operation, an early end or a word from another process,
and whether it enters or is aborted (False)."""

Action = Callable[[], None]
"""What an actor's resumption sets off."""


class Driver:
    """See the theory of operation at the top of this module.

    `keep_events` and `on_drop` are the `Delivery`'s. `keeper` stands in for a Timekeeper that is
    elsewhere (`drive.following`).
    """

    def __init__(
        self,
        engine: Engine,
        clock: ClockSpec,
        folders: Sequence[Folder],
        *,
        journal: Callable[[SimTime, Command], None] | None = None,
        keep_events: int = 0,
        on_drop: Callable[[Sequence[Event]], None] | None = None,
        wall_ns: Callable[[], int] = time.monotonic_ns,
        keeper: "Timekeeper[Action, Item] | None" = None,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.keeper: Timekeeper[Action, Item] = keeper or Timekeeper(
            grace_ns=from_ms(clock.grace_ms),
            patience_ns=from_seconds(clock.patience_s),
            strict=clock.strict,
            baton=clock.baton,
        )
        self._stall_log = StallLog(self.keeper)
        self.drift = Drift(late_ms=clock.late_ms, scale=clock.scale)
        self.in_flight: dict[Ticket, None] = {}
        self.error: BaseException | None = None
        self.accepting = True
        self.died = asyncio.Event()
        self._warp = clock.mode == "warp"
        self._pace = Pace(0, clock.scale)
        self._abort_late_ns = int(clock.late_ms_max * NS_PER_MS * clock.scale)
        self._wall_ns = wall_ns
        self._journal = journal
        self.delivery = Delivery(engine, folders, self, keep_events, on_drop)
        self._agenda = Agenda(engine.ranks)
        self._inbox: list[tuple[SimTime, Item]] = []
        self._due: SimTime | None = None
        self._due_known = False
        self._engine_due: SimTime | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_idle: Callable[[Action], asyncio.Handle] | None = None
        self._leap: Callable[[SimTime], bool] = _no_leap
        self._pump_soon: asyncio.Handle | None = None
        self._alarm: Alarm | None = None
        self._armed_ns = _DISARMED
        self._started_wall_ns = 0

    # Life

    def start(self) -> None:
        """Bind to the running event loop; virtual time 0 is now.

        Raises OSError for a `precise` clock where there is no timerfd.
        """
        loop = self._loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualTimeLoop) and not self._warp:
            self._wall_ns = loop.now_ns
            self._when_idle = loop.call_when_idle
            self._leap = loop.leap
        if self.clock.precise and self._when_idle is None:
            self._alarm = FineAlarm(loop, self._ring)
        else:
            self._alarm = LoopAlarm(loop, self._wall_ns, self._ring)
        self._started_wall_ns = self._wall_ns()
        self._pace = Pace(self._started_wall_ns, self.clock.scale)

    def now_ns(self) -> SimTime:
        """Virtual time: frozen between jumps in warp, derived from the wall otherwise."""
        if self._warp:
            return self.keeper.now_ns
        return max(self._pace.now_ns(self._wall_ns()), self.engine.now_ns)

    def wall_s(self) -> float:
        """Real seconds since `start`."""
        return (self._wall_ns() - self._started_wall_ns) / NS_PER_S

    def submit(
        self,
        submits: Sequence[Submit],
        subscriber: Subscriber,
        actor: str | None = None,
        choices: int = 1,
        legs: int = 1,
    ) -> Ticket:
        """Accept a request, stamped now; `choices` consecutive sequences share a prompt.

        It is one of `legs` requests that a router makes of one (`Timekeeper.park`). Raises
        ShutdownError if the driver takes no more.
        """
        if self.error is not None or not self.accepting:
            raise ShutdownError("the engine takes no more requests")
        stamp = self._stamp()
        ticket = Ticket(submits, subscriber, actor, choices, stamp)
        self.in_flight[ticket] = None
        self.keeper.park(actor, legs)
        self._post(stamp, ticket, True)
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """The client is gone: stop its sequences. The subscriber is not called again."""
        if ticket.closed:
            return
        ticket.closed = True
        del self.in_flight[ticket]
        self.keeper.disconnect(ticket.actor)
        self.withdraw(ticket)

    def leave(self, ticket: Ticket) -> None:
        """The client is gone and its sequences go on: nobody waits for them any more."""
        if not ticket.closed and ticket.open and ticket.actor is not None:
            actor, ticket.actor = ticket.actor, None
            self.keeper.disconnect(actor)
            self.poke()

    def operate(
        self, command: Command | None, delay_ns: SimTime = 0, actor: str | None = None
    ) -> asyncio.Future[Done]:
        """Have the engine follow `command`, stamped now, then let `delay_ns` of its time pass.

        A Pause is followed when the engine is at rest. While the future is pending `actor`, if that
        is one, waits as it does for a response. Fails with ShutdownError if the engine stops.
        """
        if self.error is not None or not self.accepting:
            raise ShutdownError("the engine takes no more requests")
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        stamp = self._stamp()
        self.keeper.park(actor)
        operation = Operation(command, delay_ns, actor, future)
        self._agenda.asked(operation)
        self._post(stamp, operation, True)
        return future

    def halt(self, ticket: Ticket, position: int) -> None:
        """End one sequence early, stamped now: its subscriber hears of it as of any other end."""
        if not ticket.closed and self.error is None:
            self._post(self._stamp(), Halt(ticket, position), True)

    def hear(self, word: Word) -> None:
        """A word has come in from another process, now."""
        if self.error is None:
            self._post(self._stamp(), Heard(word), True)

    def poke(self) -> None:
        """The Timekeeper was told something: decide again soon."""
        if self._pump_soon is None and self.error is None and self._loop is not None:
            self._pump_soon = (self._when_idle or self._loop.call_soon)(self._pump)

    def pump_now(self) -> None:
        """Decide at once. Not to be called by whoever is called from the pump."""
        if self.error is None and self._loop is not None:
            self._pump()

    def fail(self, error: BaseException) -> None:
        """End the run from outside: everybody waiting is answered, `died` is set."""
        if self.error is None:
            self._die(error)

    @property
    def num_in_flight(self) -> int:
        """Requests accepted and not yet complete."""
        return len(self.in_flight)

    @property
    def num_events(self) -> int:
        """Events that have ever happened in the engine."""
        return len(self.engine.log)

    @property
    def forgot_events(self) -> bool:
        """Whether the engine's log no longer begins at the beginning."""
        return self.delivery.forgot_events

    def next_due(self) -> SimTime | None:
        """The engine's next internal event; None when idle."""
        return self.engine.next_time()

    def holders(self) -> list[tuple[str, str]]:
        """Who keeps time from moving, and what each was last seen doing."""
        return self.keeper.holders()

    def running_tokens(self, worker: int) -> int:
        """Output tokens so far of the sequences that are in flight on a worker."""
        tokens = self.engine.tokens
        flights = self.delivery.flights.values()
        return sum(tokens(flight.rid) for flight in flights if flight.worker == worker)

    def catch_up(self) -> None:
        """Bring the engine to the present, for a reader of its state (paced clocks only)."""
        if not self._warp and self._when_idle is None and self.error is None:
            self._pump()

    def settle(self) -> None:
        """Shutdown: abort what is in flight and run the engine until those aborts have ended.

        Requests that were still waiting to be fed have never been in the engine; they fail.
        """
        self.accepting = False
        self._give_up(ShutdownError("the server is shutting down"))
        for ticket in list(self.in_flight):
            if not ticket.flights:
                self.drop(ticket, ShutdownError("the server is shutting down"))
            for flight in ticket.flights:
                if flight.finish_ns < 0:
                    self._feed(self.engine.now_ns, Abort(flight.rid))
        self.delivery.dispatch()
        while self.error is None and self.in_flight:
            due = self.engine.next_time()
            if due is None:
                break
            self.engine.advance_to(due)
            self.delivery.dispatch()
        self._resume(self.keeper.elapse(self.engine.now_ns))

    def stop(self) -> None:
        """No pump after this."""
        if self._pump_soon is not None:
            self._pump_soon.cancel()
        if self._alarm is not None:
            self._alarm.close()
        self._pump_soon = self._alarm = None
        self._loop = None

    # The inbox

    def _stamp(self) -> SimTime:
        now = self.now_ns()
        return max(now, self._inbox[-1][0]) if self._inbox else now

    def _post(self, stamp: SimTime, what: Ticket | Operation | Halt | Heard, enters: bool) -> None:
        if self._warp:
            self.keeper.post(what.actor, (what, enters))
        else:
            self._inbox.append((stamp, (what, enters)))
        self.poke()

    def _feed(self, stamp: SimTime, command: Command) -> int:
        if self._journal is not None:
            self._journal(stamp, command)
        self._due_known = False
        return self.engine.feed(stamp, command)

    def _apply(self, stamp: SimTime, item: Item) -> None:
        ticket, enters = item
        if isinstance(ticket, Operation):
            if ticket.command is not None:
                ticket.result = self._feed(stamp, ticket.command)
            self._due_known = False
            self._agenda.begin(ticket, stamp)
            return
        if isinstance(ticket, Halt):
            self._halt(stamp, ticket)
            return
        if isinstance(ticket, Heard):
            self._feed(stamp, ticket.word)
            return
        if not enters:
            for flight in ticket.flights:
                if self.delivery.flights.pop(flight.rid, None) is not None:
                    self._feed(stamp, Abort(flight.rid))
            ticket.flights.clear()
            return
        if ticket.closed:
            # Gave up before its instant was fed: it never was in the engine.
            return
        # Known for certain only now if another process keeps the clock.
        ticket.arrival_ns = stamp
        delivery = self.delivery
        for submit in ticket.submits:
            delivery.entered(ticket, self._feed(stamp, submit))
        delivery.entered_whole(ticket)

    def _halt(self, stamp: SimTime, halt: Halt) -> None:
        flights = halt.ticket.flights
        if halt.position < len(flights) and flights[halt.position].finish_ns < 0:
            self._feed(stamp, Abort(flights[halt.position].rid))

    # The pump

    def _pump(self) -> None:
        if self._pump_soon is not None:
            self._pump_soon.cancel()
            self._pump_soon = None
        try:
            if self._warp:
                self._pump_warp()
            else:
                self._pump_paced()
        except Exception as error:
            self._die(error)

    def _pump_paced(self) -> None:
        inbox = self._inbox
        if inbox:
            self._inbox = []
            if self._when_idle is not None:
                inbox.sort(key=_canonical)
            for stamp, item in inbox:
                self._apply(stamp, item)
        self._catch_up_paced()
        for _ in range(_MOVES_PER_PUMP):
            # On a virtual loop, go on at once while nobody else has anything to do before.
            due = self._next_paced()
            if due is None or not self._leap(self._pace.wall_ns(due)):
                break
            self._due = due
            self._catch_up_paced()
        self._arm_paced()

    def _catch_up_paced(self) -> None:
        now = self.now_ns()
        due = self._due
        if due is not None and due <= now:
            self._late(now - due)
        self.engine.advance_to(now)
        self._due_known = False
        self._deliver(now)
        self._resume(self.keeper.elapse(now))

    def _deliver(self, now: SimTime) -> None:
        self.delivery.deliver(now)
        if self._agenda.next_ns is not None:
            for operation in self._agenda.pop_due(now):
                self._conclude(operation, now)

    def _conclude(self, operation: Operation, now: SimTime) -> None:
        """An operation is over: its actor may go on, in its turn."""
        self._due_known = False
        if self._warp:
            self.keeper.complete(operation.actor, lambda: operation.resolve(now))
            return
        if operation.actor is not None:
            self.keeper.complete(operation.actor, _nothing)
        operation.resolve(now)

    def _late(self, lateness_ns: SimTime) -> None:
        self.drift.observe(lateness_ns)
        if self.clock.on_late == "abort" and lateness_ns > self._abort_late_ns:
            late_ms = lateness_ns / NS_PER_MS / self.clock.scale
            raise LateError(
                f"a delivery was {late_ms:.1f} ms late, more than {self.clock.late_ms_max:g} ms"
            )

    def _next_paced(self) -> SimTime | None:
        due = self._next_due()
        wake = self.keeper.next_wake()
        return wake if due is None or (wake is not None and wake < due) else due

    def _arm_paced(self) -> None:
        due = self._next_paced()
        if due is None:
            self._due = None
            self._disarm()
        elif due != self._due or self._armed_ns == _DISARMED:
            self._due = due
            self._arm(self._pace.wall_ns(due))

    def _pump_warp(self) -> None:
        keeper = self.keeper
        engine = self.engine
        for _ in range(_MOVES_PER_PUMP):
            due = self._next_due()
            if not keeper.glide(due):
                decision = keeper.decide(due, self._wall_ns())
                if isinstance(decision, Resume):
                    self._resume(decision.tokens)
                    continue
                if isinstance(decision, Wait):
                    self._wait(decision.until_wall_ns)
                    return
                if isinstance(decision, Feed):
                    for item in decision.items:
                        self._apply(keeper.now_ns, item)
                    self._deliver(keeper.now_ns)
                    continue
            now = keeper.now_ns
            engine.advance_to(now)
            self._due_known = False
            self._deliver(now)
        self.poke()

    def _wait(self, until_wall_ns: int | None) -> None:
        self._stall_log.tell()
        if until_wall_ns is None:
            self._disarm()
        elif self._armed_ns == _DISARMED or until_wall_ns < self._armed_ns:
            # Rung too early, the pump only looks again: cheaper than a new timer for each message.
            self._arm(until_wall_ns)

    def _arm(self, wall_ns: int) -> None:
        if self._alarm is not None:
            self._armed_ns = wall_ns
            self._alarm.set(wall_ns)

    def _ring(self) -> None:
        self._armed_ns = _DISARMED
        if self._when_idle is not None:
            self.poke()
        elif self._pump_soon is None:
            self._pump()

    def _disarm(self) -> None:
        if self._alarm is not None and self._armed_ns != _DISARMED:
            self._armed_ns = _DISARMED
            self._alarm.cancel()

    def _next_due(self) -> SimTime | None:
        """The next moment at which a subscriber, or the engine itself, has something to do."""
        if self._due_known:
            return self._engine_due
        due = self.engine.next_time()
        boundary = self.delivery.next_boundary()
        if boundary is not None and (due is None or boundary < due):
            due = boundary
        timer = self._agenda.next_ns
        if timer is not None and (due is None or timer < due):
            due = timer
        self._engine_due = due
        self._due_known = True
        return due

    # What follows for requests, as `Delivery` finds out

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits any more for what this request still has in the engine."""
        self.delivery.silence(ticket)
        if self.error is None:
            self._post(self._stamp(), ticket, False)

    def complete(self, ticket: Ticket) -> None:
        """Every sequence has ended; the last bytes leave when the actor may resume."""
        ticket.closed = True
        del self.in_flight[ticket]
        if self._warp:
            self.keeper.complete(ticket.actor, lambda: self._hand_over(ticket))
            return
        if ticket.actor is not None:
            self.keeper.complete(ticket.actor, _nothing)
        self._hand_over(ticket)

    def controlled(self, event: Controlled) -> None:
        """The engine followed a command: operations may be over."""
        self._agenda.observe(event)

    def _give_up(self, error: BaseException) -> None:
        """No operation will be concluded any more."""
        for operation in self._agenda.clear():
            operation.fail(error)

    def _hand_over(self, ticket: Ticket) -> None:
        try:
            ticket.subscriber.deliver(ticket)
        except Exception as error:
            ticket.subscriber.failed(error)
            logger.error("a response could not be delivered: %r", error)
        if not (ticket.rejected and len(ticket.flights) > 1):
            # Tickets and flights point at each other; apart they need no garbage collector.
            ticket.flights.clear()

    def _resume(self, actions: list[Action]) -> None:
        for action in actions:
            action()

    def drop(self, ticket: Ticket, error: BaseException) -> None:
        """A subscriber failed: its request ends, the clock goes on."""
        if ticket.closed:
            return
        logger.error("a response failed and its request is aborted: %r", error)
        self.abort(ticket)
        ticket.subscriber.failed(error)

    def _die(self, error: BaseException) -> None:
        self.error = error
        logger.error("the engine stopped: %s", error, exc_info=not _is_verdict(error))
        for ticket in list(self.in_flight):
            ticket.closed = True
            ticket.subscriber.failed(error)
        self.in_flight.clear()
        self._give_up(error)
        self._resume(self.keeper.abandon())
        self._disarm()
        self.died.set()


def _canonical(entry: tuple[SimTime, Item]) -> tuple[SimTime, str]:
    """Order of commands: time, then actor; an actor's own keep theirs, as sorting is stable."""
    stamp, (ticket, _) = entry
    return stamp, ticket.actor or ""


def _no_leap(wall_ns: int) -> bool:
    """Real time cannot be moved."""
    return False


def _nothing() -> None:
    """Resumption of an actor whose response needs no turn."""


def _is_verdict(error: BaseException) -> bool:
    """Whether the error is one that the user asked for (strict, on-late) and not our bug."""
    return isinstance(error, LateError | StallError | ShutdownError)
