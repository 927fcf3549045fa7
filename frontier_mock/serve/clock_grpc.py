"""The clock over gRPC: protos/virtual_clock.proto, on a port of its own.

Imported only when asked for: grpc costs 20 MB of memory and a tenth of a second to import.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.leases import ActorError
from frontier_mock.serve.clock_routes import Clockwork, VerbError, until_ns_of
from frontier_mock.simtime import SimTime
from frontier_mock.stubs import virtual_clock_pb2 as pb
from frontier_mock.stubs import virtual_clock_pb2_grpc as pb_grpc

logger = logging.getLogger("frontier_mock")

_GRACE_S = 0.5

_FIRST_SESSION = 1 << 32
"""Sessions of gRPC and of HTTP share one Timekeeper; each counts its own."""

Context = Any
"""grpc.aio.ServicerContext: grpc has no types."""

Arm = Callable[[Callable[[], None]], None]
"""Tells the Timekeeper of a verb that parks, with what to do at the resumption."""


class GrpcClock:
    """The service, and its port. `start` and `stop` must run in the Driver's event loop."""

    def __init__(self, clockwork: Clockwork, host: str | None, port: int) -> None:
        self._clock = clockwork
        self._address = f"{host or '0.0.0.0'}:{port}"
        self._sessions = _FIRST_SESSION
        self._server: Any = None
        self.port = port

    async def start(self) -> None:
        """Listen. Raises ConfigError for a port in use."""
        # Without this a second server on the same port would take every other connection.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_VirtualClockServicer_to_server(self, server)
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError:
            said = f"cannot listen on {self._address}"
            raise ConfigError(f"clock-grpc-port: {said}") from None
        await server.start()
        self._server = server
        logger.info("Clock over gRPC on port %d", self.port)

    async def stop(self) -> None:
        """End all calls."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)

    # The service; names are those of the proto.

    async def Register(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Creates leases, owned by this call."""
        clock = self._clock
        await self._alive(context)
        self._sessions += 1
        session = self._sessions
        with self._checked() as refused:
            clock.keeper.register(session, list(request.actors))
        await refused.tell(context)
        clock.poke()
        try:
            yield pb.RegisterReply(session=session, now_ns=clock.now_ns())
            await asyncio.Event().wait()
        finally:
            # Cancelled, closed or killed: whatever ends the call ends the leases.
            for action in clock.keeper.close(session):
                action()
            clock.poke()

    async def Fork(self, request: Any, context: Context) -> Any:
        """Creates leases before their parent parks."""
        await self._alive(context)
        with self._checked() as refused:
            self._clock.keeper.fork(request.parent, list(request.children), once=request.once)
        await refused.tell(context)
        return self._now()

    async def Sleep(self, request: Any, context: Context) -> Any:
        """Parks until a time."""
        keeper = self._clock.keeper

        def arm(wake: Callable[[], None]) -> None:
            keeper.sleep(
                request.actor,
                self._until(request),
                wake,
                children=list(request.then_fork),
                once=request.once,
                rename=request.rename or None,
            )

        await self._parked(arm, context, request.rename or request.actor)
        return self._now()

    async def Barrier(self, request: Any, context: Context) -> Any:
        """Parks until a group is complete."""
        keeper = self._clock.keeper
        await self._parked(
            lambda wake: keeper.barrier(request.actor, request.group, request.size, wake),
            context,
            request.actor,
        )
        fault = keeper.take_fault(request.actor)
        if fault:
            await context.abort(grpc.StatusCode.ABORTED, fault)
        return self._now()

    async def Release(self, request: Any, context: Context) -> Any:
        """Forgets actors."""
        await self._alive(context)
        actions: list[Callable[[], None]] = []
        with self._checked() as refused:
            actions = self._clock.keeper.release(list(request.actors))
            actions += self._clock.keeper.release_session(request.session)
        await refused.tell(context)
        for action in actions:
            action()
        return self._now()

    async def Advance(self, request: Any, context: Context) -> Any:
        """Answers when it is that time."""
        clock = self._clock
        before = clock.num_events
        await self._parked(lambda wake: clock.keeper.advance(self._until(request), wake), context)
        return pb.AdvanceReply(now_ns=clock.now_ns(), events=clock.num_events - before)

    async def State(self, request: Any, context: Context) -> Any:
        """What time it is, and who holds it."""
        clock = self._clock
        keeper = clock.keeper
        warp = clock.clock.mode == "warp"
        next_ns = clock.next_due()
        return pb.StateReply(
            now_ns=clock.now_ns(),
            mode=clock.clock.mode,
            scale=0.0 if warp else clock.clock.scale,
            baton=clock.clock.baton,
            in_flight=clock.num_in_flight,
            next_ns=-1 if next_ns is None else next_ns,
            actors=[
                pb.Actor(
                    name=actor.name,
                    state=actor.state.value,
                    last=actor.last,
                    session=actor.session,
                    outstanding=actor.outstanding,
                )
                for actor in keeper.actors.values()
            ],
            held_by=[pb.Holder(name=name, last=last) for name, last in clock.holders()],
            jumps=keeper.jumps,
            grace_jumps=keeper.guesses,
            stalls=keeper.stall_count,
            error="" if clock.error is None else str(clock.error),
        )

    # Parts

    async def _parked(self, arm: Arm, context: Context, actor: str = "") -> None:
        """Wait until the Timekeeper resumes what `arm` has parked.

        If the call ends before, its `actor` is not parked any more.
        """
        await self._alive(context)
        woken = asyncio.get_running_loop().create_future()
        with self._checked() as refused:
            arm(lambda: None if woken.done() else woken.set_result(None))
        await refused.tell(context)
        self._clock.poke()
        try:
            await woken
        except asyncio.CancelledError:
            if woken.cancelled():
                self._clock.keeper.give_up(actor)
                self._clock.poke()
            raise
        await self._alive(context)

    async def _alive(self, context: Context) -> None:
        """End the call if the clock has stopped for good."""
        error = self._clock.error
        if error is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    @contextlib.contextmanager
    def _checked(self) -> "Any":
        refused = _Refused()
        try:
            yield refused
        except ValueError as error:
            refused.error = error

    def _until(self, request: Any) -> SimTime:
        which = request.WhichOneof("until")
        fields = {} if which is None else {which: getattr(request, which)}
        return until_ns_of(fields, self._clock.now_ns())

    def _now(self) -> Any:
        self._clock.poke()
        return pb.Now(now_ns=self._clock.now_ns())


class _Refused:
    """Why a verb was refused, if it was: told as a status, after the verb."""

    error: ValueError | None = None

    async def tell(self, context: Context) -> None:
        """End the call if the verb was refused."""
        if self.error is None:
            return
        code = grpc.StatusCode.INVALID_ARGUMENT
        if isinstance(self.error, ActorError) and not isinstance(self.error, VerbError):
            code = grpc.StatusCode.FAILED_PRECONDITION
        await context.abort(code, str(self.error))
