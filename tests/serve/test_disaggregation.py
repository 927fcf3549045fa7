"""Prefill and decode servers on the wire: vLLM's kv_transfer_params, SGLang's rooms, failures."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp
import pytest

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec, ConnectorSpec, WorkerSpec
from frontier_mock.core.events import (
    Finished,
    KvFailed,
    KvReceived,
    KvReleased,
    Queued,
    Submitted,
)
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.sglang.disaggregation import NO_ROOM, Disaggregation
from tests.engine import LinearCost, step_spec
from tests.serve import live as vllm
from tests.serve import sglang_live as sglang
from tests.serve.live import live

QUICK = ClockSpec(mode="scaled", scale=200.0, late_ms_max=1e9)
PROMPT = "tell me about disaggregated serving " * 20
TO_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
MESSAGES = [{"role": "user", "content": PROMPT}]


def vllm_spec(
    style: str = "pull",
    *,
    recompute: bool = False,
    lease_s: float = 30.0,
    back_s: float = 0.0,
    clock: ClockSpec = QUICK,
) -> ServeSpec:
    """One prefill and one decode server with the same connector."""
    connector = ConnectorSpec("NixlConnector", style, lease_s, recompute)
    peers = frozenset(("p-engine", "d-engine"))
    roles = (("prefill", "p-engine"), ("decode", "d-engine"))
    port = KvPort(
        "NixlConnector",
        style,
        "",
        patience_ns=round(lease_s * 1e9),
        recompute=recompute,
        peers=peers,
        back_patience_ns=round(back_s * 1e9),
    )
    specs = tuple(
        WorkerSpec(role, 0, role, "mock", step_spec(0.001), vllm.SCHEDULER, connector=connector)
        for role, _ in roles
    )
    return ServeSpec(
        cluster=ClusterSpec(specs, "round_robin", 0, fabric=FabricSpec(gpus_per_node=1)),
        costs=[LinearCost() for _ in specs],
        served=[
            replace(vllm.served_model(), kv=replace(port, engine_id=engine_id))
            for _, engine_id in roles
        ],
        clock=clock,
        host="127.0.0.1",
    )


def of(server: ClusterServer, kind: type) -> list[Any]:
    return [event for event in server.cluster.log.events if isinstance(event, kind)]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


async def ask(
    url: str, path: str, headers: dict[str, str] | None = None, /, **body: object
) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(url + path, json=body) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
async def test_the_flow_of_a_nixl_proxy(chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body: dict[str, object] = {"messages": MESSAGES} if chat else {"prompt": PROMPT}
    async with live(vllm_spec()) as server:
        prefill, decode = server.urls
        status, first = await ask(
            prefill, path, **body, max_tokens=1, stream=False, kv_transfer_params=TO_DECODE
        )
        assert status == 200
        params = first["kv_transfer_params"]
        tokens = first["usage"]["prompt_tokens"]
        assert {key: params[key] for key in ("do_remote_prefill", "do_remote_decode")} == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
        }
        assert params["remote_engine_id"] == "p-engine"
        assert params["remote_request_id"].startswith(first["id"])
        assert [len(group) for group in params["remote_block_ids"]] == [-(-tokens // 16)]
        assert params["remote_num_tokens"] == tokens
        assert (params["tp_size"], params["transfer_mode"]) == (1, "pull")
        status, second = await ask(decode, path, **body, max_tokens=8, kv_transfer_params=params)
        assert status == 200
        assert second["kv_transfer_params"] is None
        assert second["usage"]["completion_tokens"] == 8
        # The same text as from a server that does everything.
        _, alone = await ask(decode, path, **body, max_tokens=8)
        assert alone["choices"] == second["choices"]
        (received,) = of(server, KvReceived)
        assert received.num_bytes == tokens * 256
        assert [event.reason for event in of(server, KvReleased)] == ["sent"]
        async with aiohttp.ClientSession() as client, client.get(decode + "/metrics") as answer:
            shown = await answer.text()
        assert _sample(shown, "vllm:nixl_bytes_transferred_sum") == received.num_bytes
        assert _sample(shown, "vllm:external_prefix_cache_hits_total") == tokens
        assert _sample(shown, "external_kv_transfer") == tokens - 1


def _sample(shown: str, name: str) -> float:
    (line,) = [
        line
        for line in shown.splitlines()
        if name in line and not line.startswith("#") and "_created" not in line
    ]
    return float(line.rpartition(" ")[2])


async def test_the_next_turn_fetches_back_what_decode_has() -> None:
    async with live(vllm_spec(back_s=480.0)) as server:
        prefill, decode = server.urls
        path = "/v1/completions"
        asked = {"max_tokens": 1, "kv_transfer_params": TO_DECODE}
        _, first = await ask(prefill, path, prompt=PROMPT, **asked)
        _, answer = await ask(
            decode,
            path,
            prompt=PROMPT,
            max_tokens=150,
            kv_transfer_params=first["kv_transfer_params"],
        )
        back = answer["kv_transfer_params"]
        tokens = answer["usage"]["prompt_tokens"]
        assert (back["do_remote_prefill"], back["do_remote_decode"]) == (False, True)
        assert back["remote_engine_id"] == "d-engine"
        assert back["remote_num_tokens"] == tokens + 149
        assert back["remote_blocks_expiry_time"] > 480
        said = PROMPT + answer["choices"][0]["text"]
        asked = {"max_tokens": 1, "kv_transfer_params": back}
        status, again = await ask(prefill, path, prompt=said + " go on", **asked)
        assert status == 200
        # The prefill server has the first prompt itself, and gets what was said since.
        fetched = of(server, KvReceived)[1]
        assert fetched.worker == 0
        assert fetched.cached_tokens == tokens // 16 * 16
        assert fetched.num_bytes == (tokens + 149 - fetched.cached_tokens) * 256
        params = again["kv_transfer_params"]
        assert params["do_remote_prefill"] is True
        status, last = await ask(
            decode, path, prompt=said + " go on", max_tokens=5, kv_transfer_params=params
        )
        assert (status, last["usage"]["completion_tokens"]) == (200, 5)
        await until(lambda: len(of(server, KvReleased)) == 3)
        assert [event.reason for event in of(server, KvReleased)] == ["sent"] * 3


async def test_a_decode_server_without_coordinates_computes_the_prompt() -> None:
    async with live(vllm_spec()) as server:
        params = {"do_remote_prefill": True, "remote_engine_id": "p-engine"}
        status, answer = await ask(
            server.urls[1],
            "/v1/completions",
            prompt=PROMPT,
            max_tokens=3,
            kv_transfer_params=params,
        )
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        assert not of(server, KvReceived)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_blocks_that_are_not_there_any_more(recompute: bool, stream: bool) -> None:
    async with live(vllm_spec(recompute=recompute)) as server:
        gone = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2]],
            "remote_engine_id": "p-engine",
            "remote_request_id": "cmpl-nobody-0-deadbeef",
            "remote_host": "localhost",
            "remote_port": 5600,
            "tp_size": 1,
        }
        url = server.urls[1] + "/v1/completions"
        body = {"prompt": PROMPT, "max_tokens": 3, "stream": stream, "kv_transfer_params": gone}
        async with aiohttp.ClientSession() as client, client.post(url, json=body) as answer:
            text = await answer.text()
            if recompute:
                assert answer.status == 200
                assert "error" not in text
            elif stream:
                assert '"code":500' in text.replace(" ", "")
                assert text.endswith("data: [DONE]\n\n")
            else:
                assert answer.status == 500
                assert "Internal server error" in text
        assert [event.reason for event in of(server, KvFailed)] == ["unknown"]


async def test_a_lease_runs_out_and_the_blocks_are_free() -> None:
    async with live(vllm_spec(lease_s=0.5)) as server:
        await ask(
            server.urls[0],
            "/v1/completions",
            prompt=PROMPT,
            max_tokens=1,
            kv_transfer_params=TO_DECODE,
        )
        kv = server.cluster.workers[0].kv
        await until(lambda: of(server, KvReleased))
        assert [event.reason for event in of(server, KvReleased)] == ["expired"]
        metrics = server.urls[0] + "/metrics"
        async with aiohttp.ClientSession() as client, client.get(metrics) as answer:
            assert _sample(await answer.text(), "vllm:nixl_num_kv_expired_reqs_total") == 1
        assert kv.num_free == kv.num_blocks


async def test_a_sender_in_another_process_is_taken_at_its_word() -> None:
    async with live(vllm_spec()) as server:
        params = {
            "do_remote_prefill": True,
            "remote_block_ids": [[1]],
            "remote_engine_id": "somebody-else",
            "remote_request_id": "cmpl-x",
            "remote_host": "far-away",
            "remote_port": 5600,
        }
        status, answer = await ask(
            server.urls[1],
            "/v1/completions",
            prompt=PROMPT,
            max_tokens=3,
            kv_transfer_params=params,
        )
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        (received,) = of(server, KvReceived)
        assert received.num_bytes > 0


async def test_legs_of_a_pushing_connector_meet_by_transfer_id() -> None:
    async with live(vllm_spec("push")) as server:
        prefill, decode = server.urls
        to_decode = {"do_remote_decode": True, "transfer_id": "xfer-1"}
        from_prefill = {
            "do_remote_prefill": True,
            "transfer_id": "xfer-1",
            "remote_engine_id": "p-engine",
            "remote_bootstrap_addr": "http://localhost:8998",
        }
        answers = await asyncio.gather(
            ask(
                decode,
                "/v1/completions",
                prompt=PROMPT,
                max_tokens=4,
                kv_transfer_params=from_prefill,
            ),
            ask(
                prefill,
                "/v1/completions",
                prompt=PROMPT,
                max_tokens=1,
                kv_transfer_params=to_decode,
            ),
        )
        assert [status for status, _ in answers] == [200, 200]
        assert answers[0][1]["usage"]["completion_tokens"] == 4
        assert len(of(server, KvReceived)) == 1


async def test_legs_of_moriio_meet_by_transfer_id_without_an_engines_name() -> None:
    spec = vllm_spec("push")
    served = [replace(one, kv=replace(one.kv, connector="MoRIIOConnector")) for one in spec.served]
    async with live(replace(spec, served=served)) as server:
        prefill, decode = server.urls
        ids = "___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005"
        ids += "___decode_addr_host:10.0.0.2,handshake:6301,notify:61005_" + "0f" * 16
        both = {"transfer_id": "tx-1", "remote_dp_size": 1, "remote_tp_size": 1}
        remote = {"remote_host": "10.0.0.1", "remote_handshake_port": 6301}
        legs = (
            (decode, 4, {"do_remote_prefill": True, "remote_engine_id": None, **both, **remote}),
            (prefill, 1, {"do_remote_decode": True, **both}),
        )
        answers = await asyncio.gather(
            *[
                ask(
                    url,
                    "/v1/completions",
                    {"X-Request-Id": ids},
                    prompt=PROMPT,
                    max_tokens=tokens,
                    kv_transfer_params=params,
                )
                for url, tokens, params in legs
            ]
        )
        assert [status for status, _ in answers] == [200, 200]
        assert answers[0][1]["usage"]["completion_tokens"] == 4
        (received,) = of(server, KvReceived)
        assert received.num_bytes > 0


async def test_mooncakes_bootstrap_service_names_its_engine() -> None:
    spec = vllm_spec("push")
    kv = spec.served[0].kv
    assert kv is not None
    kv = replace(kv, connector="MooncakeConnector", bootstrap_port=0, tp=2)
    served = [replace(spec.served[0], kv=kv), spec.served[1]]
    async with live(replace(spec, served=served)) as server:
        first, second = server.bootstraps
        assert first is not None
        assert second is None
        async with aiohttp.ClientSession(f"http://127.0.0.1:{first.port}") as client:
            async with client.get("/query") as answer:
                told = await answer.json()
            async with client.post("/register", json={"engine_id": "x"}) as answer:
                assert await answer.json() == {"status": "ok"}
            async with client.get("/else") as answer:
                assert (answer.status, await answer.json()) == (404, {"detail": "Not Found"})
        assert told["0"]["engine_id"] == "p-engine"
        assert sorted(told["0"]["worker_addr"]) == ["0", "1"]


def sglang_spec(patience_s: float = 300.0) -> ServeSpec:
    """One prefill and one decode server of SGLang."""
    specs = []
    served = []
    for role in ("prefill", "decode"):
        connector = ConnectorSpec("mooncake", "room", patience_s, streams=True)
        part = Disaggregation(role, port=0, patience_ns=round(patience_s * 1e9))
        front = replace(sglang.FRONT, disaggregation_mode=role, disaggregation=part)
        served.append(sglang.sglang_model(front))
        specs.append(
            WorkerSpec(
                role, 0, role, "mock", step_spec(0.001), sglang.SCHEDULER, connector=connector
            )
        )
    return ServeSpec(
        cluster=ClusterSpec(tuple(specs), "round_robin", 0, fabric=FabricSpec(gpus_per_node=1)),
        costs=[LinearCost() for _ in specs],
        served=served,
        clock=QUICK,
        host="127.0.0.1",
    )


def room(server: ClusterServer, number: int | None) -> dict[str, object]:
    port = next(rooms.port for rooms in server.bootstraps if rooms is not None)
    return {"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": number}


def generate(max_new_tokens: int = 6) -> dict[str, object]:
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": max_new_tokens}}


@pytest.mark.parametrize("prefill_first", [True, False])
async def test_legs_meet_in_a_room_in_either_order(prefill_first: bool) -> None:
    async with live(sglang_spec()) as server:
        number = (1 << 62) + 5
        urls = server.urls if prefill_first else server.urls[::-1]
        pending = []
        for url in urls:
            pending.append(
                asyncio.ensure_future(ask(url, "/generate", **generate(), **room(server, number)))
            )
            await until(lambda: len(of(server, Submitted)) == len(pending))
        answers = dict(zip(urls, await asyncio.gather(*pending), strict=True))
        status, first = answers[server.urls[0]]
        assert (status, first["meta_info"]["completion_tokens"]) == (200, 1)
        status, second = answers[server.urls[1]]
        assert (status, second["meta_info"]["completion_tokens"]) == (200, 6)
        assert second["text"].startswith(first["text"])
        ends = {event.worker: event.t_ns for event in of(server, Finished)}
        (received,) = of(server, KvReceived)
        # The prefill server answers once the KV has gone.
        assert ends[0] > received.t_ns


async def test_a_request_without_a_room_is_refused() -> None:
    async with live(sglang_spec()) as server:
        for url in server.urls:
            status, answer = await ask(url, "/generate", **generate())
            assert status == 400
            assert NO_ROOM in str(answer)
            status, answer = await ask(
                url, "/v1/chat/completions", model="mock", messages=MESSAGES, max_tokens=4
            )
            assert status == 400
            assert NO_ROOM in answer["message"]


@pytest.mark.parametrize(
    ("side", "words"), [(0, "Prefill bootstrap failed"), (1, "Decode handshake failed")]
)
async def test_a_leg_that_stays_alone_is_told_so(side: int, words: str) -> None:
    async with live(sglang_spec(patience_s=1.0)) as server:
        mine = {"rid": "mine", **room(server, 7)}
        status, answer = await ask(server.urls[side], "/generate", **generate(), **mine)
        assert status == 500
        of = "decode_req.req" if side else "req"
        said = f"{words} for request rank=0 {of}.rid='mine' {of}.bootstrap_room=7"
        assert said in json.dumps(answer)


@pytest.mark.parametrize("lost", [0, 1], ids=["prefill", "decode"])
async def test_the_other_leg_hears_of_a_client_that_has_gone(lost: int) -> None:
    async with live(sglang_spec()) as server:
        alone = asyncio.ensure_future(
            ask(server.urls[lost], "/generate", **generate(4000), **room(server, 9))
        )
        await until(lambda: of(server, Queued))
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        await until(lambda: of(server, Finished))
        # Its room is gone too: what comes now waits for a new other half.
        pair = await asyncio.gather(
            *[ask(url, "/generate", **generate(), **room(server, 9)) for url in server.urls]
        )
        assert [status for status, _ in pair] == [200, 200]
        for worker in server.cluster.workers:
            worker.kv.check()


def nothing_open(server: ClusterServer) -> bool:
    pairing = server.cluster.pairing
    return pairing is not None and not pairing.num_open


def apart(spec: ServeSpec, side: int, **changes: Any) -> ServeSpec:
    """One side of `sglang_spec`, to be served as a process of its own would."""
    served = spec.served[side]
    assert served.sglang is not None
    assert served.sglang.disaggregation is not None
    part = replace(served.sglang.disaggregation, heartbeat_s=1.0, **changes)
    front = replace(served.sglang, disaggregation=part)
    cluster = replace(spec.cluster, workers=spec.cluster.workers[side : side + 1])
    return replace(
        spec, cluster=cluster, costs=spec.costs[:1], served=[replace(served, sglang=front)]
    )


@pytest.mark.parametrize("prefill_first", [True, False])
async def test_legs_in_different_processes_meet_as_well(prefill_first: bool) -> None:
    spec = sglang_spec()
    async with live(apart(spec, 0)) as first, live(apart(spec, 1)) as second:
        servers = [first, second] if prefill_first else [second, first]
        pending = []
        for server in servers:
            asked = ask(server.urls[0], "/generate", **generate(), **room(first, 1 << 62))
            pending.append(asyncio.ensure_future(asked))
            await until(partial(of, server, Submitted))
        answers = dict(zip(servers, await asyncio.gather(*pending), strict=True))
        assert [status for status, _ in answers.values()] == [200, 200]
        assert answers[second][1]["text"].startswith(answers[first][1]["text"])
        (received,) = of(second, KvReceived)
        assert received.num_bytes > 0
        for server in servers:
            await until(partial(nothing_open, server))
            server.cluster.workers[0].kv.check()


async def test_a_decode_server_that_is_made_otherwise_is_turned_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = sglang_spec()
    async with live(apart(spec, 0)) as first, live(apart(spec, 1, page_size=64)) as second:
        status, answer = await ask(second.urls[0], "/generate", **generate(), **room(first, 5))
        assert status == 500
        assert "Decode handshake failed" in str(answer)
        assert not of(first, Submitted)


async def test_a_prefill_server_that_goes_takes_its_receivers_with_it() -> None:
    spec = sglang_spec()
    async with live(apart(spec, 1)) as second:
        async with live(apart(spec, 0)) as first:
            there = room(first, 5)
            alone = asyncio.ensure_future(ask(second.urls[0], "/generate", **generate(), **there))
            await until(lambda: not nothing_open(first))
        status, _ = await alone
        assert status == 500
        (failed,) = of(second, KvFailed)
        assert failed.reason == "broken"


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        ({}, b"{}", 426),
        ({"upgrade": "fmock-halves/1"}, b"[", 400),
        ({"upgrade": "fmock-halves/1"}, b'{"page_size": "x", "kv_cache_dtype": "auto"}', 400),
        ({"upgrade": "fmock-halves/1"}, b'{"page_size": 3, "kv_cache_dtype": "auto"}', 409),
        ({"upgrade": "fmock-halves/1"}, b'{"page_size": 1, "kv_cache_dtype": "fp8"}', 409),
    ],
)
async def test_who_may_not_join_a_prefill_server(
    lines: dict[str, str], body: bytes, status: int
) -> None:
    async with live(apart(sglang_spec(), 0)) as server:
        (rooms,) = server.bootstraps
        assert rooms is not None
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{rooms.port}") as client,
            client.post("/sim/halves", data=body, headers=lines) as answer,
        ):
            assert answer.status == status


async def test_fake_peers_are_there_at_once() -> None:
    async with live(sglang_spec()) as server:
        fake = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 3}
        for url, tokens in zip(server.urls, (1, 6), strict=True):
            status, answer = await ask(url, "/generate", **generate(), **fake)
            assert (status, answer["meta_info"]["completion_tokens"]) == (200, tokens)


async def test_the_bootstrap_server_knows_its_prefill_server() -> None:
    async with live(sglang_spec()) as server:
        first, second = server.bootstraps
        assert first is not None
        assert second is None
        url = f"http://127.0.0.1:{first.port}"
        everything = "prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"
        one = "prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0"
        other = one.replace("tp_rank=0", "tp_rank=9")
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/health") as answer:
                assert await answer.text() == "OK"
            async with client.get(f"/route?{everything}") as answer:
                info = await answer.json()
                assert (info["attn_tp_size"], info["page_size"]) == (1, 1)
                assert info["follow_bootstrap_room"] is True
            for query, status in ((one, 200), (other, 404), ("x=1", 400)):
                async with client.get(f"/route?{query}") as answer:
                    assert answer.status == status
            await client.post("/register_dp_rank", json={"bootstrap_room": 5, "dp_rank": 2})
            asked = {"bootstrap_rooms": [5, 6]}
            async with client.post("/query_dp_ranks", json=asked) as answer:
                assert await answer.json() == {"5": 2}
            for body in (b"[" * 100_000, b'{"bootstrap_room": Infinity, "dp_rank": 1}', b"null"):
                async with client.post("/register_dp_rank", data=body) as answer:
                    assert answer.status == 400
            for body in (b"[" * 100_000, b'{"bootstrap_rooms": [Infinity]}', b"{}"):
                async with client.post("/query_dp_ranks", data=body) as answer:
                    assert answer.status == 400
