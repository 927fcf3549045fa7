"""Messages with anything in any field: an answer or a refusal in words, never a fault of ours."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc as sglang_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as vllm_grpc

from frontier_mock.serve.grpc_settings import (
    SGLANG_SCHEDULER,
    VLLM_ENGINE,
    VLLM_INFERENCE,
)
from frontier_mock.serve.up import ServeSpec
from frontier_mock.stubs import vllm_inference_pb2 as inference
from frontier_mock.stubs import vllm_inference_pb2_grpc as inference_grpc
from tests.serve.grpc_live import answers, target, with_grpc
from tests.serve.live import WARP, live, serve_spec
from tests.serve.sglang_live import sglang_spec

VALUES: dict[int, list[Any]] = {
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, 1.0, -1.0, math.nan, math.inf, 1e300],
    FieldDescriptor.CPPTYPE_FLOAT: [0.0, 0.5, 1.0, -1.0, 2.5, math.nan, math.inf],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
    FieldDescriptor.CPPTYPE_INT32: [0, 1, 5, -1, 2**31 - 1, -(2**31)],
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 5, 2**32 - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, 1, -1, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**64 - 1],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 99],
}
TEXTS = ["", "a", "[", "{}", '{"type": "object"}', "\0", "x" * 300, "é🙂"]
DATA = [b"", b"{}", b"\xff\0"]


def filled(message: Message, draw: random.Random, share: float, depth: int = 0) -> Message:
    """About this share of the fields, with values of any kind."""
    for field in message.DESCRIPTOR.fields:
        inner = field.message_type
        if draw.random() > share or (inner and inner.file.package == "google.protobuf"):
            continue
        if inner and inner.GetOptions().map_entry:
            key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
            if value.message_type is None:
                getattr(message, field.name)[scalar(key, draw)] = scalar(value, draw)
        elif field.is_repeated:
            for _ in range(draw.choice([0, 1, 3])):
                if inner:
                    filled(getattr(message, field.name).add(), draw, share, depth + 1)
                else:
                    getattr(message, field.name).append(scalar(field, draw))
        elif inner:
            getattr(message, field.name).SetInParent()
            if depth < 4:
                filled(getattr(message, field.name), draw, share, depth + 1)
        else:
            setattr(message, field.name, scalar(field, draw))
    return message


def scalar(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.choice(DATA)
    return draw.choice(VALUES[field.cpp_type])


def to_vllm(draw: random.Random) -> Message:
    message = vllm.GenerateRequest()
    filled(message, draw, 0.15)
    message.tokenized.input_ids[:] = range(1, 30)
    message.sampling_params.max_tokens = 5
    for name in ("media_refs", "mm_inputs", "extra_mm_inputs", "kv_transfer_params_json"):
        message.ClearField(name)
    return message


def to_sglang(draw: random.Random) -> Message:
    message = sglang.GenerateRequest()
    filled(message, draw, 0.15)
    message.tokenized.input_ids[:] = range(1, 30)
    sampling = message.sampling_params
    sampling.max_new_tokens, sampling.top_p, sampling.repetition_penalty = 5, 1.0, 1.0
    message.ClearField("mm_inputs")
    return message


def to_inference(draw: random.Random) -> Message:
    message = inference.GenerateRequest()
    filled(message, draw, 0.15)
    message.token_ids.ids[:] = range(1, 30)
    message.stopping.max_new_tokens = 5
    for name in ("model", "lora_name", "media"):
        message.ClearField(name)
    return message


CASES = {
    "vllm": (serve_spec(WARP), VLLM_ENGINE, vllm_grpc.VllmEngineStub, "Generate", to_vllm),
    "sglang": (
        sglang_spec(WARP),
        SGLANG_SCHEDULER,
        sglang_grpc.SglangSchedulerStub,
        "Generate",
        to_sglang,
    ),
    "inference": (
        serve_spec(WARP),
        VLLM_INFERENCE,
        inference_grpc.InferenceStub,
        "GenerateStream",
        to_inference,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_any_message_is_answered_or_refused_in_words(
    case: tuple[ServeSpec, str, Any, str, Callable[[random.Random], Message]],
) -> None:
    spec, service, stub, method, valid = case
    draw = random.Random(7)
    codes = set()
    async with (
        live(with_grpc(spec, service)) as server,
        grpc.aio.insecure_channel(target(server)) as channel,
    ):
        generate = getattr(stub(channel), method)
        for number in range(120):
            request = valid(draw)
            if number % 3 == 0:
                request = filled(type(request)(), draw, 0.5)
            try:
                await answers(generate(request))
                codes.add("OK")
            except grpc.aio.AioRpcError as error:
                codes.add(error.code().name if error.details() else "wordless")
        assert not server.driver.in_flight
    assert {"OK", "INVALID_ARGUMENT"} <= codes
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
