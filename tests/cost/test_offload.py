"""Tiers below the GPU: laws of transfers, and when loading beats computing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.layers import shard_model
from frontier_mock.cost.offload import TierSpec, load_ns, saved_ns, store_ns, tiers
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.step import build_step_cost

BY_NAME = {tier.name: tier for tier in tiers(load_hardware("h800"))}


def test_tiers_of_an_h800_are_those_that_were_measured() -> None:
    """Rows B83 (50 GB/s by DMA) and B64 (142 GB/s over 4 of 8 NICs' worth, 71 %)."""
    assert list(BY_NAME) == ["cpu", "pool", "ssd"]
    assert BY_NAME["cpu"].read_bytes_per_s == pytest.approx(50e9)
    assert BY_NAME["pool"].read_bytes_per_s == pytest.approx(0.71 * 50e9)


def test_a_gpu_without_a_nic_has_no_pool() -> None:
    alone = replace(load_hardware("rtx-4090"), nic_bytes_per_s=0.0)
    assert [tier.name for tier in tiers(alone)] == ["cpu", "ssd"]


@given(st.sampled_from(sorted(BY_NAME)), st.integers(0, 1 << 40), st.integers(1, 1 << 30))
def test_transfers_take_their_latency_and_grow(name: str, size: int, more: int) -> None:
    tier: TierSpec = BY_NAME[name]
    for transfer in (load_ns, store_ns):
        assert transfer(tier, 0) == round(tier.latency_s * 1e9)
        assert transfer(tier, size + more) >= transfer(tier, size)
    assert store_ns(tier, size) >= load_ns(tier, size)


def test_loading_beats_computing_for_large_models_from_memory() -> None:
    hw, card = load_hardware("h800"), load_model("meta-llama/Llama-3.1-70B-Instruct")
    parallel, precision = ParallelSpec(tp=4), PrecisionSpec("fp8")
    spec = StepSpec(hw, card, parallel, precision, load_engine("vllm-0.33"), True, ())
    cost = build_step_cost(spec, load_kernels("h800"))
    heads = shard_model(card, parallel, precision).heads
    per_token = heads.bytes_per_token * card.num_layers
    gains = [saved_ns(cost, BY_NAME[name], 8192, per_token) for name in ("cpu", "pool", "ssd")]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.5 * cost.mixed(0, 0, [(8192, 0)])
