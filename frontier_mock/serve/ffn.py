"""The FFN side of a disaggregated engine as a process: it lives, and serves nobody.

Its work is priced where the attention side is. Launch scripts start it and wait for /health, and
whoever sends it requests gets a 404, for it has no scheduler (vllm.md section 6.4).
"""

import asyncio
import json
import logging
import signal
from pathlib import Path

from frontier_mock.config.errors import ConfigError
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange, Http1Server
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.sockets import bind, url_of
from frontier_mock.serve.up import log_to_stderr

logger = logging.getLogger("frontier_mock")

_BACKLOG = 64
_KEEPALIVE_S = 75.0
_CLOSE_TIMEOUT_S = 5.0
_ALIVE = ("/health", "/ping")


class FfnServer:
    """One port. `start` and `stop` must run in the same event loop."""

    def __init__(self, host: str | None, port: int) -> None:
        """Binds the port. Raises ConfigError."""
        self._socket = bind(host, port)
        self.url = url_of(self._socket, host)
        self._web = Http1Server(self, _KEEPALIVE_S)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._web.start()
        self._server = await loop.create_server(self._web, sock=self._socket, backlog=_BACKLOG)
        logger.info("FFN role: no requests are served; liveness on %s", self.url)

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()
        await self._web.shutdown(_CLOSE_TIMEOUT_S)

    def handle(self, exchange: Exchange) -> None:
        """Alive, or nothing here."""
        request = exchange.request
        if request.path in _ALIVE and request.method in ("GET", "HEAD"):
            exchange.reply(Answer(200, b"", ""))
        elif request.path == "/metrics" and request.method == "GET":
            exchange.reply(Answer(200, b"", "text/plain; version=0.0.4; charset=utf-8"))
        else:
            exchange.reply(json_answer({"detail": "Not Found"}, 404))

    def answering(self, exchange: Exchange, status: int) -> str:
        """No headers of its own."""
        return ""

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Nothing is counted."""

    def arriving(self, request: Request) -> None:
        """Nothing is waited for."""

    def received(self, request: Request) -> None:
        """As above."""


def run_ffn(host: str | None, port: int, ready_file: str | None = None) -> int:
    """Live until SIGTERM or SIGINT. Raises ConfigError for a port in use."""
    log_to_stderr()
    return asyncio.run(_live(host, port, ready_file))


async def _live(host: str | None, port: int, ready_file: str | None) -> int:
    server = FfnServer(host, port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    if ready_file is not None:
        ready = {"workers": [{"name": "ffn", "url": server.url}]}
        try:
            Path(ready_file).write_text(json.dumps(ready), encoding="utf-8")
        except OSError as error:
            await server.stop()
            raise ConfigError(f"ready-file: cannot write {ready_file}: {error.strerror}") from None
    await stop.wait()
    await server.stop()
    return 0
