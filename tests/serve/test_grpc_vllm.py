"""`vllm.grpc.engine.VllmEngine`: a real channel and a server in the test's own loop."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from frontier_mock.client.clock import ClockClient
from frontier_mock.client.http1 import HttpClient
from frontier_mock.cluster.specs import ranks_of
from frontier_mock.serve.grpc_settings import VLLM_ENGINE
from frontier_mock.serve.up import ClusterServer, ServeSpec
from tests.serve.grpc_live import LEASE, answers, refused, target, with_grpc
from tests.serve.live import WARP, live, serve_spec

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def spec(**changes: Any) -> ServeSpec:
    return with_grpc(serve_spec(WARP, **changes), VLLM_ENGINE)


@pytest.fixture
async def server() -> AsyncIterator[ClusterServer]:
    async with live(spec()) as running:
        yield running


@pytest.fixture
async def channel(server: ClusterServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(target(server)) as opened:
        yield opened


@pytest.fixture
def engine(channel: Any) -> Any:
    return pb_grpc.VllmEngineStub(channel)


def request(prompt: list[int] | None = None, **changes: Any) -> pb.GenerateRequest:
    sampling = {"max_tokens": 5, "ignore_eos": True, **changes.pop("sampling", {})}
    return pb.GenerateRequest(
        **{
            "request_id": "r",
            "tokenized": pb.TokenizedInput(input_ids=prompt or [1, 2, 3]),
            "sampling_params": pb.SamplingParams(**sampling),
            **changes,
        }
    )


async def test_stream_is_deltas_then_the_last_one_again_as_complete(engine: Any) -> None:
    *chunks, last = await answers(engine.Generate(request(stream=True)))
    assert [message.WhichOneof("response") for message in chunks] == ["chunk"] * 5
    ids = [token for message in chunks for token in message.chunk.token_ids]
    assert [message.chunk.completion_tokens for message in chunks] == [1] * 5
    assert {message.chunk.prompt_tokens for message in chunks} == {3}
    complete = last.complete
    assert list(complete.output_ids) == ids[-1:]
    assert (complete.finish_reason, complete.completion_tokens) == ("length", 1)
    (whole,) = await answers(engine.Generate(request()))
    assert list(whole.complete.output_ids) == ids
    assert whole.complete.completion_tokens == 5


async def test_same_tokens_as_over_http(server: ClusterServer, engine: Any) -> None:
    http = HttpClient(server.urls[0])
    reply = await http.request(
        "POST",
        "/v1/completions",
        b'{"model":"mock","prompt":[9,8,7],"max_tokens":12,"seed":5,"return_token_ids":true}',
    )
    sampling = {"max_tokens": 12, "seed": 5, "ignore_eos": False}
    (message,) = await answers(engine.Generate(request([9, 8, 7], sampling=sampling)))
    assert (
        f'"token_ids":{list(message.complete.output_ids)}'.replace(" ", "") in reply.body.decode()
    )
    http.close()


async def test_choices_have_streams_of_their_own(engine: Any) -> None:
    messages = await answers(engine.Generate(request(stream=True, sampling={"n": 2})))
    kinds = {
        (m.WhichOneof("response"), getattr(m, m.WhichOneof("response")).index) for m in messages
    }
    assert kinds == {("chunk", 0), ("chunk", 1), ("complete", 0), ("complete", 1)}
    whole = await answers(engine.Generate(request(sampling={"n": 3})))
    assert [message.complete.index for message in whole] == [0, 1, 2]
    assert len({tuple(message.complete.output_ids) for message in whole}) > 1


async def test_logprobs_ride_along(engine: Any) -> None:
    wish = {"logprobs": 2, "prompt_logprobs": 1}
    first, *_, last = await answers(engine.Generate(request(stream=True, sampling=wish)))
    output = first.chunk.output_logprobs
    assert list(output.token_ids) == list(first.chunk.token_ids)
    assert output.token_logprobs[0] == output.top_logprobs[0].values[0] < 0
    assert len(output.top_logprobs[0].token_ids) == 2
    prompt = first.chunk.input_logprobs
    assert list(prompt.token_ids) == [1, 2, 3]
    assert [one.HasField("value") for one in prompt.token_logprobs] == [False, True, True]
    assert last.complete.HasField("input_logprobs")


async def test_stop_reason_says_what_matched(engine: Any) -> None:
    (plain,) = await answers(engine.Generate(request(sampling={"max_tokens": 20})))
    ids = list(plain.complete.output_ids)
    stop = {"max_tokens": 20, "stop_token_ids": [ids[6]], "min_tokens": 6}
    (message,) = await answers(engine.Generate(request(sampling=stop)))
    assert (message.complete.finish_reason, message.complete.matched_token_id) == ("stop", ids[6])
    assert list(message.complete.output_ids) == ids[:7]
    word = bytes(ids[4:7]).decode()
    (message,) = await answers(
        engine.Generate(request(sampling={"max_tokens": 20, "stop": [word]}))
    )
    assert (message.complete.finish_reason, message.complete.matched_stop_str) == ("stop", word)


async def test_trailer_has_virtual_times_and_lease_is_honoured(
    server: ClusterServer, engine: Any
) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        await clock.sleep("agent", 1_000_000)
        # smg sends no metadata; its request ids begin with the client's x-request-id.
        for carried in (
            {"metadata": LEASE},
            {"metadata": [("x-request-id", "fmock-agent--7")]},
            {},
        ):
            began_ns = clock.now_ns
            name = "r" if carried else "fmock-agent--8-c0ffee"
            call = engine.Generate(request(request_id=name, stream=True), **carried)
            assert len(await answers(call)) == 6
            trailer = dict(await call.trailing_metadata())
            assert int(trailer["x-frontier-arrival-ns"]) == began_ns
            assert trailer["x-frontier-output-tokens"] == "5"
            finish_ns = int(trailer["x-frontier-finish-ns"])
            assert began_ns < int(trailer["x-frontier-first-token-ns"]) < finish_ns
            # The lease is back, so time stands where the response ended.
            assert await clock.sleep("agent", 0) == finish_ns
    assert server.driver.keeper.stall_count == 0
    http.close()


async def test_refused_call_gives_its_lease_back(server: ClusterServer, engine: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        call = engine.Generate(request(sampling={"top_p": 7.0}), metadata=LEASE)
        code, _ = await refused(call)
        assert code == "INVALID_ARGUMENT"
        assert server.driver.keeper.actors["agent"].state.value == "held"
        assert await clock.sleep("agent", 50) == 50
    http.close()


async def test_cancelled_call_aborts_its_request(server: ClusterServer, engine: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["watch"]):
        # "watch" holds time, so the request cannot end by itself.
        call = engine.Generate(request(stream=True, sampling={"max_tokens": 4000}))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        call.cancel()
        while server.driver.in_flight:
            await asyncio.sleep(0)
    http.close()


async def test_abort_ends_a_call_with_what_there_is(server: ClusterServer, engine: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        reading = asyncio.ensure_future(
            answers(engine.Generate(request(stream=True, sampling={"max_tokens": 4000})))
        )
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        await clock.sleep("agent", 50_000_000)
        await engine.Abort(pb.AbortRequest(request_ids=["nobody", "r"]))
        await clock.sleep("agent", 60_000_000)
    messages = await reading
    assert messages[-1].complete.finish_reason == "abort"
    told = sum(len(message.chunk.token_ids) for message in messages)
    assert 0 < told < 100
    http.close()


async def test_refusals_are_statuses_with_the_engines_words(engine: Any) -> None:
    def ask(**changes: Any) -> Any:
        return engine.Generate(request(**changes))

    code, message = await refused(engine.Generate(pb.GenerateRequest(request_id="x")))
    assert (code, message) == ("INVALID_ARGUMENT", "The decoder prompt cannot be empty")
    code, message = await refused(ask(prompt=[1] * 4096))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith(
        "The decoder prompt (length 4096) plus the number of requested output tokens (at least 1)"
    )
    code, message = await refused(ask(prompt=[99999]))
    assert (code, message) == ("INVALID_ARGUMENT", "Token id 99999 is out of vocabulary")
    code, message = await refused(ask(sampling={"temperature": -1.0}))
    assert message.startswith("temperature must be non-negative, got -1.0.")
    code, message = await refused(ask(kv_transfer_params_json="[]"))
    assert (code, message) == ("INVALID_ARGUMENT", "kv_transfer_params_json must be a JSON object")
    pixels = pb.MultimodalInputs(pixel_values=pb.TensorData(dtype="float32"))
    code, message = await refused(ask(mm_inputs=pixels))
    assert (code, message.split(",")[0]) == ("INVALID_ARGUMENT", "mm_inputs are given")
    code, message = await refused(ask(data_parallel_rank=3))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "data_parallel_rank 3 is out of range [0, 1).",
    )
    code, _ = await refused(engine.Embed(pb.EmbedRequest(request_id="e")))
    assert code == "INVALID_ARGUMENT"
    code, message = await refused(
        engine.StartProfile(common_pb2.StartProfileRequest(output_dir="/tmp/x"))
    )
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("StartProfile options output_dir cannot be set per request")
    code, _ = await refused(engine.StopProfile(common_pb2.StopProfileRequest()))
    assert code == "INTERNAL"
    code, _ = await refused(engine.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()))
    assert code == "UNIMPLEMENTED"


async def test_full_queue_is_unavailable() -> None:
    async with (
        live(spec(max_num_queued_reqs=1)) as server,
        grpc.aio.insecure_channel(target(server)) as channel,
    ):
        engine = pb_grpc.VllmEngineStub(channel)
        http = HttpClient(server.urls[0])
        async with ClockClient(http, ["agent"]):
            first = asyncio.ensure_future(answers(engine.Generate(request())))
            while not server.driver.in_flight:
                await asyncio.sleep(0)
            code, message = await refused(engine.Generate(request(), metadata=LEASE))
            assert (code, message.split(".")[0]) == (
                "UNAVAILABLE",
                "The engine is currently busy and cannot accept new requests",
            )
        assert len(await first) == 1
        http.close()


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        ({"json_schema": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        ({"json_object": True}, {"json_object": True}),
        ({"choice": pb.ChoiceConstraint(choices=["yes", "no"])}, {"choice": ["yes", "no"]}),
        ({"regex": "a+"}, {"regex": "a+"}),
    ],
)
async def test_constraints_shape_the_output_as_over_http(
    server: ClusterServer, engine: Any, constraint: dict[str, Any], named: dict[str, Any]
) -> None:
    call = engine.Generate(request(sampling={"max_tokens": 200, "seed": 5, **constraint}))
    (answer,) = await answers(call)
    async with httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {"prompt": [1, 2, 3], "max_tokens": 200, "seed": 5, "ignore_eos": True}
        body = {**asked, "structured_outputs": named, "return_token_ids": True}
        (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert list(answer.complete.output_ids) == choice["token_ids"]
    assert answer.complete.finish_reason == choice["finish_reason"]
    if "json" in named:
        assert set(json.loads(choice["text"])) == {"name", "age"}


async def test_prompts_with_logprobs_of_their_own_do_not_read_the_cache(engine: Any) -> None:
    cached = []
    for sampling in ({}, {}, {"prompt_logprobs": 1}):
        (answer,) = await answers(engine.Generate(request(list(range(70)), sampling=sampling)))
        cached.append(answer.complete.cached_tokens)
    assert cached == [0, 64, 0]


async def test_bottomless_json_is_refused(engine: Any) -> None:
    code, message = await refused(engine.Generate(request(sampling={"json_schema": "[" * 100_000})))
    assert (code, message) == ("INVALID_ARGUMENT", "Invalid JSON grammar specification.")
    code, message = await refused(engine.Generate(request(kv_transfer_params_json="[" * 100_000)))
    assert (code, message.split(":")[0]) == (
        "INVALID_ARGUMENT",
        "Invalid kv_transfer_params_json",
    )


async def test_ranks_are_chosen_and_told_apart() -> None:
    one = spec()
    workers = ranks_of(replace(one.cluster.workers[0], dp_size=2))
    ranked = replace(
        one,
        cluster=replace(one.cluster, workers=workers),
        costs=[*one.costs] * 2,
        served=[replace(one.served[0], data_parallel_size=2)],
    )
    async with live(ranked) as server, grpc.aio.insecure_channel(target(server)) as channel:
        engine = pb_grpc.VllmEngineStub(channel)
        for rank in (1, 1, 0, 1):
            await answers(engine.Generate(request(data_parallel_rank=rank)))
        code, message = await refused(engine.Generate(request(data_parallel_rank=2)))
        assert (code, message) == (
            "INVALID_ARGUMENT",
            "data_parallel_rank 2 is out of range [0, 2).",
        )
        loads = await engine.GetLoads(pb.GetLoadsRequest())
        assert (loads.dp_rank_count, [load.dp_rank for load in loads.loads]) == (2, [0, 1])
        assert [worker["requests"] for worker in await report(server)] == [1, 3]
        reply = await engine.FlushCache(common_pb2.FlushCacheRequest())
        assert reply.success


async def report(server: ClusterServer) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=server.urls[0]) as client:
        workers: list[dict[str, Any]] = (await client.get("/sim/report")).json()["workers"]
    return workers


async def test_what_the_worker_says_of_itself(engine: Any) -> None:
    health = await engine.HealthCheck(pb.HealthCheckRequest())
    assert (health.healthy, health.message) == (True, "Health")
    model = await engine.GetModelInfo(pb.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length) == ("mock", 4096)
    assert (model.is_generation, list(model.eos_token_ids)) == (True, [258])
    info = await engine.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.server_type, info.block_size, info.max_num_seqs) == ("vllm-grpc", 16, 64)
    loads = await engine.GetLoads(pb.GetLoadsRequest())
    (load,) = loads.loads
    assert (load.max_total_num_tokens, load.num_running_reqs) == (65536, 0)


async def test_loads_follow_the_engine(server: ClusterServer, engine: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        call = asyncio.ensure_future(
            answers(engine.Generate(request(list(range(32)), sampling={"max_tokens": 400})))
        )
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        (load,) = (await engine.GetLoads(pb.GetLoadsRequest())).loads
        assert (load.num_running_reqs, load.num_waiting_uncached_tokens) == (0, 32)
        await clock.sleep("agent", 100_000_000)
        (load,) = (await engine.GetLoads(pb.GetLoadsRequest())).loads
        assert (load.num_running_reqs, load.num_waiting_uncached_tokens) == (1, 0)
        assert load.num_used_tokens >= 32
        reply = await engine.FlushCache(common_pb2.FlushCacheRequest(), metadata=LEASE)
        assert not reply.success
    await call
    reply = await engine.FlushCache(common_pb2.FlushCacheRequest())
    assert (reply.success, reply.message) == (True, "Local KV prefix cache flushed successfully")
    http.close()


async def test_tokenizer_comes_as_a_zip_archive(engine: Any) -> None:
    pieces = [one async for one in engine.GetTokenizer(common_pb2.GetTokenizerRequest())]
    data = b"".join(piece.data for piece in pieces)
    assert pieces[-1].sha256 == hashlib.sha256(data).hexdigest()
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= set(names)


async def test_health_and_reflection(channel: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", VLLM_ENGINE):
        status = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    code, message = await refused(health.Check(health_pb2.HealthCheckRequest(service="x")))
    assert (code, message) == ("NOT_FOUND", "Unknown service: x")
    watch = [one async for one in health.Watch(health_pb2.HealthCheckRequest(service="x"))]
    assert [one.status for one in watch] == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]
    from grpc_reflection.v1alpha import reflection_pb2 as reflected
    from grpc_reflection.v1alpha import reflection_pb2_grpc as reflected_grpc

    stub = reflected_grpc.ServerReflectionStub(channel)
    ask = stub.ServerReflectionInfo(iter([reflected.ServerReflectionRequest(list_services="")]))
    (listed,) = [one async for one in ask]
    assert VLLM_ENGINE in [one.name for one in listed.list_services_response.service]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff", b"\x12\x02\x0a"])
async def test_malformed_messages_are_refused(
    server: ClusterServer, channel: Any, data: bytes
) -> None:
    call = channel.unary_stream(f"/{VLLM_ENGINE}/Generate")(data)
    code, message = await refused(call)
    assert code == "UNKNOWN"
    assert "Traceback" not in message
    assert not server.driver.in_flight


async def test_unknown_fields_and_methods(channel: Any, engine: Any) -> None:
    known = request().SerializeToString()
    # Field 999, a string: what a newer client might send.
    more = known + b"\xba\x3e\x03new"
    call = channel.unary_stream(
        f"/{VLLM_ENGINE}/Generate", response_deserializer=pb.GenerateResponse.FromString
    )
    (with_more,) = await answers(call(more))
    (without,) = await answers(engine.Generate(request()))
    assert list(with_more.complete.output_ids) == list(without.complete.output_ids)
    other = channel.unary_unary("/sglang.grpc.scheduler.SglangScheduler/HealthCheck")
    assert (await refused(other(b"")))[0] == "UNIMPLEMENTED"
