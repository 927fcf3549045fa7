"""`sglang.grpc.scheduler.SglangScheduler`: a real channel and a server in the test's own loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from google.protobuf.json_format import MessageToDict
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as pb_grpc

from frontier_mock.client.clock import ClockClient
from frontier_mock.client.http1 import HttpClient
from frontier_mock.serve.grpc_settings import SGLANG_SCHEDULER
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.serving.speculation import SpeculationSpec
from tests.serve.grpc_live import LEASE, answers, refused, target, with_grpc
from tests.serve.live import WARP, live
from tests.serve.sglang_live import SCHEDULER, sglang_spec


def spec(**changes: Any) -> ServeSpec:
    changes.setdefault("server_args", {"tp_size": 1, "disaggregation_mode": "null"})
    return with_grpc(sglang_spec(WARP, **changes), SGLANG_SCHEDULER)


@pytest.fixture
async def server() -> AsyncIterator[ClusterServer]:
    async with live(spec()) as running:
        yield running


@pytest.fixture
async def scheduler(server: ClusterServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(target(server)) as channel:
        yield pb_grpc.SglangSchedulerStub(channel)


def request(prompt: list[int] | None = None, **changes: Any) -> pb.GenerateRequest:
    sampling = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "max_new_tokens": 5,
        "ignore_eos": True,
        **changes.pop("sampling", {}),
    }
    return pb.GenerateRequest(
        **{
            "request_id": "r",
            "tokenized": pb.TokenizedInput(input_ids=prompt or [1, 2, 3]),
            "sampling_params": pb.SamplingParams(**sampling),
            **changes,
        }
    )


async def test_schema_shapes_the_output_as_over_http(server: ClusterServer, scheduler: Any) -> None:
    schema = json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}})
    sampling = {"max_new_tokens": 100, "json_schema": schema}
    (answer,) = await answers(scheduler.Generate(request(sampling=sampling)))
    async with httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {"input_ids": [1, 2, 3], "sampling_params": {**sampling, "ignore_eos": True}}
        whole = (await client.post("/generate", json=asked)).json()
    assert list(answer.complete.output_ids) == whole["output_ids"]
    assert set(json.loads(whole["text"])) == {"age"}
    for wrong in ("{", "[" * 100_000):
        call = scheduler.Generate(request(sampling={"json_schema": wrong}))
        code, message = await refused(call)
        assert (code, message.split(":")[0]) == (
            "FAILED_PRECONDITION",
            "Failed to compile json grammar",
        )
        # smg answers 422 then, and does not try again.
        assert ("smg-constraint-failed", "engine") in [
            tuple(x) for x in await call.trailing_metadata()
        ]


async def test_stream_has_new_tokens_and_all_counts(scheduler: Any) -> None:
    *chunks, last = await answers(scheduler.Generate(request(stream=True)))
    assert [message.chunk.completion_tokens for message in chunks] == [1, 2, 3, 4, 5]
    assert {message.request_id for message in chunks} == {"r"}
    ids = [token for message in chunks for token in message.chunk.token_ids]
    assert list(last.complete.output_ids) == ids[-1:]
    assert (last.complete.finish_reason, last.complete.completion_tokens) == ("length", 5)
    assert last.complete.WhichOneof("matched_stop") is None
    (whole,) = await answers(scheduler.Generate(request()))
    assert list(whole.complete.output_ids) == ids


async def test_same_tokens_as_over_http(server: ClusterServer, scheduler: Any) -> None:
    http = HttpClient(server.urls[0])
    sampling = {"max_new_tokens": 9, "ignore_eos": True}
    body = {"input_ids": [9, 8, 7], "sampling_params": sampling}
    reply = await http.request("POST", "/generate", json.dumps(body).encode())
    (message,) = await answers(scheduler.Generate(request([9, 8, 7], sampling=sampling)))
    assert list(message.complete.output_ids) == json.loads(reply.body)["output_ids"]
    http.close()


async def test_samples_are_numbered_and_warmed(server: ClusterServer, scheduler: Any) -> None:
    prompt = list(range(40))
    whole = await answers(scheduler.Generate(request(prompt, sampling={"n": 3})))
    assert [message.complete.index for message in whole] == [0, 1, 2]
    # The hidden request has computed the prompt before the samples began.
    assert [message.complete.cached_tokens for message in whole] == [39, 39, 39]
    assert server.driver.engine.log.events[0].rid == 0
    streamed = await answers(scheduler.Generate(request(prompt, stream=True, sampling={"n": 2})))
    ends = [m.complete.index for m in streamed if m.WhichOneof("response") == "complete"]
    assert sorted(ends) == [0, 1]


async def test_figures_of_tokens(scheduler: Any) -> None:
    wish = {"return_logprob": True, "top_logprobs_num": 2, "token_ids_logprob": [65, 66]}
    first, second, *_ = await answers(scheduler.Generate(request(stream=True, **wish)))
    assert list(first.chunk.input_logprobs.token_ids) == [1, 2, 3]
    assert not first.chunk.input_logprobs.token_logprobs[0].HasField("value")
    assert not second.chunk.HasField("input_logprobs")
    output = second.chunk.output_logprobs
    assert list(output.token_ids) == list(second.chunk.token_ids)
    assert len(output.top_logprobs[0].token_ids) == 2
    assert list(output.token_ids_logprobs[0].token_ids) == [65, 66]
    only_output = {**wish, "logprob_start_len": -1}
    (message,) = await answers(scheduler.Generate(request(**only_output)))
    assert not message.complete.HasField("input_logprobs")


async def test_stop_says_what_matched(scheduler: Any) -> None:
    (plain,) = await answers(scheduler.Generate(request(sampling={"max_new_tokens": 20})))
    ids = list(plain.complete.output_ids)
    stop = {"max_new_tokens": 20, "ignore_eos": False, "stop_token_ids": [ids[3]]}
    (message,) = await answers(scheduler.Generate(request(sampling=stop)))
    assert message.complete.finish_reason == "stop"
    assert message.complete.matched_token_id == ids[3] == message.complete.output_ids[-1]


async def test_zero_of_protobuf_means_not_given(scheduler: Any) -> None:
    bare = pb.GenerateRequest(
        request_id="z",
        tokenized=pb.TokenizedInput(input_ids=[5]),
        sampling_params=pb.SamplingParams(max_new_tokens=2),
    )
    (message,) = await answers(scheduler.Generate(bare))
    assert len(message.complete.output_ids) == 2


async def test_lease_and_trailer(server: ClusterServer, scheduler: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        await clock.sleep("agent", 77)
        call = scheduler.Generate(request(stream=True, sampling={"n": 2}), metadata=LEASE)
        await answers(call)
        trailer = dict(await call.trailing_metadata())
        assert trailer["x-frontier-output-tokens"] == "10"
        assert await clock.sleep("agent", 0) == int(trailer["x-frontier-finish-ns"])
    assert server.driver.keeper.stall_count == 0
    http.close()


async def test_abort_is_by_prefix_and_leaves_what_there_is(
    server: ClusterServer, scheduler: Any
) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        call = scheduler.Generate(
            request(request_id="job-1", stream=True, sampling={"max_new_tokens": 3000})
        )
        reading = asyncio.ensure_future(answers(call))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        await clock.sleep("agent", 40_000_000)
        reply = await scheduler.Abort(pb.AbortRequest(request_id="job"))
        assert (reply.success, reply.message) == (True, "Request job aborted")
        await clock.sleep("agent", 50_000_000)
    *chunks, last = await reading
    assert last.complete.finish_reason == "abort"
    assert last.complete.completion_tokens == chunks[-1].chunk.completion_tokens > 0
    probe = await scheduler.Abort(pb.AbortRequest(request_id="HEALTH_CHECK_1"))
    assert (probe.success, probe.message) == (False, "Request HEALTH_CHECK_1 not found")
    http.close()


async def test_cancelled_call_aborts_its_request(server: ClusterServer, scheduler: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["watch"]):
        call = scheduler.Generate(request(stream=True, sampling={"max_new_tokens": 3000}))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        call.cancel()
        while server.driver.in_flight:
            await asyncio.sleep(0)
    http.close()


async def test_refusals_are_statuses_with_sglangs_words(
    server: ClusterServer, scheduler: Any
) -> None:
    def ask(**changes: Any) -> Any:
        return scheduler.Generate(request(**changes))

    code, message = await refused(scheduler.Generate(pb.GenerateRequest()))
    assert (code, message) == ("INVALID_ARGUMENT", "Tokenized input must be provided")
    code, message = await refused(ask(prompt=[1] * 4096))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "The input (4096 tokens) is longer than the model's context length (4096 tokens).",
    )
    _, message = await refused(ask(sampling={"temperature": -1.0}))
    assert message.startswith("temperature must be a non-negative finite number")
    _, message = await refused(ask(data_parallel_rank=2))
    assert message == "routed_dp_rank=2 out of range [0, 1)"
    _, message = await refused(ask(return_hidden_states=True))
    assert message.startswith("The server is not configured to return hidden states.")
    code, message = await refused(scheduler.Embed(pb.EmbedRequest()))
    assert (code, message) == ("INVALID_ARGUMENT", "Tokenized input must be provided")
    code, _ = await refused(scheduler.ListLoadedLoRAAdapters(pb.ListLoadedLoRAAdaptersRequest()))
    assert code == "UNIMPLEMENTED"
    code, _ = await refused(scheduler.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()))
    assert code == "UNIMPLEMENTED"
    code, message = await refused(scheduler.GetLoads(pb.GetLoadsRequest(include=["nonsense"])))
    assert code == "INVALID_ARGUMENT"
    assert not server.driver.in_flight


async def test_same_id_twice_is_refused(server: ClusterServer, scheduler: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]):
        first = asyncio.ensure_future(answers(scheduler.Generate(request())))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        code, message = await refused(scheduler.Generate(request()))
        assert (code, message) == ("INVALID_ARGUMENT", "Duplicate request ID detected: r")
    assert len(await first) == 1
    # The id is free again.
    assert len(await answers(scheduler.Generate(request()))) == 1
    http.close()


async def test_what_the_worker_says_of_itself(scheduler: Any) -> None:
    health = await scheduler.HealthCheck(pb.HealthCheckRequest())
    assert (health.healthy, health.message) == (True, "Health check passed")
    model = await scheduler.GetModelInfo(pb.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length) == ("mock", 4096)
    assert (model.weight_version, list(model.eos_token_ids)) == ("default", [258])
    info = await scheduler.GetServerInfo(pb.GetServerInfoRequest())
    args = MessageToDict(info.server_args)
    assert (args["tp_size"], args["max_running_requests"]) == (1, 64)
    assert (info.server_type, info.max_total_num_tokens) == ("grpc", 65536)


async def test_loads_are_those_of_http(server: ClusterServer, scheduler: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        call = asyncio.ensure_future(
            answers(scheduler.Generate(request(sampling={"max_new_tokens": 400})))
        )
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        await clock.sleep("agent", 100_000_000)
        answer = await scheduler.GetLoads(pb.GetLoadsRequest())
        (load,) = answer.loads
        assert (load.num_running_reqs, load.num_total_reqs) == (1, 1)
        assert answer.aggregate.total_reqs == 1
        over_http = json.loads((await http.request("GET", "/v1/loads")).body)["loads"][0]
        assert load.num_used_tokens == over_http["num_used_tokens"] > 0
        assert load.memory.token_capacity == 65536
        assert load.HasField("queues")
        core = await scheduler.GetLoads(pb.GetLoadsRequest(include=["core"]))
        assert not core.loads[0].HasField("queues")
        assert not (await scheduler.GetLoads(pb.GetLoadsRequest(dp_rank=1))).loads
        flush = common_pb2.FlushCacheRequest()
        assert not (await scheduler.FlushCache(flush, metadata=LEASE)).success
    await call
    done = await scheduler.FlushCache(common_pb2.FlushCacheRequest())
    assert (done.success, done.message) == (True, "Cache flushed successfully")
    http.close()


async def test_profiling_begins_and_ends_once(scheduler: Any) -> None:
    start, stop = common_pb2.StartProfileRequest(), common_pb2.StopProfileRequest()
    assert not (await scheduler.StopProfile(stop)).success
    assert (await scheduler.StartProfile(start)).success
    assert (await scheduler.StartProfile(start)).message == (
        "Profiling is already in progress. Call /stop_profile first."
    )
    assert (await scheduler.StopProfile(stop)).success


async def test_tokenizer(scheduler: Any) -> None:
    pieces = await answers(scheduler.GetTokenizer(common_pb2.GetTokenizerRequest()))
    assert pieces[-1].sha256
    assert b"".join(piece.data for piece in pieces)[:2] == b"PK"


async def test_resubmitted_output_goes_on_and_chance_does_not(scheduler: Any) -> None:
    prompt = list(b"What next?")
    (uncut,) = await answers(scheduler.Generate(request(prompt, sampling={"max_new_tokens": 60})))
    ids = list(uncut.complete.output_ids)
    again = request(prompt + ids[:20], sampling={"max_new_tokens": 40})
    (rest,) = await answers(scheduler.Generate(again))
    assert list(rest.complete.output_ids) == ids[20:]
    # A few tokens are what any text may end with: over HTTP, too, it would be a new prompt.
    (other,) = await answers(scheduler.Generate(request(prompt + ids[:3])))
    assert list(other.complete.output_ids) != ids[3:8]


async def test_a_stream_carries_what_each_verification_accepted() -> None:
    drafting = SpeculationSpec(3, (1.0, 1.0, 0.0), reserve=8, width=4)
    scheduler = replace(SCHEDULER, speculation=drafting)
    async with (
        live(spec(scheduler=scheduler, verified_tokens=4)) as running,
        grpc.aio.insecure_channel(target(running)) as channel,
    ):
        stub = pb_grpc.SglangSchedulerStub(channel)
        told = await answers(stub.Generate(request(sampling={"max_new_tokens": 9}, stream=True)))
        (load,) = (await stub.GetLoads(pb.GetLoadsRequest(include=["spec"]))).loads
    counts = [len(one.chunk.token_ids) for one in told if one.HasField("chunk")]
    # The prompt's step brings one token, each verification three, and the last one is cut at 9.
    assert counts == [1, 3, 3, 2]
    complete = told[-1].complete
    assert (complete.spec_accepted_tokens, complete.spec_draft_tokens) == (6, 9)
    assert load.speculative.accept_length == 3.0
    assert load.speculative.accept_rate == pytest.approx(2 / 3)
