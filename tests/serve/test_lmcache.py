"""LMCache's proxy between a prefill and a decode server: tokens over HTTP, its notice over ZMQ."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec, ConnectorSpec, WorkerSpec
from frontier_mock.core.events import Fetched, Finished, KvReleased, Scheduled
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.serving.tiers.specs import LaneSpec, OffloadSpec
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.lmcache import CONNECTORS, Sender
from tests.engine import LinearCost, step_spec
from tests.serve import live as vllm
from tests.serve.live import live

QUICK = ClockSpec(mode="scaled", scale=200.0, late_ms_max=1e9)
PROMPT = "tell me about disaggregated serving " * 20
BUFFER = OffloadSpec(
    CONNECTORS[0],
    num_chunks=1000,
    block_bytes=4096,
    load=LaneSpec(1e12, 1e-5),
    store=LaneSpec(1e12, 1e-5),
    whole_prefix=True,
    blocking=True,
    stores=False,
)


def spec(proxy: str = "", name: str = CONNECTORS[0], tp: int = 1) -> ServeSpec:
    """A producer, and a consumer that is engine 1 and listens on port 7300."""
    connector = ConnectorSpec(name)
    schedulers = (vllm.SCHEDULER, replace(vllm.SCHEDULER, offload=BUFFER))
    workers = tuple(
        WorkerSpec(role, 0, role, "mock", step_spec(0.001), scheduler, connector=connector)
        for role, scheduler in zip(("prefill", "decode"), schedulers, strict=True)
    )
    port = KvPort(name, "pull", "p", tp=tp, peers=frozenset(("p", "d")))
    sender = replace(port, lmcache=Sender({7300: 1}, proxy))
    return ServeSpec(
        cluster=ClusterSpec(workers, "round_robin", 0, fabric=FabricSpec(gpus_per_node=1)),
        costs=[LinearCost() for _ in workers],
        served=[
            replace(vllm.served_model(), kv=sender),
            replace(vllm.served_model(), kv=replace(port, engine_id="d")),
        ],
        clock=QUICK,
        host="127.0.0.1",
    )


@asynccontextmanager
async def proxy_port() -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    """The proxy's PULL socket: its address, and a coroutine function for its next message."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.PULL)
    port = socket.bind_to_random_port("tcp://127.0.0.1")

    async def message() -> Any:
        async with asyncio.timeout(10):
            return msgspec.msgpack.decode(await socket.recv())

    try:
        yield f"127.0.0.1:{port}", message
    finally:
        context.destroy(linger=0)


async def ask(url: str, path: str, **body: object) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.post(url + path, json=body) as answer:
        return answer.status, await answer.json(content_type=None)


def disagg(port: object = (7300,), req_id: str = "1") -> dict[str, object]:
    ports = list(port) if isinstance(port, tuple) else port
    told = {
        "req_id": req_id,
        "receiver_host": "localhost",
        "receiver_init_port": ports,
        "receiver_alloc_port": [7400],
    }
    return {"ret_first_tok": True, "disagg_spec": told}


def of(server: ClusterServer, kind: type) -> list[Any]:
    return [event for event in server.cluster.log.events if isinstance(event, kind)]


async def test_the_flow_of_lmcaches_proxy() -> None:
    async with proxy_port() as (address, message), live(spec(address, tp=2)) as server:
        prefill, decode = server.urls
        _, said = await ask(decode, "/tokenize", prompt=PROMPT)
        tokens = said["tokens"]
        status, first = await ask(
            prefill,
            "/v1/completions",
            prompt=tokens,
            max_tokens=1,
            stream=False,
            kv_transfer_params=disagg(req_id="17"),
        )
        assert status == 200
        # One from each rank, and then it may go on.
        notice = {"type": "ProxyNotif", "req_id": "17"}
        assert [await message(), await message()] == [notice, notice]
        token = first["kv_transfer_params"]["first_tok"]
        status, second = await ask(decode, "/v1/completions", prompt=[*tokens, token], max_tokens=7)
        assert status == 200
        assert second["kv_transfer_params"] is None
        # The same text as from a server that does everything.
        _, alone = await ask(prefill, "/v1/completions", prompt=tokens, max_tokens=8)
        texts = [answer["choices"][0]["text"] for answer in (first, second, alone)]
        assert texts[0] + texts[1] == texts[2]
        # All full blocks came from what was deposited.
        (fetched,) = of(server, Fetched)
        assert (fetched.worker, fetched.tokens) == (1, len(tokens) // 16 * 16)
        assert [event.cached_tokens for event in of(server, Scheduled)][1] == fetched.tokens
        # The prefill server's answer came when all had gone over the fabric.
        (released,) = of(server, KvReleased)
        assert released.reason == "sent"
        assert of(server, Finished)[0].t_ns == released.t_ns
        pairing = server.cluster.pairing
        assert pairing is not None
        moved = [use.num_bytes for use in pairing.use(server.driver.now_ns()) if use.num_bytes]
        assert set(moved) == {len(tokens) * 256}
        assert pairing.num_open == 0


async def test_what_is_there_already_does_not_move_again() -> None:
    async with live(spec()) as server:
        prefill, _ = server.urls
        for number in range(2):
            body = {"prompt": PROMPT, "max_tokens": 1}
            params = disagg(req_id=str(number))
            status, _ = await ask(prefill, "/v1/completions", **body, kv_transfer_params=params)
            assert status == 200
        pairing = server.cluster.pairing
        assert pairing is not None
        tokens = len(PROMPT)
        moved = {use.num_bytes for use in pairing.use(server.driver.now_ns()) if use.num_bytes}
        assert moved == {(tokens + tokens % 16) * 256}


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (disagg(port=7999), "receiver_init_port 7999 is no receiver of this process; .* 7300"),
        (disagg(port="7300"), "receiver_init_port '7300'"),
        ({"disagg_spec": {"receiver_init_port": [7300]}}, "req_id"),
        ({"disagg_spec": 5}, "disagg_spec must be an object"),
    ],
)
async def test_a_receiver_nobody_knows_is_refused(params: dict[str, object], why: str) -> None:
    async with live(spec()) as server:
        status, said = await ask(
            server.urls[0], "/v1/completions", prompt="hi", max_tokens=1, kv_transfer_params=params
        )
        assert status == 400
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(said["error"]["message"])


async def test_without_a_spec_nothing_moves_and_the_token_is_told_all_the_same() -> None:
    async with live(spec()) as server:
        prefill, decode = server.urls
        for url in (prefill, decode):
            _, said = await ask(
                url,
                "/v1/completions",
                prompt=PROMPT,
                max_tokens=1,
                return_token_ids=True,
                kv_transfer_params={"ret_first_tok": True},
            )
            assert said["kv_transfer_params"] == {"first_tok": said["choices"][0]["token_ids"][0]}
        assert of(server, KvReleased) == []


async def test_the_multi_process_connector_has_nothing_to_tell() -> None:
    async with live(spec(name=CONNECTORS[1])) as server:
        _, said = await ask(
            server.urls[0],
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=1,
            kv_transfer_params={"do_remote_decode": True},
        )
        assert said["kv_transfer_params"] == {}
        assert of(server, KvReleased) == []
