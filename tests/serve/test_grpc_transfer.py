"""Prompts whose KV does not come, as callers over gRPC hear of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from frontier_mock.serve.grpc_settings import (
    SGLANG_SCHEDULER,
    VLLM_ENGINE,
    VLLM_INFERENCE,
)
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.stubs import vllm_inference_pb2, vllm_inference_pb2_grpc
from frontier_mock.wire.grpc_transfer import to_struct
from tests.serve.grpc_live import answers, refused, with_grpc
from tests.serve.live import live
from tests.serve.test_disaggregation import sglang_spec, vllm_spec

PROMPT = list(range(64))
GONE = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2]],
    "remote_engine_id": "p-engine",
    "remote_request_id": "cmpl-nobody-0-deadbeef",
    "remote_host": "localhost",
    "remote_port": 5600,
    "tp_size": 1,
}


@asynccontextmanager
async def opened(spec: ServeSpec, side: int, *services: str) -> AsyncIterator[Any]:
    """A channel to one of a prefill and a decode server."""
    async with (
        live(with_grpc(spec, *services)) as server,
        grpc.aio.insecure_channel(_address(server, side)) as channel,
    ):
        yield channel


def _address(server: ClusterServer, side: int) -> str:
    port = server.grpc_ports[side]
    assert port is not None
    return port.url.removeprefix("grpc://")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("side", "words"), [(0, "Prefill bootstrap failed"), (1, "Decode handshake failed")]
)
async def test_leg_that_stays_alone_is_internal(side: int, words: str, stream: bool) -> None:
    async with opened(sglang_spec(patience_s=1.0), side, SGLANG_SCHEDULER) as channel:
        stub = sglang_scheduler_pb2_grpc.SglangSchedulerStub(channel)
        request = sglang_scheduler_pb2.GenerateRequest(
            request_id="r",
            tokenized=sglang_scheduler_pb2.TokenizedInput(input_ids=PROMPT),
            sampling_params=sglang_scheduler_pb2.SamplingParams(temperature=1, max_new_tokens=6),
            disaggregated_params=sglang_scheduler_pb2.DisaggregatedParams(
                bootstrap_host="127.0.0.1", bootstrap_port=8998, bootstrap_room=7
            ),
            stream=stream,
        )
        code, message = await refused(stub.Generate(request))
        assert (code, words in message) == ("INTERNAL", True)


async def test_blocks_that_are_gone_end_vllm_in_error() -> None:
    async with opened(vllm_spec(), 1, VLLM_ENGINE) as channel:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        request = vllm_engine_pb2.GenerateRequest(
            request_id="r",
            tokenized=vllm_engine_pb2.TokenizedInput(input_ids=PROMPT),
            sampling_params=vllm_engine_pb2.SamplingParams(max_tokens=6),
            kv_transfer_params_json=json.dumps(GONE),
            stream=True,
        )
        *_, last = await answers(stub.Generate(request))
        assert last.complete.finish_reason == "error"


@pytest.mark.parametrize("stream", [False, True])
async def test_blocks_that_are_gone_are_internal_in_the_own_dialect(stream: bool) -> None:
    async with opened(vllm_spec(), 1, VLLM_INFERENCE) as channel:
        stub = vllm_inference_pb2_grpc.InferenceStub(channel)
        request = vllm_inference_pb2.GenerateRequest(
            request_id="r",
            token_ids=vllm_inference_pb2.TokenIds(ids=PROMPT),
            stopping=vllm_inference_pb2.StoppingCriteria(max_new_tokens=6),
            kv=vllm_inference_pb2.KVCacheParameters(kv_transfer_params=to_struct(GONE)),
        )
        call = stub.GenerateStream(request) if stream else stub.Generate(request)
        assert await refused(call) == ("INTERNAL", "Internal server error")
