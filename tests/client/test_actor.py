"""Actors against a warp server in another thread, as another process would see it."""

import asyncio
import threading
import time
from collections.abc import Iterator

import aiohttp
import anyio
import httpx
import openai
import pytest

from frontier_mock.client import patched_clocks as patched_module
from frontier_mock.client.actor import Actor
from frontier_mock.client.clock import ClockError
from frontier_mock.client.patched_clocks import patched_clocks
from frontier_mock.client.wrap import current_actor, with_actor
from frontier_mock.core.events import Submitted
from frontier_mock.serve.up import ClusterServer
from frontier_mock.testing import run_virtual
from tests.serve.live import WARP, serve_spec

BODY = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}


@pytest.fixture
def server() -> Iterator[ClusterServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> ClusterServer:
        server = ClusterServer(serve_spec(WARP))
        await server.start()
        return server

    running = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    yield running
    asyncio.run_coroutine_threadsafe(running.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def arrivals_ns(server: ClusterServer) -> list[int]:
    return [e.t_ns for e in server.cluster.log.events if isinstance(e, Submitted)]


def children(server: ClusterServer) -> list[str]:
    return [name for name in list(server.driver.keeper.actors) if "/" in name]


async def until_childless(server: ClusterServer) -> None:
    """The server, in a thread of its own, hears of an end a moment after the client said it."""
    with anyio.fail_after(10):
        while children(server):
            await anyio.sleep(0.001)


async def test_sleeps_move_time_exactly(server: ClusterServer) -> None:
    async with Actor(server.urls[0], "a") as actor:
        assert await actor.sleep(3600.0) == 3600.0
        assert await actor.sleep(0.5) == 3600.5
        assert (actor.now_s, actor.now_ns) == (3600.5, 3_600_500_000_000)
        assert current_actor() == "a"
    assert current_actor() is None
    with pytest.raises(ClockError, match="actor a is not registered"):
        await actor.sleep(1.0)


async def test_gather_forks_before_the_parent_parks(server: ClusterServer) -> None:
    names: list[str | None] = []

    async with Actor(server.urls[0], "p") as actor:

        async def child(seconds: float) -> float:
            names.append(current_actor())
            return await actor.sleep(seconds, current_actor())

        async def fails() -> float:
            await actor.sleep(1.0, current_actor())
            raise LookupError("child")

        assert await actor.gather() == []
        assert await actor.gather(child(5.0), child(2.0), child(9.0)) == [5.0, 2.0, 9.0]
        assert await actor.sleep(0.0) == 9.0
        with pytest.raises(LookupError, match="child"):
            await actor.gather(fails(), child(4.0))
        assert await actor.sleep(0.0) == 13.0
        results = await actor.gather(fails(), child(1.0), return_exceptions=True)
        assert isinstance(results[0], LookupError)
        assert results[1] == 14.0
        nested = await actor.gather(actor_of(actor, 2.0), actor_of(actor, 3.0))
        assert nested == [16.0, 17.0]
    assert names[:3] == ["p/0000", "p/0001", "p/0002"]
    await until_childless(server)
    assert server.driver.keeper.stall_count == 0


async def actor_of(actor: Actor, seconds: float) -> float:
    return await actor.sleep(seconds, current_actor())


async def test_a_cancelled_gather_ends_its_children(server: ClusterServer) -> None:
    async with Actor(server.urls[0], "p") as actor:
        # Somebody must hold time before the children sleep, or they may have slept already.
        async with Actor(server.urls[0], "other"):
            pair = actor_of(actor, 1e6), actor_of(actor, 1e6)
            gathering = asyncio.create_task(actor.gather(*pair))
            while len(children(server)) < 2:
                await anyio.sleep(0.001)
            gathering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gathering
        await until_childless(server)


async def test_fork_and_barrier(server: ClusterServer) -> None:
    async with Actor(server.urls[0], "p") as actor:
        helper = await actor.fork("helper")

        async def help_out() -> float:
            async with helper:
                await helper.sleep(7.0)
                return await helper.barrier("meet", 2)

        helping = asyncio.create_task(help_out())
        assert await actor.barrier("meet", 2) == 7.0
        assert await helping == 7.0
        with pytest.raises(ClockError, match="already registered"):
            await actor.fork("p")
        assert await actor.sleep(1.0) == 8.0


async def test_actor_that_leaves_in_order_is_not_lost_and_one_that_fails_is(
    server: ClusterServer,
) -> None:
    keeper = server.driver.keeper
    async with Actor(server.urls[0], "orderly"):
        pass
    assert list(keeper.actors) == []
    with pytest.raises(ZeroDivisionError):
        async with Actor(server.urls[0], "failed"):
            raise ZeroDivisionError
    with anyio.fail_after(10):
        while keeper.actors:
            await anyio.sleep(0.001)
    assert list(keeper._gone) == ["failed"]


async def test_every_client_carries_the_lease(server: ClusterServer) -> None:
    httpx2 = pytest.importorskip("httpx2")
    url = server.urls[0]
    async with Actor(url, "a") as actor, aiohttp.ClientSession(url) as session:
        path = "/v1/completions"
        await actor.sleep(1.0)
        sdk = openai.AsyncOpenAI(base_url=url + "/v1", api_key="x")
        await actor.client(sdk).completions.create(model="mock", prompt="x", max_tokens=3)
        assert "tracestate" not in sdk.default_headers
        for library in (httpx, httpx2):
            async with library.AsyncClient(base_url=url) as client:
                await with_actor(client, "a").post(path, json=BODY)
            async with library.AsyncClient(base_url=url) as client:
                await with_actor(client).post(path, json=BODY, headers={"tracestate": "mine=1"})
            with library.Client(base_url=url) as blocking:
                await asyncio.to_thread(with_actor(blocking).post, path, json=BODY)
        await (await with_actor(session).post(path, json=BODY)).read()
        await with_actor(sdk).completions.create(model="mock", prompt="x", max_tokens=3)
        await sdk.close()
        await actor.sleep(0.0)
        # Without a lease the server would have guessed.
        assert server.driver.keeper.guesses == 0
        assert len(arrivals_ns(server)) == 9
        assert arrivals_ns(server)[0] == 10**9


def test_strangers_are_refused() -> None:
    with pytest.raises(TypeError, match="dict is not a client of openai, anthropic, httpx"):
        with_actor({}, "a")


async def test_patched_clocks_follow_the_actor(server: ClusterServer) -> None:
    url = server.urls[0]
    real = (time.time, time.monotonic, time.perf_counter, time.sleep, asyncio.sleep)
    async with Actor(url, "a") as actor:
        with patched_clocks(actor):
            began = time.time()
            await asyncio.sleep(10.0)
            assert await asyncio.sleep(0.0, "result") == "result"
            assert time.time() - began == 10.0
            time.sleep(5.0)
            assert time.monotonic() == 15.0
            assert time.perf_counter_ns() == 15 * 10**9
            await asyncio.to_thread(time.sleep, 2.0)
            assert actor.now_s == 17.0

            async def child() -> float:
                await asyncio.sleep(3.0)
                return time.monotonic()

            assert await actor.gather(child(), child()) == [20.0, 20.0]
            # Real timers of the loop still work, and strangers see real time.
            elsewhere: list[float] = []
            stranger = threading.Thread(target=lambda: elsewhere.append(time.time()))
            stranger.start()
            stranger.join()
            assert abs(elsewhere[0] - real[0]()) < 3600
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
    assert real == (time.time, time.monotonic, time.perf_counter, time.sleep, asyncio.sleep)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(-1.0, ValueError), (float("nan"), ValueError), (float("inf"), OverflowError)],
)
def test_patched_sleep_refuses_what_the_real_one_refuses(
    seconds: float, error: type[Exception]
) -> None:
    async def main() -> None:
        with patched_clocks():
            time.sleep(seconds)

    with pytest.raises(error):
        time.sleep(seconds)
    with pytest.raises(error):
        run_virtual(main())


async def test_patched_clocks_need_a_subject() -> None:
    with pytest.raises(TypeError, match="needs an Actor"), patched_clocks():
        pass


@pytest.mark.virtual_time
async def test_patched_clocks_follow_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patched_module, "taken", time.sleep, raising=False)
    real_sleep = time.sleep
    with patched_clocks(modules=[patched_module]):
        began = time.time()
        assert time.gmtime(began)[:4] == (2026, 1, 1, 0)
        await asyncio.sleep(86400.0)
        assert time.time() - began == 86400.0
        ticked: list[float] = []
        asyncio.get_running_loop().call_later(1.0, lambda: ticked.append(time.monotonic()))
        time.sleep(2.0)
        await asyncio.sleep(0.001)
        assert ticked == [86402.0]  # a second late, because the loop was blocked

        def nap() -> float:
            time.sleep(60.0)
            return time.perf_counter()

        naps = await asyncio.gather(*(asyncio.to_thread(nap) for _ in range(5)))
        assert naps == [86462.001] * 5
        patched_module.taken(1.0)  # type: ignore[attr-defined]
        assert time.monotonic_ns() == 86_463_001_000_000
    assert time.sleep is real_sleep
    assert vars(patched_module)["taken"] is real_sleep
