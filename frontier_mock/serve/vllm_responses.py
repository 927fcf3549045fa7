"""/v1/responses of vLLM with what is kept of it: looking up, cancelling, reading again.

Without VLLM_ENABLE_RESPONSES_API_STORE=1 there is no store, and nothing to be found in it.
"""

import time
from collections.abc import Mapping, Sequence

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Subscriber, Ticket
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.recording import Recording
from frontier_mock.serve.routing import Table
from frontier_mock.serve.streaming import Stream, Whole
from frontier_mock.serve.weight_versions import WeightVersions
from frontier_mock.wire.fields import boolean, check_fields, integer, nullable
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.render import dumps
from frontier_mock.wire.response_store import ResponseStore
from frontier_mock.wire.responses import not_cancellable, parse_responses, unknown_response
from frontier_mock.wire.responses_render import finished_response, queued_response
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import EVENT_STREAM
from frontier_mock.wire.tokenizer import Json

PREFIX = "/v1/responses/"

_QUERY = {"starting_after": nullable(integer()), "stream": nullable(boolean)}


class StoredResponses:
    """One server's responses, and the routes to them."""

    def __init__(self, driver: Driver, versions: WeightVersions, *, enabled: bool) -> None:
        self._driver = driver
        self._versions = versions
        self._store = ResponseStore() if enabled else None
        self._running: dict[str, Ticket] = {}
        self._recordings: dict[str, Recording] = {}

    def parse(self, body: bytes, headers: Mapping[str, str], served: ServedModel) -> Generation:
        """What a body asks for. Raises ApiError."""
        return parse_responses(body, headers, served, self._store)

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {
            ("GET", f"{PREFIX}*"): self._retrieve,
            ("POST", f"{PREFIX}*"): self._cancel,
        }

    # Making one

    def subscriber(self, generation: Generation, exchange: Exchange) -> Subscriber | None:
        """Who waits for a response that is made in the background, None for any other."""
        record = generation.record
        if record is None or not record.background:
            return None
        if generation.stream:
            recording = Recording(exchange.request)
            self._recordings[record.name] = recording
            return Stream(generation, recording, self._versions)
        return Whole(generation, Exchange(exchange.request, None), self._versions)

    def entered(
        self, generation: Generation, ticket: Ticket, subscriber: Subscriber, exchange: Exchange
    ) -> Answer | None:
        """Keep what is to be kept; the answer to a request that goes on in the background."""
        record, store = generation.record, self._store
        if record is None or store is None:
            return None
        assert isinstance(subscriber, Whole | Stream)

        def kept(outcomes: Sequence[Outcome], created_s: int) -> None:
            self._running.pop(record.name, None)
            if outcomes:
                store.finish(record.name, finished_response(generation, outcomes, created_s))
            else:
                store.fail(record.name)

        subscriber.kept = kept
        if not record.background:
            store.begin(record)
            return None
        response = queued_response(generation, int(time.time()))
        store.begin(record, response)
        self._running[record.name] = ticket
        if not generation.stream:
            return _json(response)
        exchange.begin(EVENT_STREAM)
        # Whoever asked waits for it as for any stream, but it does not end with them.
        self._recordings[record.name].read(exchange, 0, lambda: self._driver.leave(ticket))
        return None

    # Asking for it

    def _retrieve(self, exchange: Exchange) -> Answer | None:
        name = _name(exchange)
        if "/" in name:
            return Answer(404, b'{"detail":"Not Found"}')
        request = exchange.request
        given: dict[str, Json] = {
            field: value for field in _QUERY if (value := request.query(field)) is not None
        }
        fields = check_fields(given, _QUERY)
        response = None if self._store is None else self._store.get(name)
        if response is None:
            raise unknown_response(name)
        if not fields.get("stream"):
            return _json(response)
        exchange.begin(EVENT_STREAM)
        recording = self._recordings.get(name)
        if recording is None:
            # vLLM finds that there are no events once it has begun to send them.
            exchange.break_off()
            return None
        after = fields.get("starting_after")
        recording.read(exchange, after + 1 if isinstance(after, int) else 0)
        return None

    def _cancel(self, exchange: Exchange) -> Answer:
        name, found, rest = _name(exchange).partition("/")
        if not found:
            return Answer(405, b'{"detail":"Method Not Allowed"}', extra="allow: GET\r\n")
        if rest != "cancel":
            return Answer(404, b'{"detail":"Not Found"}')
        store = self._store
        response = None if store is None else store.get(name)
        if store is None or response is None:
            raise unknown_response(name)
        if not store.cancel(name):
            raise not_cancellable()
        ticket = self._running.pop(name, None)
        if ticket is not None:
            self._driver.abort(ticket)
        return _json(response)


def _name(exchange: Exchange) -> str:
    return exchange.request.path.partition(PREFIX)[2]


def _json(response: dict[str, Json]) -> Answer:
    return Answer(200, dumps(response).encode("utf-8", "surrogatepass"))
