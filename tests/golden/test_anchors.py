"""Published single figures of expert parallelism and latent attention."""

import numpy as np
import pytest

from frontier_mock.cli.anchors import anchors, deepseek_prefill
from frontier_mock.cost.protocol import Chunk, RankBatch
from frontier_mock.cost.specs import ParallelSpec

ALL = anchors()


def errors(*rows: str) -> list[float]:
    found = [abs(anchor.error) for anchor in ALL if anchor.row in rows]
    assert found
    return found


def test_deepseeks_prefill_pool_on_h800() -> None:
    """7,839 tokens/s/GPU at EP32 (row A65)."""
    assert errors("A65")[0] < 8.0


def test_step3_on_40_gpus() -> None:
    """3,321 tokens/s/GPU with attention and FFN apart (row A74), from its configuration alone."""
    assert errors("A74")[0] < 10.0


def test_step3s_pipeline_is_its_layer_times() -> None:
    """49.8 ms, and the filling of the pipeline on top (sglang_and_routers.md section 5.2)."""
    assert errors("5.2")[0] < 2.0


@pytest.mark.parametrize(
    ("rows", "worst"),
    [
        (("B41", "B42", "B43"), 10.0),
        (("B31", "B35", "B36"), 8.0),
        (("B37", "B38"), 11.0),
        (("B67",), 16.0),
    ],
)
def test_equations_fit_their_own_points(rows: tuple[str, ...], worst: float) -> None:
    assert max(errors(*rows)) < worst


def test_attention_halves_of_three_models_on_h800() -> None:
    on_h800 = [a.error for a in ALL if a.row in ("B46", "B48") and "h800" in a.what]
    assert len(on_h800) == 6
    assert max(np.abs(on_h800)) < 8.0


def test_two_batches_hide_communication_in_large_steps_only() -> None:
    plain = ParallelSpec(dp=32, ep=32, dispatch="deepep_normal")
    halves = ParallelSpec(dp=32, ep=32, dispatch="deepep_normal", overlap=True)
    serial, overlapped = deepseek_prefill(plain, 32), deepseek_prefill(halves, 32)
    large, small = [Chunk(4096, 0)] * 4, [Chunk(16, 0)]
    assert overlapped.mixed(0, 0, large) < 0.8 * serial.mixed(0, 0, large)
    assert overlapped.mixed(0, 0, small) == serial.mixed(0, 0, small)


def test_ranks_in_lockstep_wait_for_the_slowest() -> None:
    cost = deepseek_prefill(ParallelSpec(dp=8, ep=8, dispatch="deepep_normal"), 0)
    idle, busy = RankBatch(0, 0), RankBatch(0, 0, [Chunk(8192, 0)])
    long = RankBatch(0, 0, [Chunk(8192, 32768)])
    one = cost.lockstep([busy] + [idle] * 7)
    assert cost.lockstep([idle] * 8) < one
    assert one < cost.lockstep([busy] * 8) < cost.lockstep([busy] * 7 + [long])
    even = cost.lockstep([RankBatch(64, 64 * 4000)] * 8)
    line = cost.decode(64, 64 * 4000)
    assert even == pytest.approx(line.base_ns + line.slope_ns * 64 * 4000, rel=0.01)
    assert cost.lockstep([RankBatch(0, 0, [Chunk(2000, 0)])] + [busy] * 7) > even
