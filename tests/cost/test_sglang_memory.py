"""SGLang's rule of thumb for memory, in numbers."""

import pytest

from frontier_mock.config.profiles import load_hardware, load_model
from frontier_mock.cost.memory import OutOfMemory
from frontier_mock.cost.sglang_memory import (
    decode_graph_sizes,
    default_max_running_requests,
    default_mem_fraction_static,
    plan_sglang_kv_cache,
    prefill_graph_sizes,
)
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec

MIB = 1 << 20


def test_captured_decode_sizes() -> None:
    sizes = decode_graph_sizes(640)
    assert sizes[:7] == (1, 2, 4, 8, 12, 16, 24)
    assert [size for size in sizes if size > 248] == [
        256,
        *range(272, 512, 16),
        *range(512, 641, 32),
    ]
    assert decode_graph_sizes(20) == (1, 2, 4, 8, 12, 16, 20)
    assert decode_graph_sizes(3, padding=False) == (1, 2, 3)


def test_58_prefill_sizes_up_to_8192_tokens() -> None:
    sizes = prefill_graph_sizes(8192)
    assert len(sizes) == 58
    assert (sizes[0], sizes[8], sizes[-1]) == (4, 48, 8192)


def test_the_static_fraction_leaves_what_the_rule_reserves() -> None:
    h100 = load_hardware("h100")
    fraction = default_mem_fraction_static(
        h100,
        ParallelSpec(tp=4),
        chunked_prefill_size=8192,
        max_prefill_tokens=16384,
        decode_graph_max=512,
        prefill_graphs=58,
    )
    # 512 + 8192 * 1.5 + 4 / 8 * 1024 + 512 * 2 + 58 * 8 MiB of 81,080.
    assert h100.hbm_bytes / MIB == pytest.approx(81_080, abs=2)
    assert fraction == round(1 - 14_800 / (h100.hbm_bytes / MIB), 3) == 0.817


def test_at_least_ten_gib_are_reserved_on_a_large_gpu() -> None:
    h100 = load_hardware("h100")
    fraction = default_mem_fraction_static(
        h100,
        ParallelSpec(),
        chunked_prefill_size=2048,
        max_prefill_tokens=16384,
        decode_graph_max=8,
        prefill_graphs=0,
    )
    assert fraction == round(1 - 10_240 / (h100.hbm_bytes / MIB), 3)


def test_the_pool_is_what_the_fraction_leaves_after_the_weights() -> None:
    h100, model = load_hardware("h100"), load_model("Qwen/Qwen3-32B")

    def tokens(fraction: float, page: int = 1, cap: int | None = None) -> int:
        plan = plan_sglang_kv_cache(
            h100,
            model,
            ParallelSpec(tp=2),
            PrecisionSpec(),
            mem_fraction_static=fraction,
            page_size=page,
            max_total_tokens=cap,
        )
        assert plan.bytes_per_block == page * 2 * 4 * 128 * 2 * 64
        return plan.num_blocks * page

    # One hundredth of the GPU more is that many bytes more of cache, at 128 KiB a token.
    gained = (tokens(0.86) - tokens(0.85)) * 131_072
    assert gained == pytest.approx(0.01 * (h100.hbm_bytes - 560 * MIB), rel=1e-3)
    assert tokens(0.85, page=64) == tokens(0.85) // 64 * 64
    assert tokens(0.85, page=64, cap=1000) == 960


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OutOfMemory, match="--mem-fraction-static"):
        plan_sglang_kv_cache(
            load_hardware("h100"),
            load_model("Qwen/Qwen3-32B"),
            ParallelSpec(),
            PrecisionSpec(),
            mem_fraction_static=0.5,
            page_size=1,
        )


def test_running_requests_by_the_pool() -> None:
    assert default_max_running_requests(500_000, 131_072) == 2048
    assert default_max_running_requests(1_200_000, 131_072) == 4096
    assert default_max_running_requests(800_000, 131_072) == 3125
    assert default_max_running_requests(3000, 131_072) == 1500
