"""Published figures of prefill/decode disaggregation, beside whole simulated runs.

Two of them, from configuration alone: Mooncake's table of one prefill and one decode engine on
H800, one request at a time; and dstack's two prefill and two decode workers on one H200 node.
Their clients and routers are those their authors name.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
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
from frontier_mock.workload.specs import (
    ClosedLoopSpec,
    FixedTokens,
    HistogramTokens,
    PromptSpec,
)

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
of 25 GB/s (kvcache-ai.github.io/Mooncake, vLLM with Mooncake Transfer Engine Benchmark): `vllm
bench serve` with chat completions, 50 prompts one after another, 128 tokens of output, through
vLLM's toy_proxy_server.py."""

_CHAT_TOKENS: Final = 8
"""What Qwen3's chat template puts around a user's message: <|im_start|>user, a line break, and
<|im_end|>, a line break, <|im_start|>assistant, a line break."""

_PROXY_MS: Final = 2.5
"""What a proxy of that kind (ASGI, httpx, one request to each side) adds to a first chunk: measured
by us with starlette 1.10 and httpx 0.28 on an AMD EPYC, the least of 60 tries, for prompts of 600
and of 180,000 characters alike."""

_ROCE_BYTES_PER_S: Final = 25e9

GPT_OSS: Final = (
    (128, 2048, 128, 128.0, 648.4, 1020.1, 11.77),
    (128, 2048, 64, 128.0, 670.1, 235.9, 10.25),
    (128, 2048, 32, 128.0, 614.6, 102.5, 8.76),
    (2048, 128, 128, 2046.2, 61.5, 2134.9, 10.43),
    (2048, 128, 64, 2046.2, 65.7, 883.6, 9.49),
    (2048, 128, 32, 2046.2, 64.8, 170.7, 8.95),
    (2048, 2048, 128, 2046.2, 730.5, 1930.6, 11.84),
    (2048, 2048, 64, 2046.2, 767.7, 334.2, 10.47),
    (2048, 2048, 32, 2046.2, 741.3, 113.8, 8.54),
    (2048, 32784, 128, 2046.2, 12136.6, 852.0, 16.53),
    (2048, 32784, 64, 2046.2, 11690.2, 460.2, 13.70),
    (2048, 32784, 32, 2046.2, 11035.7, 182.8, 10.09),
    (32784, 2048, 128, 32784.0, 1225.7, 36214.0, 15.68),
    (32784, 2048, 64, 32784.0, 1278.4, 9406.8, 16.13),
    (32784, 2048, 32, 32784.0, 1270.7, 1556.9, 13.43),
)
"""ISL, OSL, concurrency, mean prompt, mean output, mean TTFT and TPOT in ms: gpt-oss-120b on 2P+2D
of two H200 each, SGLang with NIXL behind a router that goes round (dstack; row A44).

Their scripts (dstackai/benchmarks, comparison/pd_ratio) send the same 500 random prompts through
`vllm bench serve` at 128, 64 and 32 at a time, one run after the other. Each run begins with one
request more, so an engine sees the other half of the prompts in the second run and its own again in
the third: those are in its radix cache, if they fit."""

_REQUESTS: Final = 500
_CACHED_CONCURRENCY: Final = 32
_CACHED_ISL_MOST: Final = 2048

_STOP_MEAN_TOKENS: Final = 33.0
"""Mean output of a prompt whose answer ends by itself. The mean outputs of one set of prompts under
limits of 128, 2,048 and 32,784 tokens (64, 746 and 11,621) are those of a model that goes on to the
limit after 35 % of them and stops after 33 tokens at the others: two constants, three figures."""

_STOP_QUANTILES: Final = 10
_STOP_LONGEST: Final = 4.0
"""Ends come at random, so lengths fall off exponentially; taken in ten bins, to four means."""


def stopping_lengths(limit_tokens: int, mean_tokens: float) -> HistogramTokens:
    """Outputs under `limit_tokens`: most end by themselves, as many reach the limit as make this
    mean."""
    edges = [1]
    for i in range(1, _STOP_QUANTILES):
        at = -_STOP_MEAN_TOKENS * math.log1p(-i / _STOP_QUANTILES)
        edges.append(max(edges[-1] + 1, round(at)))
    edges.append(round(_STOP_LONGEST * _STOP_MEAN_TOKENS))
    pairs = [(min(a, limit_tokens), min(b - 1, limit_tokens)) for a, b in pairwise(edges)]
    stopped_mean = sum(low + high for low, high in pairs) / (2 * len(pairs))
    endless = (mean_tokens - stopped_mean) / (limit_tokens - stopped_mean)
    share = (1.0 - endless) / len(pairs)
    bins = [(low, high, share) for low, high in pairs]
    return HistogramTokens((*bins, (limit_tokens, limit_tokens, endless)))


def pd_anchors() -> Iterator[Anchor]:
    """Both tables."""
    for tokens, ttft_ms, transfer_ms in MOONCAKE:
        result = _mooncake(tokens)
        transfers = result["transfers"]
        moved = transfers["ttft_parts_ms"]["transfer"]["mean"] or 0.0
        what = f"Qwen3-8B 1P1D h800 tp8, prompt {tokens}"
        simulated_ms = (result["ttft_ms"]["mean"] or 0.0) + _PROXY_MS
        yield Anchor("A63", f"{what}: TTFT", "ms", ttft_ms, simulated_ms)
        yield Anchor("B64", f"{what}: KV transfer", "ms", transfer_ms, moved)
    for isl, osl, concurrency, mean_in, mean_out, ttft_ms, tpot_ms in GPT_OSS:
        lengths = PromptSpec(
            FixedTokens(round(mean_in)),
            stopping_lengths(osl, mean_out),
            distinct_prompts=_REQUESTS,
        )
        again = concurrency == _CACHED_CONCURRENCY and isl <= _CACHED_ISL_MOST
        result = _gpt_oss(lengths, concurrency, _REQUESTS if again else 0)
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
    lengths = PromptSpec(FixedTokens(tokens + _CHAT_TOKENS), FixedTokens(128))
    return _play(workers, fabric, ClosedLoopSpec(lengths, 1, 50, 0))


def _gpt_oss(lengths: PromptSpec, concurrency: int, sent_before: int) -> Result:
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
    loop = ClosedLoopSpec(lengths, concurrency, _REQUESTS, sent_before)
    return _play(workers, FabricSpec(), loop)


def _named(worker: ResolvedWorker, role: str, name: str) -> ResolvedWorker:
    return replace(worker, spec=replace(worker.spec, role=role, name=name))


def _play(workers: list[ResolvedWorker], fabric: FabricSpec, loop: ClosedLoopSpec) -> Result:
    resolved = cluster_of(workers, ClusterSpec((), "round_robin", 0, fabric=fabric))
    cluster = build_cluster(resolved.spec, resolved.costs)
    played = run(cluster, build_source(loop, seed=0))
    measured = [item.measured for item in played.items]
    return report_cluster(cluster, "anchor", 0.0, measured).result
