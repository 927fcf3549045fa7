"""The bootstrap server of an SGLang prefill server: where decode servers ask for its shape.

Its registry is complete from the start, as prefill ranks are no processes of their own here, and KV
moves inside the engine. Routers probe the port when they register a worker, and decode servers of
other processes may ask as SGLang's do (sglang_and_routers.md section 4.1).
"""

import asyncio
import json
import socket

from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange, Http1Server
from frontier_mock.serve.http1 import Request
from frontier_mock.wire.sglang.disaggregation import Disaggregation, asked_ranks, route_body

_TEXT = "text/plain; charset=utf-8"
_ROOMS_KEPT = 4096
_KEEPALIVE_S = 75.0


class BootstrapServer:
    """One prefill server's (`serve.connection.App`)."""

    def __init__(self, part: Disaggregation, sock: socket.socket, http_port: int) -> None:
        self._part = part
        self._socket = sock
        self._http_port = http_port
        self._ranks: dict[int, int] = {}
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
        exchange.reply(self._answer(exchange.request))

    def answering(self, exchange: Exchange, status: int) -> str:
        """No headers of our own."""
        return ""

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Nobody counts."""

    def arriving(self, request: Request) -> None:
        """Nothing here takes time."""

    def received(self, request: Request) -> None:
        """Nothing here takes time."""

    def _answer(self, request: Request) -> Answer:
        asked = request.method, request.path
        if asked == ("GET", "/health"):
            return Answer(200, b"OK", _TEXT)
        if asked == ("PUT", "/route"):
            return Answer(200, b"OK", _TEXT)
        if asked == ("GET", "/route"):
            return self._route(request)
        if asked == ("POST", "/register_dp_rank"):
            return self._register(request.body)
        if asked == ("POST", "/query_dp_ranks"):
            return self._query(request.body)
        return Answer(404, b"404: Not Found", _TEXT)

    def _route(self, request: Request) -> Answer:
        ranks = asked_ranks(request.query)
        if ranks is None:
            return Answer(400, b"Missing inputs for bootstrap server.", _TEXT)
        if all(rank == -1 for rank in ranks):
            return json_answer(route_body(self._part, self._http_port))
        dp, cp, tp, pp = ranks
        if dp > 0 or cp > 0 or not 0 <= tp < self._part.tp or not 0 <= pp < self._part.pp:
            return Answer(404, b"Bootstrap info not Found", _TEXT)
        return json_answer({"rank_ip": "127.0.0.1", "rank_port": self.port + 1 + tp})

    def _register(self, body: bytes) -> Answer:
        try:
            fields = json.loads(body)
            self._ranks[int(fields["bootstrap_room"])] = int(fields["dp_rank"])
        except (ValueError, KeyError, TypeError):
            return Answer(400, b"Missing inputs for bootstrap server.", _TEXT)
        while len(self._ranks) > _ROOMS_KEPT:
            del self._ranks[next(iter(self._ranks))]
        return Answer(200, b"OK", _TEXT)

    def _query(self, body: bytes) -> Answer:
        try:
            rooms = [int(room) for room in json.loads(body)["bootstrap_rooms"]]
        except (ValueError, KeyError, TypeError):
            return Answer(400, b"Missing inputs for bootstrap server.", _TEXT)
        found = {str(room): self._ranks[room] for room in rooms if room in self._ranks}
        return json_answer(found)
