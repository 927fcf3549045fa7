"""What the driver and those around it tell each other: the engine, folds, subscribers, tickets."""

from collections.abc import Callable, Sequence
from typing import Protocol

from frontier_mock.core.commands import Command, Submit
from frontier_mock.core.events import Drafted, Event, EventLog
from frontier_mock.simtime import SimTime


class LateError(RuntimeError):
    """`on_late="abort"`: a delivery was later than the user allows."""


class ShutdownError(RuntimeError):
    """The engine is gone, or going, before the request had reached it."""


class Engine(Protocol):
    """What the driver needs of `cluster.build.Cluster`."""

    now_ns: SimTime
    log: EventLog

    def next_time(self) -> SimTime | None:
        """Next internal event; None when idle."""
        ...

    def next_boundary(self, worker: int) -> SimTime | None:
        """End of the step that `worker` executes now."""
        ...

    def advance_to(self, t_ns: SimTime) -> None:
        """Process every internal event up to `t_ns`."""
        ...

    def feed(self, t_ns: SimTime, command: Command) -> int:
        """Apply one command; the rid of a Submit."""
        ...

    def tokens(self, rid: int) -> int:
        """Output tokens of a sequence so far."""
        ...

    def ranks(self, worker: int) -> range:
        """The engines of the server whose first engine is `worker`."""
        ...

    def token_counter(self, worker: int) -> Callable[[int], int]:
        """`tokens` for the sequences of one worker, for use before the engine moves again."""
        ...


class Folder(Protocol):
    """A fold over one worker's events, such as its metrics."""

    def fold(self, event: Event) -> None:
        """Take one event into account."""
        ...

    def request(self, rids: Sequence[int]) -> None:
        """These sequences, fed just now, are the choices of one request."""
        ...


class Subscriber(Protocol):
    """Who waits for a request. Called by the driver only, never concurrently."""

    @property
    def stream_interval(self) -> int:
        """Tokens per delta after the first; 0 for a response that is not streamed."""
        ...

    def started(self, ticket: "Ticket") -> None:
        """The request is in the engine, not refused on arrival."""
        ...

    def tokens(self, position: int, first: int, last: int) -> bool:
        """Output tokens [first, last) of a sequence exist. False: not now, ask again later."""
        ...

    def ended(self, ticket: "Ticket", flight: "Flight", reason: str) -> None:
        """One sequence ended, its totals are in `flight`; `deliver` follows the last one."""
        ...

    def deliver(self, ticket: "Ticket") -> None:
        """Every sequence ended and the actor has been resumed: write the last bytes."""
        ...

    def failed(self, error: BaseException) -> None:
        """There will be no further call: the driver is dead or this subscriber failed."""
        ...


class Flight:
    """One sequence on its way through the engine. `queued`: it waits, as it did at first.

    `fetched_tokens` of its `cached_tokens` come from a tier under the GPU, `stored_tokens` others
    from storage behind that.
    """

    __slots__ = (
        "cached_tokens",
        "drafted",
        "fetched_tokens",
        "finish_ns",
        "first_token_ns",
        "output_tokens",
        "position",
        "preemptions",
        "queued",
        "rid",
        "scheduled_ns",
        "sent",
        "stored_tokens",
        "ticket",
        "worker",
    )

    def __init__(self, rid: int, worker: int, position: int, ticket: "Ticket") -> None:
        self.rid = rid
        self.worker = worker
        self.position = position
        self.ticket = ticket
        self.sent = 0
        self.cached_tokens = 0
        self.fetched_tokens = 0
        self.stored_tokens = 0
        self.output_tokens = 0
        self.preemptions = 0
        self.drafted: Drafted | None = None
        self.queued = True
        self.scheduled_ns: SimTime = -1
        self.first_token_ns: SimTime = -1
        self.finish_ns: SimTime = -1


class Ticket:
    """One request: its sequences, its subscriber, and the actor whose lease it carries.

    `adapter` is the LoRA adapter it is for, "" for none.
    """

    __slots__ = (
        "actor",
        "adapter",
        "arrival_ns",
        "choices",
        "closed",
        "flights",
        "open",
        "rejected",
        "submits",
        "subscriber",
    )

    def __init__(
        self,
        submits: Sequence[Submit],
        subscriber: Subscriber,
        actor: str | None,
        choices: int,
        stamp: SimTime,
    ) -> None:
        self.submits = submits
        self.choices = choices
        self.subscriber = subscriber
        self.actor = actor
        self.adapter = ""
        self.arrival_ns = stamp
        self.flights: list[Flight] = []
        self.open = len(submits)
        self.rejected = ""
        self.closed = False
