"""Draws of accepted drafts, and the courses that follow from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Drafted, Finished, Preempted
from frontier_mock.serving.specs import SchedulerSpec, SglangSchedulerSpec
from frontier_mock.serving.speculation import (
    SpeculationSpec,
    Stretch,
    draws,
    rates_of_length,
    vllm_course,
)
from tests.engine import prompt, toy_cluster


def test_accepted_drafts_follow_the_unconditional_rates() -> None:
    spec = SpeculationSpec(3, (0.8, 0.5, 0.1), seed=7)
    accepted = draws(spec, 4, 40_000).accepted
    for i, rate in enumerate(spec.rates):
        assert np.mean(accepted > i) == pytest.approx(rate, abs=0.01)
    assert 1 + accepted.mean() == pytest.approx(spec.acceptance_length, abs=0.02)


def test_more_draws_begin_with_the_same_and_requests_have_streams_of_their_own() -> None:
    spec = SpeculationSpec(2, (0.6, 0.3), seed=1)
    few, many = draws(spec, 5, 10).accepted, draws(spec, 5, 1000).accepted
    assert np.array_equal(many[: len(few)], few)
    assert not np.array_equal(draws(spec, 6, 10).accepted, few)


def test_rates_of_zero_and_one_are_never_and_always() -> None:
    accepted = draws(SpeculationSpec(3, (1.0, 1.0, 0.0)), 0, 1000).accepted
    assert set(accepted.tolist()) == {2}


def test_a_step_without_a_match_proposes_and_accepts_nothing() -> None:
    drawn = draws(SpeculationSpec(4, (1.0,) * 4, proposed=0.25), 0, 20_000)
    assert set(drawn.proposed.tolist()) == {0, 4}
    assert np.array_equal(drawn.accepted, drawn.proposed)
    assert np.mean(drawn.proposed > 0) == pytest.approx(0.25, abs=0.02)


def test_an_acceptance_length_becomes_vllms_rates() -> None:
    # vLLM 0.33 SpeculativeConfig._acceptance_length_to_rates, worked by hand.
    assert rates_of_length(1.0, 3) == (0.0, 0.0, 0.0)
    assert rates_of_length(2.5, 3) == (1.0, 0.5, 0.0)
    assert rates_of_length(4.0, 3) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"\[1, 4\], got 4.5"):
        rates_of_length(4.5, 3)


def test_rates_have_to_be_probabilities_of_nested_events() -> None:
    with pytest.raises(ValueError, match="as many rates"):
        SpeculationSpec(2, (0.5,))
    with pytest.raises(ValueError, match="fall"):
        SpeculationSpec(2, (0.5, 0.6))


stretches = st.builds(
    Stretch,
    rid=st.integers(0, 50),
    goal=st.integers(1, 60),
    left=st.integers(1, 70),
    cap_left=st.integers(70, 75),
    longest=st.just(10_000),
    verified=st.integers(0, 5),
    ahead=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), stretches, st.sampled_from([1.0, 0.5]))
def test_a_course_that_nothing_narrows_is_that_of_the_step_by_step_rules(
    rates: list[float], stretch: Stretch, proposed: float
) -> None:
    k = len(rates)
    spec = SpeculationSpec(k, tuple(sorted(rates, reverse=True)), proposed=proposed, lookahead=k)
    quick = vllm_course(spec, stretch, {})
    # A cap that narrows nothing takes the other way.
    slow = vllm_course(spec, stretch, {1: k + 1})
    assert (quick.finish, quick.last) == (slow.finish, slow.last)
    for mine, theirs in zip(quick[2:], slow[2:], strict=True):
        assert np.array_equal(mine, theirs)
    assert int(quick.made[quick.finish]) == stretch.left


def test_no_position_beyond_the_models_length_is_computed() -> None:
    spec = SpeculationSpec(4, (1.0,) * 4, lookahead=4)
    stretch = Stretch(0, goal=10, left=10, cap_left=10, longest=20, verified=0, ahead=False)
    course = vllm_course(spec, stretch, {})
    # 11 tokens after the prompt's step, five more twice; the last step has room for three drafts.
    assert course.made.tolist() == [1, 6, 10]
    assert course.widths.tolist() == [0, 5, 4]
    assert course.slots.tolist() == [14, 19, 20]


def play(output: int, *, ahead: bool, rates: tuple[float, ...]) -> tuple[Finished, Drafted, list]:
    spec = SchedulerSpec(
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=128,
        num_blocks=20,
        async_scheduling=ahead,
        speculation=SpeculationSpec(len(rates), rates, lookahead=len(rates)),
    )
    cluster = toy_cluster(spec)
    cluster.feed(0, Submit(prompt(20, 0, 16), output, output))
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    (drafted,) = [event for event in cluster.log.events if isinstance(event, Drafted)]
    (end,) = [event for event in cluster.log.events if isinstance(event, Finished)]
    times = cluster.workers[0].timeline.token_times_ns(end.spans, drafted.bursts)
    return end, drafted, times.tolist()


@pytest.mark.parametrize("ahead", [False, True])
def test_accepted_drafts_come_at_once_and_the_last_ones_are_cut_at_the_cap(ahead: bool) -> None:
    end, drafted, times = play(9, ahead=ahead, rates=(1.0, 1.0))
    # The prompt's step, then three tokens a step; the last one's third is one too many.
    assert drafted.bursts == bytes([1, 3, 3, 2])
    assert drafted.accepted_steps == (0, 0, 3)
    assert drafted.draft_tokens == 6
    assert end.spans == ((1, 4),)
    assert len(set(times)) == 4
    assert len(times) == end.output_tokens == 9


def test_without_acceptance_every_step_brings_one_token() -> None:
    _, drafted, times = play(5, ahead=True, rates=(0.0, 0.0))
    assert drafted.bursts == bytes([1] * 5)
    assert drafted.accepted_steps == (4, 0, 0)
    assert len(set(times)) == len(times) == 5


def test_a_retracted_sequence_does_not_end_where_it_would_have() -> None:
    # Sequence 1 is retracted with one token to go, and computed again beside the tick that would
    # have been its last: it ends with that prefill.
    drafts = SpeculationSpec(1, (0.5,), seed=3, reserve=128, width=8)
    scheduler = SglangSchedulerSpec(
        max_running_requests=8,
        context_length=64,
        num_pages=221,
        chunked_prefill_size=-1,
        schedule_conservativeness=0.3,
        speculation=drafts,
    )
    cluster = toy_cluster(scheduler)
    for content, (length, output, cap) in enumerate([(11, 7, 10), (38, 2, 5), (34, 1, 1)]):
        cluster.feed(0, Submit(prompt(length, content, 1), output, cap, "stop"))
    while (due := cluster.next_time()) is not None:
        cluster.advance_to(due)
    assert any(isinstance(e, Preempted) and e.rid == 1 for e in cluster.log.events)
    ends = [(e.rid, e.output_tokens) for e in cluster.log.events if isinstance(e, Finished)]
    assert sorted(ends) == [(0, 7), (1, 2), (2, 1)]
    cluster.workers[0].kv.check()
