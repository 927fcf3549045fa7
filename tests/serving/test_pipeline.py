"""The pipeline's recurrence against what is known of pipelines, and its closed form against it."""

from collections import deque
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.serving.pipeline import Curve, Pipeline, State, Work, to_ns, units
from frontier_mock.serving.pipeline_run import Run


def play(
    pipeline: Pipeline, before: State, works: list[Work | None], first: int, last: int
) -> list[State]:
    """The states after each slot, one by one."""
    states, state = [], before
    for slot in range(first, last + 1):
        rounds, place = divmod(slot - first, pipeline.lanes)
        work = works[place]
        now = None if work is None else work.later(rounds)
        state = pipeline.after(state, now, state.ends[0])
        states.append(state)
    return states


def even(stages: int, waits: bool = False) -> Work:
    return Work(0, (1000,) * stages, (0,) * (stages - 1), waits, (0,) * stages)


def test_the_classical_bubble() -> None:
    """m micro-batches through p equal stages take m + p - 1 stage times, of which each stage idles
    p - 1: a share of (p - 1) / (m + p - 1)."""
    for stages in (2, 3, 4, 8):
        for count in (1, 4, 17):
            for rendezvous in (False, True):
                pipeline = Pipeline(stages, stages, count + stages, 0, rendezvous)
                state = pipeline.idle(0)
                for _ in range(count):
                    state = pipeline.after(state, even(stages), 0)
                total = state.ends[-1]
                assert total == (count + stages - 1) * 1000
                idle = Fraction(total - count * 1000, total)
                assert idle == Fraction(stages - 1, count + stages - 1)


def test_a_full_pipeline_decodes_once_every_round_of_its_slowest_stage() -> None:
    pipeline = Pipeline(4, 4, 5, 0, rendezvous=False)
    work = Work(0, (1000, 1300, 1000, 900), (10, 10, 10), True, (0, 0, 0, 0))
    run = Run(pipeline, pipeline.idle(0), [work] * 4, 4, 4003)
    assert run.end(4003) - run.end(3999) == 4 * 1300


def test_one_lane_alone_waits_for_its_own_token() -> None:
    pipeline = Pipeline(4, 4, 5, 70, rendezvous=True)
    work = Work(0, (1000, 1300, 1000, 900), (10, 10, 10), True, (0, 0, 0, 0))
    run = Run(pipeline, pipeline.idle(0), [work, None, None, None], 4, 4003)
    assert run.end(4000) - run.end(3996) == 4200 + 30 + 70


def test_a_receiver_that_is_busy_holds_up_the_sender_at_a_rendezvous() -> None:
    slow_second = Work(0, (100, 1000), (10,), False)
    for rendezvous, third_starts in ((True, 1120), (False, 200)):
        pipeline = Pipeline(2, 2, 9, 0, rendezvous)
        state = pipeline.idle(0)
        for _ in range(3):
            state = pipeline.after(state, slow_second, 0)
        assert state.starts[0] == third_starts


def test_the_engine_core_works_on_one_step_at_a_time() -> None:
    pipeline = Pipeline(2, 2, 3, 0, rendezvous=False)
    work = Work(5000, (1000, 1000), (0,), True, (0, 0))
    run = Run(pipeline, pipeline.idle(0), [work, work], 2, 401)
    assert run.end(401) - run.end(399) == 10_000


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pipeline, State, list[Work | None], int, int]:
    stages = draw(st.integers(2, 5))
    lanes = stages + draw(st.integers(0, 2))
    pipeline = Pipeline(
        stages,
        lanes,
        lanes + draw(st.integers(0, 1)),
        draw(st.sampled_from([0, 1000, 20_000])),
        draw(st.booleans()),
    )
    times = st.integers(10**5, 10**6)
    works: list[Work | None] = []
    for _ in range(lanes):
        if draw(st.integers(0, 3)) == 0:
            works.append(None)
            continue
        base = draw(times)
        works.append(
            Work(
                draw(st.sampled_from([0, 5000, base // 2, 2 * base])),
                tuple(base + draw(st.sampled_from([0, 7, 99_999])) for _ in range(stages)),
                tuple(draw(st.integers(0, 10_000)) for _ in range(stages - 1)),
                True,
                tuple(draw(st.integers(0, 300)) for _ in range(stages)),
            )
        )
    if all(work is None for work in works):
        works[draw(st.integers(0, lanes - 1))] = even(stages, True)
    state = pipeline.idle(draw(st.integers(0, 10**9)))
    for work in works:
        for _ in range(draw(st.integers(0, 2))):
            # Whatever went before: a prompt, somebody else's decode.
            state = pipeline.after(state, work and work._replace(waits=False), state.ends[0])
    first = draw(st.integers(1, 1000))
    return pipeline, state, works, first, first + draw(st.integers(0, 900))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_closed_form_is_the_recurrence(
    case: tuple[Pipeline, State, list[Work | None], int, int],
) -> None:
    pipeline, before, works, first, last = case
    run = Run(pipeline, before, works, first, last)
    for slot, state in enumerate(play(*case), first):
        assert run.end(slot) == state.ends[-1]
        assert run.state(slot) == state


def test_a_long_run_costs_no_more_than_a_short_one() -> None:
    pipeline = Pipeline(4, 4, 5, 1000, rendezvous=True)
    work = Work(5000, (10**6, 10**6, 10**6, 11 * 10**5), (700,) * 3, True, (3, 3, 3, 4))
    exact = []
    for rounds in (200, 200_000):
        run = Run(pipeline, pipeline.idle(0), [work] * 4, 4, 4 * rounds + 3)
        exact.append(sum(len(piece.states) for piece in run.pieces))
    assert exact[1] == exact[0] < 100


@given(*(st.integers(-1000, 1000) for _ in range(3)), st.integers(1, 60))
def test_how_long_a_curve_stays_above(base: int, slope: int, bend: int, limit: int) -> None:
    curve = Curve(abs(base), slope, bend)
    zero = Curve(0, 0, 0)
    rounds = deque(m for m in range(1, limit + 1) if curve.at(m) < 0)
    assert curve.stays_above(zero, limit) == (rounds[0] - 1 if rounds else limit)
    assert curve.before(2).at(5) == curve.at(3)


def test_times_round_up_to_whole_nanoseconds() -> None:
    assert to_ns(units(3.0)) == 3
    assert to_ns(units(3.0) + 1) == 4
