"""KV events and loads on SGLang's wire: its maps, its hashes, its load socket, /server_info."""

import hashlib
from dataclasses import replace

import aiohttp
import msgspec
import pytest

zmq = pytest.importorskip("zmq", reason="pip install 'frontier-mock[kv-events]'")

from frontier_mock.cli.demo import free_ports
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import (
    KvEventsConfig,
    KvSource,
    load_endpoint,
    ports_of_worker,
    read_kv_events,
)
from frontier_mock.serve.load_events import LoadStat
from frontier_mock.serve.up import ServeSpec
from tests.serve.live import WARP, live
from tests.serve.sglang_live import SCHEDULER, sglang_spec
from tests.serve.test_kv_events import replayed, socket_of
from tests.wire.test_kv_events import SglangBatch, SglangRemoved, SglangStored
from tests.wire.test_kv_events import VllmCleared as Cleared

CONFIG = read_kv_events(
    '{"publisher": "zmq", "endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"}', sglang=True
)


def spec_of(num_pages: int, load: str | None = None) -> ServeSpec:
    scheduler = replace(SCHEDULER, num_pages=num_pages, enable_kv_cache_events=True)
    spec = sglang_spec(WARP, scheduler=scheduler)
    source = KvSource(CONFIG, 0, 1, "sglang-map", load_endpoint=load, max_running_requests=64)
    served = [replace(model, keeps_tokens=True) for model in spec.served]
    return replace(spec, served=served, kv_sources={0: source})


async def ask(client: aiohttp.ClientSession, ids: list[int], output: int = 8) -> None:
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": output}}
    assert (await client.post("/generate", json=body)).status == 200


def believed(payloads: list[bytes]) -> set[int]:
    """Hashes of what is cached; each is checked against the tokens and the hash above it."""
    digests: dict[int | None, bytes] = {None: b""}
    cached: set[int] = set()
    for payload in payloads:
        for event in msgspec.msgpack.decode(payload, type=SglangBatch)[1]:
            if isinstance(event, Cleared):
                cached.clear()
            elif isinstance(event, SglangRemoved):
                cached -= set(event.block_hashes)
            else:
                assert isinstance(event, SglangStored)
                assert (event.block_size, event.medium) == (1, "GPU")
                above = event.parent_block_hash
                for block, token in zip(event.block_hashes, event.token_ids, strict=True):
                    text = digests[above] + token.to_bytes(4, "little")
                    digests[block] = hashlib.sha256(text).digest()
                    assert block == int.from_bytes(digests[block][:8], "big", signed=True)
                    assert block not in cached
                    cached.add(block)
                    above = block
    return cached


async def test_events_are_the_truth() -> None:
    async with live(spec_of(4200)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        for i in range(8):
            await ask(client, [i, *range(200)] * 4)
            await ask(client, list(range(50)))
        publisher = server.kv_events.publishers[0]
        batches = await replayed(publisher.config.replay_endpoint)
        truth = (await (await client.get("/sim/truth?hashes=1")).json())["workers"][0]
        cached = believed([payload for _, payload in batches])
        assert {block % (1 << 64) for block in cached} == set(truth["kv_events"]["block_hashes"])
        assert len(cached) == truth["cached_blocks"] > 3000
        first = msgspec.msgpack.decode(batches[0][1], type=SglangBatch)[1]
        assert isinstance(first[0], Cleared)
        assert any(b"BlockRemoved" in payload for _, payload in batches)
        # A flush of an idle engine is told at once.
        assert (await client.post("/flush_cache")).status == 200
        flushed = await replayed(publisher.config.replay_endpoint, len(batches))
        assert believed([payload for _, payload in flushed]) == set()
        assert len(flushed) == 1


async def test_loads_are_pushed() -> None:
    async with socket_of(zmq.SUB) as sock:
        sock.subscribe(b"load")
        port = free_ports(1)[0]
        load = f"tcp://127.0.0.1:{port}"
        async with (
            live(spec_of(65536, load)) as server,
            aiohttp.ClientSession(server.urls[0]) as client,
        ):
            sock.connect(load)
            stats = []
            for i in range(100):
                await ask(client, [i] * 100, output=30)
                while await sock.poll(20):
                    topic, _, payload = await sock.recv_multipart()
                    assert topic == b"load"
                    stats.append(msgspec.msgpack.decode(payload, type=LoadStat))
                if any(stat.num_running_reqs for stat in stats):
                    break
            busy = next(stat for stat in stats if stat.num_running_reqs)
            assert (busy.num_running_reqs, busy.num_waiting_reqs) == (1, 0)
            assert busy.num_tokens >= 100
            assert busy.max_total_num_tokens == 65536
            assert busy.max_running_requests == 64
            info = await (await client.get("/server_info")).json()
            assert info["kv_events"]["load_endpoint_port_base"] == port
            assert info["kv_events"]["load_topic"] == "load"


async def test_server_info_says_where() -> None:
    async with live(spec_of(65536)) as server, aiohttp.ClientSession(server.urls[0]) as client:
        config = server.kv_events.publishers[0].config
        info = await (await client.get("/server_info")).json()
        assert info["kv_events"] == {
            "publisher": "zmq",
            "endpoint_host": "127.0.0.1",
            "endpoint_port_base": int(config.endpoint.rpartition(":")[2]),
            "topic": "",
            "block_size": 1,
            "dp_size": 1,
            "replay_endpoint_port_base": int(config.replay_endpoint.rpartition(":")[2]),
        }
    async with (
        live(sglang_spec(WARP)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
    ):
        assert (await (await client.get("/server_info")).json())["kv_events"] is None


def test_config_of_sglang() -> None:
    assert CONFIG.publishes
    assert not read_kv_events("{}", sglang=True).publishes
    bound = read_kv_events(
        '{"publisher":"zmq","endpoint":"tcp://10.0.0.1:1","bind":true}', sglang=True
    )
    assert bound.binds
    for text, message in (
        ("{", "is not JSON"),
        ('{"enable_kv_cache_events":true}', "unknown key 'enable_kv_cache_events'"),
        ('{"format":"dynamo"}', "format: 'dynamo' is not simulated"),
        ('{"endpoint":"tcp://*:70000"}', "allowed: tcp://HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_kv_events(text, sglang=True)


def test_load_ports_come_after_the_others() -> None:
    config = KvEventsConfig(endpoint="tcp://*:5557", replay_endpoint="tcp://*:5559")
    assert load_endpoint(config, None, 0, 2, 0) is None
    assert load_endpoint(config, "off", 0, 2, 0) is None
    assert load_endpoint(config, "auto", 0, 2, 1) == "tcp://*:5562"
    assert load_endpoint(replace(config, replay_endpoint=None), "auto", 0, 2, 0) == "tcp://*:5559"
    assert load_endpoint(config, "tcp://*:7000", 3, 2, 1) == "tcp://*:7007"
    assert ports_of_worker(config, 2, load=True) == 6
    assert ports_of_worker(replace(config, replay_endpoint="tcp://*:6000"), 2, load=False) == 2
    with pytest.raises(ConfigError, match="auto needs a --kv-events-config endpoint"):
        load_endpoint(replace(config, endpoint="tcp://epp:5557"), "auto", 0, 1, 0)
