"""The load generator against the real server, and against one that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from frontier_mock.client.endpoint import EndpointSpec
from frontier_mock.client.replay import ReplayError, ReplaySpec, replay
from frontier_mock.cluster.build import build_cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.drive.offline import run
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.report.specs import SloSpec
from frontier_mock.report.summary import Result, RunReport, report_cluster
from frontier_mock.workload.build import build_source
from frontier_mock.workload.loops import OpenLoop
from frontier_mock.workload.source import Item, Source, Timed
from frontier_mock.workload.specs import (
    ClosedLoopSpec,
    ExponentialDelay,
    FixedDelay,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    TraceSpec,
    UniformTokens,
    WorkloadSpec,
)
from frontier_mock.workload.synth import synthesise_conversation
from tests.serve.live import WARP, live, serve_spec

PROMPTS = PromptSpec(UniformTokens(5, 300), UniformTokens(1, 40), shared_prefix_tokens=40)
POISSON = OpenLoopSpec(PROMPTS, "poisson", 200.0, num_requests=60)
CLOSED = ClosedLoopSpec(PROMPTS, 5, 40, warmup_requests=8)
THINKING = ClosedLoopSpec(PROMPTS, 4, 24, think_time=ExponentialDelay(0.05))
SESSIONS = SessionsSpec(PROMPTS, 6, UniformTokens(1, 4), concurrency=3, think_time=FixedDelay(0.2))
STARTS = SessionsSpec(PROMPTS, 6, FixedTokens(3), rate_per_s=20.0, think_time=FixedDelay(0.1))


async def play_live(
    source: Source, clock: ClockSpec = WARP, workers: int = 1, **endpoint: object
) -> tuple[RunReport, str]:
    """The client's report and the engine's digest."""
    async with live(serve_spec(clock, workers=workers)) as server:
        url = server.urls[0]
        spec = EndpointSpec(url, "mock", **endpoint)  # type: ignore[arg-type]
        report = await replay(source, ReplaySpec("s", spec, slo=SloSpec(500, 50)))
        return report, server.cluster.log.digest()


def play_offline(spec: WorkloadSpec) -> RunReport:
    served = serve_spec()
    cluster = build_cluster(served.cluster, served.costs)
    offline = run(cluster, build_source(spec, seed=4))
    return report_cluster(
        cluster, "s", 0.0, [item.measured for item in offline.items], SloSpec(500, 50)
    )


def result_total(spec: WorkloadSpec) -> int:
    return build_source(spec, seed=4).num_requests


def comparable(result: Result) -> dict[str, object]:
    """What must be equal live and offline: all but the wall clock and who measured."""
    left_out = {"wall_s", "client", "outcomes", "itl_ms", "preemptions"}
    return {key: value for key, value in result.items() if key not in left_out}


@pytest.mark.parametrize("spec", [POISSON, CLOSED, THINKING], ids=["poisson", "closed", "thinking"])
async def test_a_warp_replay_is_the_offline_run(spec: WorkloadSpec) -> None:
    report, digest = await play_live(build_source(spec, seed=4))
    offline = play_offline(spec).result
    assert digest == offline["digest"]
    assert comparable(report.result) == comparable(offline)
    client = report.result["client"]
    assert client["figures_from"] == "engine"
    assert client["prompt_tokens_differ"] == client["output_tokens_differ"] == 0
    assert client["stalls"] == client["grace_jumps"] == 0
    assert client["server_requests"] == result_total(spec)
    assert client["lateness_ms"]["max"] == 0


@pytest.mark.parametrize("spec", [SESSIONS, STARTS], ids=["lanes", "starts"])
async def test_live_sessions_repeat_what_the_engine_said(spec: SessionsSpec) -> None:
    report, digest = await play_live(build_source(spec, seed=4))
    offline = play_offline(spec).result
    assert digest == offline["digest"]
    assert report.result["prefix_cache"] == offline["prefix_cache"]
    assert offline["prefix_cache"]["hit_rate"] > 0.3


async def test_a_live_trace_has_the_prefix_hits_of_the_offline_run() -> None:
    rows = synthesise_conversation(0, 60)
    short = [row for row in rows.rows if row.prompt_tokens < 3_000 and row.output_tokens < 800]
    spec = TraceSpec("t", rate_scale=10.0)
    kept = type(rows)(rows.name, rows.format, short, 512, True, rows.census)
    report, digest = await play_live(build_source(spec, seed=0, rows=kept))
    served = serve_spec()
    cluster = build_cluster(served.cluster, served.costs)
    run(cluster, build_source(spec, seed=0, rows=kept))
    assert digest == cluster.log.digest()
    assert report.result["prefix_cache"]["hit_tokens"] >= 512


async def test_streams_carry_the_same_virtual_times() -> None:
    plain, _ = await play_live(build_source(POISSON, seed=4))
    streamed, _ = await play_live(build_source(POISSON, seed=4), stream=True)
    assert comparable(streamed.result) == comparable(plain.result)
    assert [record[:6] for record in streamed.records] == [record[:6] for record in plain.records]


async def test_prompts_as_token_ids_and_as_chat() -> None:
    plain, digest = await play_live(build_source(POISSON, seed=4))
    _, by_ids = await play_live(build_source(POISSON, seed=4), prompt_ids=True)
    assert by_ids == digest
    chat, _ = await play_live(build_source(POISSON, seed=4), api="chat")
    assert chat.result["requests"] == plain.result["requests"]
    assert chat.result["client"]["prompt_tokens_differ"] == 60


async def test_one_at_a_time_changes_nothing_at_the_engine() -> None:
    spec = OpenLoopSpec(PROMPTS, "constant", 1e9, num_requests=20)
    digests = []
    for baton in (False, True):
        async with live(serve_spec(WARP)) as server:
            endpoint = EndpointSpec(server.urls[0], "mock")
            ask = ReplaySpec("s", endpoint, server.urls[0], one_at_a_time=baton)
            await replay(build_source(spec, seed=4), ask)
            digests.append(server.cluster.log.digest())
    assert digests[0] == digests[1]


async def test_over_long_prompts_are_rejected_and_counted_with_the_engines_words() -> None:
    rows = synthesise_conversation(0, 40)
    report, _ = await play_live(build_source(TraceSpec("t"), seed=0, rows=rows))
    result = report.result
    too_long = sum(row.prompt_tokens + row.output_tokens > 4096 for row in rows.rows)
    assert 0 < too_long < 40
    assert result["requests"]["submitted"] == 40
    assert result["requests"]["rejected"] == too_long
    assert result["requests"]["completed"] == 40 - too_long
    reasons = [key for key in result["outcomes"] if key.startswith("rejected: 400: ")]
    assert sum(result["outcomes"][key] for key in reasons) == too_long
    assert all("maximum context length is 4096 tokens" in reason for reason in reasons)
    assert any(reason.endswith(" (numbers differ)") for reason in reasons)


async def test_a_scaled_clock_is_followed_in_wall_time() -> None:
    clock = ClockSpec(mode="scaled", scale=50.0, late_ms_max=1e9)
    spec = OpenLoopSpec(PROMPTS, "constant", 50.0, num_requests=20)
    report, _ = await play_live(build_source(spec, seed=4), clock)
    result = report.result
    assert result["requests"]["completed"] == 20
    assert result["client"]["mode"] == "scaled:50"
    assert result["client"]["figures_from"] == "engine"
    assert result["client"]["lateness_ms"]["mean"] is not None
    assert result["duration_s"] >= 0.38


async def test_progress_counts_every_request() -> None:
    seen: list[tuple[int, int]] = []
    async with live(serve_spec(WARP)) as server:
        spec = ReplaySpec("s", EndpointSpec(server.urls[0], "mock"))
        source = build_source(CLOSED, seed=4)
        await replay(source, spec, lambda done, total, now_ns: seen.append((done, total)))
    assert {total for _, total in seen} == {48}
    assert max(done for done, _ in seen) == 48


# A server that is not ours -------------------------------------------------------------------

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def stranger(handle: Handle) -> AsyncIterator[str]:
    """A server without a clock; yields its URL."""

    async def health(request: web.Request) -> web.StreamResponse:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/v1/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield str(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def play_stranger(handle: Handle, requests: int = 6, stream: bool = False) -> RunReport:
    spec = ClosedLoopSpec(PromptSpec(FixedTokens(10), FixedTokens(3)), 2, requests)
    async with stranger(handle) as port:
        endpoint = EndpointSpec(f"http://127.0.0.1:{port}/", "m", stream=stream, api_key="k")
        return await replay(build_source(spec, seed=0), ReplaySpec("s", endpoint))


async def test_a_real_engine_is_measured_by_the_clients_clock() -> None:
    bodies: list[dict[str, object]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer k"
        assert "tracestate" not in request.headers
        bodies.append(await request.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in ("a", "b", "c"):
            chunk = {"choices": [{"text": piece}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(0)
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}  # type: ignore[assignment]
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    report = await play_stranger(handle, stream=True)
    result = report.result
    assert result["requests"]["completed"] == 6
    assert result["client"]["figures_from"] == "client"
    assert result["client"]["mode"] == "real"
    assert result["prefix_cache"] == {"hit_tokens": 24, "query_tokens": 60, "hit_rate": 0.4}
    assert report.samples.itl.count == 12
    assert report.samples.ttft.count == 6
    assert result["digest"] == ""
    body = bodies[0]
    assert body["max_tokens"] == body["min_tokens"] == 3
    assert body["ignore_eos"] is True
    assert len(str(body["prompt"])) == 10


async def test_every_failure_is_an_outcome() -> None:
    answers = iter(
        [
            web.Response(status=400, text='{"error": {"message": "too long: 123 of 45"}}'),
            web.Response(status=400, text='{"error": {"message": "too long: 9 of 45"}}'),
            web.Response(status=503, text="no worker"),
            web.Response(status=429, text='{"detail": "slow down"}'),
            web.Response(status=200, text="<html>"),
            None,
        ]
    )

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = next(answers)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return answer

    result = (await play_stranger(handle)).result
    assert result["requests"] == {"submitted": 6, "completed": 0, "rejected": 4, "aborted": 2}
    keys = list(result["outcomes"])
    (long,) = [key for key in keys if key.startswith("rejected: 400: too long: ")]
    assert result["outcomes"][long] == 2
    assert long.endswith(" of 45 (numbers differ)")
    assert "rejected: 429: slow down" in keys
    assert "rejected: 503: not a JSON object: 'no worker'" in keys
    assert any("ConnectionError: connection lost before the answer" in key for key in keys)


async def test_an_error_inside_a_stream_is_an_aborted_request() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text='data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n')

    result = (await play_stranger(handle, stream=True)).result
    assert result["outcomes"] == {"aborted: engine died": 6}


async def test_nobody_at_home_is_one_clear_line(unused_tcp_port: int) -> None:
    spec = ReplaySpec("s", EndpointSpec(f"http://127.0.0.1:{unused_tcp_port}", "m"))
    with pytest.raises(ReplayError, match=f"cannot reach http://127.0.0.1:{unused_tcp_port}"):
        await replay(build_source(POISSON, seed=0), spec)


async def test_a_clock_that_is_none_is_one_clear_line() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response()

    async with stranger(handle) as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(ReplayError, match="GET /sim/clock: the clock answered 404"):
            await replay(
                build_source(POISSON, seed=0), ReplaySpec("s", EndpointSpec(url, "m"), url)
            )


async def test_two_replays_on_one_clock_at_once_are_refused() -> None:
    async with live(serve_spec(WARP)) as server:
        spec = ReplaySpec("s", EndpointSpec(server.urls[0], "mock"))
        results = await asyncio.gather(
            *(replay(build_source(POISSON, seed=4), spec) for _ in range(2)),
            return_exceptions=True,
        )
    errors = [result for result in results if isinstance(result, ReplayError)]
    assert len(errors) == 1
    assert "loadgen is already registered" in str(errors[0])


async def test_a_prompt_without_text_cannot_be_sent() -> None:
    timed = Timed(0, Submit(KeyedPrompt(16, 16, bytes(8)), 1, 1), Item(0))
    async with live(serve_spec(WARP)) as server:
        spec = ReplaySpec("s", EndpointSpec(server.urls[0], "mock"))
        with pytest.raises(ReplayError, match="KeyedPrompt cannot be sent"):
            await replay(OpenLoop([timed]), spec)
