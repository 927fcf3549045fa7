"""What the engine says, told to those who wait for it.

`Delivery` follows the engine's event log: it folds every event, notes what happened to each
sequence in flight, and calls subscribers: first the ends, then the deltas of streams. It moves
nothing. What follows for a request as a whole (it is complete, its subscriber failed, the rest of
it must come out of the engine) is the business of its `Requests`, which is the Driver.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from frontier_mock.core.events import (
    Controlled,
    Drafted,
    Event,
    Fetched,
    Finished,
    FirstToken,
    KvReceived,
    KvReleased,
    KvTold,
    Preempted,
    Rejected,
    Scheduled,
)
from frontier_mock.drive.protocol import Engine, Flight, Folder, Ticket
from frontier_mock.simtime import SimTime

_EVENTS_BATCH = 4096
"""Events hashed, and forgotten, in one go."""


class Requests(Protocol):
    """Who keeps the books of requests."""

    def complete(self, ticket: Ticket) -> None:
        """Its last sequence has ended, or it was refused."""
        ...

    def withdraw(self, ticket: Ticket) -> None:
        """What it still has in the engine is of no use any more."""
        ...

    def drop(self, ticket: Ticket, error: BaseException) -> None:
        """Its subscriber failed."""
        ...

    def controlled(self, event: Controlled) -> None:
        """The engine followed a command that is about no request."""
        ...


class Delivery:
    """See the top of this module.

    `keep_events` is how many events stay in the engine's log; when there are more, they are all
    let go, and from then on as soon as they are folded (`forgot_events`). `on_drop` sees them
    before.
    """

    def __init__(
        self,
        engine: Engine,
        folders: Sequence[Folder],
        requests: Requests,
        keep_events: int,
        on_drop: Callable[[Sequence[Event]], None] | None,
    ) -> None:
        self.forgot_events = False
        self.on_told: Callable[[KvTold], None] = _untold
        """Called with each word for another process."""
        self.on_sent: Callable[[Flight], None] = _unnoticed
        """Called when a sequence somebody waits for has sent all of its prompt."""
        self.flights: dict[int, Flight] = {}
        """Sequences inside the engine that somebody waits for, by rid."""
        self._engine = engine
        self._log = engine.log
        self._requests = requests
        self._keep_events = keep_events
        self._on_drop = on_drop
        self._folders = folders
        self._folds = [folder.fold for folder in folders]
        self._cursor = 0
        self._digested = 0
        self._live: list[dict[int, Flight]] = [{} for _ in folders]
        self._streaming: dict[int, SimTime | None] = {}
        self._fresh: dict[Ticket, None] = {}

    def entered(self, ticket: Ticket, rid: int) -> None:
        """The next sequence of a request was fed just now."""
        # The cluster's router or the server's own may have chosen; what the log said last is about
        # this sequence.
        worker = self._log.events[-1].worker
        flight = Flight(rid, worker, len(ticket.flights), ticket)
        self.flights[rid] = flight
        ticket.flights.append(flight)
        if ticket.subscriber.stream_interval > 0:
            self._live[worker][rid] = flight
            self._fresh[ticket] = None

    def entered_whole(self, ticket: Ticket) -> None:
        """Every sequence of a request has been fed."""
        if ticket.choices > 1:
            rids = [flight.rid for flight in ticket.flights]
            for first in range(0, len(rids), ticket.choices):
                folder = self._folders[ticket.flights[first].worker]
                folder.request(rids[first : first + ticket.choices])

    def silence(self, ticket: Ticket) -> None:
        """No more deltas of this request."""
        for flight in ticket.flights:
            self._live[flight.worker].pop(flight.rid, None)

    def next_boundary(self) -> SimTime | None:
        """When the next step ends on a worker that streams; None if none does."""
        engine = self._engine
        streaming = self._streaming
        due = None
        for worker in streaming:
            boundary = engine.next_boundary(worker)
            streaming[worker] = boundary
            if boundary is not None and (due is None or boundary < due):
                due = boundary
        return due

    def deliver(self, now: SimTime) -> None:
        """Tell the subscribers everything up to `now`: ends first, then deltas."""
        self.dispatch()
        for ticket in list(self._fresh):
            self._start(ticket)
        if self._streaming:
            for worker, boundary in list(self._streaming.items()):
                if boundary is None or boundary <= now:
                    self._stream(worker)

    def dispatch(self) -> None:
        """Fold the new events, and tell the ends among them."""
        events = self._log.events
        end = len(events)
        if self._cursor == end:
            return
        flights = self.flights
        folds = self._folds
        for event in events[self._cursor : end] if self._cursor else events:
            folds[event.worker](event)
            if isinstance(event, Finished):
                self._end(event.t_ns, event.rid, event.reason, event.output_tokens)
            elif isinstance(event, FirstToken):
                flight = flights.get(event.rid)
                if flight is not None:
                    flight.first_token_ns = event.t_ns
            elif isinstance(event, Scheduled):
                flight = flights.get(event.rid)
                if flight is not None:
                    flight.queued = False
                    if not event.resumed:
                        flight.cached_tokens = max(flight.cached_tokens, event.cached_tokens)
                        flight.scheduled_ns = event.t_ns
            elif isinstance(event, Fetched):
                flight = flights.get(event.rid)
                if flight is not None and not flight.preemptions:
                    if event.tier == "storage":
                        flight.stored_tokens = event.tokens
                    else:
                        flight.fetched_tokens = event.tokens
            elif isinstance(event, Preempted):
                flight = flights.get(event.rid)
                if flight is not None:
                    flight.queued = True
                    flight.preemptions += 1
            elif isinstance(event, KvReceived):
                flight = flights.get(event.rid)
                if flight is not None:
                    self._received(flight, event)
            elif isinstance(event, Rejected):
                self._refuse(event.rid, event.reason)
            elif isinstance(event, Drafted):
                flight = flights.get(event.rid)
                if flight is not None:
                    flight.drafted = event
            elif isinstance(event, Controlled):
                self._requests.controlled(event)
            elif isinstance(event, KvTold):
                self.on_told(event)
            elif isinstance(event, KvReleased):
                flight = flights.get(event.rid)
                if flight is not None and event.reason == "sent":
                    self.on_sent(flight)
        self._cursor = end
        if end - self._digested >= _EVENTS_BATCH:
            self._digest(end)

    @staticmethod
    def _received(flight: Flight, event: KvReceived) -> None:
        """The KV of a prompt came from elsewhere: vLLM calls all but its last token cached.

        What the router behind which that happened had to do began when the prompt arrived there.
        """
        ticket = flight.ticket
        ticket.arrival_ns = min(ticket.arrival_ns, event.arrived_ns)
        submit = ticket.submits[flight.position]
        if submit.transfer is not None and submit.transfer.style != "room":
            flight.cached_tokens = submit.prompt.num_tokens - 1

    def _digest(self, end: int) -> None:
        """Take folded events into the digest, and let go of them once there are too many."""
        if end <= self._keep_events:
            self._log.digest()
            self._digested = end
        else:
            if self._on_drop is not None:
                self._on_drop(self._log.events)
            self._log.drop(end)
            self._keep_events = self._cursor = self._digested = 0
            self.forgot_events = True

    def _start(self, ticket: Ticket) -> None:
        """Tell a stream that it is in, unless it was refused on arrival."""
        del self._fresh[ticket]
        if ticket.closed:
            return
        for flight in ticket.flights:
            self._streaming.setdefault(flight.worker, None)
        try:
            ticket.subscriber.started(ticket)
        except Exception as error:
            self._requests.drop(ticket, error)

    def _stream(self, worker: int) -> None:
        live = self._live[worker]
        if not live:
            self._streaming.pop(worker, None)
            return
        tokens = self._engine.token_counter(worker)
        failed: list[tuple[Ticket, BaseException]] = []
        for flight in live.values():
            count = tokens(flight.rid)
            sent = flight.sent
            if count == sent:
                continue
            subscriber = flight.ticket.subscriber
            if sent and count - sent < subscriber.stream_interval:
                continue
            try:
                if subscriber.tokens(flight.position, sent, count):
                    flight.sent = count
            except Exception as error:
                failed.append((flight.ticket, error))
        for ticket, failure in failed:
            self._requests.drop(ticket, failure)

    def _end(self, t_ns: SimTime, rid: int, reason: str, output_tokens: int) -> None:
        flight = self.flights.pop(rid, None)
        if flight is None:
            return
        ticket = flight.ticket
        if ticket in self._fresh:
            # A late pump may see a stream begin and end at once; the beginning still comes first.
            self._start(ticket)
        if ticket.closed:
            return
        self._live[flight.worker].pop(rid, None)
        flight.finish_ns = t_ns
        flight.output_tokens = output_tokens
        ticket.open -= 1
        try:
            ticket.subscriber.ended(ticket, flight, reason)
        except Exception as error:
            self._requests.drop(ticket, error)
            return
        if ticket.open == 0:
            self._requests.complete(ticket)

    def _refuse(self, rid: int, reason: str) -> None:
        """One sequence refused is the request refused: what of it got in comes out again."""
        flight = self.flights.pop(rid, None)
        if flight is None or flight.ticket.closed:
            return
        ticket = flight.ticket
        ticket.rejected = reason
        self.silence(ticket)
        if len(ticket.flights) > 1:
            self._requests.withdraw(ticket)
        self._requests.complete(ticket)


def _untold(event: KvTold) -> None:
    """No other process is in reach: the patience of the transfer ends it."""


def _unnoticed(flight: Flight) -> None:
    """Nobody wants to know."""
