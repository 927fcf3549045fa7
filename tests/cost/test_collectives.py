"""All-reduce curves by size and link."""

import numpy as np
import pytest

from frontier_mock.config.profiles import load_kernels
from frontier_mock.cost.collectives import curve_us, straggling


@pytest.mark.parametrize(
    ("ranks", "size_bytes", "measured_us"),
    [(2, 16 << 10, 4.5), (8, 128 << 10, 7.9), (8, 2 << 20, 19.4), (8, 128 << 20, 577.0)],
)
def test_h100_all_reduce_is_the_table(ranks: int, size_bytes: int, measured_us: float) -> None:
    """Rows B49 to B53 of shared/specs/cost_model.md."""
    curve = load_kernels("h100").all_reduce[ranks]
    assert curve_us(curve, np.array([float(size_bytes)]))[0] == pytest.approx(measured_us, rel=0.02)


def test_h800_pays_for_its_links_on_large_messages_only() -> None:
    sizes = np.array([16.0 * 2**10, 64.0 * 2**20, 512.0 * 2**20])
    ours = curve_us(load_kernels("h800").all_reduce[8], sizes)
    theirs = curve_us(load_kernels("h100").all_reduce[8], sizes)
    assert ours[0] == pytest.approx(theirs[0])
    assert ours[1:] / theirs[1:] == pytest.approx([2.07, 2.07], rel=0.04)
    # B61: 215 GB/s of bus bandwidth over NVLS.
    busy = 2 * 7 / 8 * sizes[2] / (ours[2] * 1e-6)
    assert busy == pytest.approx(215e9, rel=0.06)


def test_beyond_the_last_point_bandwidth_stays() -> None:
    curve = load_kernels("h800").all_reduce[4]
    last = float(curve.size_bytes[-1])
    one, two, three = curve_us(curve, np.array([last, 2 * last, 3 * last]))
    assert three - two == pytest.approx(two - one)
    assert two > one


def test_more_ranks_wait_longer_for_the_slowest() -> None:
    assert straggling(1) == 1.0
    assert 1.0 < straggling(2) < straggling(4) < straggling(8) < 1.06
