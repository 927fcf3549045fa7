"""The clock verbs from the client's side (docs/internals.md, drive and serve).

An actor is one sequential thread of control; while its lease is held, time stands still. The leases
belong to the connection that registered the first of them: if this process dies, time goes on.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from frontier_mock.client.http1 import HttpClient, Response
from frontier_mock.simtime import SimTime

_UNKNOWN_ACTOR = 409
"""Status of a verb that makes no sense now, such as releasing an actor that has ended."""


class ClockError(Exception):
    """The clock refused a verb or cannot be reached; the message says what it said."""


@dataclass(frozen=True, slots=True)
class ClockState:
    """What GET /sim/clock says that matters to a client."""

    mode: str
    scale: float
    now_ns: SimTime
    stalls: int
    jumps: int
    grace_jumps: int


class ClockClient:
    """Leases on a server's clock; use as an async context manager, which registers them."""

    def __init__(self, http: HttpClient, actors: Sequence[str]) -> None:
        """`http` reaches any worker; `actors` are registered on entry."""
        self._http = http
        self._actors = list(actors)
        self._held_open: asyncio.Task[Response] | None = None
        self._session = 0
        self.now_ns: SimTime = 0
        """Virtual time as last heard from the server."""

    async def __aenter__(self) -> Self:
        """Register the actors, held. Raises ClockError."""
        first_line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        heard = bytearray()

        def listen(data: bytes) -> None:
            heard.extend(data)
            if b"\n" in heard and not first_line.done():
                first_line.set_result(bytes(heard).partition(b"\n")[0])

        body = json.dumps({"actors": self._actors}).encode()
        path = "/sim/clock/register"
        held_open = asyncio.create_task(self._http.request("POST", path, body, on_data=listen))
        await asyncio.wait((held_open, first_line), return_when=asyncio.FIRST_COMPLETED)
        if not first_line.done():
            try:
                reply = await held_open
            except (OSError, ValueError) as error:
                raise ClockError(f"no clock at {self._http.url}: {_said(error)}") from None
            raise ClockError(_complaint("register", reply))
        self._held_open = held_open
        hello = json.loads(first_line.result())
        self._session, self.now_ns = hello["session"], hello["now_ns"]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release all leases and close their connection; after an error only the latter.

        An actor that is closed without a release is lost: barriers that wait for it are broken.
        """
        if self._held_open is None:
            return
        try:
            if kind is None:
                with contextlib.suppress(ClockError):
                    await self._verb("release", {"session": self._session})
        finally:
            self._held_open.cancel()
            await asyncio.wait((self._held_open,))

    async def sleep(
        self,
        actor: str,
        until_ns: SimTime,
        children: Sequence[str] = (),
        once: bool = True,
        rename: str | None = None,
    ) -> SimTime:
        """Park until `until_ns`; `children` begin, held, when the actor wakes. Returns the time.

        A time that is past means the present: wait until everybody else is parked. The actor is
        called `rename` from now on.
        """
        body: dict[str, object] = {"actor": actor, "until_ns": until_ns}
        if children:
            body["then_fork"] = {"children": list(children), "once": once}
        if rename is not None:
            body["rename"] = rename
        return await self._verb("sleep", body)

    async def sleep_for(self, actor: str, seconds: float) -> SimTime:
        """Park for `seconds` of virtual time, counted from the server's present."""
        return await self._verb("sleep", {"actor": actor, "seconds": seconds})

    async def barrier(self, actor: str, group: str, size: int) -> SimTime:
        """Park until `size` actors wait at `group`."""
        return await self._verb("barrier", {"actor": actor, "group": group, "size": size})

    async def fork(self, parent: str, children: Sequence[str]) -> SimTime:
        """Create held children that outlive their requests. Returns the time."""
        return await self._verb(
            "fork", {"parent": parent, "children": list(children), "once": False}
        )

    async def release(self, actors: Sequence[str]) -> None:
        """Forget these actors; those that have already ended do no harm, one at a time."""
        await self._verb("release", {"actors": list(actors)}, tolerate=_UNKNOWN_ACTOR)

    async def _verb(
        self, verb: str, body: Mapping[str, object], tolerate: int | None = None
    ) -> SimTime:
        data = json.dumps(body, separators=(",", ":")).encode()
        try:
            reply = await self._http.request("POST", f"/sim/clock/{verb}", data)
        except (OSError, ValueError) as error:
            raise ClockError(
                f"{verb}: lost the clock at {self._http.url}: {_said(error)}"
            ) from None
        if reply.status == tolerate:
            return self.now_ns
        if reply.status != 200:
            raise ClockError(_complaint(verb, reply))
        now_ns: SimTime = json.loads(reply.body)["now_ns"]
        self.now_ns = max(self.now_ns, now_ns)
        return now_ns


async def read_clock(http: HttpClient) -> ClockState:
    """The state of a worker's clock. Raises ClockError."""
    value = await read_json(http, "/sim/clock")
    stalls = value.get("stalls")
    return ClockState(
        mode=str(value.get("mode")),
        scale=_number(value.get("scale"), 1.0),
        now_ns=int(_number(value.get("now_ns"), 0)),
        stalls=int(_number(stalls.get("count") if isinstance(stalls, dict) else None, 0)),
        jumps=int(_number(value.get("jumps"), 0)),
        grace_jumps=int(_number(value.get("grace_jumps"), 0)),
    )


async def read_json(http: HttpClient, path: str) -> dict[str, object]:
    """The JSON object at `path`. Raises ClockError if there is none."""
    try:
        reply = await http.request("GET", path)
        value = json.loads(reply.body) if reply.status == 200 else None
    except (OSError, ValueError) as error:
        raise ClockError(f"cannot read {http.url}{path}: {_said(error)}") from None
    if reply.status != 200:
        raise ClockError(_complaint(f"GET {path}", reply))
    if not isinstance(value, dict):
        raise ClockError(f"cannot read {http.url}{path}: not a JSON object")
    return value


def _number(value: object, default: float) -> float:
    return value if isinstance(value, int | float) else default


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _complaint(verb: str, reply: Response) -> str:
    try:
        said = json.loads(reply.body)["error"]
    except (ValueError, KeyError, TypeError):
        said = reply.body[:200].decode("utf-8", "replace")
    return f"{verb}: the clock answered {reply.status}: {said}"
