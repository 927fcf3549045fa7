"""The clock's verbs over HTTP, and closed-loop agents that live on them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.core.journal import from_lines
from frontier_mock.drive.leases import State
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ServeSpec
from tests.serve.live import FAST, WARP, live, serve_spec

CHAT = "/v1/chat/completions"
SECOND = 1_000_000_000


@asynccontextmanager
async def registered(client: aiohttp.ClientSession, *actors: str) -> AsyncIterator[dict[str, int]]:
    async with client.post("/sim/clock/register", json={"actors": list(actors)}) as stream:
        yield json.loads(await stream.content.readline())


async def verb(client: aiohttp.ClientSession, name: str, **body: object) -> dict[str, object]:
    async with client.post(f"/sim/clock/{name}", json=body) as response:
        reply: dict[str, object] = await response.json()
        assert response.status == 200, reply
        return reply


async def clock(client: aiohttp.ClientSession) -> dict[str, object]:
    async with client.get("/sim/clock") as response:
        view: dict[str, object] = await response.json()
        return view


async def generate(client: aiohttp.ClientSession, actor: str, **more: object) -> tuple[int, int]:
    body = {"messages": [{"role": "user", "content": actor}], "max_tokens": 4, **more}
    headers = {"tracestate": f"fmock={actor}"}
    async with client.post(CHAT, json=body, headers=headers) as response:
        assert response.status == 200
        arrival = int(response.headers["x-frontier-arrival-ns"])
        if not body.get("stream"):
            return arrival, int(response.headers["x-frontier-finish-ns"])
        frames = (await response.text()).split("\n\n")
        usage = json.loads(frames[-3].removeprefix("data: "))
        return arrival, usage["frontier"]["finish_ns"]


@pytest.mark.parametrize("mode", [WARP, FAST], ids=["warp", "scaled"])
async def test_every_verb_works_on_every_clock(mode: ClockSpec) -> None:
    async with live(serve_spec(mode)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        async with registered(client, "a", "b") as session:
            start = session["now_ns"]
            assert session["session"] == 1
            await verb(client, "release", actors=["b"])
            woken = await verb(client, "sleep", actor="a", until_ns=start + SECOND)
            assert int(str(woken["now_ns"])) >= start + SECOND
            await verb(
                client, "sleep", actor="a", seconds=0.1, then_fork={"children": ["c"], "once": True}
            )
            await asyncio.gather(generate(client, "c"), verb(client, "sleep", actor="a", seconds=1))
            await verb(client, "fork", parent="a", children=["d"])
            both = await asyncio.gather(
                verb(client, "barrier", actor="a", group="g", size=2),
                verb(client, "barrier", actor="d", group="g", size=2),
            )
            assert both[0] == both[1] or mode is FAST
            view = await clock(client)
            actors = view["actors"]
            assert isinstance(actors, list)
            assert [(a["name"], a["state"]) for a in actors] == [("a", "held"), ("d", "held")]
        while (await clock(client))["actors"]:
            await asyncio.sleep(0)


async def test_time_is_frozen_while_a_lease_is_held_and_free_when_its_owner_dies() -> None:
    spec = serve_spec(WARP)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        async with registered(client, "holder"):
            request = asyncio.create_task(generate(client, "somebody-else"))
            while server.driver.in_flight == {}:
                await asyncio.sleep(0)
            view = await clock(client)
            assert view["now_ns"] == 0
            assert view["held_by"] == [{"name": "holder", "last": "register"}]
            assert view["in_flight"] == 1
        arrival, finish = await request
        assert arrival == 0 < finish


async def test_advance_moves_an_idle_clock_and_counts_what_happened() -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
    ):
        assert await verb(client, "advance", until_ns=5 * SECOND) == {
            "now_ns": 5 * SECOND,
            "events": 0,
        }


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("sleep", {"actor": "a"}, 400, "until_ns"),
        ("sleep", {"actor": "a", "seconds": -1}, 400, "seconds must be between"),
        ("sleep", {"actor": "a", "seconds": 1e300}, 400, "seconds must be between"),
        ("sleep", {"actor": "a", "until_ns": 10**30}, 400, "until_ns must be within"),
        ("sleep", {"actor": "a", "until_ns": 1, "then_fork": 3}, 400, "then_fork"),
        ("sleep", {"actor": "ghost", "until_ns": 1}, 409, "ghost is not registered"),
        ("sleep", {"until_ns": 1}, 400, "actor must be a non-empty string"),
        ("barrier", {"actor": "a", "group": "g"}, 400, "size must be an integer"),
        ("fork", {"parent": "a", "children": "c"}, 400, "children must be a list"),
        ("fork", {"parent": "a", "children": ["c"], "once": 1}, 400, "once must be true or false"),
        ("release", {"actors": ["ghost"]}, 409, "ghost is not registered"),
        ("register", {"actors": ["a"]}, 409, "a is already registered"),
        ("register", [], 400, "must be an object"),
        ("register", {"actors": ["a,b"]}, 409, "printable ASCII"),
        ("register", {"actors": ["\ud800"]}, 409, "printable ASCII"),
        ("release", {"session": "1"}, 400, "session must be an integer"),
    ],
)
async def test_senseless_verbs_are_told_why(
    path: str, body: object, status: int, message: str
) -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a"),
        client.post(f"/sim/clock/{path}", json=body) as response,
    ):
        assert response.status == status
        assert message in (await response.json())["error"]


async def agent(client: aiohttp.ClientSession, name: str, turns: int, errors: list[str]) -> None:
    """Ask, think, ask again; every turn must be stamped exactly when the agent was ready."""
    ready = 0
    for turn in range(turns):
        stream: dict[str, object] = {}
        if turn % 3 == 1:
            stream = {
                "stream": True,
                "frontier": True,
                "stream_options": {"include_usage": True},
            }
        arrival, finish = await generate(client, name, **stream)
        if arrival != ready:
            errors.append(f"{name} turn {turn}: stamped {arrival}, ready at {ready}")
        ready = finish
        if turn % 2 == 0:
            ready = finish + (1 + len(name) + turn) * SECOND
            await verb(client, "sleep", actor=name, until_ns=ready)
    await verb(client, "release", actors=[name])


async def agents_run(spec: ServeSpec, count: int, turns: int) -> str:
    names = [f"agent-{i:02d}" for i in range(count)]
    errors: list[str] = []
    async with live(spec) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(server.urls[0], connector=connector) as one,
            aiohttp.ClientSession(server.urls[1], connector=connector) as two,
            registered(one, *names),
        ):
            await asyncio.gather(
                *(agent((one, two)[i % 2], name, turns, errors) for i, name in enumerate(names))
            )
        assert errors == []
        keeper = server.driver.keeper
        assert keeper.stall_count == 0
        assert keeper.guesses == 0
        async with aiohttp.ClientSession(server.urls[0]) as client:
            report = await (await client.get("/sim/report")).json()
        assert report["requests"]["completed"] == count * turns
        assert report["digest"] == server.cluster.log.digest()
        return server.cluster.log.digest()


@pytest.mark.parametrize("baton", [False, True], ids=["canonical", "baton"])
async def test_leased_agents_make_no_causality_error_and_one_digest(
    baton: bool, tmp_path: Path
) -> None:
    digests = []
    for run in range(2):
        path = tmp_path / f"journal-{run}"
        spec = serve_spec(replace(WARP, baton=baton), workers=2, journal_path=str(path))
        digests.append(await agents_run(spec, count=16, turns=6))
        cluster = build_cluster(spec.cluster, spec.costs)
        for stamp, command in from_lines(path.read_text().splitlines()).entries:
            cluster.feed(stamp, command)
        while (due := cluster.next_time()) is not None:
            cluster.advance_to(due)
        assert cluster.log.digest() == digests[-1]
    assert digests[0] == digests[1]


async def test_actor_that_never_parks_is_stalled_past_and_named() -> None:
    spec = serve_spec(replace(WARP, patience_s=0.02))
    async with (
        live(spec) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "idler", "worker"),
    ):
        await generate(client, "worker")
        view = await clock(client)
        stalls = view["stalls"]
        assert isinstance(stalls, dict)
        assert stalls["count"] >= 1
        assert "idler" in stalls["by_actor"]
        assert "idler (last: register)" in stalls["recent"][0]


async def test_client_without_a_lease_is_served_after_the_grace_period() -> None:
    spec = serve_spec(replace(WARP, grace_ms=1.0))
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        first = await generate(client, "stranger")
        second = await generate(client, "stranger")
        assert second[0] == first[1]
        assert server.driver.keeper.guesses >= 2


async def test_metadata_carries_the_actor_where_headers_cannot() -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a"),
    ):
        body = {"messages": [], "max_tokens": 3, "metadata": {"fmock": "a"}}
        response = await client.post(CHAT, json=body)
        assert response.status == 200
        assert server.driver.keeper.actors["a"].state.value == "held"
        assert server.driver.keeper.guesses == 0


async def test_refused_request_keeps_the_lease_and_ends_a_once_child() -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a"),
    ):
        await verb(client, "fork", parent="a", children=["c"], once=True)
        for actor in ("a", "c"):
            headers = {"tracestate": f"fmock={actor}", "content-type": "application/json"}
            response = await client.post(CHAT, data=b"{", headers=headers)
            assert response.status == 400
        assert list(server.driver.keeper.actors) == ["a"]
        assert server.driver.keeper.actors["a"].state.value == "held"


async def test_killed_client_frees_time_for_the_others() -> None:
    async with live(serve_spec(WARP)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        doomed = aiohttp.ClientSession(server.urls[0])
        await doomed.post("/sim/clock/register", json={"actors": ["doomed"]})
        stream = await doomed.post(
            CHAT,
            json={"messages": [], "max_tokens": 2000, "stream": True},
            headers={"tracestate": "fmock=doomed"},
        )
        await stream.content.readline()
        async with registered(client, "survivor"):
            await doomed.close()
            await generate(client, "survivor")
            assert list(server.driver.keeper.actors) == ["survivor"]


async def test_time_has_an_end_which_nobody_passes() -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a"),
    ):
        await verb(client, "sleep", actor="a", seconds=1e9)
        async with client.post("/sim/clock/sleep", json={"actor": "a", "seconds": 1}) as response:
            assert response.status == 400
            assert "beyond the end of time" in (await response.json())["error"]
        await verb(client, "sleep", actor="a", seconds=0)
        arrival, finish = await generate(client, "a")
        assert arrival < finish
        assert (await client.get("/sim/report")).status == 200


async def test_clock_client_whose_verb_is_cut_off_holds_time_again() -> None:
    """Its actor is outside: it can say something at the present instant, such as the verb again."""
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a", "b"),
    ):
        actors = server.driver.keeper.actors
        for body, state in (
            ({"actor": "a", "seconds": 9}, "sleep"),
            ({"actor": "a", "group": "g", "size": 2}, "barrier"),
        ):
            cut = asyncio.create_task(client.post(f"/sim/clock/{state}", json=body))
            while actors["a"].state is State.HELD:
                await asyncio.sleep(0)
            cut.cancel()
            while actors["a"].state is not State.HELD:
                await asyncio.sleep(0)
            assert actors["a"].last.startswith(f"gave up: {state}")
        await verb(client, "release", actors=["b"])
        assert server.driver.now_ns() == 0
        assert await verb(client, "sleep", actor="a", seconds=1) == {"now_ns": SECOND}


async def test_barrier_that_lost_an_actor_is_broken_and_names_it() -> None:
    spec = serve_spec(replace(WARP, patience_s=0.02))
    async with (
        live(spec) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a"),
    ):
        async with registered(client, "rank1"):
            body = {"actor": "a", "group": "step", "size": 2}
            waiting = asyncio.create_task(client.post("/sim/clock/barrier", json=body))
        response = await waiting
        assert response.status == 409
        assert (await response.json())["error"].endswith("without a release: rank1")
        # The actor itself is none the worse for it.
        assert await verb(client, "sleep", actor="a", seconds=1) == {"now_ns": SECOND}


async def test_session_can_be_released_as_a_whole() -> None:
    async with (
        live(serve_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        registered(client, "a", "b") as session,
        registered(client, "c"),
    ):
        await verb(client, "fork", parent="a", children=["a/0"])
        await verb(client, "release", session=session["session"])
        assert list(server.driver.keeper.actors) == ["c"]


async def test_shutdown_answers_actors_that_sleep() -> None:
    async with aiohttp.ClientSession() as client:
        async with live(serve_spec(ClockSpec())) as server:
            url = server.urls[0] + "/sim/clock"
            session = await client.post(f"{url}/register", json={"actors": ["a"]})
            await session.content.readline()
            body = {"actor": "a", "seconds": 1e6}
            sleep = asyncio.create_task(client.post(f"{url}/sleep", json=body))
            while server.driver.keeper.actors["a"].state.value != "sleeping":
                await asyncio.sleep(0)
        assert (await sleep).status == 200
        assert await session.content.read() == b""


async def test_report_says_when_it_no_longer_holds_the_log() -> None:
    async with live(serve_spec(WARP)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        await generate(client, "x")
        report = await (await client.get("/sim/report")).json()
        assert report["log_complete"] is True
        assert report["requests"]["completed"] == 1
        assert report["scenario"] == "live"
        server.driver.delivery.forgot_events = True
        report = await (await client.get("/sim/report")).json()
        assert report["log_complete"] is False
        assert report["digest"] == server.cluster.log.digest()
