"""An actor: a thread of control of your program whose time is the cluster's.

While an actor runs, time stands still; it moves while all actors wait, for an answer, for a sleep
or for each other (docs/tutorial-leases.md). Works against any frontier-mock server, whatever its
clock: with a real one a sleep takes as long as it says.
"""

import asyncio
import http.client
import json
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from frontier_mock.client.clock import ClockClient, ClockError
from frontier_mock.client.http1 import HttpClient
from frontier_mock.client.wrap import speaking_as, with_actor
from frontier_mock.simtime import SimTime, to_seconds

ClientT = TypeVar("ClientT")

_BLOCKING_TIMEOUT_S = 600.0
"""Real seconds after which a blocking call gives up on the clock."""


class Actor:
    """One lease. Use as an async context manager, or get one from another's `fork`.

    Inside the context, requests of clients prepared with `with_actor` carry its name, and so do
    those of tasks begun there. Two tasks must not share an actor: give each its own with `gather`
    or `fork`. If the process dies, the connection that holds the lease does, and time goes on.
    """

    def __init__(self, url: str, name: str) -> None:
        """`url` is that of any worker. `name` is unique among the actors of that clock."""
        self.name = name
        self._url = url
        self._http: HttpClient | None = None
        self._clock: ClockClient | None = None
        self._children = 0
        self._speaking: list[Any] = []
        self._of_thread = threading.local()
        self._blocking: list[http.client.HTTPConnection] = []

    async def __aenter__(self) -> Self:
        """Register, held. Raises ClockError."""
        if self._clock is None:
            self._http = HttpClient(self._url)
            clock = ClockClient(self._http, [self.name])
            await clock.__aenter__()
            self._clock = clock
        speaking = speaking_as(self.name)
        speaking.__enter__()
        self._speaking.append(speaking)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release; an actor that was not forked takes its connection with it."""
        self._speaking.pop().__exit__(kind, error, trace)
        for connection in self._blocking:
            connection.close()
        clock = self._running()
        if self._http is None:
            await clock.release([self.name])
        else:
            await clock.__aexit__(kind, error, trace)
            self._http.close()
        self._clock = None

    @property
    def now_ns(self) -> SimTime:
        """Virtual time as this actor last heard it from the clock."""
        return self._running().now_ns

    @property
    def now_s(self) -> float:
        """`now_ns` in seconds."""
        return to_seconds(self.now_ns)

    async def sleep(self, seconds: float, name: str | None = None) -> float:
        """Wait for virtual time. Returns it, in seconds. 0 means: let everybody else go first.

        `name` is that of a child of `gather`, for which this actor speaks.
        """
        return to_seconds(await self._running().sleep_for(name or self.name, seconds))

    async def barrier(self, group: str, size: int) -> float:
        """Wait until `size` actors wait at `group`. Returns the time in seconds."""
        return to_seconds(await self._running().barrier(self.name, group, size))

    async def fork(self, name: str) -> "Actor":
        """Another actor, held from now on; use it as a context manager, which releases it."""
        clock = self._running()
        await clock.fork(self.name, [name])
        child = Actor(self._url, name)
        child._clock = clock
        return child

    async def gather(
        self, *coroutines: Coroutine[Any, Any, Any], return_exceptions: bool = False
    ) -> list[Any]:
        """As `asyncio.gather`, with an actor for each coroutine while this one waits.

        The children exist before the parent parks, so time cannot slip away in between; it moves
        on from the moment the last of them ends. All are waited for even if one fails.
        """
        if not coroutines:
            return []
        clock = self._running()
        first = self._children
        self._children += len(coroutines)
        names = [f"{self.name}/{n:04d}" for n in range(first, self._children)]
        group, size = names[0], len(names) + 1
        try:
            await clock.fork(self.name, names)
        except BaseException:
            for coroutine in coroutines:
                coroutine.close()
            raise

        abandoned = False

        async def run(name: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
            with speaking_as(name):
                try:
                    return await coroutine
                finally:
                    if not abandoned:
                        await clock.barrier(name, group, size)

        pairs = zip(names, coroutines, strict=True)
        tasks = [asyncio.create_task(run(name, coroutine)) for name, coroutine in pairs]
        try:
            await clock.barrier(self.name, group, size)
        except BaseException:
            # This actor waits there no longer, so the children would do so for ever.
            abandoned = True
            for task in tasks:
                task.cancel()
            raise
        finally:
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await clock.release(names)
        if not return_exceptions:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        return results

    def client(self, client: ClientT) -> ClientT:
        """`with_actor(client, self)`."""
        return with_actor(client, self)

    def sleep_blocking(self, seconds: float, name: str | None = None) -> float:
        """As `sleep`, for threads; nothing else in the calling thread runs meanwhile."""
        return self._blocking_verb("sleep", {"actor": name or self.name, "seconds": seconds})

    def read_blocking(self, name: str | None = None) -> float:
        """The time in seconds, asked for; exact, as time stands still while this actor runs."""
        return self._blocking_verb("fork", {"parent": name or self.name, "children": []})

    def _blocking_verb(self, verb: str, body: dict[str, object]) -> float:
        connection = self._connection()
        try:
            connection.request("POST", f"/sim/clock/{verb}", json.dumps(body))
            answer = connection.getresponse()
            data = json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ClockError(f"{verb}: lost the clock at {self._url}: {error}") from None
        if answer.status != 200:
            raise ClockError(f"{verb}: the clock answered {answer.status}: {data.get('error')}")
        clock = self._running()
        clock.now_ns = max(clock.now_ns, data["now_ns"])
        return to_seconds(data["now_ns"])

    def _connection(self) -> http.client.HTTPConnection:
        """The calling thread's own: two that wait for the clock must not wait for each other."""
        connection: http.client.HTTPConnection | None
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            parts = urlsplit(self._url if "://" in self._url else f"http://{self._url}")
            host, port = parts.hostname or "", parts.port or 80
            connection = http.client.HTTPConnection(host, port, timeout=_BLOCKING_TIMEOUT_S)
            self._of_thread.connection = connection
            self._blocking.append(connection)
        return connection

    def _running(self) -> ClockClient:
        if self._clock is None:
            raise ClockError(f"actor {self.name} is not registered; use it with 'async with'")
        return self._clock
