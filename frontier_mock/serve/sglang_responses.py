"""/v1/responses of SGLang with what is kept of it under --enable-response-store."""

import time
from collections.abc import Callable, Mapping, Sequence

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.routing import Table
from frontier_mock.wire.render import dumps
from frontier_mock.wire.response_store import Response, ResponseStore
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.request import Ended, SglangRequest
from frontier_mock.wire.sglang.responses import kept_response, parse_responses
from frontier_mock.wire.sglang.responses_answer import (
    finished_response,
    queued_response,
    said_in,
)

PREFIX = "/v1/responses/"


class StoredResponses:
    """One server's responses, and the routes to them."""

    def __init__(self, abort: Callable[[str], None], *, enabled: bool) -> None:
        """`abort` ends whatever is in flight under an id."""
        self._abort = abort
        self._store = ResponseStore() if enabled else None

    def parse(self, body: bytes, headers: Mapping[str, str], served: ServedModel) -> SglangRequest:
        """What a body asks for. Raises SglangError and LateError."""
        return parse_responses(body, headers, served, self._store)

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {
            ("GET", f"{PREFIX}*"): self._retrieve,
            ("POST", f"{PREFIX}*"): self._cancel,
        }

    def entered(self, request: SglangRequest) -> Answer | None:
        """The request is in: the answer to one that goes on in the background."""
        record, store = request.record, self._store
        if record is None or store is None:
            return None
        if not record.background:
            store.begin(record)
            return None
        response = queued_response(request, int(time.time()))
        answer = _json(response)
        store.begin(record, response | {"status": "in_progress"})
        return answer

    def ended(self, request: SglangRequest, endings: Sequence[Ended], created_s: int) -> None:
        """The request is complete; without `endings` it has failed."""
        record, store = request.record, self._store
        if record is None or store is None:
            return
        if endings:
            response = finished_response(request, endings, created_s)
            store.finish(record.name, response, said_in(response))
        else:
            store.fail(record.name)

    def _retrieve(self, exchange: Exchange) -> Answer:
        name = _name(exchange)
        if "/" in name:
            return Answer(404, b'{"detail":"Not Found"}')
        return _json(kept_response(name, self._store))

    def _cancel(self, exchange: Exchange) -> Answer:
        name, found, rest = _name(exchange).partition("/")
        if not found:
            return Answer(405, b'{"detail":"Method Not Allowed"}', extra="allow: GET\r\n")
        if rest != "cancel":
            return Answer(404, b'{"detail":"Not Found"}')
        response, store = kept_response(name, self._store), self._store
        # Once it is over, another cancel changes nothing.
        if store is not None and store.cancel(name):
            self._abort(name)
        return _json(response)


def _name(exchange: Exchange) -> str:
    return exchange.request.path.partition(PREFIX)[2]


def _json(response: Response) -> Answer:
    return Answer(200, dumps(response).encode("utf-8", "surrogatepass"))
