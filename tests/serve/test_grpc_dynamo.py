"""The calls of NVIDIA Dynamo's vLLM sidecar (1.6.1), one by one, and what it reads of the answers.

They were written down from the sidecar itself, which `tests/integration/test_dynamo.py` drives
where it is installed.
"""

from dataclasses import replace

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontier_mock.serve.grpc_settings import VLLM_CONTROL, VLLM_INFERENCE
from frontier_mock.stubs import vllm_control_pb2 as control_pb
from frontier_mock.stubs import vllm_control_pb2_grpc as control_grpc
from frontier_mock.stubs import vllm_inference_pb2 as pb
from frontier_mock.stubs import vllm_inference_pb2_grpc as pb_grpc
from frontier_mock.wire.eos import EosModel
from tests.serve.grpc_live import answers, target, with_grpc
from tests.serve.live import WARP, live, serve_spec


async def test_dynamos_sidecar() -> None:
    spec = with_grpc(serve_spec(WARP), VLLM_INFERENCE, VLLM_CONTROL)
    spec = replace(spec, served=[replace(one, eos=EosModel(4.0, 0.0)) for one in spec.served])
    async with live(spec) as server, grpc.aio.insecure_channel(target(server)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "vllm.Inference", "vllm.Control"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        control = control_grpc.ControlStub(channel)
        model = await control.GetModelInfo(control_pb.GetModelInfoRequest())
        # It registers the model under the served name, with a tokenizer from the folder `model_id`.
        assert (model.model_id, model.served_model_name) == ("/models/mock", "mock")
        info = await control.GetServerInfo(control_pb.GetServerInfoRequest())
        assert (info.kv_block_size, info.max_model_len) == (16, 4096)
        assert info.total_kv_blocks > 0
        assert info.max_running_requests > 0
        sources = await control.GetKvEventSources(control_pb.GetKvEventSourcesRequest())
        # Without sources it starts no publisher, and the frontend routes by what it sent.
        assert not sources.sources
        (end_id,) = {one.tokenizer.eos_token_id for one in spec.served}
        message = pb.GenerateRequest(
            request_id="913508a4-75bf-4d40-a55a-13c0e5c06e19",
            model="mock",
            token_ids=pb.TokenIds(ids=list(b"story")),
            temperature=1.0,
            sampling=pb.RandomSampling(num_sequences=1),
            decoding=pb.DecodingParameters(),
            stopping=pb.StoppingCriteria(max_new_tokens=12, stop_token_ids=[end_id]),
            response=pb.ResponseOptions(output_text=True, output_token_ids=True),
            kv=pb.KVCacheParameters(),
        )
        stub = pb_grpc.InferenceStub(channel)
        rank = [("x-data-parallel-rank", "0")]
        first, *rest = await answers(stub.GenerateStream(message, metadata=rank))
    assert first.prompt_info.num_prompt_tokens == 5
    ids = [token for one in rest for token in one.outputs.token_ids]
    text = "".join(one.outputs.text for one in rest)
    # It detokenizes itself, so text and ids must be the same; the end token has no text.
    assert ids[-1] == end_id
    assert bytes(ids[:-1]).decode() == text
    end = rest[-1].outputs.finish_info
    assert (end.finish_reason, end.num_output_tokens) == (pb.FinishInfo.STOP, 4)
