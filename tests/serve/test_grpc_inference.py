"""`vllm.Inference` and `vllm.Control`: a real channel and a server in the test's own loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from frontier_mock.client.clock import ClockClient
from frontier_mock.client.http1 import HttpClient
from frontier_mock.serve.grpc_settings import VLLM_CONTROL, VLLM_INFERENCE
from frontier_mock.serve.up import ClusterServer
from frontier_mock.stubs import vllm_control_pb2 as control_pb
from frontier_mock.stubs import vllm_control_pb2_grpc as control_grpc
from frontier_mock.stubs import vllm_inference_pb2 as pb
from frontier_mock.stubs import vllm_inference_pb2_grpc as pb_grpc
from frontier_mock.wire.deployment import Deployment
from tests.serve.grpc_live import LEASE, answers, refused, target, with_grpc
from tests.serve.live import WARP, live, serve_spec
from tests.serve.rl import rl_spec

UPDATE = b'{"names": ["a"], "dtype_names": ["bfloat16"], "shapes": [[1000000000, 4]]}'


@pytest.fixture
async def server() -> AsyncIterator[ClusterServer]:
    async with live(with_grpc(serve_spec(WARP), VLLM_INFERENCE, VLLM_CONTROL)) as running:
        yield running


@pytest.fixture
async def channel(server: ClusterServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(target(server)) as opened:
        yield opened


@pytest.fixture
def inference(channel: Any) -> Any:
    return pb_grpc.InferenceStub(channel)


@pytest.fixture
def control(channel: Any) -> Any:
    return control_grpc.ControlStub(channel)


def request(tokens: int = 5, **changes: Any) -> pb.GenerateRequest:
    stopping = pb.StoppingCriteria(max_new_tokens=tokens, ignore_eos=True)
    if "text" not in changes:
        changes.setdefault("token_ids", pb.TokenIds(ids=[1, 2, 3]))
    return pb.GenerateRequest(**{"request_id": "r", "stopping": stopping, **changes})


async def test_stream_begins_with_the_prompt(inference: Any) -> None:
    wishes = pb.ResponseOptions(output_token_ids=True, prompt_token_ids=True)
    first, *rest = await answers(inference.GenerateStream(request(response=wishes)))
    assert (first.prompt_info.num_prompt_tokens, first.HasField("outputs")) == (3, False)
    assert list(first.prompt_info.token_ids) == [1, 2, 3]
    assert [message.outputs.num_tokens for message in rest] == [1] * 5
    assert [m.outputs.HasField("finish_info") for m in rest] == [False] * 4 + [True]
    end = rest[-1].outputs.finish_info
    assert (end.num_output_tokens, end.finish_reason) == (5, pb.FinishInfo.LENGTH)
    whole = await inference.Generate(request(response=wishes))
    assert whole.outputs.text == "".join(message.outputs.text for message in rest)
    ids = [token for message in rest for token in message.outputs.token_ids]
    assert list(whole.outputs.token_ids) == ids
    assert whole.prompt_info.num_prompt_tokens == 3


async def test_answer_has_what_was_asked_for(inference: Any) -> None:
    silent = pb.ResponseOptions(output_text=False)
    outputs = (await inference.Generate(request(response=silent))).outputs
    assert (outputs.text, list(outputs.token_ids), outputs.num_tokens) == ("", [], 5)
    wishes = pb.ResponseOptions(
        output_logprobs=True,
        output_candidates=pb.CandidateTokens(top_n=3),
        prompt_logprobs=True,
        prompt_candidates=pb.CandidateTokens(top_n=1),
    )
    answer = await inference.Generate(request(response=wishes))
    assert list(answer.outputs.ranks) == [1] * 5
    # The token itself is the first of the three.
    assert [len(one.tokens) for one in answer.outputs.candidate_tokens] == [2] * 5
    assert answer.prompt_info.logprobs[0] == 0.0
    assert len(answer.prompt_info.logprobs) == 3
    chosen = pb.ResponseOptions(
        output_logprobs=True,
        output_candidates=pb.CandidateTokens(token_ids=pb.TokenIds(ids=[65])),
    )
    answer = await inference.Generate(request(response=chosen))
    asked = {token.id for one in answer.outputs.candidate_tokens for token in one.tokens}
    assert asked == {65}


async def test_constraints_shape_the_output(inference: Any) -> None:
    yes = pb.DecodingParameters.StringChoices(choices=["yes", "yes"])
    decoding = pb.DecodingParameters(choice=yes)
    answer = await inference.Generate(request(40, decoding=decoding))
    assert answer.outputs.text == "yes"
    assert answer.outputs.finish_info.finish_reason == pb.FinishInfo.STOP
    decoding = pb.DecodingParameters(json='{"type": "array", "items": {"type": "integer"}}')
    answer = await inference.Generate(request(40, decoding=decoding))
    assert all(isinstance(item, int) for item in json.loads(answer.outputs.text))


async def test_stop_reasons(inference: Any) -> None:
    wishes = pb.ResponseOptions(output_token_ids=True)
    plain = (await inference.Generate(request(20, response=wishes))).outputs
    ids = list(plain.token_ids)
    stopping = pb.StoppingCriteria(max_new_tokens=20, ignore_eos=True, stop_token_ids=[ids[2]])
    end = (await inference.Generate(request(stopping=stopping))).outputs.finish_info
    assert (end.finish_reason, end.stop_token_id) == (pb.FinishInfo.STOP, ids[2])
    stopping = pb.StoppingCriteria(
        max_new_tokens=20, ignore_eos=True, stop_strings=[plain.text[3:6]]
    )
    outputs = (await inference.Generate(request(stopping=stopping))).outputs
    assert outputs.finish_info.stop_string == plain.text[3:6]
    assert plain.text.startswith(outputs.text)


async def test_lease_is_honoured(server: ClusterServer, inference: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        salted = request(kv=pb.KVCacheParameters(cache_salt="fmock-agent--s"))
        for begin in (
            lambda: inference.GenerateStream(request(), metadata=LEASE),
            lambda: inference.Generate(request(), metadata=LEASE),
            # What is left when a router hands nothing else on.
            lambda: inference.Generate(salted),
        ):
            call = begin()
            await (answers(call) if hasattr(call, "__aiter__") else call)
            trailer = dict(await call.trailing_metadata())
            assert await clock.sleep("agent", 0) == int(trailer["x-frontier-finish-ns"])
    assert server.driver.keeper.stall_count == 0
    http.close()


async def test_refusals(inference: Any) -> None:
    def ask(**changes: Any) -> Any:
        return inference.Generate(request(**changes))

    assert await refused(ask(model="other")) == ("NOT_FOUND", "model `other` not found")
    nothing = pb.GenerateRequest(stopping=pb.StoppingCriteria(max_new_tokens=1))
    assert await refused(inference.Generate(nothing)) == ("INVALID_ARGUMENT", "prompt is required")
    several = pb.RandomSampling(num_sequences=2)
    assert await refused(ask(sampling=several)) == (
        "INVALID_ARGUMENT",
        "num_sequences > 1 is not supported",
    )
    code, _ = await refused(ask(lora_name="a"))
    assert code == "FAILED_PRECONDITION"
    code, message = await refused(ask(decoding=pb.DecodingParameters(json="{")))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("invalid json schema")
    call = inference.Generate(request(), metadata=[("x-data-parallel-rank", "one")])
    assert await refused(call) == (
        "INVALID_ARGUMENT",
        "x-data-parallel-rank metadata must be an unsigned 32-bit integer",
    )
    call = inference.GenerateStream(request(text="x" * 5000))
    code, message = await refused(call)
    assert code == "INVALID_ARGUMENT"
    assert "longer than the maximum model length" in message


async def test_what_the_worker_says_of_itself(control: Any) -> None:
    info = await control.GetServerInfo(control_pb.GetServerInfoRequest())
    assert (info.api_version, info.max_model_len, info.kv_block_size) == ("vllm", 4096, 16)
    assert (info.total_kv_blocks, info.max_running_requests) == (4096, 64)
    model = await control.GetModelInfo(control_pb.GetModelInfoRequest())
    assert (model.model_id, model.served_model_name) == ("/models/mock", "mock")
    assert list(model.served_model_aliases) == ["alias"]
    sources = await control.GetKvEventSources(control_pb.GetKvEventSourcesRequest())
    assert not sources.sources


async def test_pause_and_resume(server: ClusterServer, inference: Any, control: Any) -> None:
    await control.PauseGeneration(
        control_pb.PauseGenerationRequest(mode=control_pb.PAUSE_MODE_KEEP, clear_cache=False)
    )
    assert (await control.IsPaused(control_pb.IsPausedRequest())).paused
    reading = asyncio.ensure_future(answers(inference.GenerateStream(request())))
    while not server.driver.in_flight:
        await asyncio.sleep(0)
    await control.ResumeGeneration(control_pb.ResumeGenerationRequest())
    assert len(await reading) == 6
    assert not (await control.IsPaused(control_pb.IsPausedRequest())).paused
    wrong = control_pb.PauseGenerationRequest(mode=9)
    assert await refused(control.PauseGeneration(wrong)) == (
        "INVALID_ARGUMENT",
        "invalid pause mode",
    )


async def test_what_it_was_not_started_for(control: Any) -> None:
    code, message = await refused(control.Sleep(control_pb.SleepRequest()))
    assert (code, message.split(";")[0]) == ("FAILED_PRECONDITION", "sleep mode is not configured")
    code, _ = await refused(control.StartWeightUpdate(control_pb.StartWeightUpdateRequest()))
    assert code == "FAILED_PRECONDITION"
    code, _ = await refused(control.ListLoras(control_pb.ListLorasRequest()))
    assert code == "FAILED_PRECONDITION"
    assert not (await control.IsSleeping(control_pb.IsSleepingRequest())).sleeping
    empty = control_pb.UpdateWeightVersionRequest(weight_version=" ")
    assert (await refused(control.UpdateWeightVersion(empty)))[0] == "INVALID_ARGUMENT"
    await control.UpdateWeightVersion(control_pb.UpdateWeightVersionRequest(weight_version="7"))
    version = await control.GetWeightVersion(control_pb.GetWeightVersionRequest())
    assert version.weight_version == "7"


async def test_weights_come_and_go_as_they_do_over_http() -> None:
    spec = with_grpc(rl_spec(WARP), VLLM_INFERENCE, VLLM_CONTROL)
    async with live(spec) as server, grpc.aio.insecure_channel(target(server)) as channel:
        stub = control_grpc.ControlStub(channel)
        told = (await stub.GetServerInfo(control_pb.GetServerInfoRequest())).rl_capabilities
        assert (told.weight_transfer_backend, told.sleep_mode_enabled) == ("nccl", True)
        await stub.Sleep(control_pb.SleepRequest(level=1))
        assert (await stub.IsSleeping(control_pb.IsSleepingRequest())).sleeping
        await stub.WakeUp(control_pb.WakeUpRequest(tags=["weights"]))
        assert (await stub.IsSleeping(control_pb.IsSleepingRequest())).sleeping
        await stub.WakeUp(control_pb.WakeUpRequest())
        assert not (await stub.IsSleeping(control_pb.IsSleepingRequest())).sleeping
        await stub.InitWeightTransferEngine(
            control_pb.InitWeightTransferEngineRequest(init_info_json=b"{}")
        )
        update = control_pb.UpdateWeightsRequest(update_info_json=UPDATE)
        code, message = await refused(stub.UpdateWeights(update))
        assert (code, message.split(":")[0]) == ("INTERNAL", "update_weights failed")
        await stub.StartWeightUpdate(control_pb.StartWeightUpdateRequest())
        began_ns = server.driver.now_ns()
        await stub.UpdateWeights(update)
        assert server.driver.now_ns() - began_ns == 200_000_000
        await stub.FinishWeightUpdate(control_pb.FinishWeightUpdateRequest(weight_version="8"))
        version = await stub.GetWeightVersion(control_pb.GetWeightVersionRequest())
        assert version.weight_version == "8"
        for wrong in (b"[", b"[]", b"[" * 100_000):
            call = stub.UpdateWeights(control_pb.UpdateWeightsRequest(update_info_json=wrong))
            assert (await refused(call))[0] == "INVALID_ARGUMENT"


async def test_adapters_come_and_go() -> None:
    spec = with_grpc(serve_spec(WARP), VLLM_INFERENCE, VLLM_CONTROL)
    gpus = Deployment(max_loras=2)
    spec = replace(spec, served=[replace(model, deployment=gpus) for model in spec.served])
    async with live(spec) as server, grpc.aio.insecure_channel(target(server)) as channel:
        control, inference = control_grpc.ControlStub(channel), pb_grpc.InferenceStub(channel)
        assert (await control.GetServerInfo(control_pb.GetServerInfoRequest())).max_loras == 2
        assert (await control.GetModelInfo(control_pb.GetModelInfoRequest())).supports_lora
        with_adapter = request(20, lora_name="step-1")
        code, _ = await refused(inference.Generate(with_adapter))
        assert code == "NOT_FOUND"
        load = control_pb.LoadLoraRequest(lora_name="step-1", source_path="/ckpt/1")
        loaded = (await control.LoadLora(load)).adapter
        assert (loaded.lora_id, loaded.lora_name, loaded.source_path) == (1, "step-1", "/ckpt/1")
        code, message = await refused(control.LoadLora(load))
        assert (code, "already been loaded" in message) == ("INVALID_ARGUMENT", True)
        listed = await control.ListLoras(control_pb.ListLorasRequest())
        assert list(listed.adapters) == [loaded]
        said = (await inference.Generate(with_adapter)).outputs.text
        assert said != (await inference.Generate(request(20))).outputs.text
        async with httpx.AsyncClient(base_url=server.urls[0]) as client:
            asked = {"model": "step-1", "prompt": [1, 2, 3], "max_tokens": 20, "ignore_eos": True}
            answer = (await client.post("/v1/completions", json=asked)).json()
        assert answer["choices"][0]["text"] == said
        unload = control_pb.UnloadLoraRequest(lora_name="step-1")
        assert (await control.UnloadLora(unload)).adapter == loaded
        assert (await refused(control.UnloadLora(unload)))[0] == "NOT_FOUND"
        pathless = control_pb.LoadLoraRequest(lora_name="x")
        assert (await refused(control.LoadLora(pathless)))[0] == "INVALID_ARGUMENT"


async def test_abort(server: ClusterServer, inference: Any, control: Any) -> None:
    http = HttpClient(server.urls[0])
    async with ClockClient(http, ["agent"]) as clock:
        reading = asyncio.ensure_future(answers(inference.GenerateStream(request(4000))))
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        await clock.sleep("agent", 50_000_000)
        await control.Abort(control_pb.AbortRequest(request_ids=["r"]))
        await clock.sleep("agent", 60_000_000)
    messages = await reading
    end = messages[-1].outputs.finish_info
    assert end.finish_reason == pb.FinishInfo.ABORTED
    assert end.num_output_tokens == sum(message.outputs.num_tokens for message in messages) > 0
    http.close()


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({}, 64),
        ({"kv": pb.KVCacheParameters(bypass_prefix_cache=True)}, 0),
        ({"response": pb.ResponseOptions(prompt_logprobs=True)}, 0),
    ],
)
async def test_some_requests_do_not_read_the_cache(
    inference: Any, changes: dict[str, Any], cached: int
) -> None:
    prompt = pb.TokenIds(ids=range(70))
    await inference.Generate(request(token_ids=prompt))
    call = inference.Generate(request(token_ids=prompt, **changes))
    await call
    assert dict(await call.trailing_metadata())["x-frontier-cached-tokens"] == str(cached)


async def test_salt_that_carries_a_lease_is_the_salt_behind_it(inference: Any) -> None:
    def salted(salt: str) -> pb.GenerateRequest:
        wishes = pb.ResponseOptions(output_token_ids=True)
        return request(kv=pb.KVCacheParameters(cache_salt=salt), response=wishes)

    texts = [
        (await inference.Generate(salted(salt))).outputs.text
        for salt in ("", "fmock-x--", "s", "fmock-x--s", "fmock-x")
    ]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert len(set(texts)) == 3
