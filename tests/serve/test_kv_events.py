"""KV events over real ZMQ sockets, read the way vLLM's own example subscriber reads them."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import msgspec
import pytest

zmq = pytest.importorskip("zmq", reason="pip install 'frontier-mock[kv-events]'")
zmq_asyncio = pytest.importorskip("zmq.asyncio")

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import KvEventsConfig, KvSource, placed, read_also
from frontier_mock.core.commands import Flush
from frontier_mock.serve import kv_events
from frontier_mock.serve.kv_events import Told
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.wire.kv_hashes import PLAIN, VllmHasher
from tests.serve.live import WARP, live, serve_spec
from tests.wire.test_kv_events import (
    ArrayBatch,
    VllmBatch,
    VllmCleared,
    VllmRemoved,
    VllmStored,
)

END = b"\xff" * 8
WIDE = KvEventsConfig(
    enable_kv_cache_events=True,
    publisher="zmq",
    endpoint="tcp://*:0",
    replay_endpoint="tcp://*:0",
)


def spec_of(
    config: KvEventsConfig = WIDE, *, workers: int = 1, num_blocks: int = 4096
) -> ServeSpec:
    spec = serve_spec(WARP, workers=workers)
    engines = tuple(
        replace(
            worker,
            scheduler=replace(worker.scheduler, enable_kv_cache_events=True, num_blocks=num_blocks),
        )
        for worker in spec.cluster.workers
    )
    return replace(
        spec,
        cluster=replace(spec.cluster, workers=engines),
        served=[replace(served, keeps_tokens=True) for served in spec.served],
        kv_sources={i: KvSource(config, 0, 16, "vllm-map", "sha256_cbor") for i in range(workers)},
    )


async def ask(client: aiohttp.ClientSession, prompt: object, output: int = 40) -> None:
    body = {"model": "mock", "prompt": prompt, "max_tokens": output}
    response = await client.post("/v1/completions", json=body)
    assert response.status == 200


@asynccontextmanager
async def socket_of(kind: int) -> AsyncIterator["zmq_asyncio.Socket"]:
    context = zmq_asyncio.Context()
    sock = context.socket(kind)
    try:
        yield sock
    finally:
        sock.close(linger=0)
        context.term()


async def replayed(endpoint: str, first: int = 0) -> list[tuple[int, bytes]]:
    """(number, payload) of every batch from `first` on."""
    batches = []
    async with socket_of(zmq.DEALER) as sock:
        sock.connect(endpoint)
        await sock.send_multipart([b"", first.to_bytes(8, "big")])
        while True:
            empty, _, number, payload = await sock.recv_multipart()
            assert empty == b""
            if number == END:
                assert payload == b""
                return batches
            batches.append((int.from_bytes(number, "big"), payload))


def believed(batches: list[tuple[int, bytes]]) -> dict[int | bytes, tuple[int, ...]]:
    """Hash of every block that is cached, and its tokens; the chain of hashes is checked."""
    hasher = VllmHasher("sha256_cbor")
    digests: dict[int | bytes | None, bytes] = {None: hasher.root(PLAIN)}
    cached: dict[int | bytes, tuple[int, ...]] = {}
    for _, payload in batches:
        _, events, rank = msgspec.msgpack.decode(payload, type=VllmBatch)
        assert rank == 0
        for event in events:
            if isinstance(event, VllmCleared):
                cached.clear()
            elif isinstance(event, VllmRemoved):
                for block in event.block_hashes:
                    del cached[block]
            else:
                assert isinstance(event, VllmStored)
                assert len(event.token_ids) == event.block_size * len(event.block_hashes)
                above = event.parent_block_hash
                for i, block in enumerate(event.block_hashes):
                    tokens = event.token_ids[16 * i : 16 * i + 16]
                    digests[block] = hasher.next(digests[above], tokens, PLAIN, first=False)
                    assert hasher.event_hash(digests[block]) == block
                    cached[block] = tuple(tokens)
                    above = block
    return cached


async def test_what_events_say_is_the_truth() -> None:
    spec = spec_of(workers=2, num_blocks=300)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        async with aiohttp.ClientSession(server.urls[1]) as other:
            for i in range(12):
                await ask(client, [i, *range(200)] * 4)
                await ask(client, "the same again and again " * 4)
                await ask(other, [i, *range(100)])
        truth = await (await client.get("/sim/truth?hashes=1")).json()
        sources = await (await client.get("/kv_event_sources")).json()
        assert list(sources) == ["0"]
        for worker, publisher in zip(
            truth["workers"], server.kv_events.publishers.values(), strict=True
        ):
            batches = await replayed(publisher.config.replay_endpoint)
            assert [number for number, _ in batches] == list(range(len(batches)))
            cached = believed(batches)
            told = worker["kv_events"]
            assert set(cached) == set(told["block_hashes"])
            assert len(cached) == told["blocks"] == worker["cached_blocks"]
            assert worker["running"] == worker["waiting"] == 0
        first, second = truth["workers"]
        assert (first["name"], second["name"]) == ("w0", "w1")
        assert first["num_blocks"] == 300
        # The first worker's cache has turned over, the second one's is not full.
        assert first["cached_blocks"] > 250
        assert second["cached_blocks"] == 12 * ((101 + 40 - 1) // 16)
        assert first["hit_tokens"] > 0
        numbers = [number for number, _ in await replayed(publisher.config.replay_endpoint, 5)]
        assert numbers == list(range(5, len(batches)))


async def test_subscriber_gets_every_batch_in_order() -> None:
    spec = spec_of(replace(WIDE, topic="kv@w0@mock"))
    async with (
        live(spec) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
        socket_of(zmq.SUB) as sock,
    ):
        sources = await (await client.get("/kv_event_sources")).json()
        assert sources["0"]["topic"] == "kv@w0@mock"
        assert list(sources["0"]) == [
            "enable_kv_cache_events",
            "publisher",
            "endpoint",
            "replay_endpoint",
            "buffer_steps",
            "hwm",
            "max_queue_size",
            "topic",
        ]
        sock.connect(sources["0"]["endpoint"])
        sock.subscribe(b"kv@")
        seen: list[int] = []
        for i in range(200):
            await ask(client, [i] * 32, output=1)
            while await sock.poll(1):
                topic, number, payload = await sock.recv_multipart()
                assert topic == b"kv@w0@mock"
                assert msgspec.msgpack.decode(payload, type=VllmBatch)[1]
                seen.append(int.from_bytes(number, "big"))
            if len(seen) >= 3:
                break
        # What came before the subscription was known is lost, as with any PUB socket.
        assert len(seen) >= 3
        assert seen == list(range(seen[0], seen[0] + len(seen)))


async def test_an_end_waits_until_subscribers_had_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per instant that ends a response, and only if something was published just before."""
    now_s = [100.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now_s[0] += seconds

    monkeypatch.setattr(kv_events.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(kv_events.time, "sleep", sleep)
    async with (
        live(replace(spec_of(), kv_settle_s=0.25)) as server,
        aiohttp.ClientSession(server.urls[0]) as client,
    ):
        # Two choices end at the same instant, which stores their blocks: one wait for both.
        body = {"model": "mock", "prompt": [1] * 64, "max_tokens": 40, "n": 2, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=body)).status == 200
        assert waits == [0.25]
        # Nothing new is stored by the same prompt with one token of output.
        now_s[0] += 10.0
        await ask(client, [1] * 64, output=1)
        assert waits == [0.25]


async def test_each_rank_has_a_publisher() -> None:
    spec = spec_of(workers=2)
    ranks = tuple(
        replace(worker, name="w0", dp_rank=rank, dp_size=2)
        for rank, worker in enumerate(spec.cluster.workers)
    )
    spec = replace(
        spec,
        cluster=replace(spec.cluster, workers=ranks),
        served=[replace(spec.served[0], data_parallel_size=2)],
        kv_sources={rank: replace(spec.kv_sources[0], rank=rank) for rank in range(2)},
    )
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        sources = await (await client.get("/kv_event_sources")).json()
        assert list(sources) == ["0", "1"]
        body = {"model": "mock", "prompt": [5] * 64, "max_tokens": 20}
        await client.post("/v1/completions", json=body, headers={"x-data-parallel-rank": "1"})
        first, second = [await replayed(sources[rank]["replay_endpoint"]) for rank in sources]
        assert first == []
        assert [number for number, _ in second] == [0, 1]
        assert msgspec.msgpack.decode(second[0][1], type=VllmBatch)[2] == 1


async def test_a_flush_is_told_with_the_next_step() -> None:
    """vLLM publishes when a step's output is taken in, which an idle engine does not."""
    async with live(spec_of()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        await ask(client, [1] * 64)
        publisher = server.kv_events.publishers[0]
        before = publisher.num_batches
        done = await server.driver.operate(Flush(0))
        assert (done.result, publisher.num_batches) == (1, before)
        await ask(client, [2] * 32, output=1)
        batches = await replayed(publisher.config.replay_endpoint, before)
        first = msgspec.msgpack.decode(batches[0][1], type=VllmBatch)[1]
        assert [type(event) for event in first] == [VllmCleared, VllmStored]
        truth = (await (await client.get("/sim/truth")).json())["workers"][0]
        assert truth["cached_blocks"] == truth["kv_events"]["blocks"] == 2


async def test_events_come_before_the_response_and_with_its_times() -> None:
    async with live(spec_of()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        told: list[Told] = []
        publisher = server.kv_events.publishers[0]
        stop = publisher.listen(told.append)
        response = await client.post(
            "/v1/completions", json={"model": "mock", "prompt": [7] * 64, "max_tokens": 20}
        )
        assert [batch.number for batch in told] == [0, 1]
        first_token, finish = (
            int(response.headers[f"x-frontier-{name}-ns"]) for name in ("first-token", "finish")
        )
        assert [batch.t_ns for batch in told] == [first_token, finish]
        stop()
        await ask(client, [8] * 64)
        assert len(told) == 2


async def test_a_second_socket_says_the_same_in_another_form() -> None:
    beside, form = read_also(
        '{"endpoint":"tcp://*:0","topic":"kv@x@y","dialect":"array"}', "vllm-map"
    )
    spec = spec_of()
    source = replace(
        spec.kv_sources[0], also=((replace(beside, replay_endpoint="tcp://*:0"), form),)
    )
    spec = replace(spec, kv_sources={0: source})
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        await ask(client, [3] * 64)
        publisher = server.kv_events.publishers[0]
        own, second = (outlet.config for outlet, _ in publisher._outlets)
        maps = await replayed(own.replay_endpoint)
        arrays = await replayed(second.replay_endpoint)
        assert [number for number, _ in maps] == [number for number, _ in arrays] == [0, 1]
        for (_, one), (_, other) in zip(maps, arrays, strict=True):
            said = msgspec.msgpack.decode(one, type=VllmBatch)[1]
            again = msgspec.msgpack.decode(other, type=ArrayBatch)[1]
            for left, right in zip(said, again, strict=True):
                assert (left.block_hashes, left.token_ids) == (right.block_hashes, right.token_ids)
        truth = (await (await client.get("/sim/truth")).json())["workers"][0]
        assert truth["kv_events"]["endpoints"] == [own.endpoint, second.endpoint]


def test_second_socket_in_words() -> None:
    for text, message in (
        ("[]", "is not a JSON object with an endpoint"),
        ('{"topic":"x"}', "is not a JSON object with an endpoint"),
        ('{"endpoint":"tcp://*:1","dialect":"xml"}', "dialect: 'xml'; allowed: vllm-map"),
        ('{"endpoint":"tcp://*:1","top":"x"}', "unknown key 'top'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_also(text, "vllm-map")


async def test_publisher_connects_to_a_subscriber_that_binds() -> None:
    async with socket_of(zmq.SUB) as sock:
        port = sock.bind_to_random_port("tcp://127.0.0.1")
        sock.subscribe(b"")
        config = replace(WIDE, endpoint=f"tcp://127.0.0.1:{port}", replay_endpoint=None)
        spec = spec_of(config)
        async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
            for i in range(200):
                await ask(client, [i] * 32, output=1)
                if await sock.poll(5):
                    break
            topic, _, payload = await sock.recv_multipart()
            assert topic == b""
            assert msgspec.msgpack.decode(payload, type=VllmBatch)[1]


async def test_without_events_there_are_no_sources() -> None:
    async with live(serve_spec()) as server, aiohttp.ClientSession(server.urls[0]) as client:
        response = await client.get("/kv_event_sources")
        assert await response.read() == b"{}"
        truth = await (await client.get("/sim/truth")).json()
        assert "kv_events" not in truth["workers"][0]


async def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = replace(WIDE, endpoint=f"tcp://127.0.0.1:{taken.getsockname()[1]}", bind=True)
        with pytest.raises(ConfigError, match="--kv-events-config: endpoint: tcp"):
            ClusterServer(spec_of(config))


def test_ranks_and_workers_count_up_from_the_given_ports() -> None:
    config = replace(
        WIDE, endpoint="tcp://*:5557", replay_endpoint="tcp://*:6557", topic="{worker}"
    )
    moved = placed(config, "w2", "m", 4, 1)
    assert (moved.endpoint, moved.replay_endpoint) == ("tcp://*:5562", "tcp://*:6562")
    assert moved.topic == "w2"
    central = replace(config, endpoint="tcp://epp:5557")
    assert placed(central, "w2", "m", 4, 1).endpoint == "tcp://epp:5558"
    assert placed(WIDE, "w2", "m", 4, 1).endpoint == "tcp://*:0"
