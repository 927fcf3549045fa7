"""Experts in four bits against every measured kernel of gpt-oss, even and skewed."""

from pathlib import Path

import numpy as np
import pytest

from frontier_mock.config.profiles import load_hardware, load_kernels
from frontier_mock.cost.experts import balanced_load, block_rows, experts_us

pytest.importorskip("pyarrow", reason="needs pyarrow, of the `profiles` extra")
from scripts.fitting.experts import points, skewed_errors, sources

OPS = Path(__file__).parents[2].parent / "shared" / "data" / "kernels" / "aiconfigurator" / "ops"

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not OPS.is_dir(), reason="needs ../shared/data/kernels"),
]


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_mxfp4_experts_of_gpt_oss(gpu: str) -> None:
    """20b and 120b, cut 1 to 32 times, 1 to 16,384 tokens; the skewed loads took part in no fit."""
    hw, table = load_hardware(gpu), load_kernels(gpu).experts["vllm-0.24"]["mxfp4"]
    (source,) = (
        s for s in sources(f"{gpu}_sxm") if (s.collection, s.weights) == ("vllm-0.24", "mxfp4")
    )
    given = points(OPS, source, "balanced")
    errors = []
    for shape, measured_us in zip(given.shapes, given.us, strict=True):
        load = balanced_load(shape, block_rows(table.fit, shape, given.tokens), given.tokens)
        errors.append(experts_us(table, hw, "mxfp4", shape, load) / measured_us - 1.0)
    even = np.concatenate(errors)
    even = even[~np.isnan(even)]
    assert even.size > 600
    assert np.median(np.abs(even)) < 0.04
    assert np.mean(np.abs(even)) < 0.06
    for alpha in (1.01, 1.2):
        skewed = skewed_errors(hw, source, table, OPS, alpha)
        assert np.median(np.abs(skewed)) < 0.085
        assert abs(np.median(skewed)) < 0.05
