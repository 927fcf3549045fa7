"""Moving tokens between ranks: monotone, bounded by links, and dearer where links are slower."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_hardware
from frontier_mock.cost.dispatch import alltoall_us, low_latency_us, normal_us
from frontier_mock.cost.specs import ExpertsSpec

EXPERTS = ExpertsSpec(256, 8, 2048)
H800, H100 = load_hardware("h800"), load_hardware("h100")
RANKS = st.sampled_from([8, 16, 32, 64, 128, 256])


@given(RANKS, st.floats(1.0, 4096.0), st.floats(1.0, 4096.0))
def test_more_tokens_take_longer(ranks: int, tokens: float, more: float) -> None:
    few, many = np.array([tokens]), np.array([tokens + more])
    for price in (low_latency_us, normal_us):
        for before, after in zip(
            price(H800, EXPERTS, 7168, ranks, few),
            price(H800, EXPERTS, 7168, ranks, many),
            strict=True,
        ):
            assert after[0] > before[0] > 0.0
    assert alltoall_us(H800, ranks, many)[0] > alltoall_us(H800, ranks, few)[0]


@given(st.floats(8.0, 4096.0))
def test_within_a_node_the_slower_nvlink_shows(tokens: float) -> None:
    batch = np.array([tokens])
    for price in (low_latency_us, normal_us):
        slow = price(H800, EXPERTS, 7168, 8, batch)
        fast = price(H100, EXPERTS, 7168, 8, batch)
        assert slow[0][0] > fast[0][0]
        assert slow[1][0] > fast[1][0]


@given(st.integers(16, 8192))
def test_nothing_leaves_a_node_faster_than_its_nics(tokens: int) -> None:
    for ranks in (16, 32, 64):
        there, _ = normal_us(H800, EXPERTS, 7168, ranks, np.array([float(tokens)]))
        nodes = ranks // 8
        reached = nodes * (1.0 - (1.0 - 1.0 / nodes) ** EXPERTS.top_k)
        remote_bytes = tokens * (reached - 1.0) * 7168
        assert there[0] * 1e-6 >= remote_bytes / H800.nic_bytes_per_s * 0.99


def test_a_bound_on_groups_bounds_what_is_sent() -> None:
    bounded = ExpertsSpec(256, 8, 2048, token_groups=4)
    batch = np.array([4096.0])
    free, kept = (normal_us(H800, e, 7168, 64, batch)[0][0] for e in (EXPERTS, bounded))
    assert kept < 0.8 * free


def test_all_to_all_over_nodes_is_bound_by_the_nics() -> None:
    size = np.array([64e6])
    inside = alltoall_us(H800, 8, size)[0]
    assert alltoall_us(H800, 32, size)[0] == pytest.approx(15.0 + 48e6 / 45e9 * 1e6, rel=0.01)
    assert inside < alltoall_us(H800, 16, size)[0]
