"""What vLLM's front end adds around its routes: cross-origin rules, keep-alives, counts, a file."""

import asyncio
import itertools
import json
import socket
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as TheirRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.cors import Cors
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.http_metrics import HttpMetrics
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ClusterServer
from tests.serve.live import FAST, WARP, live, serve_spec

PREFLIGHT = {"origin": "http://a", "access-control-request-method": "POST"}
REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("GET", {}),
    ("GET", {"origin": "http://a"}),
    ("GET", {"origin": "http://b"}),
    ("OPTIONS", PREFLIGHT),
    ("OPTIONS", {**PREFLIGHT, "origin": "http://b"}),
    ("OPTIONS", {**PREFLIGHT, "access-control-request-headers": "x-foo, Content-Type"}),
    ("OPTIONS", {**PREFLIGHT, "access-control-request-headers": "x-foo, authorization"}),
    ("OPTIONS", {**PREFLIGHT, "access-control-request-method": "PATCH"}),
    ("OPTIONS", {"origin": "http://a"}),
]
RULES = [
    ((), ("*",), ("*",), False),
    (("*",), ("*",), ("*",), False),
    (("*",), ("*",), ("*",), True),
    (("http://a", "http://c"), ("GET", "POST"), ("X-Foo",), True),
    (("http://a",), ("GET",), (), False),
]


@pytest.mark.parametrize(("rules", "asked"), list(itertools.product(RULES, REQUESTS)))
def test_cross_origin_rules_are_starlettes(
    rules: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], bool],
    asked: tuple[str, dict[str, str]],
) -> None:
    async def handle(request: TheirRequest) -> PlainTextResponse:
        return PlainTextResponse("handled")

    app = Starlette(routes=[Route("/", handle, methods=["GET", "OPTIONS"])])
    names = ("allow_origins", "allow_methods", "allow_headers", "allow_credentials")
    app.add_middleware(CORSMiddleware, **dict(zip(names, rules, strict=True)))
    method, headers = asked
    theirs = TestClient(app).request(method, "/", headers=headers)

    cors, request = Cors(*rules), Request(method, "/", 1, headers)
    answer = cors.preflight(request)
    lines = cors.lines(request) if answer is None else answer.extra
    ours = dict(line.split(": ", 1) for line in lines.splitlines())
    skipped = ("content-length", "content-type")
    expected = {name: value for name, value in theirs.headers.items() if name not in skipped}
    # The list of safe headers is sorted by starlette in an order of its own.
    for either in (ours, expected):
        if "access-control-allow-headers" in either and "*" not in rules[2]:
            allowed = either["access-control-allow-headers"].split(", ")
            either["access-control-allow-headers"] = ", ".join(sorted(allowed))
    assert ours == expected
    assert ("handled" if answer is None else answer.body.decode()) == theirs.text
    if answer is not None:
        assert (answer.status, answer.content_type) == (
            theirs.status_code,
            theirs.headers["content-type"],
        )


async def test_browsers_may_ask_without_a_key_but_do_nothing_without_it() -> None:
    http = HttpSettings(api_key=("k",), allowed_origins=("http://a",))
    async with live(serve_spec(http=http)) as server, aiohttp.ClientSession(server.urls[0]) as to:
        async with to.options("/v1/models", headers=PREFLIGHT) as reply:
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] == "http://a"
        async with to.get("/v1/models", headers={"origin": "http://a"}) as reply:
            assert reply.status == 401
            assert "access-control-allow-origin" not in reply.headers
        key = {"authorization": "Bearer k", "origin": "http://a"}
        async with to.get("/v1/models", headers=key) as reply:
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] == "http://a"
            assert reply.headers["vary"] == "Origin"


async def generate(to: aiohttp.ClientSession, path: str = "", **fields: object) -> bytes:
    body = {"model": "mock", "prompt": "x", "max_tokens": 30, "ignore_eos": True, **fields}
    async with to.post(f"{path}/v1/completions", json=body) as reply:
        return await reply.read()


@pytest.mark.parametrize("interval_s", [0.0, 0.02])
async def test_silent_streams_are_kept_alive(interval_s: float) -> None:
    # 1 ms of virtual time per token: 30 tokens take a real second, with 30 ms between them.
    clock = ClockSpec(mode="scaled", scale=1 / 30)
    http = HttpSettings(sse_keep_alive_interval_s=interval_s)
    spec = serve_spec(clock, http=http)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as to:
        text = await generate(to, stream=True, max_tokens=4)
        whole = await generate(to, max_tokens=1)
    assert (b"\n\n: keep-alive\n\n" in text) is (interval_s > 0)
    frames = [frame for frame in text.split(b"\n\n") if frame and not frame.startswith(b":")]
    assert frames[-1] == b"data: [DONE]"
    # Tokens that a busy machine delivers late share a frame; none is lost, and each is a byte.
    pieces = [json.loads(frame.removeprefix(b"data: "))["choices"] for frame in frames[:-1]]
    assert len("".join(choices[0]["text"] for choices in pieces)) == 4
    assert pieces[-1][0]["finish_reason"] == "length"
    assert b"keep-alive" not in whole


async def test_keep_alive_ends_with_its_stream_and_its_reader() -> None:
    http = HttpSettings(sse_keep_alive_interval_s=0.001)
    spec = serve_spec(replace(FAST, scale=1.0), http=http)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as to:
        assert (await generate(to, stream=True)).endswith(b"data: [DONE]\n\n")
        body = {"model": "mock", "prompt": "x", "max_tokens": 3000, "stream": True}
        async with to.post("/v1/completions", json=body) as reply:
            await reply.content.readany()
        while server.driver.in_flight:
            await asyncio.sleep(0)


async def metrics(to: aiohttp.ClientSession) -> dict[str, float]:
    async with to.get("/metrics") as reply:
        families = text_string_to_metric_families(await reply.text())
        return {
            f"{s.name}{sorted(s.labels.items())}": s.value
            for family in families
            for s in family.samples
            if s.name.startswith("http_") and not s.name.endswith("_created")
        }


async def test_requests_are_counted_as_the_instrumentator_counts_them() -> None:
    # In warp no pause of the machine can get into a duration.
    spec = serve_spec(WARP, http=HttpSettings(root_path="/base"))
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as to:
        answer = await generate(to)
        await generate(to, "/base", stream=True)
        for path in ("/nothing", "/else", "/v1/completions", "/health"):
            await (await to.get(path)).read()
        found = await metrics(to)
    post = [("handler", "/v1/completions"), ("method", "POST")]
    assert found[f"http_requests_total{[*post, ('status', '2xx')]}"] == 2
    assert (
        found["http_requests_total[('handler', 'none'), ('method', 'GET'), ('status', '4xx')]"] == 2
    )
    wrong_method = [("handler", "/v1/completions"), ("method", "GET"), ("status", "4xx")]
    assert found[f"http_requests_total{wrong_method}"] == 1
    assert found["http_request_duration_highr_seconds_count[]"] == 5
    assert found[f"http_request_duration_seconds_count{post}"] == 2
    # 30 steps of a millisecond and a little, twice: virtual, not real.
    assert 0.06 < found[f"http_request_duration_seconds_sum{post}"] < 0.2
    refused = len(b'{"detail":"Method Not Allowed"}')
    assert (
        found["http_response_size_bytes_sum[('handler', '/v1/completions')]"]
        == len(answer) + refused
    )
    assert found["http_request_size_bytes_count[('handler', '/v1/completions')]"] == 3
    assert found["http_request_size_bytes_sum[('handler', '/v1/completions')]"] > 100
    assert not any("/health" in name for name in found)


def test_families_are_the_instrumentators_byte_for_byte() -> None:
    ours = HttpMetrics(7.0)
    for handler, status, duration_ns in (("/v1/x", 200, 30_000_000), ("none", 404, 2_000_000_000)):
        ours.answered(handler, "POST", status, "5", 19, duration_ns)
    text = ours.render().decode()
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert heads == [
        "# TYPE http_requests_total counter",
        "# TYPE http_requests_created gauge",
        "# TYPE http_request_size_bytes summary",
        "# TYPE http_request_size_bytes_created gauge",
        "# TYPE http_response_size_bytes summary",
        "# TYPE http_response_size_bytes_created gauge",
        "# TYPE http_request_duration_highr_seconds histogram",
        "# TYPE http_request_duration_highr_seconds_created gauge",
        "# TYPE http_request_duration_seconds histogram",
        "# TYPE http_request_duration_seconds_created gauge",
    ]
    for line in (
        'http_requests_total{handler="none",method="POST",status="4xx"} 1.0',
        'http_request_size_bytes_sum{handler="/v1/x"} 5.0',
        'http_response_size_bytes_count{handler="none"} 1.0',
        'http_request_duration_highr_seconds_bucket{le="0.05"} 1.0',
        'http_request_duration_highr_seconds_bucket{le="2.0"} 2.0',
        "http_request_duration_highr_seconds_sum 2.03",
        'http_request_duration_seconds_bucket{handler="none",le="1.0",method="POST"} 0.0',
        'http_request_duration_seconds_bucket{handler="none",le="+Inf",method="POST"} 1.0',
        'http_request_duration_seconds_created{handler="/v1/x",method="POST"} 7.0',
    ):
        assert line in text.splitlines()


async def test_listens_on_a_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    spec = serve_spec(http=HttpSettings(uds=str(path)))
    async with live(spec) as server:
        assert server.urls == [f"unix:{path}"]
        with pytest.raises(ConfigError, match=r"uds: cannot listen on .*: Address already in use"):
            ClusterServer(spec)
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as to:
            assert json.loads(await generate(to))["usage"]["completion_tokens"] == 30
    assert not path.exists()


def test_socket_file_serves_one_worker_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    with pytest.raises(ConfigError, match=r"uds: .* cannot serve 2 workers"):
        ClusterServer(serve_spec(http=HttpSettings(uds=str(path)), workers=2))
    with pytest.raises(ConfigError, match=r"uds: cannot listen on /nowhere/x"):
        ClusterServer(serve_spec(http=HttpSettings(uds="/nowhere/x")))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ClusterServer(serve_spec(http=HttpSettings(uds=str(path))))
    assert server.urls == [f"unix:{path}"]
    server._opened.close()
