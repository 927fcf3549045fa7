"""httpx straight into the application: no socket, no HTTP bytes, no parser on either side.

One transport for both libraries, `httpx` and `httpx2` (which the openai SDK uses since 3.0): they
ask for the same methods and differ in the classes they want back. Bodies of streams are handed over
as they are written, unlike `ASGITransport`'s, which come when they are complete.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from frontier_mock.client.wrap import carrier_of
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.drive.working_threads import working_thread
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import App, Exchange
from frontier_mock.serve.http1 import Request

ResultT = TypeVar("ResultT")

_READER_BEHIND_BYTES = 1 << 20
"""As over a socket: a reader with this much unread gets its next tokens merged."""

_header_names: dict[bytes, str] = {}
"""Every spelling of a header's name that was ever met; programs have few."""

Apps = dict[tuple[str, int], App]
"""Applications by host and port."""


class DirectExchange(Exchange):
    """One request and its answer, in memory."""

    __slots__ = (
        "_app",
        "_pieces",
        "_unread_bytes",
        "_waiter",
        "ended",
        "headers",
        "status",
    )

    def __init__(self, request: Request, app: App) -> None:
        self.request = request
        self.on_lost = None
        self.began_ns = -1
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.begun = False
        self.ended = False
        self._app = app
        self._pieces: list[bytes] = []
        self._unread_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    # The application's side

    def reply(self, answer: Answer) -> None:
        """The whole answer."""
        if self.ended:
            return
        extra = answer.extra + self._app.answering(self, answer.status)
        self._open(answer.status, answer.content_type, extra)
        if self.request.method != "HEAD":
            self._pieces.append(answer.body)
        self._app.answered(self, answer.status, len(answer.body))
        self._close()

    def begin(self, content_type: str, extra: str = "") -> None:
        """Status 200 and headers of an answer that follows piece by piece."""
        if not self.ended:
            self._open(200, content_type, extra + self._app.answering(self, 200))
            self._wake()

    def write(self, data: bytes) -> None:
        """One piece of the answer."""
        if data and not self.ended:
            self._pieces.append(data)
            self._unread_bytes += len(data)
            self._wake()

    def end(self, data: bytes = b"") -> None:
        """The last piece."""
        if not self.ended:
            if data:
                self._pieces.append(data)
            self._app.answered(self, 200, 0)
            self._close()

    def behind(self) -> bool:
        """Whether the reader is so slow that it is better to write less often."""
        return self._unread_bytes > _READER_BEHIND_BYTES

    def is_lost(self) -> bool:
        """Whether there is nobody to answer any more."""
        return self.ended

    def lost(self) -> None:
        """The reader has gone."""
        if self.ended:
            return
        self.ended = True
        if self.begun:
            self._app.answered(self, 200, 0)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    def _open(self, status: int, content_type: str, extra: str) -> None:
        self.begun = True
        self.status = status
        headers = [("server", "uvicorn")]
        if content_type:
            headers.append(("content-type", content_type))
        for line in extra.split("\r\n"):
            name, colon, value = line.partition(": ")
            if colon:
                headers.append((name, value))
        self.headers = headers

    def _close(self) -> None:
        self.ended = True
        self.on_lost = None
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The reader's side

    async def head(self, timeout_s: float | None) -> None:
        """Wait until status and headers are there. Raises TimeoutError."""
        while not self.begun:
            await self._news(timeout_s)

    async def read(self, timeout_s: float | None) -> bytes:
        """What has been written since the last call, empty at the end. Raises TimeoutError."""
        while not self._pieces and not self.ended:
            await self._news(timeout_s)
        pieces, self._pieces = self._pieces, []
        self._unread_bytes = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _news(self, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, waiter)
        try:
            await waiter
        except BaseException:
            self.lost()
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _expire(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


class AsyncDirectTransport:
    """The transport of an `AsyncClient` of httpx or httpx2."""

    def __init__(self, library: ModuleType, apps: Apps) -> None:
        """Requests to a host and port that is not in `apps` fail to connect."""
        self._library = library
        self._apps = apps
        self._stream_type = type("DirectStream", (_AsyncBody, library.AsyncByteStream), {})

    async def handle_async_request(self, request: Any) -> Any:
        """httpx's seam: a request in, a response out whose body may still be on its way."""
        app = _app_for(self._library, self._apps, request)
        exchange = DirectExchange(_incoming(request, await request.aread()), app)
        app.handle(exchange)
        timeout_s = _read_timeout_s(request)
        try:
            await exchange.head(timeout_s)
        except TimeoutError:
            raise self._library.ReadTimeout("no response", request=request) from None
        if exchange.ended:
            return _whole(self._library, exchange, await exchange.read(None))
        body = self._stream_type(exchange, timeout_s, self._library.ReadTimeout)
        return self._library.Response(exchange.status, headers=exchange.headers, stream=body)

    async def aclose(self) -> None:
        """Nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Nothing to close."""


class _AsyncBody:
    """The body of a stream; its class is completed with the library's own."""

    def __init__(
        self, exchange: DirectExchange, timeout_s: float | None, timed_out: type[Exception]
    ) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._timed_out = timed_out

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._exchange.read(self._timeout_s):
                yield data
        except TimeoutError:
            raise self._timed_out("the response has stopped") from None

    async def aclose(self) -> None:
        """The reader wants no more."""
        self._exchange.lost()


class DirectTransport:
    """The transport of a blocking `Client`, for use in threads that wait for a virtual loop."""

    def __init__(self, library: ModuleType, apps: Apps, loop: VirtualTimeLoop) -> None:
        self._library = library
        self._apps = apps
        self._loop = loop
        self._stream_type = type("DirectStream", (_Body, library.SyncByteStream), {})

    def handle_request(self, request: Any) -> Any:
        """httpx's seam. Raises RuntimeError in the loop's own thread: it would wait for itself."""
        app = _app_for(self._library, self._apps, request)
        exchange = DirectExchange(_incoming(request, request.read()), app)
        timeout_s = _read_timeout_s(request)

        async def ask() -> None:
            app.handle(exchange)
            await exchange.head(timeout_s)

        try:
            self.wait_for(ask())
        except TimeoutError:
            raise self._library.ReadTimeout("no response", request=request) from None
        if exchange.ended:
            return _whole(self._library, exchange, self.wait_for(exchange.read(None)))
        body = self._stream_type(exchange, timeout_s, self._library.ReadTimeout, self)
        return self._library.Response(exchange.status, headers=exchange.headers, stream=body)

    def wait_for(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run it on the loop while this thread waits."""
        thread = working_thread()
        if thread is not None and thread.loop is self._loop:
            return thread.wait_for(coroutine)
        if _running_loop() is self._loop:
            coroutine.close()
            raise RuntimeError(
                "a blocking client in the event loop's own thread would wait for itself; call it "
                "in a thread (asyncio.to_thread) or use the asynchronous client"
            )
        with self._loop.thread() as own:
            return own.wait_for(coroutine)

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Nothing to close."""


class _Body:
    def __init__(
        self,
        exchange: DirectExchange,
        timeout_s: float | None,
        timed_out: type[Exception],
        transport: DirectTransport,
    ) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._timed_out = timed_out
        self._transport = transport

    def __iter__(self) -> Iterator[bytes]:
        try:
            while data := self._transport.wait_for(self._exchange.read(self._timeout_s)):
                yield data
        except TimeoutError:
            raise self._timed_out("the response has stopped") from None

    def close(self) -> None:
        """The reader wants no more."""
        self._transport.wait_for(_lose(self._exchange))


async def _lose(exchange: DirectExchange) -> None:
    exchange.lost()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _app_for(library: ModuleType, apps: Apps, request: Any) -> App:
    url = request.url
    app = apps.get((url.host, url.port or 80))
    if app is None:
        raise library.ConnectError(f"no such mock: {url}", request=request)
    return app


def _incoming(request: Any, body: bytes) -> Request:
    headers: dict[str, str] = {}
    names = _header_names
    for raw_name, raw_value in request.headers.raw:
        name = names.get(raw_name)
        if name is None:
            name = names[raw_name] = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        known = headers.get(name)
        headers[name] = value if known is None else f"{known}, {value}"
    carrier = carrier_of(headers.get("tracestate"))
    if carrier is not None:
        headers["tracestate"] = carrier
    incoming = Request(request.method, request.url.raw_path.decode("ascii"), 1, headers)
    incoming.body = body
    return incoming


def _read_timeout_s(request: Any) -> float | None:
    timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout_s


def _whole(library: ModuleType, exchange: DirectExchange, body: bytes) -> Any:
    # Content that is there from the start spares httpx the reading of a stream; it adds its length.
    return library.Response(exchange.status, headers=exchange.headers, content=body)
