"""Attention and FFN apart: 128 ranks on one core, and a study of ratios."""

import time

from frontier_mock.cli.ratios import study
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.afd import AfdArgs
from frontier_mock.config.resolve import resolve_single
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.drive.offline import run
from frontier_mock.simtime import to_seconds
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import OpenLoopSpec, PromptSpec, UniformTokens
from tests.bench.figures import Figure

REQUESTS = 15_000


def disaggregated_figures() -> list[Figure]:
    """Virtual over real time, and seconds for eighteen clusters."""
    afd = AfdArgs(96, 32, 12, 4)
    args = VllmArgs("deepseek-ai/DeepSeek-V3", max_model_len=8192, max_num_seqs=256, afd=afd)
    resolved = resolve_single(args, "h800", "vllm-0.33", 0)
    lengths = PromptSpec(UniformTokens(200, 1500), UniformTokens(50, 800))
    load = OpenLoopSpec(lengths, "poisson", 100.0, num_requests=REQUESTS)
    cluster = build_cluster(resolved.spec, resolved.costs)
    started_s = time.perf_counter()
    run(cluster, build_source(load, seed=0))
    took_s = time.perf_counter() - started_s
    virtual_s = to_seconds(cluster.now_ns)
    ranks = Figure(
        "DeepSeek-V3 on 96 attention and 32 FFN ranks, Poisson 100/s, contexts to 2k",
        virtual_s / took_s,
        "x real time",
        1.0,
        True,
        f"{virtual_s:,.0f} s in {took_s:.1f} s",
    )
    started_s = time.perf_counter()
    for context in (4096, 8192, 32_768):
        for attention in (1, 2, 3, 4, 8, 16):
            afd = AfdArgs(8 * attention, 16, attention, 2)
            args = VllmArgs("stepfun-ai/step3-fp8", max_model_len=context, afd=afd)
            study(args, "h800", f"{attention}A2F", context, 50.0)
    studied_s = time.perf_counter() - started_s
    return [ranks, Figure("18 clusters of Step-3 by ratio", studied_s, "s", 10.0, False)]
