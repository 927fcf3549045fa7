"""The clock over gRPC, driven by a real channel against a server in the test's own loop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

grpc = pytest.importorskip("grpc")

from frontier_mock.client.clock import ClockError
from frontier_mock.client.clock_grpc import GrpcClockClient
from frontier_mock.config.errors import ConfigError
from frontier_mock.serve.up import ClusterServer
from frontier_mock.stubs import virtual_clock_pb2 as pb
from frontier_mock.stubs import virtual_clock_pb2_grpc as pb_grpc
from tests.serve.live import WARP, live, serve_spec


@pytest.fixture
async def server() -> AsyncIterator[ClusterServer]:
    async with live(replace(serve_spec(WARP), clock_grpc_port=0)) as running:
        yield running


def target(server: ClusterServer) -> str:
    assert server.grpc is not None
    return f"127.0.0.1:{server.grpc.port}"


async def gone(server: ClusterServer, *names: str) -> None:
    """Wait until the server has heard that these actors are no more."""
    while any(name in server.driver.keeper.actors for name in names):
        await asyncio.sleep(0)


async def test_time_moves_when_everybody_sleeps(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["a", "b"]) as clock:
        early = asyncio.create_task(clock.sleep("a", 5_000))
        late = asyncio.create_task(clock.sleep_for("b", 1e-5))
        assert await early == 5_000
        assert not late.done()
        await clock.release(["a"])
        assert await late == 10_000
        assert clock.now_ns == 10_000


async def test_fork_and_barrier(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["p"]) as clock:
        await clock.fork("p", ["c0", "c1"])
        woken: list[str] = []

        async def meet(name: str, after_ns: int) -> None:
            await clock.sleep(name, after_ns)
            assert await clock.barrier(name, "step", 3) == 300
            woken.append(name)

        await asyncio.gather(meet("p", 100), meet("c0", 300), meet("c1", 200))
        assert sorted(woken) == ["c0", "c1", "p"]


async def test_closing_the_channel_frees_the_leases(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["stays"]) as clock:
        channel = grpc.aio.insecure_channel(target(server))
        stub = pb_grpc.VirtualClockStub(channel)
        held_open = stub.Register(pb.RegisterRequest(actors=["dies"]))
        await held_open.read()
        sleeping = asyncio.create_task(clock.sleep("stays", 7))
        assert server.driver.keeper.actors["dies"].state.value == "held"
        await channel.close()
        assert await sleeping == 7
        await gone(server, "dies")
    await gone(server, "stays")
    assert server.driver.keeper.stall_count == 0


async def test_cancelled_register_frees_its_sleepers_too(server: ClusterServer) -> None:
    async with (
        GrpcClockClient(target(server), ["a"]) as clock,
        GrpcClockClient(target(server), ["watch"]),
    ):
        actors = server.driver.keeper.actors
        sleeping = asyncio.create_task(clock.sleep("a", 1_000_000))
        while actors["a"].state.value != "sleeping":
            await asyncio.sleep(0)
        clock._held_open.cancel()
        # "watch" holds time, so only the release can have woken it.
        assert await sleeping == 0
        await gone(server, "a")


async def test_request_parks_the_lease_it_carries(server: ClusterServer) -> None:
    from frontier_mock.client.http1 import HttpClient

    http = HttpClient(server.urls[0])
    async with GrpcClockClient(target(server), ["agent"]) as clock:
        reply = await http.request(
            "POST",
            "/v1/completions",
            b'{"model": "mock", "prompt": "hi", "max_tokens": 3, "ignore_eos": true}',
            "tracestate: fmock=agent\r\n",
        )
        assert reply.status == 200
        assert await clock.sleep("agent", 0) == int(reply.headers["x-frontier-finish-ns"])
    http.close()


async def test_state_and_advance(server: ClusterServer) -> None:
    async with grpc.aio.insecure_channel(target(server)) as channel:
        stub = pb_grpc.VirtualClockStub(channel)
        moved = await stub.Advance(pb.AdvanceRequest(until_ns=50))
        assert (moved.now_ns, moved.events) == (50, 0)
        async with GrpcClockClient(target(server), ["a"]):
            state = await stub.State(pb.StateRequest())
        assert (state.now_ns, state.mode, state.next_ns) == (50, "warp", -1)
        assert [(actor.name, actor.state) for actor in state.actors] == [("a", "held")]
        assert [(holder.name, holder.last) for holder in state.held_by] == [("a", "register")]


async def test_refusals_name_the_actor_or_the_key(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["a"]) as clock:
        with pytest.raises(ClockError, match="FAILED_PRECONDITION: actor x is not registered"):
            await clock.sleep("x", 1)
        with pytest.raises(ClockError, match="INVALID_ARGUMENT: seconds must be between"):
            await clock.sleep_for("a", -1.0)
        with pytest.raises(ClockError, match="FAILED_PRECONDITION: barrier g: size"):
            await clock.barrier("a", "g", 0)
        with pytest.raises(ClockError, match="actor a is already registered"):
            async with GrpcClockClient(target(server), ["a"]):
                pass
        # None of which has cost "a" its lease.
        assert await clock.sleep("a", 3) == 3


async def test_cancelled_verb_leaves_its_actor_outside(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["a", "b"]) as clock:
        actors = server.driver.keeper.actors
        for verb in (clock.sleep("a", 1_000), clock.barrier("a", "g", 2)):
            cut = asyncio.create_task(verb)
            while actors["a"].state.value == "held":
                await asyncio.sleep(0)
            cut.cancel()
            while actors["a"].state.value != "held":
                await asyncio.sleep(0)
        await clock.release(["b"])
        assert await clock.sleep("a", 500) == 500


async def test_broken_barrier_says_who_was_lost() -> None:
    spec = replace(serve_spec(replace(WARP, patience_s=0.02)), clock_grpc_port=0)
    async with live(spec) as server, GrpcClockClient(target(server), ["a"]) as clock:
        channel = grpc.aio.insecure_channel(target(server))
        stub = pb_grpc.VirtualClockStub(channel)
        held_open = stub.Register(pb.RegisterRequest(actors=["rank1"]))
        await held_open.read()
        waiting = asyncio.create_task(clock.barrier("a", "step", 2))
        await channel.close()
        with pytest.raises(ClockError, match=r"ABORTED: barrier step is broken: .*: rank1$"):
            await waiting
        assert await clock.sleep("a", 5) == 5


async def test_client_that_leaves_in_order_is_not_lost(server: ClusterServer) -> None:
    async with GrpcClockClient(target(server), ["a"]) as clock:
        await clock.fork("a", ["a/0"])
    assert list(server.driver.keeper.actors) == []


async def test_clock_that_stopped_refuses_every_verb(server: ClusterServer) -> None:
    async with grpc.aio.insecure_channel(target(server)) as channel:
        stub = pb_grpc.VirtualClockStub(channel)
        held_open = stub.Register(pb.RegisterRequest(actors=["a"]))
        await held_open.read()
        server.driver.fail(RuntimeError("the end"))
        for call in (
            stub.Sleep(pb.SleepRequest(actor="a", seconds=1)),
            stub.Fork(pb.ForkRequest(parent="a", children=["b"])),
            stub.Release(pb.ReleaseRequest(actors=["a"])),
            stub.Register(pb.RegisterRequest(actors=["c"])).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="the end"):
                await call


async def test_port_in_use_is_a_configuration_error(server: ClusterServer) -> None:
    assert server.grpc is not None
    taken = ClusterServer(replace(serve_spec(WARP), clock_grpc_port=server.grpc.port))
    with pytest.raises(ConfigError, match="clock-grpc-port: cannot listen"):
        await taken.start()
    await taken.stop()
