"""The engine alone, offline: loop time, with building and reading left out."""

import gc
import time
from dataclasses import replace
from pathlib import Path

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.config.resolve import resolve_single
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.drive.offline import run
from frontier_mock.report.summary import report_cluster
from frontier_mock.wire.vllm_metrics import VllmMetrics
from frontier_mock.workload.build import build_source
from frontier_mock.workload.readers import read_trace
from frontier_mock.workload.rows import TraceRows
from frontier_mock.workload.specs import (
    BurstSpec,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    TraceSpec,
    WorkloadSpec,
)
from tests.bench.figures import Figure, best_of

TRACE = Path(__file__).resolve().parents[3] / "shared/data/traces/mooncake/conversation_trace.jsonl"
REPEATS = 5


def offline_figures() -> list[Figure]:
    """Requests, trace and tokens per second of one core."""
    lengths = PromptSpec(FixedTokens(1024), FixedTokens(128))
    poisson = OpenLoopSpec(lengths, "poisson", 100.0, num_requests=20_000)
    best, median = best_of(REPEATS, lambda: _loop_s(poisson, 8))
    figures = [
        Figure(
            "offline, 8 workers, Poisson 100/s, 1024 in / 128 out, 20k requests",
            20_000 / best,
            "requests/s",
            20_000,
            True,
            f"median {20_000 / median:,.0f}",
        )
    ]
    if TRACE.exists():
        with TRACE.open() as lines:
            rows = read_trace(lines, TRACE.name)
        spec = TraceSpec(str(TRACE))
        best, median = best_of(REPEATS, lambda: _loop_s(spec, 8, rows=rows, metrics=True))
        figures.append(
            Figure(
                "conversation trace, 8 workers, prefix caching and vLLM's metrics",
                best,
                "s",
                1.0,
                False,
                f"median {median:.2f} s; its report takes {_report_s(spec, rows):.2f} s more",
            )
        )
    tokens = 1024 * 16_384
    burst = BurstSpec(PromptSpec(FixedTokens(128), FixedTokens(16_384)), 1024)
    best, median = best_of(REPEATS, lambda: _loop_s(burst, 4, num_blocks=300_000))
    figures.append(
        Figure(
            "16k-token outputs, batch 256 on each of 4 workers",
            tokens / best / 1e6,
            "M tokens/s",
            100,
            True,
            f"median {tokens / median / 1e6:,.0f}",
        )
    )
    return figures


def _loop_s(
    spec: WorkloadSpec,
    workers: int,
    *,
    rows: TraceRows | None = None,
    num_blocks: int | None = None,
    metrics: bool = False,
) -> float:
    source = build_source(spec, seed=0, rows=rows)
    cluster = _cluster(workers, num_blocks)
    gc.collect()
    start = time.perf_counter()
    run(cluster, source)
    if metrics:
        _fold_metrics(cluster)
    return time.perf_counter() - start


def _fold_metrics(cluster: Cluster) -> None:
    """What a live server does with the events of its workers."""
    folds = [VllmMetrics("bench", 131_072, 0.0).fold for _ in cluster.workers]
    for event in cluster.log.events:
        folds[event.worker](event)


def _report_s(spec: WorkloadSpec, rows: TraceRows) -> float:
    cluster = _cluster(8, None)
    run(cluster, build_source(spec, seed=0, rows=rows))
    start = time.perf_counter()
    report_cluster(cluster, "bench", 0.0)
    return time.perf_counter() - start


def _cluster(workers: int, num_blocks: int | None) -> Cluster:
    args = VllmArgs(
        model="meta-llama/Llama-3.1-70B-Instruct",
        quantization="fp8",
        tensor_parallel_size=4,
        num_gpu_blocks_override=num_blocks,
    )
    resolved = resolve_single(args, "h800", "vllm-0.33", seed=0)
    (spec,) = resolved.spec.workers
    specs = tuple(replace(spec, name=f"w{i}") for i in range(workers))
    return build_cluster(ClusterSpec(specs, "round_robin", 0), resolved.costs * workers)
