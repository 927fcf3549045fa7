"""What an SGLang server is at the moment: its status, its weights, and who is in flight."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from frontier_mock.drive.protocol import Flight, Ticket
from frontier_mock.simtime import SimTime
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.disaggregation import PeerOf, nowhere_else
from frontier_mock.wire.sglang.info import Identity
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.sglang.request import Ended, SglangRequest
from frontier_mock.wire.tokenizer import Json

STARTING = "Starting"
UP = "Up"
UNHEALTHY = "UnHealthy"

Spans = tuple[tuple[str, int, int], ...]
"""Weight versions of an answer as (version, first token, token after the last)."""


class RequestLog(Protocol):
    """Who writes down requests."""

    def received(self, request: SglangRequest, body: bytes) -> None:
        """A request is taken in."""
        ...

    def finished(self, request: SglangRequest, body: bytes, ended: Ended) -> None:
        """One of its sequences is over."""
        ...


class InFlight:
    """One request on its way: what is in the engine for it now, and when it came.

    `body` is kept only for a request log.
    """

    __slots__ = ("arrival_ns", "body", "request", "ticket")

    def __init__(self, request: SglangRequest) -> None:
        self.request = request
        self.body = b""
        self.ticket: Ticket | None = None
        self.arrival_ns: SimTime = -1

    def arrived_ns(self, ticket: Ticket) -> SimTime:
        """When the request came, of which `ticket` may be a later part."""
        return ticket.arrival_ns if self.arrival_ns < 0 else self.arrival_ns


class ServerState:
    """The tokenizer manager's memory, one per port. The control plane changes it.

    `spans_of` says which weight versions the tokens of a sequence that just ended are from; it is
    the control plane's, and knows of none by default. `kv_events` is that entry of /server_info.
    `peer_of` says which process has a bootstrap server.
    `streams` is told of tickets whose answers are streamed, if somebody counts them apart, `kept`
    of requests that have something to keep: how they ended, not at all maybe, and when (unix time).
    """

    def __init__(self, served: ServedModel) -> None:
        front = front_of(served)
        self.disaggregation_mode = front.disaggregation_mode
        self.verified_tokens = front.verified_tokens
        self.storage_class = front.storage_class
        self.status = STARTING
        self.exiting = False
        self.paused = False
        self.model_path = served.root
        self.served_model_name = served.names[0]
        self.weight_version = front.weight_version
        self.load_format = front.load_format
        self.adapters: dict[str, str] = {}
        self.kv_events: Json = None
        self.spans_of: Callable[[Flight], Spans] = _no_spans
        self.streams: Callable[[Ticket], None] | None = None
        self.peer_of: PeerOf = nowhere_else
        self.kept: Callable[[SglangRequest, Sequence[Ended], int], None] | None = None
        self.request_log: RequestLog | None = None
        self.aborts_asked = 0
        self.last_output_ns = -1
        self._by_rid: dict[str, InFlight] = {}
        self._first = served.worker
        self._ranks = front.num_dp_ranks

    @property
    def healthy(self) -> bool:
        """Up, and neither unhealthy nor on its way out (`is_healthy`)."""
        return not self.exiting and self.status == UP

    @property
    def ready(self) -> bool:
        """Healthy, and not paused (`is_ready`)."""
        return self.healthy and not self.paused

    def rank_of(self, flight: Flight) -> int:
        """The data-parallel rank that has a sequence, -1 where there is only one."""
        return flight.worker - max(self._first, 0) if self._ranks > 1 else -1

    def identity(self) -> Identity:
        """What the server is called now."""
        return Identity(
            self.model_path,
            self.served_model_name,
            self.weight_version,
            self.load_format,
            tuple(self.adapters.items()),
        )

    def enter(self, request: SglangRequest) -> InFlight:
        """Note a request's ids. Raises ValueError in SGLang's words if one is taken."""
        for sequence in request.sequences:
            if sequence.rid in self._by_rid:
                raise ValueError(f"Duplicate request ID detected: {sequence.rid}")
        entry = InFlight(request)
        for sequence in request.sequences:
            self._by_rid[sequence.rid] = entry
        return entry

    def leave(self, entry: InFlight) -> None:
        """The request is answered, or nobody waits for it."""
        for sequence in entry.request.sequences:
            if self._by_rid.get(sequence.rid) is entry:
                del self._by_rid[sequence.rid]

    def keep(
        self, request: SglangRequest, endings: Sequence[Ended] = (), created_s: int = 0
    ) -> None:
        """Keep what a request asks to be kept; without `endings` there is no answer."""
        if request.record is not None and self.kept is not None:
            self.kept(request, endings, created_s)

    def __contains__(self, rid: str) -> bool:
        """Whether a sequence of that very id is in flight."""
        return rid in self._by_rid

    def matching(self, prefix: str) -> Iterator[tuple[InFlight, int]]:
        """Sequences in flight whose id begins so, as (request, position)."""
        seen: dict[InFlight, None] = dict.fromkeys(self._by_rid.values())
        for entry in seen:
            for position, sequence in enumerate(entry.request.sequences):
                if sequence.rid.startswith(prefix):
                    yield entry, position

    def __len__(self) -> int:
        """Sequences in flight."""
        return len(self._by_rid)


def _no_spans(flight: Flight) -> Spans:
    """The weights have not changed."""
    return ()
