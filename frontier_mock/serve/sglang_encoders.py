"""SGLang's encoder servers, and language-only servers that ask them, over HTTP.

The embeddings themselves do not travel (SGLang's go over ZMQ or RDMA beside HTTP): how long they
would takes the engine that gets them (`cluster.encoding.read_stored`).
"""

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Flight, ShutdownError, Ticket
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.entrance import Accepted, enter
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Table
from frontier_mock.serve.sglang_state import ServerState
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.encoding import encode_error, encode_requests, read_encode
from frontier_mock.wire.sglang.errors import openai_error

ENCODE: Final = "/encode"
_CARRIERS: Final = ("tracestate", "x-request-id")
"""Headers that say whose request it is (`serve.carriers`)."""


class EncoderRoutes:
    """The routes of a server started with `--encoder-only`."""

    def __init__(self, served: ServedModel, driver: Driver, state: ServerState) -> None:
        self._served = served
        self._driver = driver
        self._state = state

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {
            ("POST", ENCODE): self._encode,
            # Where an embedding is to go: it does not go there.
            ("POST", "/scheduler_receive_url"): lambda _: Answer(200, b"null"),
            ("POST", "/send"): lambda _: Answer(200, b"null"),
            ("GET", "/health"): self._health,
            ("GET", "/health_generate"): self._health,
        }

    def _encode(self, exchange: Exchange) -> Answer | None:
        body = exchange.request.body

        def read() -> Accepted:
            job = read_encode(body, self._served)
            return Accepted([job.submit], _Encoding(exchange, job.body))

        try:
            enter(self._driver, exchange, read)
        except ShutdownError:
            raise encode_error(503, "encoder not ready", None) from None
        return None

    def _health(self, exchange: Exchange) -> Answer:
        up = self._state.healthy and self._driver.error is None
        return Answer(200 if up else 503, b"", "")


class _Encoding:
    """Waits until the images are encoded (`drive.protocol.Subscriber`)."""

    stream_interval = 0

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        self._exchange = exchange
        self._body = body

    def started(self, ticket: Ticket) -> None:
        """Nothing to say before the end."""

    def tokens(self, position: int, first: int, last: int) -> bool:
        """There are none."""
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """All images are encoded."""

    def deliver(self, ticket: Ticket) -> None:
        """The answer."""
        if ticket.rejected:
            error = encode_error(500, ticket.rejected, None)
            self._exchange.reply(Answer(error.status, error.body()))
            return
        self._exchange.reply(Answer(200, self._body))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        gone = encode_error(500, "encoder is gone", None)
        self._exchange.reply(Answer(gone.status, gone.body()))


class RemoteEncoders:
    """The encoder servers that a language-only server asks."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._next = 0

    async def encode(self, images: Sequence[str], rid: str, request: Request) -> None:
        """Have images encoded, each by one of the servers; done when all are.

        Raises SglangError with what an encoder said, or that it did not answer.
        """
        count = len(self._urls)
        asked = encode_requests(images, count, rid, self._next % count)
        self._next += len(images) % count
        # An encoder knows the actor whose time it takes by the client's own headers.
        lines = "".join(
            f"{name}: {value}\r\n" for name in _CARRIERS if (value := request.headers.get(name))
        )
        jobs = [_post(self._urls[number] + ENCODE, body, lines) for number, body in asked]
        for status, said in await asyncio.gather(*jobs):
            if status != 200:
                raise openai_error(said, "EncoderError", status)


async def _post(url: str, body: bytes, lines: str) -> tuple[int, str]:
    """Status and body of the answer; 502 and why there is none."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        try:
            writer.write(head.encode("latin-1") + body)
            answer = await reader.read()
        finally:
            writer.close()
        top, _, said = answer.partition(b"\r\n\r\n")
        return int(top.split(None, 2)[1]), said.decode("utf-8", "replace")
    except (OSError, ValueError, IndexError) as error:
        return 502, f"{url} does not answer: {error}"
