import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.serving.timeline import Timeline


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Timeline, int]:
    timeline = Timeline()
    step, t_ns = 1, draw(st.integers(0, 10**9))
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 2000))
        a = draw(st.floats(1e3, 1e8))
        d = draw(st.sampled_from([0.0, 0.37, 123.456, 9e4]))
        timeline.begin(step, t_ns, a, d)
        last = step + count - 1
        t_ns = timeline.boundary_ns(last) + draw(st.sampled_from([0, 0, 10**7]))
        step = last + 1
    return timeline, step - 1


@given(timelines())
def test_scalar_and_vector_readers_agree_and_time_moves_forward(case: tuple[Timeline, int]) -> None:
    timeline, last = case
    steps = np.arange(1, last + 1)
    vector = timeline.boundaries_ns(steps)
    picks = {1, last, last // 2 + 1}
    assert [timeline.boundary_ns(s) for s in picks] == [int(vector[s - 1]) for s in picks]
    assert np.all(np.diff(vector) > 0)


@given(timelines(), st.data())
def test_times_lead_back_to_steps(case: tuple[Timeline, int], data: st.DataObject) -> None:
    timeline, last = case
    step = data.draw(st.integers(1, last))
    end = timeline.boundary_ns(step)
    assert timeline.last_step_ended_by(end) == step
    assert timeline.last_step_ended_by(end - 1) == step - 1


def test_a_linear_segment_by_hand() -> None:
    timeline = Timeline()
    timeline.begin(5, 1000, 100.0, 10.0)
    assert [timeline.boundary_ns(s) for s in (5, 6, 7)] == [1100, 1210, 1330]
    assert timeline.first_tail_step_ending_at_or_after(1210) == 6
    assert timeline.first_tail_step_ending_at_or_after(1211) == 7
    assert list(timeline.token_times_ns([(5, 1), (7, 1)])) == [1100, 1330]


def test_dropped_steps_are_refused_not_guessed() -> None:
    timeline = Timeline()
    timeline.begin(1, 0, 10.0, 0.0)
    timeline.begin(11, 100, 20.0, 0.0)
    timeline.drop_before(11)
    assert timeline.boundary_ns(11) == 120
    with pytest.raises(LookupError, match="step 3 is no longer"):
        timeline.boundary_ns(3)
