"""The clock verbs over gRPC, for programs that hold a channel anyway (protos/virtual_clock.proto).

`pip install 'frontier-mock[grpc]'`. The same leases as `client.clock.ClockClient` has over HTTP.
"""

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from frontier_mock.client.clock import ClockError
from frontier_mock.simtime import SimTime
from frontier_mock.stubs import virtual_clock_pb2 as pb
from frontier_mock.stubs import virtual_clock_pb2_grpc as pb_grpc


class GrpcClockClient:
    """Leases on a server's clock; use as an async context manager, which registers them."""

    def __init__(self, target: str, actors: Sequence[str]) -> None:
        """`target` is HOST:PORT of the server's clock port."""
        self._target = target
        self._actors = list(actors)
        self._channel: Any = None
        self._stub: Any = None
        self._held_open: Any = None
        self._session = 0
        self.now_ns: SimTime = 0
        """Virtual time as last heard from the server."""

    async def __aenter__(self) -> Self:
        """Register the actors, held. Raises ClockError."""
        self._channel = grpc.aio.insecure_channel(self._target)
        self._stub = pb_grpc.VirtualClockStub(self._channel)
        self._held_open = self._stub.Register(pb.RegisterRequest(actors=self._actors))
        try:
            first = await self._held_open.read()
        except grpc.aio.AioRpcError as error:
            await self._channel.close()
            raise _complaint("register", error) from None
        self._session, self.now_ns = first.session, first.now_ns
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release all leases and end the call that owns them; after an error only the latter."""
        try:
            if kind is None:
                with contextlib.suppress(ClockError):
                    await self._verb("Release", pb.ReleaseRequest(session=self._session))
        finally:
            self._held_open.cancel()
            await self._channel.close()

    async def sleep(self, actor: str, until_ns: SimTime) -> SimTime:
        """Park until `until_ns`; the past means the present. Returns the time."""
        return await self._verb("Sleep", pb.SleepRequest(actor=actor, until_ns=until_ns))

    async def sleep_for(self, actor: str, seconds: float) -> SimTime:
        """Park for `seconds` of virtual time, counted from the server's present."""
        return await self._verb("Sleep", pb.SleepRequest(actor=actor, seconds=seconds))

    async def fork(self, parent: str, children: Sequence[str], *, once: bool = False) -> SimTime:
        """Create held children; those of `once` end with their response. Returns the time."""
        request = pb.ForkRequest(parent=parent, children=children, once=once)
        return await self._verb("Fork", request)

    async def barrier(self, actor: str, group: str, size: int) -> SimTime:
        """Park until `size` actors wait at `group`. Returns the time."""
        request = pb.BarrierRequest(actor=actor, group=group, size=size)
        return await self._verb("Barrier", request)

    async def release(self, actors: Sequence[str]) -> SimTime:
        """Forget these actors. Returns the time."""
        return await self._verb("Release", pb.ReleaseRequest(actors=actors))

    async def _verb(self, verb: str, request: Any) -> SimTime:
        try:
            reply = await getattr(self._stub, verb)(request)
        except grpc.aio.AioRpcError as error:
            raise _complaint(verb.lower(), error) from None
        now_ns: SimTime = reply.now_ns
        self.now_ns = max(self.now_ns, now_ns)
        return now_ns


def _complaint(verb: str, error: Any) -> ClockError:
    return ClockError(f"{verb}: the clock answered {error.code().name}: {error.details()}")
