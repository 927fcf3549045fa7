"""A small cluster behind real ports, in the test's own event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer
from tests.engine import LinearCost, step_spec

TOKENIZER = ByteTokenizer()
RING = TextRing(TOKENIZER, 16)
SCHEDULER = SchedulerSpec(
    max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=4096, num_blocks=4096
)
FAST = ClockSpec(mode="scaled", scale=50.0, late_ms_max=1e9)
WARP = ClockSpec(mode="warp", grace_ms=0.0, patience_s=30.0)


def served_model() -> ServedModel:
    return ServedModel(
        ("mock", "alias"), "/models/mock", SCHEDULER.max_model_len, TOKENIZER, RING, eos=None
    )


def serve_spec(
    clock: ClockSpec = FAST,
    *,
    workers: int = 1,
    port: int = 0,
    http: HttpSettings | None = None,
    max_num_queued_reqs: int = 0,
    journal_path: str | None = None,
    ready_file: str | None = None,
) -> ServeSpec:
    scheduler = replace(SCHEDULER, max_num_queued_reqs=max_num_queued_reqs)
    specs = tuple(
        WorkerSpec(f"w{i}", port, "colocated", "mock", step_spec(0.001), scheduler)
        for i in range(workers)
    )
    return ServeSpec(
        cluster=ClusterSpec(specs, "round_robin", 0),
        costs=[LinearCost() for _ in specs],
        served=[served_model() for _ in specs],
        clock=clock,
        http=http or HttpSettings(),
        host="127.0.0.1",
        journal_path=journal_path,
        ready_file=ready_file,
    )


@asynccontextmanager
async def live(spec: ServeSpec) -> AsyncIterator[ClusterServer]:
    server = ClusterServer(spec)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
