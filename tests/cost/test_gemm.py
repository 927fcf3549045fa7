"""Dense linear layers: never faster than the machine, measured inside the grid, sane outside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_hardware, load_kernels
from frontier_mock.cost.gemm import equation_us, floor_us, gemm_us

GPUS = ("h800", "h100", "h200", "h20", "a100", "a800", "l20", "l40s", "rtx-pro-6000")
SIZES = st.integers(32, 70_000)


@pytest.mark.parametrize("gpu", GPUS)
@given(n=SIZES, k=SIZES, m=st.integers(1, 40_000))
@settings(max_examples=40)
def test_no_layer_beats_peak_flops_or_bandwidth(gpu: str, n: int, k: int, m: int) -> None:
    hw = load_hardware(gpu)
    for weights, table in load_kernels(hw.kernels).gemm.items():
        time_us = float(gemm_us(table, hw, weights, np.array([float(m)]), n, k)[0])
        width = 1 if weights.startswith("fp8") else 2
        peak = hw.peak_fp8_flops if width == 1 else hw.peak_bf16_flops
        assert time_us * 1e-6 >= 2.0 * m * n * k / peak * 0.9999
        assert time_us * 1e-6 >= n * k * width / hw.hbm_bytes_per_s * 0.9999


@pytest.mark.parametrize(
    ("n", "k", "m", "measured_us"),
    [
        (6144, 4096, 256, 26.4),
        (6144, 4096, 1024, 65.3),
        (6144, 4096, 4096, 258.7),
        (8192, 8192, 64, 47.4),
        (8192, 8192, 1024, 164.0),
        (8192, 8192, 4096, 698.0),
    ],
)
def test_the_grid_gives_back_what_was_measured(n: int, k: int, m: int, measured_us: float) -> None:
    """Rows B1 and B2 of shared/specs/cost_model.md, H100."""
    hw = load_hardware("h100")
    table = load_kernels("h100").gemm["bf16"]
    time_us = float(gemm_us(table, hw, "bf16", np.array([float(m)]), n, k)[0])
    assert time_us == pytest.approx(measured_us, rel=0.05)


def test_beyond_the_grid_the_equation_takes_over() -> None:
    hw = load_hardware("h100")
    table = load_kernels("h100").gemm["bf16"]
    m = np.array([64.0])
    edge = gemm_us(table, hw, "bf16", m, 65536, 65536)[0]
    beyond = gemm_us(table, hw, "bf16", m, 4 * 65536, 65536)[0]
    assert beyond / edge == pytest.approx(4.0, rel=0.05)


@given(n=SIZES, k=SIZES)
@settings(max_examples=60)
def test_the_equation_grows_with_the_batch(n: int, k: int) -> None:
    hw = load_hardware("h200")
    for weights, table in load_kernels("h200").gemm.items():
        m = np.arange(1.0, 3000.0, 7.0)
        assert (np.diff(equation_us(table.fit, hw, weights, m, n, k)) >= -1e-9).all()
        assert (np.diff(floor_us(hw, weights, m, n, k)) >= 0.0).all()
