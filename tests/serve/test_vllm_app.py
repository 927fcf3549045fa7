"""The HTTP surface of one worker: routes, guards, bodies, streams, disconnects and shutdown."""

import asyncio
import io
import json
from dataclasses import replace

import aiohttp
import pytest

from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from tests.serve.live import FAST, WARP, live, serve_spec

CHAT = "/v1/chat/completions"


def chat(**more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **more}


async def test_whole_chat_completion() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        response = await client.post(CHAT, json=chat())
        body = await response.json()
        assert response.status == 200
        assert response.headers["server"] == "uvicorn"
        assert body["object"] == "chat.completion"
        assert body["usage"]["completion_tokens"] == 5
        assert body["choices"][0]["finish_reason"] == "length"
        arrival, first, finish = (
            int(response.headers[f"x-frontier-{name}-ns"])
            for name in ("arrival", "first-token", "finish")
        )
        assert arrival < first < finish
        assert response.headers["x-frontier-output-tokens"] == "5"


async def test_streamed_chat_has_one_chunk_per_token() -> None:
    async with live(serve_spec(WARP)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        whole = await (await client.post(CHAT, json=chat())).json()
        response = await client.post(
            CHAT, json=chat(stream=True, stream_options={"include_usage": True}, frontier=True)
        )
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = (await response.text()).split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert len(deltas) == 6
        text = "".join(delta["content"] for delta in deltas)
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["usage"]["completion_tokens"] == 5
        assert chunks[-1]["frontier"]["output_tokens"] == 5
        assert response.headers["x-frontier-arrival-ns"] == str(
            chunks[-1]["frontier"]["arrival_ns"]
        )


async def test_completions_with_many_prompts_and_choices() -> None:
    async with live(serve_spec(WARP)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        body = {"prompt": ["one", "two"], "n": 2, "temperature": 1, "max_tokens": 3}
        whole = await (await client.post("/v1/completions", json=body)).json()
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
        assert whole["usage"]["completion_tokens"] == 12
        streamed = await client.post("/v1/completions", json={**body, "stream": True})
        texts = ["", "", "", ""]
        for frame in (await streamed.text()).split("\n\n")[:-2]:
            choice = json.loads(frame.removeprefix("data: "))["choices"][0]
            texts[choice["index"]] += choice["text"]
        assert texts == [choice["text"] for choice in whole["choices"]]
        metrics = await (await client.get("/metrics")).text()
        assert 'vllm:request_params_n_bucket{engine="0",le="1.0",model_name="mock"} 0.0' in metrics
        assert 'vllm:request_params_n_count{engine="0",model_name="mock"} 4.0' in metrics


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health", 200, b""),
        ("GET", "/ping", 200, b""),
        ("POST", "/ping", 200, b""),
        ("GET", "/version", 200, b'{"version":"0.33.0"}'),
        ("GET", "/load", 200, b'{"server_load":0}'),
        ("GET", "/nowhere", 404, b'{"detail":"Not Found"}'),
        ("GET", "/server_info", 404, b'{"detail":"Not Found"}'),
        ("GET", "/is_sleeping", 404, b'{"detail":"Not Found"}'),
        ("GET", "/v1/models/mock", 404, b'{"detail":"Not Found"}'),
        ("GET", CHAT, 405, b'{"detail":"Method Not Allowed"}'),
        ("DELETE", "/health", 405, b'{"detail":"Method Not Allowed"}'),
        ("POST", "/v1/models", 405, b'{"detail":"Method Not Allowed"}'),
    ],
)
async def test_fixed_answers(method: str, path: str, status: int, body: bytes) -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        response = await client.request(method, path)
        assert (response.status, await response.read()) == (status, body)


@pytest.mark.parametrize(
    ("body", "kind", "status", "fragment"),
    [
        (b"{", "application/json", 400, "JSON decode error"),
        (b"{}", "application/json", 400, "Field required"),
        (b"{}", "text/plain", 400, "Unsupported Media Type"),
        (b'{"messages":[],"model":"other"}', "application/json", 404, "`other` does not exist"),
        (b'{"messages":[],"n":"x"}', "Application/JSON; charset=utf-8", 400, "1 validation error"),
    ],
)
async def test_bad_requests_get_vllms_error(
    body: bytes, kind: str, status: int, fragment: str
) -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        response = await client.post(CHAT, data=body, headers={"content-type": kind})
        error = (await response.json())["error"]
        assert response.status == status == error["code"]
        assert fragment in error["message"]
        # The connection survives a refusal.
        assert (await client.get("/health")).status == 200


async def test_prompt_of_megabytes_is_read_and_refused_as_too_long() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 5_000_000}]})
        response = await client.post(
            CHAT,
            data=io.BytesIO(body.encode()),
            headers={"content-type": "application/json"},
        )
        assert response.status == 400
        assert "maximum context length" in (await response.json())["error"]["message"]


async def test_api_key_guards_v1_only() -> None:
    spec = serve_spec(http=HttpSettings(api_key=("secret", "other")))
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "secret"}):
            response = await client.get("/v1/models", headers=headers)
            assert (response.status, await response.json()) == (401, {"error": "Unauthorized"})
        for key in ("secret", "other"):
            response = await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert response.status == 200
        assert (await client.get("/health")).status == 200
        assert (await client.post("/tokenize", json={"prompt": "x"})).status == 200


async def test_optional_surface_follows_its_flags() -> None:
    http = HttpSettings(
        dev_mode=True,
        enable_request_id_headers=True,
        enable_server_load_tracking=True,
        root_path="/base",
    )
    async with (
        live(serve_spec(http=http)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
    ):
        response = await client.get("/base/server_info", headers={"x-request-id": "mine"})
        assert response.status == 200
        assert response.headers["x-request-id"] == "mine"
        fresh = await client.get("/health")
        assert len(fresh.headers["x-request-id"]) == 32
        stream = await client.post(CHAT, json=chat(stream=True, max_tokens=2000))
        assert "x-request-id" in stream.headers
        assert await (await client.get("/load")).json() == {"server_load": 1}
        stream.close()


async def test_models_tokenize_detokenize() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        cards = (await (await client.get("/v1/models")).json())["data"]
        assert [card["id"] for card in cards] == ["mock", "alias"]
        tokens = await (await client.post("/tokenize", json={"prompt": "hi there"})).json()
        assert tokens["count"] == len(tokens["tokens"])
        assert tokens["max_model_len"] == 4096
        back = await client.post("/detokenize", json={"tokens": tokens["tokens"]})
        assert "hi there" in (await back.json())["prompt"]


async def test_metrics_in_every_spelling() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        await (await client.post(CHAT, json=chat())).read()
        await (await client.get("/nowhere")).read()
        head = await client.head("/metrics")
        assert head.status == 200
        assert await head.read() == b""
        text = await (await client.get("/metrics/")).text()
        assert 'vllm:generation_tokens_total{engine="0",model_name="mock"} 5.0' in text
        assert 'vllm:inter_token_latency_seconds_count{engine="0",model_name="mock"} 4.0' in text
        assert f'http_requests_total{{handler="{CHAT}",method="POST",status="2xx"}} 1.0' in text
        assert 'http_requests_total{handler="none",method="GET",status="4xx"} 1.0' in text
        assert "mock_drift_seconds_bucket" in text
        assert "mock_late_steps_total" in text


async def test_running_tokens_count_before_the_end() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        stream = await client.post(CHAT, json=chat(stream=True, max_tokens=2000))
        await stream.content.readuntil(b"\n\n")
        await stream.content.readuntil(b"\n\n")
        text = await (await client.get("/metrics")).text()
        assert 'vllm:num_requests_running{engine="0",model_name="mock"} 1.0' in text
        generated = text.split('vllm:generation_tokens_total{engine="0",model_name="mock"} ')[1]
        assert float(generated.split("\n")[0]) >= 1
        stream.close()


async def until_idle(client: aiohttp.ClientSession) -> dict[str, object]:
    for _ in range(1000):
        clock: dict[str, object] = await (await client.get("/sim/clock")).json()
        if clock["in_flight"] == 0:
            return clock
    raise AssertionError("requests are still in flight")


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_aborts(stream: bool) -> None:
    spec = serve_spec(ClockSpec())
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        request = asyncio.create_task(client.post(CHAT, json=chat(stream=stream, max_tokens=2000)))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        if stream:
            (await request).close()
        else:
            request.cancel()
        await until_idle(client)
        while 'finished_reason="abort",model_name="mock"} 1.0' not in (
            await (await client.get("/metrics")).text()
        ):
            await asyncio.sleep(0)
        gauges = server.cluster.workers[0].gauges(server.cluster.now_ns)
        assert gauges.running == 0
        assert (await client.post(CHAT, json=chat())).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_full_queue_is_a_plain_503(stream: bool) -> None:
    spec = serve_spec(replace(WARP, grace_ms=20.0), max_num_queued_reqs=1)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        responses = await asyncio.gather(
            *(client.post(CHAT, json=chat(stream=stream)) for _ in range(4))
        )
        statuses = sorted(response.status for response in responses)
        assert statuses == [200, 503, 503, 503]
        refused = next(r for r in responses if r.status == 503)
        assert "currently busy" in (await refused.json())["error"]["message"]


async def test_part_of_a_request_refused_refuses_all_of_it() -> None:
    spec = serve_spec(WARP, max_num_queued_reqs=1)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        response = await client.post(CHAT, json=chat(n=3, temperature=1))
        assert response.status == 503
        await until_idle(client)


async def raw(url: str, data: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def test_http2_preface_is_refused_and_the_server_lives() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        answer = await raw(server.urls[0], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert answer.startswith(b"HTTP/1.")
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert (await client.get("/health")).status == 200


async def test_http_1_0_stream_ends_with_the_connection() -> None:
    body = json.dumps(chat(stream=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: keep-alive\r\n\r\n"
    )
    async with live(serve_spec(WARP)) as server:
        answer = await raw(server.urls[0], head.encode() + body)
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in headers
    assert b"connection: close" in headers
    assert content.startswith(b"data: {")
    assert content.endswith(b"data: [DONE]\n\n")


async def test_dead_engine_says_so_everywhere() -> None:
    async with live(serve_spec(WARP)) as server, aiohttp.ClientSession(server.urls[0]) as client:

        def explode(t_ns: int) -> None:
            raise ZeroDivisionError("engine bug")

        server.cluster.advance_to = explode
        response = await client.post(CHAT, json=chat())
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "InternalServerError"
        assert (await client.get("/health")).status == 503
        again = await client.post(CHAT, json=chat(stream=True))
        assert again.status == 500


async def test_shutdown_aborts_what_is_in_flight() -> None:
    server_spec = serve_spec(ClockSpec())
    async with aiohttp.ClientSession() as client:
        async with live(server_spec) as server:
            url = server.urls[0] + CHAT
            whole = asyncio.create_task(client.post(url, json=chat(max_tokens=2000)))
            stream = await client.post(url, json=chat(stream=True, max_tokens=2000))
            while len(server.driver.in_flight) < 2:
                await asyncio.sleep(0)
        body = await (await whole).json()
        assert body["choices"][0]["finish_reason"] == "abort"
        text = await stream.text()
        assert '"finish_reason":"abort"' in text
        assert text.endswith("data: [DONE]\n\n")


async def test_shutdown_timeout_lets_requests_finish() -> None:
    spec = serve_spec(FAST, http=HttpSettings(shutdown_timeout_s=30.0))
    async with aiohttp.ClientSession() as client:
        async with live(spec) as server:
            url = server.urls[0] + CHAT
            stream = await client.post(url, json=chat(stream=True, max_tokens=500))
        assert '"finish_reason":"length"' in await stream.text()
