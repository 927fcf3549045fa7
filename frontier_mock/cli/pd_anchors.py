"""Published figures of prefill/decode disaggregation, beside whole simulated runs.

Two of them, from configuration alone: Mooncake's table of one prefill and one decode engine on
H800, one request at a time; and dstack's two prefill and two decode workers on one H200 node.
Neither names its client's ramp or its proxy, whose own time is not simulated.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from frontier_mock.cli.anchors import Anchor
from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.config.kv_transfer import KvTransferArgs
from frontier_mock.config.resolve import ResolvedWorker, cluster_of, resolve_sglang, resolve_worker
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.drive.offline import run
from frontier_mock.report.summary import Result, report_cluster
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import ClosedLoopSpec, FixedTokens, PromptSpec, UniformTokens

MOONCAKE: Final = (
    (128, 46.09, 0.54),
    (256, 48.04, 0.61),
    (512, 59.91, 0.92),
    (1024, 67.29, 1.50),
    (2048, 85.31, 2.51),
    (4096, 124.42, 4.75),
    (8192, 212.05, 8.84),
    (16384, 387.52, 16.43),
    (32768, 749.62, 31.65),
)
"""Prompt tokens, mean TTFT and transfer in ms: Qwen3-8B on 1P1D of 8 H800, vLLM 0.11.2, 8 RoCE NICs
of 25 GB/s (kvcache-ai.github.io/Mooncake, vLLM with Mooncake Transfer Engine Benchmark)."""

_ROCE_BYTES_PER_S: Final = 25e9

GPT_OSS: Final = (
    (128, 2048, 32, 128.0, 614.6, 102.5, 8.76),
    (128, 2048, 64, 128.0, 670.1, 235.9, 10.25),
    (128, 2048, 128, 128.0, 648.4, 1020.1, 11.77),
    (2048, 128, 32, 2046.2, 64.8, 170.7, 8.95),
    (2048, 128, 64, 2046.2, 65.7, 883.6, 9.49),
    (2048, 128, 128, 2046.2, 61.5, 2134.9, 10.43),
    (2048, 2048, 32, 2046.2, 741.3, 113.8, 8.54),
    (2048, 2048, 64, 2046.2, 767.7, 334.2, 10.47),
    (2048, 2048, 128, 2046.2, 730.5, 1930.6, 11.84),
)
"""ISL, OSL, concurrency, mean prompt, mean output, mean TTFT and TPOT in ms: gpt-oss-120b on 2P+2D
of two H200 each, SGLang with NIXL, 500 requests (dstack; cost_model.md row A44)."""

_REQUESTS: Final = 500


def pd_anchors() -> Iterator[Anchor]:
    """Both tables."""
    for tokens, ttft_ms, transfer_ms in MOONCAKE:
        result = _mooncake(tokens)
        transfers = result["transfers"]
        moved = transfers["ttft_parts_ms"]["transfer"]["mean"] or 0.0
        what = f"Qwen3-8B 1P1D h800 tp8, prompt {tokens}"
        yield Anchor("A63", f"{what}: TTFT", "ms", ttft_ms, result["ttft_ms"]["mean"] or 0.0)
        yield Anchor("B64", f"{what}: KV transfer", "ms", transfer_ms, moved)
    for isl, osl, concurrency, mean_in, mean_out, ttft_ms, tpot_ms in GPT_OSS:
        result = _gpt_oss(round(mean_in), round(mean_out), concurrency)
        what = f"gpt-oss-120b 2P+2D h200 tp2, {isl}/{osl} c{concurrency}"
        yield Anchor("A44", f"{what}: TTFT", "ms", ttft_ms, result["ttft_ms"]["mean"] or 0.0)
        yield Anchor("A44", f"{what}: TPOT", "ms", tpot_ms, result["tpot_ms"]["mean"] or 0.0)


def _mooncake(tokens: int) -> Result:
    args = VllmArgs(
        model="Qwen/Qwen3-8B", tensor_parallel_size=8, kv_transfer_config=KvTransferArgs()
    )
    one = resolve_worker(args, "h800", "vllm-0.11", "w", 0)
    workers = [_named(one, role, role) for role in ("prefill", "decode")]
    fabric = FabricSpec(nic_bytes_per_s=_ROCE_BYTES_PER_S)
    lengths = PromptSpec(FixedTokens(tokens), FixedTokens(16))
    return _play(workers, fabric, ClosedLoopSpec(lengths, 1, 4, 0))


def _gpt_oss(mean_in: int, mean_out: int, concurrency: int) -> Result:
    workers = []
    for role in ("prefill", "decode"):
        args = SglangArgs(
            model_path="openai/gpt-oss-120b",
            tp_size=2,
            disaggregation_mode=role,
            disaggregation_transfer_backend="nixl",
        )
        one = resolve_sglang(args, "h200", "sglang-0.5.5", role, 0)
        workers += [_named(one, role, f"{role}{i}") for i in range(2)]
    # Outputs ended where the model did; their spread is not published with the means.
    lengths = PromptSpec(FixedTokens(mean_in), UniformTokens(1, 2 * mean_out - 1))
    loop = ClosedLoopSpec(lengths, concurrency, _REQUESTS, 0)
    return _play(workers, FabricSpec(), loop)


def _named(worker: ResolvedWorker, role: str, name: str) -> ResolvedWorker:
    return replace(worker, spec=replace(worker.spec, role=role, name=name))


def _play(workers: list[ResolvedWorker], fabric: FabricSpec, loop: ClosedLoopSpec) -> Result:
    resolved = cluster_of(workers, ClusterSpec((), "round_robin", 0, fabric=fabric))
    cluster = build_cluster(resolved.spec, resolved.costs)
    played = run(cluster, build_source(loop, seed=0))
    measured = [item.measured for item in played.items]
    return report_cluster(cluster, "anchor", 0.0, measured).result
