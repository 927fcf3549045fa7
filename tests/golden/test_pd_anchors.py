"""Published runs of prefill and decode on engines of their own, from their configuration alone."""

import pytest

from frontier_mock.cli.anchors import Anchor
from frontier_mock.cli.pd_anchors import pd_anchors, stopping_lengths

MEANS = [(128, 64.8), (2048, 741.3), (32784, 11035.7)]


@pytest.fixture(scope="module")
def every() -> list[Anchor]:
    return list(pd_anchors())


def test_token_times_of_gpt_oss_on_two_and_two(every: list[Anchor]) -> None:
    """Row A44: within 15 %, but for prompts of 32,784 tokens at low load (decisions/0009)."""
    errors = {a.what: a.error for a in every if a.row == "A44" and a.what.endswith("TPOT")}
    assert len(errors) == 15
    far = [what for what, error in errors.items() if abs(error) > 15.0]
    assert [what.split()[-3:-1] for what in far] in ([], [["32784/2048", "c32:"]])
    assert max(map(abs, errors.values())) < 25.0


def test_mooncakes_transfers(every: list[Anchor]) -> None:
    """Row B64: all nine sizes."""
    errors = [a.error for a in every if a.row == "B64"]
    assert len(errors) == 9
    assert max(map(abs, errors)) < 10.0


@pytest.mark.parametrize(("limit", "mean"), MEANS)
def test_outputs_that_stop_or_go_on_have_the_published_mean(limit: int, mean: float) -> None:
    bins = stopping_lengths(limit, mean).bins
    assert sum(weight for _, _, weight in bins) == pytest.approx(1.0)
    assert sum((low + high) / 2 * weight for low, high, weight in bins) == pytest.approx(mean)
    assert max(high for _, high, _ in bins) == limit
