"""Gaps between tokens that come several at once."""

from frontier_mock.core.events import Finished
from frontier_mock.report.itl import spread_gaps
from frontier_mock.serving.timeline import Timeline


def ended(rid: int, *spans: tuple[int, int]) -> Finished:
    return Finished(0, 0, rid, "length", 1, spans)


def line() -> Timeline:
    """Step n ends at 30 n."""
    timeline = Timeline()
    timeline.begin(1, 0, 30.0, 0.0)
    return timeline


def test_tokens_of_a_step_share_its_time() -> None:
    gaps = spread_gaps([ended(7, (1, 4))], {7: bytes([1, 3, 1, 2])}, line())
    # In order of size.
    assert gaps.values_ns.tolist() == [10, 15, 30]
    assert gaps.weights.tolist() == [3, 2, 1]


def test_a_step_that_brings_nothing_lengthens_the_next_gap() -> None:
    gaps = spread_gaps([ended(7, (1, 2), (5, 1))], {7: bytes([1, 0, 2])}, line())
    assert gaps.values_ns.tolist() == [60]
    assert gaps.weights.tolist() == [2]


def test_sequences_without_drafts_have_a_token_a_step() -> None:
    gaps = spread_gaps([ended(1, (1, 3)), ended(2, (2, 1))], {}, line())
    assert gaps.values_ns.tolist() == [30, 30]
    assert gaps.weights.tolist() == [1, 1]


def test_nothing_ended_nothing_told() -> None:
    assert len(spread_gaps([], {}, line()).values_ns) == 0
