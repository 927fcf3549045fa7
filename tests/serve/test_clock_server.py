"""The port of a shared clock: who may join, and what is said to who may not."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from frontier_mock.client.clock import ClockClient, ClockError
from frontier_mock.client.http1 import HttpClient
from frontier_mock.config.errors import ConfigError
from frontier_mock.serve.clock_server import ClockServer, ClockServerSpec
from frontier_mock.serve.up import ClusterServer
from tests.serve.live import WARP, live, serve_spec


@pytest.fixture
async def clock() -> AsyncIterator[ClockServer]:
    server = ClockServer(ClockServerSpec(WARP, 0, "127.0.0.1"))
    await server.start()
    yield server
    await server.stop()


async def post(clock: ClockServer, body: str, headers: str = "") -> tuple[int, dict[str, str]]:
    http = HttpClient(clock.url)
    reply = await http.request("POST", "/sim/clock/join", body.encode(), headers)
    http.close()
    return reply.status, json.loads(reply.body)


async def test_join_needs_the_upgrade_and_a_body(clock: ClockServer) -> None:
    status, said = await post(clock, '{"name": "x", "workers": ["w0"]}')
    assert (status, said) == (426, {"error": "upgrade: only fmock-clock/3 is spoken here"})
    wrong_types = ('{"name": 1, "workers": ["w0"]}', '{"name": "x", "workers": [1]}')
    for body in ("", "[]", "[" * 100_000, *wrong_types):
        status, _ = await post(clock, body, "upgrade: fmock-clock/3\r\n")
        assert status == 400
    assert not clock.host.members


async def test_worker_can_be_served_once_only(clock: ClockServer) -> None:
    spec = replace(serve_spec(WARP), clock_server=clock.url)
    async with live(spec) as first:
        assert [str(member).endswith("(workers w0)") for member in clock.host.members] == [True]
        second = ClusterServer(spec)
        with pytest.raises(ConfigError, match="worker w0 is already served by engine process"):
            await second.start()
        await second.stop()
        assert first.driver.error is None
    while clock.host.members:
        await asyncio.sleep(0)
    assert clock.host.error is None


async def test_verbs_of_a_follower_are_elsewhere(clock: ClockServer) -> None:
    async with live(replace(serve_spec(WARP), clock_server=clock.url)) as server:
        http = HttpClient(server.urls[0])
        reply = await http.request("POST", "/sim/clock/sleep", b"{}")
        assert (reply.status, json.loads(reply.body)["clock_server"]) == (421, clock.url)
        state = json.loads((await http.request("GET", "/sim/clock")).body)
        assert state["clock_server"] == clock.url
        http.close()


async def test_request_without_a_lease_is_a_guess_of_the_host(clock: ClockServer) -> None:
    async with live(replace(serve_spec(WARP), clock_server=clock.url)) as server:
        http = HttpClient(server.urls[0])
        body = b'{"model": "mock", "prompt": "hi", "max_tokens": 3, "ignore_eos": true}'
        reply = await http.request("POST", "/v1/completions", body)
        assert reply.status == 200
        http.close()
        assert clock.host.keeper.guesses > 0
        assert clock.host.now_ns() == int(reply.headers["x-frontier-finish-ns"])


async def test_metrics_are_those_of_the_shared_clock(clock: ClockServer) -> None:
    http = HttpClient(clock.url)
    clock.host.keeper.advance(2_000_000_000, lambda: None)
    clock.host.pump_now()
    reply = await http.request("GET", "/metrics")
    http.close()
    assert reply.status == 200
    lines = reply.body.decode().splitlines()
    assert "mock_virtual_time_seconds 2.0" in lines
    assert "mock_jumps_total 1.0" in lines
    assert "mock_stalls_total 0.0" in lines


async def test_silence_of_another_host_is_noticed(clock: ClockServer) -> None:
    """A host that loses its power says nothing; the kernel asks it now and then."""
    async with live(replace(serve_spec(WARP), clock_server=clock.url)) as server:
        follower = server._follower
        assert follower is not None
        for link in (follower, clock._links[0]):
            assert link._transport is not None
            sock = link._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def join(clock: ClockServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(clock.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"name": "x", "workers": ["w0"]}'
    writer.write(
        b"POST /sim/clock/join HTTP/1.1\r\nhost: x\r\nupgrade: fmock-clock/3\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def test_line_that_makes_no_sense_ends_the_run(clock: ClockServer) -> None:
    _, writer = await join(clock)
    writer.write(b'{"not": "a list"}\n')
    await clock.host.died.wait()
    assert "engine process x (workers w0) is gone: it said something" in str(clock.host.error)
    writer.close()


async def read_line(reader: asyncio.StreamReader) -> list[object]:
    line = json.loads(await reader.readline())
    assert isinstance(line, list)
    return line


async def test_what_a_response_leads_to_waits_for_word_of_the_response(clock: ClockServer) -> None:
    """The client may be faster than the engine process that answered it."""
    reader, writer = await join(clock)
    assert await read_line(reader) == ["now", 0, True]
    http = HttpClient(clock.url)
    async with ClockClient(http, ["a"]) as client:
        writer.write(b'["park", "a", 1, ""]\n["post", "a", 1]\n')
        assert (await read_line(reader))[:3] == ["feed", 0, [1]]
        wakes = asyncio.create_task(client.sleep("a", 70, rename="b"))
        while not clock._put_off:
            await asyncio.sleep(0)
        assert list(clock.host.keeper.actors) == ["a"]
        writer.write(b'["returned", "a"]\n["done", 50, null]\n')
        assert await wakes == 70
        writer.write(b'["park", "b", 1, ""]\n["post", "b", 2]\n')
        assert (await read_line(reader))[:3] == ["feed", 70, [2]]
        waits = asyncio.create_task(client.sleep("b", 90))
        while not clock._put_off:
            await asyncio.sleep(0)
        writer.close()
        with pytest.raises(ClockError, match="engine process x"):
            await waits
    http.close()


async def test_baton_and_verbs_over_grpc_let_no_response_leave_early() -> None:
    for spec in (
        ClockServerSpec(replace(WARP, baton=True), 0, "127.0.0.1"),
        ClockServerSpec(WARP, 0, "127.0.0.1", grpc_port=0),
    ):
        server = ClockServer(spec)
        await server.start()
        reader, writer = await join(server)
        assert await read_line(reader) == ["now", 0, False]
        writer.write(b'["bye"]\n')
        writer.close()
        await server.stop()


async def test_port_in_use_is_a_configuration_error(clock: ClockServer) -> None:
    port = int(clock.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port: cannot listen on 127.0.0.1:{port}"):
        ClockServer(ClockServerSpec(WARP, port, "127.0.0.1"))
