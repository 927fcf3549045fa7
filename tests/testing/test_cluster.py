"""Real SDKs against a cluster in process: same answers and same times over every transport."""

import asyncio
import gc
import hashlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from frontier_mock.client.actor import Actor
from frontier_mock.client.wrap import current_actor
from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.virtual_loop import Deadlock
from frontier_mock.pytest_plugin import StartCluster
from frontier_mock.testing import (
    MockCluster,
    MockSpec,
    NotDeterministic,
    check_determinism,
    open_cluster,
    run_virtual,
)

SMALL = MockSpec(flags=("--max-num-seqs", "64"))
MESSAGES = [{"role": "user", "content": "Say something about time."}]

Heard = list[tuple[int, str | None]]


async def openai_stream(cluster: MockCluster, client: openai.AsyncOpenAI, number: int) -> Heard:
    stream = await client.chat.completions.create(
        model=cluster.model,
        stream=True,
        max_tokens=10 + number % 40,
        messages=[{"role": "user", "content": f"{number} " * (1 + number % 7)}],
        extra_body={"ignore_eos": True},
    )
    return [
        (cluster.now_ns, chunk.choices[0].delta.content) async for chunk in stream if chunk.choices
    ]


async def aiohttp_stream(cluster: MockCluster, client: aiohttp.ClientSession, number: int) -> Heard:
    body = {
        "model": cluster.model,
        "stream": True,
        "max_tokens": 10 + number % 40,
        "messages": [{"role": "user", "content": f"{number} " * (1 + number % 7)}],
        "ignore_eos": True,
    }
    async with client.post("/v1/chat/completions", json=body) as response:
        return [
            (cluster.now_ns, line.decode().partition('"choices"')[2])
            async for line in response.content
            if line.startswith(b"data: {")
        ]


async def many_streams(cluster: MockCluster, library: str, transport: str, count: int) -> str:
    """A digest of what `count` clients heard and when."""
    if library == "openai":
        client: Any = cluster.openai(transport)
        listen: Any = openai_stream
    else:
        client, listen = cluster.aiohttp(transport), aiohttp_stream
    heard = await asyncio.gather(*(listen(cluster, client, n) for n in range(count)))
    return hashlib.blake2b(repr(heard).encode(), digest_size=8).hexdigest()


def digests(library: str, transport: str, count: int) -> tuple[str, str]:
    async def main() -> tuple[str, str]:
        async with open_cluster(SMALL) as cluster:
            heard = await many_streams(cluster, library, transport, count)
            return cluster.digest(), heard

    return run_virtual(main())


def test_every_transport_and_library_gives_the_same_run() -> None:
    over_openai = [digests("openai", transport, 60) for transport in ("direct", "memory", "tcp")]
    over_aiohttp = [digests("aiohttp", transport, 60) for transport in ("memory", "tcp", "memory")]
    assert len(set(over_openai)) == 1
    assert len(set(over_aiohttp)) == 1
    assert over_openai[0][0] == over_aiohttp[0][0]


@pytest.mark.slow
def test_a_thousand_streams_twenty_times() -> None:
    """Issue 3: identical server and client digests over 20 runs and all transports."""
    over_aiohttp = [digests("aiohttp", ("memory", "tcp")[n % 2], 1000) for n in range(14)]
    over_openai = [digests("openai", ("direct", "memory", "tcp")[n % 3], 1000) for n in range(6)]
    assert len(set(over_aiohttp)) == 1
    assert len(set(over_openai)) == 1
    assert over_aiohttp[0][0] == over_openai[0][0]


def test_a_thousand_streams_over_every_transport() -> None:
    runs = [digests("aiohttp", transport, 1000) for transport in ("memory", "tcp")]
    sdk = digests("openai", "direct", 1000)
    assert runs[0] == runs[1]
    assert sdk[0] == runs[0][0]


async def test_routers_policy_stands_before_the_workers(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster(workers=3)
    client = cluster.openai()
    for _ in range(6):
        await client.chat.completions.create(model=cluster.model, messages=MESSAGES, max_tokens=2)
    workers = [event.worker for event in cluster.events if type(event).__name__ == "Submitted"]
    assert workers == [0, 1, 2, 0, 1, 2]
    direct = cluster.openai(base_url=cluster.urls[2] + "/v1")
    await direct.chat.completions.create(model=cluster.model, messages=MESSAGES, max_tokens=2)
    assert cluster.events[-1].worker == 2


async def test_a_scenario_of_the_library(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster("sessions-4xh800")
    models = await cluster.openai("tcp").models.list()
    assert models.data[0].id == cluster.model


@pytest.mark.parametrize("transport", ["direct", "memory", "tcp"])
async def test_answers_errors_and_times(mock_cluster: StartCluster, transport: str) -> None:
    cluster = await mock_cluster()
    client = cluster.openai(transport)
    raw = await client.chat.completions.with_raw_response.create(
        model=cluster.model, messages=MESSAGES, max_tokens=7, extra_body={"ignore_eos": True}
    )
    reply = raw.parse()
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 7
    assert int(raw.headers["x-frontier-arrival-ns"]) == 0
    assert int(raw.headers["x-frontier-finish-ns"]) == cluster.now_ns
    assert reply.id == f"chatcmpl-{0:032x}"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=cluster.model, messages=MESSAGES, max_tokens=-1)


@pytest.mark.parametrize("transport", ["direct", "memory", "tcp"])
async def test_timeouts_count_virtual_seconds_and_abort(
    mock_cluster: StartCluster, transport: str
) -> None:
    cluster = await mock_cluster()
    client = cluster.openai(transport, timeout=2.0, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(
            model=cluster.model, messages=MESSAGES, max_tokens=5000, extra_body={"ignore_eos": True}
        )
    assert cluster.now_s == pytest.approx(2.0, abs=1e-6)
    await asyncio.sleep(1.0)
    assert cluster.events[-1][3] == "abort"  # Finished.reason
    assert cluster.events[-1].t_ns < 2.1e9


@pytest.mark.parametrize("transport", ["direct", "memory", "tcp"])
async def test_a_reader_that_leaves_a_stream_aborts_it(
    mock_cluster: StartCluster, transport: str
) -> None:
    cluster = await mock_cluster()
    client = cluster.openai(transport)
    stream = await client.chat.completions.create(
        model=cluster.model,
        messages=MESSAGES,
        stream=True,
        max_tokens=5000,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    await stream.close()
    await asyncio.sleep(1.0)
    assert cluster.events[-1][3] == "abort"
    # The task's cancellation does the same.
    create = client.chat.completions.create(
        model=cluster.model, messages=MESSAGES, max_tokens=5000, extra_body={"ignore_eos": True}
    )
    task = asyncio.create_task(create)
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.sleep(1.0)
    assert cluster.events[-1][3] == "abort"


async def test_blocking_clients_work_in_threads(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    client = cluster.openai_sync()

    def ask(number: int) -> tuple[int, int]:
        stream = client.chat.completions.create(
            model=cluster.model,
            messages=[{"role": "user", "content": str(number)}],
            stream=True,
            max_tokens=20,
            extra_body={"ignore_eos": True},
        )
        pieces = sum(bool(chunk.choices) for chunk in stream)
        whole = client.chat.completions.create(model=cluster.model, messages=MESSAGES, max_tokens=3)
        assert whole.usage is not None
        return pieces, whole.usage.completion_tokens

    answers = await asyncio.gather(*(asyncio.to_thread(ask, n) for n in range(10)))
    assert {pieces for pieces, _ in answers} == {answers[0][0]}
    assert answers[0][0] >= 20
    with pytest.raises(RuntimeError, match="would wait for itself"):
        client.with_options(max_retries=0).models.list()


def threads_digest() -> str:
    async def main() -> str:
        async with open_cluster(SMALL) as cluster:
            client = cluster.openai_sync()

            def ask(number: int) -> None:
                for turn in range(3):
                    client.completions.create(
                        model=cluster.model, prompt=f"{number} {turn}", max_tokens=5 + number
                    )

            await asyncio.gather(*(asyncio.to_thread(ask, n) for n in range(12)))
            return cluster.digest()

    return run_virtual(main())


def test_threads_are_deterministic_too() -> None:
    assert len({threads_digest() for _ in range(3)}) == 1


async def test_both_httpx_libraries(mock_cluster: StartCluster) -> None:
    httpx2 = pytest.importorskip("httpx2")
    cluster = await mock_cluster()
    for library in (httpx, httpx2):
        for transport in ("direct", "memory", "tcp"):
            client = cluster.httpx(library, transport)
            assert (await client.get("/health")).status_code == 200
            response = await client.get("/v1/models")
            assert response.json()["data"][0]["id"] == cluster.model
            async with client.stream("POST", "/sim/clock/register", json={"actors": ["a"]}) as held:
                first = await anext(held.aiter_lines())
                assert '"now_ns"' in first
            with pytest.raises(library.ConnectError):
                await client.get("http://127.0.0.1:9/health")


async def test_aiohttp_refuses_hosts_that_are_not_there(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    client = cluster.aiohttp()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get("http://127.0.0.1:9/health")
    async with client.get("/health") as response:
        assert response.status == 200


async def test_slow_readers_hold_nobody_up(mock_cluster: StartCluster) -> None:
    """A reader of a memory connection that pauses fills a buffer, and gets it all later."""
    cluster = await mock_cluster()
    client = cluster.aiohttp(timeout=aiohttp.ClientTimeout(total=None))
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with client.post("/v1/completions", json=body) as response:
        await asyncio.sleep(3600.0)
        text = await response.text()
    assert text.endswith("data: [DONE]\n\n")
    assert cluster.events[-1].t_ns < 3600e9


async def test_bad_arguments_are_refused(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    with pytest.raises(ValueError, match="'udp' is not one of direct, memory, tcp"):
        cluster.openai("udp")
    with pytest.raises(ValueError, match="'direct' is not one of memory, tcp"):
        cluster.aiohttp("direct")
    with pytest.raises(ConfigError, match="workers: 0"):
        MockSpec(workers=0)
    with pytest.raises(ConfigError, match="router_policy: 'best' is not one of round_robin"):
        MockSpec(router_policy="best")
    with pytest.raises(ConfigError, match="flags: '--no-sim-eos' is one string"):
        MockSpec(flags="--no-sim-eos")  # type: ignore[arg-type]  # what a test's author may write
    assert cluster.environment()["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")


async def test_another_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs a VirtualTimeLoop"):
        async with open_cluster():
            pass


async def two_agents(cluster: MockCluster) -> list[str]:
    client = cluster.openai()

    async def agent(number: int) -> str:
        await asyncio.sleep(number)
        reply = await client.completions.create(
            model=cluster.model, prompt=f"{number}", max_tokens=9
        )
        return reply.choices[0].text

    return list(await asyncio.gather(agent(0), agent(1)))


def test_check_determinism_returns_what_all_runs_returned() -> None:
    assert len(check_determinism(two_agents, SMALL, runs=3)) == 2


def test_check_determinism_shows_the_first_difference() -> None:
    lengths = iter((5, 5, 6, 5))

    async def varies(cluster: MockCluster) -> None:
        client = cluster.openai()
        for prompt in ("same", "other"):
            await client.completions.create(
                model=cluster.model, prompt=prompt, max_tokens=next(lengths)
            )

    with pytest.raises(NotDeterministic) as caught:
        check_determinism(varies)
    text = str(caught.value)
    assert "differ from event 0 on (of 10 and 10)" in text
    assert "run 1: Submitted(" in text
    assert "max_tokens=6" in text


def test_check_determinism_compares_results() -> None:
    results = iter((1, 2))

    async def varies(cluster: MockCluster) -> int:
        return next(results)

    with pytest.raises(NotDeterministic, match="equal event logs but different results"):
        check_determinism(varies)
    with pytest.raises(ValueError, match="at least 2"):
        check_determinism(varies, runs=1)


async def test_actors_work_in_process_too(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    async with Actor(cluster.url, "a") as actor:

        async def child(seconds: float) -> float:
            return await actor.sleep(seconds, current_actor())

        assert await actor.gather(child(2.0), child(1.0)) == [2.0, 1.0]
        assert await actor.sleep(10.0) == 12.0
    assert cluster.now_s == 12.0


@pytest.fixture
def usual_collector() -> Iterator[tuple[int, int, int]]:
    """Python's own thresholds, whatever an earlier test in this process has left."""
    left, usual = gc.get_threshold(), (700, 10, 10)
    gc.set_threshold(*usual)
    yield usual
    gc.set_threshold(*left)


def test_the_collector_is_left_as_it_was(usual_collector: tuple[int, int, int]) -> None:
    async def main() -> tuple[int, int, int]:
        return gc.get_threshold()

    assert run_virtual(main())[0] > usual_collector[0]
    assert gc.get_threshold() == usual_collector
    with pytest.raises(Deadlock):
        run_virtual(asyncio.sleep(float("inf")))
    assert gc.get_threshold() == usual_collector
