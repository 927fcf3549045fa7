"""SubscribeKvEvents: what a subscriber believes is what the cache holds."""

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")
pytest.importorskip("zmq")

from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as sglang_grpc
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as vllm_grpc

from frontier_mock.client.http1 import HttpClient
from frontier_mock.config.kv_events import KvEventsConfig, KvSource
from frontier_mock.serve.grpc_settings import (
    SGLANG_SCHEDULER,
    VLLM_ENGINE,
    VLLM_INFERENCE,
)
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.stubs import vllm_inference_pb2 as inference_pb
from frontier_mock.stubs import vllm_inference_pb2_grpc as inference_grpc
from tests.serve.grpc_live import refused, target, with_grpc
from tests.serve.live import WARP, live, serve_spec
from tests.serve.sglang_live import sglang_spec

CONFIG = KvEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint="tcp://*:0")


def publishing(spec: ServeSpec, source: KvSource, num_blocks: int) -> ServeSpec:
    """The same server, telling what its cache does."""
    (worker,) = spec.cluster.workers
    size = "num_pages" if hasattr(worker.scheduler, "num_pages") else "num_blocks"
    changes: dict[str, Any] = {"enable_kv_cache_events": True, size: num_blocks}
    scheduler = replace(worker.scheduler, **changes)
    return replace(
        spec,
        cluster=replace(spec.cluster, workers=(replace(worker, scheduler=scheduler),)),
        served=[replace(served, keeps_tokens=True) for served in spec.served],
        kv_sources={0: source},
    )


VLLM = KvSource(CONFIG, 0, 16, "vllm-map", "sha256_cbor")
SGLANG = KvSource(CONFIG, 0, 1, "sglang-map")


@asynccontextmanager
async def subscribed(spec: ServeSpec, stub: Any) -> Any:
    async with live(spec) as server, grpc.aio.insecure_channel(target(server)) as channel:
        yield server, stub(channel).SubscribeKvEvents


async def ask(server: ClusterServer, prompt: list[int], tokens: int = 40) -> None:
    http = HttpClient(server.urls[0])
    body = f'{{"model":"mock","prompt":{prompt},"max_tokens":{tokens},"ignore_eos":true}}'
    assert (await http.request("POST", "/v1/completions", body.encode())).status == 200
    http.close()


def prompts(count: int) -> Iterator[list[int]]:
    for number in range(count):
        yield [1 + (number * 7 + i) % 200 for i in range(100)]


async def believed(call: Any, batches: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """Blocks by their names with their tokens, after so many batches; and how many were removed."""
    cached: dict[int, tuple[int, ...]] = {}
    event_id = removed = 0
    for number in range(batches):
        batch = await call.read()
        assert (batch.sequence_number, batch.dp_rank) == (number, 0)
        for event in batch.events:
            event_id += 1
            assert event.event_id == event_id
            if event.HasField("stored"):
                parent = event.stored.parent_block_hash
                assert not event.stored.HasField("parent_block_hash") or parent in cached
                for block in event.stored.blocks:
                    assert len(block.token_ids) == block.block_size
                    cached[block.block_hash] = tuple(block.token_ids)
            elif event.HasField("removed"):
                for name in event.removed.block_hashes:
                    del cached[name]
                    removed += 1
            else:
                cached.clear()
    return cached, removed


async def test_vllm_tells_the_truth_while_it_evicts() -> None:
    spec = with_grpc(publishing(serve_spec(WARP), VLLM, 260), VLLM_ENGINE)
    async with subscribed(spec, vllm_grpc.VllmEngineStub) as (server, subscribe):
        call = subscribe(common_pb2.SubscribeKvEventsRequest())
        # Headers come at once, so that the subscriber knows that it is one.
        await call.initial_metadata()
        for prompt in prompts(45):
            await ask(server, prompt)
        assert server.kv_events is not None
        (publisher,) = server.kv_events.publishers.values()
        cached, removed = await asyncio.wait_for(believed(call, publisher.num_batches), 30)
        assert removed > 50
        assert len(cached) == server.cluster.workers[0].kv.num_cached == publisher.mapper.num_blocks
        unsigned = {name % (1 << 64) for name in cached}
        assert unsigned == set(publisher.mapper.event_hashes())
        call.cancel()
        while publisher._listeners:
            await asyncio.sleep(0)


async def test_late_subscriber_begins_with_the_present() -> None:
    spec = with_grpc(publishing(serve_spec(WARP), VLLM, 260), VLLM_ENGINE)
    async with subscribed(spec, vllm_grpc.VllmEngineStub) as (server, subscribe):
        await ask(server, list(range(1, 80)))
        assert server.kv_events is not None
        (publisher,) = server.kv_events.publishers.values()
        before = publisher.num_batches
        assert before > 0
        call = subscribe(common_pb2.SubscribeKvEventsRequest())
        await call.initial_metadata()
        await ask(server, list(range(100, 180)))
        batch = await call.read()
        assert batch.sequence_number == before
        call.cancel()


async def test_sglang_tells_pages_of_single_tokens() -> None:
    spec = with_grpc(publishing(sglang_spec(WARP), SGLANG, 5000), SGLANG_SCHEDULER)
    async with subscribed(spec, sglang_grpc.SglangSchedulerStub) as (server, subscribe):
        call = subscribe(common_pb2.SubscribeKvEventsRequest())
        await call.initial_metadata()
        await ask(server, list(range(1, 30)), 10)
        assert server.kv_events is not None
        (publisher,) = server.kv_events.publishers.values()
        cached, _ = await asyncio.wait_for(believed(call, publisher.num_batches), 30)
        assert set(map(len, cached.values())) == {1}
        assert [tokens[0] for tokens in cached.values()][:29] == list(range(1, 30))
        call.cancel()


async def test_cursors_are_refused() -> None:
    spec = with_grpc(publishing(serve_spec(WARP), VLLM, 260), VLLM_ENGINE)
    async with subscribed(spec, vllm_grpc.VllmEngineStub) as (_, subscribe):
        code, message = await refused(
            subscribe(common_pb2.SubscribeKvEventsRequest(start_sequence_number=3))
        )
    assert code == "OUT_OF_RANGE"
    assert message.startswith("KV event replay cursors are per subscription")


async def test_blocks_know_their_session_and_salt() -> None:
    both = (VLLM_ENGINE, VLLM_INFERENCE)
    spec = with_grpc(publishing(serve_spec(WARP), VLLM, 260), *both)
    async with live(spec) as server, grpc.aio.insecure_channel(target(server)) as channel:
        call = vllm_grpc.VllmEngineStub(channel).SubscribeKvEvents(
            common_pb2.SubscribeKvEventsRequest()
        )
        await call.initial_metadata()
        request = inference_pb.GenerateRequest(
            token_ids=inference_pb.TokenIds(ids=range(40)),
            stopping=inference_pb.StoppingCriteria(max_new_tokens=1),
            session_id="s",
            kv=inference_pb.KVCacheParameters(cache_salt="salt"),
        )
        await inference_grpc.InferenceStub(channel).Generate(request)
        batch = await call.read()
        stored = batch.events[0].stored
        assert (stored.session_id, stored.cache_salt, len(stored.blocks)) == ("s", "salt", 2)
        call.cancel()
