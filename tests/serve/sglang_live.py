"""A small SGLang cluster behind real ports, in the test's own event loop."""

from dataclasses import replace
from typing import Any

from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ServeSpec
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.text import TextRing
from tests.engine import DraftedLinearCost, LinearCost, step_spec
from tests.serve.live import FAST, TOKENIZER

RING = TextRing(TOKENIZER, 1)
SCHEDULER = SglangSchedulerSpec(max_running_requests=64, context_length=4094, num_pages=65536)
FRONT = SglangFront(
    context_len=4096,
    max_req_len=4095,
    max_req_input_len=4090,
    num_pages=65536,
    max_running_requests=64,
    tokenizer_path="/models/mock",
    accelerator="toy",
)


def sglang_model(front: SglangFront = FRONT) -> ServedModel:
    return ServedModel(("mock",), "/models/mock", 4094, TOKENIZER, RING, eos=None, sglang=front)


def sglang_spec(
    clock: ClockSpec = FAST,
    *,
    workers: int = 1,
    scheduler: SglangSchedulerSpec = SCHEDULER,
    front: SglangFront = FRONT,
    **more: Any,
) -> ServeSpec:
    """`more` are fields of SglangFront."""
    changed = replace(front, **more)
    specs = tuple(
        WorkerSpec(f"w{i}", 0, "colocated", "mock", step_spec(0.001), scheduler)
        for i in range(workers)
    )
    return ServeSpec(
        cluster=ClusterSpec(specs, "round_robin", 0),
        costs=[
            LinearCost() if scheduler.speculation is None else DraftedLinearCost() for _ in specs
        ],
        served=[sglang_model(changed) for _ in specs],
        clock=clock,
        host="127.0.0.1",
    )
