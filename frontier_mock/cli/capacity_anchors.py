"""KV cache that vLLM had left by its own start-up logs, beside ours.

The logs are in llm-d/llm-d-benchmark (Apache-2.0),
`config_explorer/empirical-vllm-memory-results.md`: H100, 0.9 of the GPU, vLLM's defaults.
"""

from collections.abc import Iterator
from typing import Final

from frontier_mock.cli.anchors import Anchor
from frontier_mock.config.profiles import load_hardware, load_model
from frontier_mock.cost.cuda_graphs import default_capture_sizes
from frontier_mock.cost.memory import MemoryPlan, plan_kv_cache
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec

GIB: Final = 1 << 30

LOGGED: Final = (
    ("meta-llama/Llama-3.1-8B-Instruct", 1, "bf16", 14.99, 4.76, 51.38),
    ("meta-llama/Llama-3.3-70B-Instruct", 2, "fp8", 33.88, 4.84, 32.0),
    ("Qwen/Qwen3-0.6B", 1, "bf16", 1.12, 5.56, 64.45),
    ("Qwen/Qwen3-32B", 1, "bf16", 61.03, 5.64, 4.45),
)
"""Model, tensor parallelism, weight type, and GiB of weights, activation peak and KV cache."""


def logged_plan(model: str, tp: int, weights: str) -> MemoryPlan:
    """What we plan where those logs were written."""
    return plan_kv_cache(
        load_hardware("h100"),
        load_model(model),
        ParallelSpec(tp=tp),
        PrecisionSpec(weights=weights),
        gpu_memory_utilization=0.9,
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        block_size=16,
        max_model_len=16000,
        cudagraph_sizes=default_capture_sizes(1024, 8192),
        count_cudagraphs=False,
    )


def capacity_anchors() -> Iterator[Anchor]:
    """One for each log."""
    for model, tp, weights, _, _, kv_gib in LOGGED:
        made = logged_plan(model, tp, weights)
        what = f"KV capacity, {model.split('/')[1]} {weights} on h100 tp{tp}"
        yield Anchor("KV", what, "GiB", kv_gib, made.kv_bytes / GIB)
