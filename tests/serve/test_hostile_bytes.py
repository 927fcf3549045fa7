"""Both engines' HTTP ports against other protocols, huge bodies, slow readers and odd JSON.

`besieged` says what must hold afterwards: the server answers, nothing is left in it, and nothing
worse than information is in its log.
"""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.spec import ServeSpec
from tests.serve.live import serve_spec
from tests.serve.sglang_live import sglang_spec
from tests.serve.test_hostile_clients import CHAT, GOOD, Peer, besieged, post

Make = Callable[[ClockSpec], ServeSpec]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
TLS_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(200))
REFUSAL = b"Invalid HTTP request received."
MIB = 1 << 20


def vllm(clock: ClockSpec) -> ServeSpec:
    return serve_spec(clock, http=HttpSettings(response_store=True, scale_out=True))


def sglang(clock: ClockSpec) -> ServeSpec:
    return sglang_spec(clock, enable_response_store=True)


both = pytest.mark.parametrize("make", [vllm, sglang])


@both
@pytest.mark.parametrize("warp", [False, True])
async def test_other_protocols_get_uvicorns_refusal(
    caplog: pytest.LogCaptureFixture, make: Make, warp: bool
) -> None:
    async with besieged(caplog, warp, make) as peer:
        for first in (PREFACE, PREFACE + SETTINGS, TLS_HELLO, b"SSH-2.0-x\r\n", b"\0" * 64):
            heard = await peer.say(first)
            assert heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert heard.endswith(REFUSAL)
        # One byte at a time, the preface is refused as soon as it is none of HTTP/1.
        heard = await peer.say(*[bytes([byte]) for byte in PREFACE])
        assert heard.endswith(REFUSAL)
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
        status, _ = await peer.answer(GOOD.replace(b"Host: x\r\n", b"Host: x\r\n" + upgrade))
        assert status == 200
        websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        heard = await peer.say(
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\n" + websocket + b"\r\n", eof=True
        )
        assert heard.startswith(b"HTTP/1.1 40")


@both
async def test_huge_bodies_are_read_and_refused(
    caplog: pytest.LogCaptureFixture, make: Make
) -> None:
    async with besieged(caplog, make=make) as peer:
        huge = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * 8 * MIB}]})
        status, body = await peer.answer(post("/v1/chat/completions", huge.encode()))
        assert status == 400
        assert len(body) < 1000
        junk = post("/v1/completions", b"\xff" * 8 * MIB)
        assert (await peer.answer(junk))[0] == 400
        deep = post("/v1/completions", b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        assert (await peer.answer(deep))[0] == 400
        many = json.dumps({**CHAT, **{f"unknown{i}": i for i in range(100_000)}}).encode()
        assert (await peer.answer(post("/v1/chat/completions", many)))[0] == 200
        # Announced, begun, and given up.
        head = GOOD.partition(b"\r\n\r\n")[0].replace(b"Content-Length", b"X-Was")
        for _ in range(5):
            await peer.say(
                head + b"\r\nContent-Length: 99999999999\r\n\r\n{", b"x" * MIB, read=False
            )
        chunked = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        await peer.say(chunked, *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 32, read=False)


@both
async def test_slow_readers_hold_nobody_up(caplog: pytest.LogCaptureFixture, make: Make) -> None:
    body = {**CHAT, "max_tokens": 500, "stream": True, "n": 8, "temperature": 1.0}
    body |= {"logprobs": True, "top_logprobs": 5}
    request = post("/v1/chat/completions", json.dumps(body).encode())
    async with besieged(caplog, make=make) as peer:
        readers = [await slow_reader(peer, request) for _ in range(3)]
        for _ in range(5):
            assert (await peer.answer(GOOD))[0] == 200
        # One reads on to the end, one hangs up, one just goes.
        (reader, writer), (_, quitter), (_, goner) = readers
        quitter.close()
        goner.transport.abort()
        last = b""
        while b"[DONE]" not in last:
            last = last[-16:] + await reader.read(MIB)
        writer.close()


async def slow_reader(peer: Peer, request: bytes) -> Any:
    """A client with a small window that reads a little and then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port, limit=1024)
    writer.write(request)
    assert (await reader.read(15)).startswith(b"HTTP/1.1 200 OK")
    return reader, writer


SGLANG_ROUTES = (
    *("/generate", "/vertex_generate", "/api/chat", "/api/generate", "/api/show", "/v1/messages"),
    *("/v1/responses", "/v1/score", "/parse_function_call", "/separate_reasoning"),
    *("/set_internal_state", "/pd_role_switch", "/scale_elastic_ep", "/add_external_corpus"),
    *("/remove_external_corpus", "/open_session", "/abort_request", "/tokenize", "/invocations"),
)
VLLM_ROUTES = (
    *("/v1/chat/completions/batch", "/invocations", "/v1/responses", "/v1/messages"),
    *("/inference/v1/generate", "/scale_elastic_ep", "/tokenize", "/v1/completions"),
)
KEYS = (
    *("text", "input_ids", "sampling_params", "rid", "stream", "instances", "parameters", "model"),
    *("messages", "prompt", "options", "input", "background", "store", "previous_response_id"),
    *(
        "tools",
        "metadata",
        "query",
        "items",
        "label_token_ids",
        "tool_call_parser",
        "n",
        "reasoning",
    ),
    *(
        "reasoning_parser",
        "server_args",
        "new_role",
        "corpus_id",
        "max_new_tokens",
        "role",
        "content",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, "x", "", [], {}, [[]], [1, 2], ["a", 1], {"a": 1}, "qwen3"),
    *(
        [{"role": "user", "content": "hi"}],
        {"max_new_tokens": 2},
        [{"text": "a"}],
        {"temperature": "hot"},
    ),
)


@both
async def test_any_json_on_every_route(caplog: pytest.LogCaptureFixture, make: Make) -> None:
    rng = random.Random(55)

    def value(depth: int) -> Any:
        kind = rng.random()
        if depth and kind < 0.15:
            return [value(depth - 1) for _ in range(rng.randint(0, 3))]
        if depth and kind < 0.4:
            return {rng.choice(KEYS): value(depth - 1) for _ in range(rng.randint(0, 3))}
        return rng.choice(VALUES)

    routes = SGLANG_ROUTES if make is sglang else VLLM_ROUTES
    async with besieged(caplog, make=make) as peer:
        for _ in range(500):
            body = {rng.choice(KEYS): value(2) for _ in range(rng.randint(0, 6))}
            body |= {"max_tokens": 2, "max_output_tokens": 4}
            path = rng.choice(routes)
            if path.startswith("/api/") and isinstance(body.get("options"), dict):
                body["options"]["num_predict"] = 2
            text = json.dumps(body).replace("1.5", rng.choice(("1.5", "NaN", "1e999"))).encode()
            heard = await peer.say(
                post(path, text, "Connection: close\r\n"),
            )
            status = int(heard.split(b" ", 2)[1])
            assert status in (200, 400, 404, 500, 501), (path, body, heard)
            if status == 500:
                # What SGLang does not catch, and says nothing more about.
                assert make is sglang or path == "/scale_elastic_ep", (path, body)
                assert path in UNCAUGHT, (path, body, heard)


UNCAUGHT = (
    *("/vertex_generate", "/api/chat", "/api/generate", "/parse_function_call"),
    *("/separate_reasoning", "/scale_elastic_ep"),
)


async def test_a_thousand_connections_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    async with besieged(caplog, make=sglang) as peer:
        for _ in range(20):
            opened = [await asyncio.open_connection("127.0.0.1", peer.port) for _ in range(50)]
            for _, writer in opened:
                writer.write(beginning(writer))
            for _, writer in opened:
                writer.transport.abort()


def beginning(writer: asyncio.StreamWriter) -> bytes:
    """Some beginning of a good request, a different one for each socket."""
    return GOOD[: writer.get_extra_info("sockname")[1] % len(GOOD)]
