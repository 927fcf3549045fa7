"""HTTP/2 with prior knowledge against httpx, and what is said to those who speak neither."""

import asyncio
import json
import logging

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.sglang_front import _http2
from frontier_mock.wire.sglang.served import Http2
from tests.serve.live import FAST, WARP, live
from tests.serve.sglang_live import sglang_spec

pytestmark = pytest.mark.integration

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BODY = {"text": "hello", "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}}
LONG = {"text": "hello", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}


async def test_httpx_speaks_both_on_one_port() -> None:
    async with live(sglang_spec(WARP, http2=Http2())) as server:
        url = server.urls[0]
        async with (
            httpx.AsyncClient(base_url=url, http1=False, http2=True) as two,
            httpx.AsyncClient(base_url=url) as one,
        ):
            answers = await asyncio.gather(*(two.post("/generate", json=BODY) for _ in range(20)))
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            texts = {answer.json()["text"] for answer in answers}
            plain = await one.post("/generate", json=BODY)
            assert plain.http_version == "HTTP/1.1"
            assert plain.headers["server"] == answers[0].headers["server"] == "granian"
            assert texts == {plain.json()["text"]}
            assert answers[0].headers["x-frontier-output-tokens"] == "20"
            streamed = await two.post("/generate", json=BODY | {"stream": True})
            frames = streamed.text.split("\n\n")
            assert frames[-2:] == ["data: [DONE]", ""]
            assert json.loads(frames[-3].removeprefix("data: "))["text"] in texts
            assert (await two.head("/")).status_code == 200
            assert (await two.get("/nowhere")).status_code == 404
            large = {"text": "x" * 300_000}
            refused = await two.post("/generate", json=large)
            assert "longer than the model's context" in refused.json()["error"]["message"]
            broken = two.post("/api/generate", json={"model": "m", "prompt": "x" * 5000})
            with pytest.raises(httpx.RemoteProtocolError):
                await broken


async def test_a_stream_that_is_given_up_is_aborted_and_others_go_on() -> None:
    async with live(sglang_spec(FAST, http2=Http2())) as server:
        url = server.urls[0]
        async with httpx.AsyncClient(base_url=url, http1=False, http2=True) as client:
            async with client.stream("POST", "/generate", json=LONG | {"stream": True}) as response:
                await anext(response.aiter_bytes())
            answer = await client.post("/generate", json=BODY)
            assert answer.status_code == 200
        while server.driver.in_flight:
            await asyncio.sleep(0.01)


async def test_a_slow_reader_gets_it_all_in_the_end() -> None:
    async with live(sglang_spec(FAST, http2=Http2())) as server:
        port = server._sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        state.initiate_connection()
        body = json.dumps({**BODY, "stream": True}).encode()
        heads = [(":method", "POST"), (":path", "/generate"), (":scheme", "http")]
        state.send_headers(1, [*heads, (":authority", "x"), ("content-length", str(len(body)))])
        state.send_data(1, body, end_stream=True)
        heard, ended = b"", False
        while not ended:
            writer.write(state.data_to_send())
            for event in state.receive_data(await reader.read(1 << 16)):
                if isinstance(event, h2.events.DataReceived):
                    heard += event.data
                    # Leave to send comes piece by piece.
                    state.acknowledge_received_data(event.flow_controlled_length, 1)
                ended = ended or isinstance(event, h2.events.StreamEnded)
        assert heard.endswith(b"data: [DONE]\n\n")
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    ids=["endless frame", "half a preface", "bad settings", "tls"],
    argvalues=[
        PREFACE + b"\xff" * 64,
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        PREFACE + b"\0\0\4\x08" + b"\0" * 9,
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_bytes_that_are_neither_are_refused(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with live(sglang_spec(WARP, http2=Http2())) as server:
        port = server._sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        await reader.read()
        writer.close()
        async with httpx.AsyncClient(base_url=server.urls[0]) as client:
            assert (await client.get("/v1/models")).status_code == 200
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_bounds_are_sglangs() -> None:
    assert _http2({}) is None
    assert _http2({"enable_http2": True}) == Http2(200, 1 << 20)
    given = {"enable_http2": True, "http2_initial_connection_window_size": 1000}
    with pytest.raises(ConfigError, match="--http2-initial-connection-window-size: 1000; allowed"):
        _http2(given)
