"""What may go wrong around a virtual clock: the run goes on, or ends naming who; nothing hangs."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from frontier_mock.cli.demo import process
from frontier_mock.client.clock import ClockClient, ClockError, read_json
from frontier_mock.client.endpoint import Answer, Endpoint, EndpointSpec
from frontier_mock.client.http1 import HttpClient
from frontier_mock.core.events import Finished
from tests.integration.fleet import (
    MODEL,
    digest_of_journal,
    fleet,
    play,
    router,
    wait_for_play,
    write_scenario,
)
from tests.serve.live import WARP, live, serve_spec

pytestmark = pytest.mark.integration

LIMIT_S = 60.0


class Relay:
    """A router with `slots` requests at a time; the rest wait in line, first come first served."""

    def __init__(self, upstream: str, slots: int) -> None:
        self._upstream = upstream
        self._slots = asyncio.Semaphore(slots)
        self.queued = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection."""
        http = HttpClient(self._upstream)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.queued += self._slots.locked()
                async with self._slots:
                    method, path, _ = lines[0].split(" ")
                    state = f"tracestate: {headers['tracestate']}\r\n"
                    reply = await http.request(method, path, body, state)
                stamps = "".join(
                    f"{name}: {value}\r\n"
                    for name, value in reply.headers.items()
                    if name.startswith("x-frontier-")
                )
                head_out = f"HTTP/1.1 {reply.status} OK\r\ncontent-length: {len(reply.body)}\r\n"
                writer.write(f"{head_out}{stamps}\r\n".encode() + reply.body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            http.close()
            writer.close()


@asynccontextmanager
async def relay(upstream: str, slots: int) -> AsyncIterator[tuple[Relay, str]]:
    """A relay on a port of its own."""
    queue = Relay(upstream, slots)
    server = await asyncio.start_server(queue.serve, "127.0.0.1", 0)
    async with server:
        yield queue, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_queueing_relay_stalls_and_goes_on_whatever_the_patience(tmp_path: Path) -> None:
    """Requests in its queue hold time, which the ones it waits for need: only patience helps."""
    scenario = write_scenario(tmp_path, agents=16, turns=3, workers=1, together=False)
    digests = set()
    for patience_s in (0.02, 0.1):
        with fleet(scenario, tmp_path, patience_s=patience_s) as served:
            async with relay(served.urls[0], 4) as (queue, url), asyncio.timeout(LIMIT_S):
                played = await play(scenario, [url], served.clock_url)
            http = HttpClient(served.clock_url)
            clock = await read_json(http, "/sim/clock")
            http.close()
        assert queue.queued > 0
        assert played.failures == []
        assert played.stalls > 0
        stalls = clock["stalls"]
        assert isinstance(stalls, dict)
        assert set(stalls["by_actor"]) <= {f"{number:02d}" for number in range(48)}
        assert played.digest == digest_of_journal(served.journal)
        digests.add(played.digest)
    assert len(digests) == 1


STREAMS = """
import asyncio, sys
from frontier_mock.client.clock import ClockClient
from frontier_mock.client.http1 import HttpClient

async def main(url):
    http = HttpClient(url)
    body = (
        b'{"model": "MODEL", "prompt": "x", "max_tokens": 4000, "min_tokens": 4000,'
        b'"stream": true}'
    )
    async with ClockClient(http, ["victim"]):
        print("registered", flush=True)
        await http.request("POST", "/v1/completions", body, "tracestate: fmock=victim\\r\\n", print)

asyncio.run(main(sys.argv[1]))
"""


async def test_client_killed_mid_stream_frees_time_and_its_blocks(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, agents=1, turns=1, workers=1)
    with fleet(scenario, tmp_path) as served:
        http = HttpClient(served.clock_url)
        async with ClockClient(http, ["watcher"]) as clock, asyncio.timeout(LIMIT_S):
            script = STREAMS.replace("MODEL", MODEL)
            with process("victim", ["-c", script, served.urls[0]], tmp_path / "victim.log") as it:
                while "victim" not in (state := await states(http)) or state["victim"] == "held":
                    await asyncio.sleep(0.01)
                await clock.sleep("watcher", 1_000_000_000)
                assert (await states(http))["victim"] == "parked"
                it.send_signal(signal.SIGKILL)
                while "victim" in await states(http):
                    await asyncio.sleep(0.01)
            # The abort is of the instant at which the watcher held time.
            assert await clock.sleep("watcher", 2_000_000_000) == 2_000_000_000
            report = await read_json(http, "/sim/report")
        http.close()
    requests = report["requests"]
    assert isinstance(requests, dict)
    assert (requests["completed"], requests["aborted"]) == (0, 1)
    assert report["digest"] == digest_of_journal(served.journal)
    assert '"abort"' in served.journal.read_text().splitlines()[-1]


async def states(http: HttpClient) -> dict[str, str]:
    """What each actor is doing."""
    clock = await read_json(http, "/sim/clock")
    actors = clock["actors"]
    assert isinstance(actors, list)
    return {actor["name"]: actor["state"] for actor in actors}


async def test_actor_that_never_parks_is_named_and_does_not_stop_the_others() -> None:
    async with live(serve_spec(replace(WARP, patience_s=0.05))) as server:
        http = HttpClient(server.urls[0])
        async with ClockClient(http, ["lazy", "busy"]) as clock, asyncio.timeout(LIMIT_S):
            assert await clock.sleep("busy", 5_000_000) == 5_000_000
            said = await read_json(http, "/sim/clock")
        http.close()
    assert said["stalls"] == {
        "count": 1,
        "by_actor": {"lazy": 1},
        "recent": ["clock stalled at 0 ns: held by lazy (last: register)"],
    }


async def test_strict_ends_the_run_and_tells_whoever_waits_the_name() -> None:
    async with live(serve_spec(replace(WARP, patience_s=0.05, strict=True))) as server:
        http = HttpClient(server.urls[0])
        async with ClockClient(http, ["lazy", "busy"]) as clock, asyncio.timeout(LIMIT_S):
            for _ in range(2):
                with pytest.raises(ClockError, match=r"held by lazy \(last: register\)"):
                    await clock.sleep("busy", 5_000_000)
        http.close()


async def test_router_restarted_in_the_middle(tmp_path: Path) -> None:
    """Requests that were in it fail, the agents go on, and the record is exact."""
    scenario = write_scenario(tmp_path, agents=8, turns=40, workers=2)
    log = tmp_path / "router.log"
    with fleet(scenario, tmp_path) as served:
        http = HttpClient(served.clock_url)
        async with ClockClient(http, ["watcher"]) as clock, asyncio.timeout(2 * LIMIT_S):
            with router("vllm-router", "round_robin", served.urls, log) as url:
                run = asyncio.create_task(play(scenario, [url], served.clock_url))
                await wait_for_play(http)
                await clock.sleep("watcher", 5_000_000_000)
            # Dead now, and with it what it was relaying. Time goes on for three seconds without it.
            await clock.sleep("watcher", 8_000_000_000)
            port = int(url.rpartition(":")[2])
            with router("vllm-router", "round_robin", served.urls, log, port) as again:
                assert again == url
                await clock.release(["watcher"])
                played = await run
        http.close()
    assert played.failures
    assert all("Connect" in failure for failure in played.failures), set(played.failures)
    completed = [one for one in played.exchanges if one.answer.status == 200]
    assert len(completed) + len(played.failures) == 8 * 40
    assert (played.errors, played.stalls) == (0, 0)
    # Agents answered again after the restart, and one that failed went on to its next turn.
    assert max(one.answer.arrival_ns for one in completed) > 8_000_000_000
    assert played.digest == digest_of_journal(served.journal)


async def test_clock_client_that_disconnects_frees_time() -> None:
    async with live(serve_spec(WARP)) as server:
        http = HttpClient(server.urls[0])
        async with ClockClient(http, ["stays"]) as clock, asyncio.timeout(LIMIT_S):
            other = HttpClient(server.urls[0])
            async with ClockClient(other, ["leaves"]):
                waking = asyncio.create_task(clock.sleep("stays", 9))
                while server.driver.keeper.actors["stays"].state.value != "sleeping":
                    await asyncio.sleep(0)
                assert not waking.done()
            assert await waking == 9
            other.close()
        http.close()


async def test_double_dispatch_waits_for_both_legs() -> None:
    """SGLang's prefill and decode at once: one client request, a request to each of two workers."""
    async with live(serve_spec(WARP, workers=2)) as server:
        http = HttpClient(server.urls[0])
        legs = [Endpoint(EndpointSpec(url=url, model="mock")) for url in server.urls]
        async with ClockClient(http, ["agent", "observer"]) as clock, asyncio.timeout(LIMIT_S):
            looking = asyncio.create_task(clock.sleep("observer", 1))
            prefill = asyncio.create_task(ask(legs[0], "agent;legs=2"))
            keeper = server.driver.keeper
            while not server.driver.in_flight:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert keeper.now_ns == 0
            assert keeper.holders() == [("agent", "1 of 2 requests")]
            decode = asyncio.create_task(ask(legs[1], "agent;legs=2"))
            assert await looking == 1
            await clock.release(["observer"])
            answers = [await prefill, await decode]
            assert [answer.arrival_ns for answer in answers] == [0, 0]
            assert await clock.sleep("agent", 0) == max(answer.finish_ns for answer in answers)
        for client in (http, legs[0].http, legs[1].http):
            client.close()
        ended = [event for event in server.cluster.log.events if isinstance(event, Finished)]
        assert [event.worker for event in ended] == [0, 1]


async def ask(endpoint: Endpoint, actor: str) -> Answer:
    """A short completion that carries this lease."""
    body = json.dumps({"model": "mock", "prompt": "hi", "max_tokens": 4, "ignore_eos": True})
    state = f"tracestate: fmock={actor}\r\n"
    reply = await endpoint.http.request("POST", "/v1/completions", body.encode(), state)
    assert reply.status == 200, reply.body
    stamp = {name: int(reply.headers[f"x-frontier-{name}-ns"]) for name in ("arrival", "finish")}
    return Answer(200, "", stamp["arrival"], 0, stamp["finish"], 0, 0, 0, "", 0, 0, 0)
