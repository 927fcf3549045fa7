"""KV capacity against what vLLM logged, and what does not fit."""

import pytest

from frontier_mock.cli.capacity_anchors import GIB, LOGGED, logged_plan
from frontier_mock.config.profiles import load_hardware, load_model
from frontier_mock.cost.cuda_graphs import default_capture_sizes
from frontier_mock.cost.memory import MemoryPlan, OutOfMemory, plan_kv_cache
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec


def plan(
    model: str,
    tp: int = 1,
    weights: str = "bf16",
    utilization: float = 0.9,
    max_model_len: int = 16000,
    kv_cache_memory_bytes: int | None = None,
    num_gpu_blocks_override: int | None = None,
) -> MemoryPlan:
    return plan_kv_cache(
        load_hardware("h100"),
        load_model(model),
        ParallelSpec(tp=tp),
        PrecisionSpec(weights=weights),
        gpu_memory_utilization=utilization,
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        block_size=16,
        max_model_len=max_model_len,
        cudagraph_sizes=default_capture_sizes(1024, 8192),
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        num_gpu_blocks_override=num_gpu_blocks_override,
        count_cudagraphs=False,
    )


@pytest.mark.parametrize(("model", "tp", "weights", "held", "peak", "kv"), LOGGED)
def test_the_plan_agrees_with_vllms_log(
    model: str, tp: int, weights: str, held: float, peak: float, kv: float
) -> None:
    made = logged_plan(model, tp, weights)
    assert made.weights_bytes / GIB == pytest.approx(held, rel=0.005, abs=0.01)
    assert made.activation_bytes / GIB == pytest.approx(peak, rel=0.01)
    assert made.kv_bytes / GIB == pytest.approx(kv, rel=0.01)
    assert made.num_blocks == made.kv_bytes // made.bytes_per_block


def test_a_model_larger_than_the_device_is_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemory, match=r"No available memory.*79\.18 GiB x 0\.9, weights 67"):
        plan("meta-llama/Llama-3.3-70B-Instruct", 1, "fp8")


def test_a_context_that_cannot_fit_is_refused_with_the_length_that_would() -> None:
    with pytest.raises(OutOfMemory, match=r"max seq len \(32000\)") as refused:
        plan("Qwen/Qwen3-32B", max_model_len=32000)
    longest = int(str(refused.value).split("model length is ")[1].split(".")[0])
    assert plan("Qwen/Qwen3-32B", max_model_len=longest).num_blocks * 16 >= longest
    with pytest.raises(OutOfMemory):
        plan("Qwen/Qwen3-32B", max_model_len=longest + 16)


def test_explicit_sizes_win() -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    assert plan(model, kv_cache_memory_bytes=4 * GIB).num_blocks == 2048
    assert plan(model, num_gpu_blocks_override=1500).num_blocks == 1500


def test_replicated_kv_heads_cost_memory_on_every_rank() -> None:
    model = "Qwen/Qwen2.5-7B-Instruct"
    assert plan(model, tp=4).bytes_per_block * 4 == plan(model, tp=1).bytes_per_block
    wide = load_model("Qwen/Qwen2.5-3B-Instruct")
    assert wide.num_kv_heads == 2
    assert plan(wide.name, tp=4).bytes_per_block == plan(wide.name, tp=2).bytes_per_block
