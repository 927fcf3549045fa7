"""The clock verbs from the client's side (docs/internals.md, drive and serve).

An actor is one sequential thread of control; while its lease is held, time stands still. The leases
belong to the connection that registered the first of them: if this process dies, time goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

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

    def __init__(self, session: aiohttp.ClientSession, url: str, actors: Sequence[str]) -> None:
        """`url` is that of any worker; `actors` are registered on entry."""
        self._session = session
        self._url = url.rstrip("/")
        self._actors = list(actors)
        self._stream: aiohttp.ClientResponse | None = None
        self.now_ns: SimTime = 0
        """Virtual time as last heard from the server."""

    async def __aenter__(self) -> Self:
        """Register the actors, held. Raises ClockError."""
        body = json.dumps({"actors": self._actors})
        try:
            stream = await self._session.post(f"{self._url}/sim/clock/register", data=body)
            if stream.status != 200:
                raise ClockError(_complaint("register", stream.status, await stream.read()))
            first = json.loads(await stream.content.readline())
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClockError(f"no clock at {self._url}: {error or type(error).__name__}") from None
        self._stream = stream
        self.now_ns = first["now_ns"]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection that owns the leases, which releases them all."""
        if self._stream is not None:
            self._stream.close()

    async def sleep(
        self, actor: str, until_ns: SimTime, children: Sequence[str] = (), once: bool = True
    ) -> SimTime:
        """Park until `until_ns`; `children` begin, held, when the actor wakes. Returns the time.

        A time that is past means the present: wait until everybody else is parked.
        """
        body: dict[str, object] = {"actor": actor, "until_ns": until_ns}
        if children:
            body["then_fork"] = {"children": list(children), "once": once}
        return await self._verb("sleep", body)

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
        try:
            async with self._session.post(
                f"{self._url}/sim/clock/{verb}", data=json.dumps(body)
            ) as reply:
                data = await reply.read()
                status = reply.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            name = type(error).__name__
            raise ClockError(f"{verb}: lost the clock at {self._url}: {error or name}") from None
        if status == tolerate:
            return self.now_ns
        if status != 200:
            raise ClockError(_complaint(verb, status, data))
        now_ns: SimTime = json.loads(data)["now_ns"]
        self.now_ns = max(self.now_ns, now_ns)
        return now_ns


async def read_clock(session: aiohttp.ClientSession, url: str) -> ClockState:
    """The state of the clock at `url`, any worker's. Raises ClockError."""
    value = await read_json(session, url, "/sim/clock")
    stalls = value.get("stalls")
    return ClockState(
        mode=str(value.get("mode")),
        scale=_number(value.get("scale"), 1.0),
        now_ns=int(_number(value.get("now_ns"), 0)),
        stalls=int(_number(stalls.get("count") if isinstance(stalls, dict) else None, 0)),
        jumps=int(_number(value.get("jumps"), 0)),
        grace_jumps=int(_number(value.get("grace_jumps"), 0)),
    )


async def read_json(session: aiohttp.ClientSession, url: str, path: str) -> dict[str, object]:
    """The JSON object at `path`. Raises ClockError if there is none."""
    where = url.rstrip("/") + path
    try:
        async with session.get(where) as reply:
            data = await reply.read()
            if reply.status != 200:
                raise ClockError(_complaint(f"GET {path}", reply.status, data))
            value = json.loads(data)
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        raise ClockError(f"cannot read {where}: {error or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ClockError(f"cannot read {where}: not a JSON object")
    return value


def _number(value: object, default: float) -> float:
    return value if isinstance(value, int | float) else default


def _complaint(verb: str, status: int, data: bytes) -> str:
    try:
        said = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        said = data[:200].decode("utf-8", "replace")
    return f"{verb}: the clock answered {status}: {said}"
