"""Bootstrap servers: a port of its own where a prefill server says who it is.

SGLang's (`SglangRooms`) tells decode servers how the prefill server is cut, and is probed by
routers; Mooncake's in vLLM (`MooncakeRegistry`) tells routers its engine id. Both registries are
complete from the start, as ranks are no processes of their own here, and KV moves inside the
engine or, between processes, as `serve.halves` says (sglang_and_routers.md section 4.1, vllm.md
section 6.3).
"""

import asyncio
import json
import socket
from typing import Protocol

from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange, Http1Server
from frontier_mock.serve.halves import HALVES_PATH, Halves
from frontier_mock.serve.http1 import Request
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.sglang.disaggregation import Disaggregation, asked_ranks, route_body

_TEXT = "text/plain; charset=utf-8"
_JSON_TYPE = "application/json; charset=utf-8"
_ROOMS_KEPT = 4096
_KEEPALIVE_S = 75.0
_MISSING = b"Missing inputs for bootstrap server."
_MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What reading a body as JSON, and its members as numbers, raises."""


class Registry(Protocol):
    """What a bootstrap server knows."""

    def answer(self, exchange: Exchange, port: int) -> Answer | None:
        """Answer one request on `port`; None if the connection is somebody else's now."""
        ...


class BootstrapServer:
    """One prefill server's (`serve.connection.App`)."""

    def __init__(self, registry: Registry, sock: socket.socket) -> None:
        self._registry = registry
        self._socket = sock
        self._web = Http1Server(self, _KEEPALIVE_S)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._socket.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen."""
        self._web.start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._web, sock=self._socket)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        await self._web.shutdown(0.0)

    # What a connection says (serve.connection.App)

    def handle(self, exchange: Exchange) -> None:
        """Answer one request. Never raises."""
        answer = self._registry.answer(exchange, self.port)
        if answer is not None:
            exchange.reply(answer)

    def answering(self, exchange: Exchange, status: int) -> str:
        """No headers of our own."""
        return ""

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Nobody counts."""

    def arriving(self, request: Request) -> None:
        """Nothing here takes time."""

    def received(self, request: Request) -> None:
        """Nothing here takes time."""


class SglangRooms:
    """The registry of an SGLang prefill server whose HTTP port is `http_port`."""

    def __init__(self, part: Disaggregation, http_port: int, halves: Halves) -> None:
        self._part = part
        self._http_port = http_port
        self._halves = halves
        self._ranks: dict[int, int] = {}

    def answer(self, exchange: Exchange, port: int) -> Answer | None:
        """As SGLang's bootstrap server."""
        request = exchange.request
        asked = request.method, request.path
        if request.path == HALVES_PATH:
            return self._halves.answer(exchange, self._part)
        if asked in (("GET", "/health"), ("PUT", "/route")):
            return Answer(200, b"OK", _TEXT)
        if request.path == "/route" and request.method != "GET":
            return Answer(405, b"Method not allowed", _JSON_TYPE)
        if asked == ("GET", "/route"):
            return self._route(request, port)
        if asked == ("POST", "/register_dp_rank"):
            return self._register(request.body)
        if asked == ("POST", "/query_dp_ranks"):
            return self._query(request.body)
        return Answer(404, b"404: Not Found", _TEXT)

    def _route(self, request: Request, port: int) -> Answer:
        ranks = asked_ranks(request.query)
        if ranks is None:
            return Answer(400, _MISSING, _TEXT)
        if all(rank == -1 for rank in ranks):
            return json_answer(route_body(self._part, self._http_port))
        dp, cp, tp, pp = ranks
        if dp > 0 or cp > 0 or not 0 <= tp < self._part.tp or not 0 <= pp < self._part.pp:
            said = f"dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
            return Answer(404, f"Bootstrap info not found for {said}".encode(), _TEXT)
        return json_answer({"rank_ip": "127.0.0.1", "rank_port": port + 1 + tp})

    def _register(self, body: bytes) -> Answer:
        try:
            fields = json.loads(body)
            self._ranks[int(fields["bootstrap_room"])] = int(fields["dp_rank"])
        except _MALFORMED:
            return Answer(400, _MISSING, _TEXT)
        while len(self._ranks) > _ROOMS_KEPT:
            del self._ranks[next(iter(self._ranks))]
        return Answer(200, b"OK", _TEXT)

    def _query(self, body: bytes) -> Answer:
        try:
            rooms = [int(room) for room in json.loads(body)["bootstrap_rooms"]]
        except _MALFORMED:
            return Answer(400, _MISSING, _TEXT)
        found = {str(room): self._ranks[room] for room in rooms if room in self._ranks}
        return json_answer(found)


class MooncakeRegistry:
    """The registry of a vLLM server with MooncakeConnector."""

    def __init__(self, kv: KvPort) -> None:
        self._kv = kv

    def answer(self, exchange: Exchange, port: int) -> Answer | None:
        """As the connector's FastAPI service."""
        request = exchange.request
        asked = request.method, request.path
        if asked == ("GET", "/query"):
            kv = self._kv
            address = f"tcp://{kv.host}:{port + 1}"
            ranks = {str(tp): {str(pp): address for pp in range(kv.pp)} for tp in range(kv.tp)}
            return json_answer({"0": {"engine_id": kv.engine_id, "worker_addr": ranks}})
        if asked == ("POST", "/register"):
            return json_answer({"status": "ok"})
        return json_answer({"detail": "Not Found"}, 404)
