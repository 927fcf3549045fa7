"""Sources: what is sent when, and in which order."""

import heapq
from itertools import pairwise

import pytest

from frontier_mock.workload.build import build_source, output_stream
from frontier_mock.workload.prompts import StreamPrompt
from frontier_mock.workload.rows import Census, TraceError, TraceRow, TraceRows
from frontier_mock.workload.source import Source, Timed
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    ExponentialDelay,
    FixedDelay,
    FixedTokens,
    HistogramTokens,
    LognormalTokens,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    TokenCount,
    TraceSpec,
    UniformTokens,
    WorkloadSpec,
)

PROMPTS = PromptSpec(UniformTokens(10, 20), FixedTokens(4))


def play(source: Source, service_ns: int = 100) -> list[tuple[Timed, int]]:
    """Each request with its end, on a server of unlimited width taking `service_ns` a request."""
    ends: list[tuple[int, int, Timed]] = []
    played: list[tuple[Timed, int]] = []

    def admit(timed: Timed) -> None:
        end = timed.t_ns + service_ns * timed.submit.output_tokens
        heapq.heappush(ends, (end, timed.item.seq, timed))
        played.append((timed, end))

    for timed in source.initial():
        admit(timed)
    while ends:
        end, _, timed = heapq.heappop(ends)
        for released in source.on_finish(timed.item, end):
            assert released.t_ns >= end
            admit(released)
    assert len(played) == source.num_requests
    assert sorted(timed.item.seq for timed, _ in played) == list(range(source.num_requests))
    return played


def trace(times_ns: list[int], timed: bool = True) -> TraceRows:
    rows = [TraceRow(t, 10 + i, 2, None, 0, i + 2) for i, t in enumerate(times_ns)]
    return TraceRows("t", "azure", rows, 512, timed, Census(rows=len(rows), read=len(rows)))


def test_closed_loop_keeps_its_lanes_busy_and_its_order() -> None:
    spec = ClosedLoopSpec(PROMPTS, concurrency=3, num_requests=9)
    played = play(build_source(spec, seed=0))
    assert [timed.t_ns for timed, _ in played] == [0] * 3 + [400] * 3 + [800] * 3
    assert [timed.item.seq for timed, _ in played] == list(range(9))
    assert [timed.item.lane for timed, _ in played] == [0, 1, 2] * 3
    assert all(timed.item.measured for timed, _ in played)


def test_warm_up_ends_before_the_measured_burst_begins() -> None:
    prompts = PromptSpec(FixedTokens(8), UniformTokens(1, 9))
    spec = ClosedLoopSpec(prompts, concurrency=4, num_requests=12, warmup_requests=6)
    played = play(build_source(spec, seed=1))
    warm = [(timed, end) for timed, end in played if not timed.item.measured]
    measured = [timed for timed, _ in played if timed.item.measured]
    assert len(warm) == 6
    last_warm_end = max(end for _, end in warm)
    assert [timed.t_ns for timed in measured[:4]] == [last_warm_end] * 4
    assert measured[4].t_ns > last_warm_end


def test_fewer_requests_than_lanes_and_fewer_warm_ups_than_lanes() -> None:
    spec = ClosedLoopSpec(PROMPTS, concurrency=8, num_requests=3, warmup_requests=2)
    played = play(build_source(spec, seed=0))
    assert [timed.t_ns for timed, _ in played] == [0, 0, 400, 400, 400]


def test_think_time_comes_between_requests_of_a_lane() -> None:
    spec = ClosedLoopSpec(PROMPTS, 1, 3, think_time=FixedDelay(1e-6))
    played = play(build_source(spec, seed=0))
    assert [timed.t_ns for timed, _ in played] == [0, 1400, 2800]
    drawn = ClosedLoopSpec(PROMPTS, 1, 300, think_time=ExponentialDelay(1.0))
    starts = [timed.t_ns for timed, _ in play(build_source(drawn, seed=0))]
    assert 0.8e9 < starts[-1] / 299 < 1.2e9


def test_burst_is_everything_at_once() -> None:
    played = play(build_source(BurstSpec(PROMPTS, 5, warmup_requests=2), seed=0))
    assert [timed.t_ns for timed, _ in played] == [0, 0] + [400] * 5


def test_constant_arrivals() -> None:
    spec = OpenLoopSpec(PROMPTS, "constant", 4.0, num_requests=3, warmup_requests=1)
    timed = build_source(spec, seed=0).initial()
    assert [one.t_ns for one in timed] == [0, 250_000_000, 500_000_000]
    assert [one.item.measured for one in timed] == [False, True, True]
    by_duration = OpenLoopSpec(PROMPTS, "constant", 4.0, duration_s=1.0)
    assert len(build_source(by_duration, seed=0).initial()) == 4


def test_poisson_arrivals_have_the_rate_and_do_not_depend_on_how_they_end() -> None:
    by_count = OpenLoopSpec(PROMPTS, "poisson", 50.0, num_requests=5000)
    times = [one.t_ns for one in build_source(by_count, seed=3).initial()]
    assert times == sorted(times)
    assert 95 < times[-1] / 1e9 < 105
    by_duration = OpenLoopSpec(PROMPTS, "poisson", 50.0, duration_s=20.0)
    fewer = [one.t_ns for one in build_source(by_duration, seed=3).initial()]
    assert fewer == [t for t in times if t < 20 * 10**9]
    other = [one.t_ns for one in build_source(by_count, seed=4).initial()]
    assert other != times


def test_a_duration_without_arrivals_is_an_error() -> None:
    spec = OpenLoopSpec(PROMPTS, "poisson", 0.001, duration_s=0.001)
    with pytest.raises(ValueError, match="duration_s: no arrival"):
        build_source(spec, seed=0)


def test_distributions_have_their_shape() -> None:
    def inputs(dist: TokenCount) -> list[int]:
        spec = BurstSpec(PromptSpec(dist, FixedTokens(1)), 4000)
        return [one.submit.prompt.num_tokens for one in build_source(spec, seed=5).initial()]

    assert set(inputs(FixedTokens(7))) == {7}
    uniform = inputs(UniformTokens(3, 6))
    assert set(uniform) == {3, 4, 5, 6}
    lognormal = sorted(inputs(LognormalTokens(1000, 0.5, low=200, high=3000)))
    assert 950 < lognormal[2000] < 1050
    assert lognormal[0] >= 200
    assert lognormal[-1] == 3000
    histogram = inputs(HistogramTokens(((5, 5, 3.0), (10, 11, 1.0))))
    assert set(histogram) == {5, 10, 11}
    assert 0.72 < histogram.count(5) / 4000 < 0.78


def test_shared_prefix_and_distinct_prompts() -> None:
    spec = PromptSpec(UniformTokens(10, 99), FixedTokens(1), 64, distinct_prompts=3)
    timed = build_source(BurstSpec(spec, 7), seed=0).initial()
    texts = [
        one.submit.prompt.text({}) for one in timed if isinstance(one.submit.prompt, StreamPrompt)
    ]
    assert len(texts) == 7
    assert len(set(texts)) == 3
    assert texts[:3] == texts[3:6]
    assert len({text[:64] for text in texts}) == 1
    assert len({text[64:] for text in texts}) == 3


def test_the_seed_decides_everything() -> None:
    spec = OpenLoopSpec(PROMPTS, "poisson", 5.0, num_requests=40)

    def shape(seed: int) -> list[tuple[int, int, bytes]]:
        return [
            (one.t_ns, one.submit.prompt.num_tokens, one.submit.prompt.block_keys(8))
            for one in build_source(spec, seed=seed).initial()
        ]

    assert shape(1) == shape(1)
    assert shape(1) != shape(2)


def test_sessions_grow_by_outputs_and_inputs() -> None:
    spec = SessionsSpec(
        PromptSpec(FixedTokens(10), FixedTokens(5), shared_prefix_tokens=20),
        num_sessions=3,
        turns=FixedTokens(3),
        concurrency=2,
        first_input_tokens=FixedTokens(40),
        think_time=FixedDelay(1e-6),
    )
    source = build_source(spec, seed=0)
    assert source.feeds_back
    played = play(source)
    lengths = [timed.submit.prompt.num_tokens for timed, _ in played if timed.item.lane == 0]
    assert lengths == [60, 75, 90]
    starts = {(timed.item.lane, timed.item.turn): timed.t_ns for timed, _ in played}
    assert starts[0, 0] == starts[1, 0] == 0
    assert starts[0, 1] == 500 + 1000
    assert starts[2, 0] == 3500
    seqs = [timed.item.seq for timed, _ in played if timed.item.lane == 1]
    assert seqs == [3, 4, 5]


def test_output_keys_are_the_next_turns_prompt_keys() -> None:
    spec = SessionsSpec(
        PromptSpec(UniformTokens(1, 50), UniformTokens(1, 50)),
        num_sessions=4,
        turns=FixedTokens(5),
        rate_per_s=1.0,
    )
    played = play(build_source(spec, seed=2, block_tokens=16))
    by_place = {(timed.item.lane, timed.item.turn): timed.submit for timed, _ in played}
    for (session, turn), submit in by_place.items():
        after = by_place.get((session, turn + 1))
        if after is None:
            continue
        keys = submit.prompt.block_keys(16) + submit.output_keys
        assert len(keys) == (submit.prompt.num_tokens + submit.output_tokens) // 16 * 8
        assert after.prompt.block_keys(16).startswith(keys)


def test_a_live_session_repeats_what_the_engine_said() -> None:
    spec = SessionsSpec(
        PromptSpec(FixedTokens(4), FixedTokens(3)), 1, FixedTokens(2), concurrency=1
    )
    (_, _), (second, _) = play(build_source(spec, seed=0))
    assert isinstance(second.submit.prompt, StreamPrompt)
    assert second.submit.prompt.text({output_stream(0): "xyz"})[4:7] == "xyz"


def test_tool_turns_wait_for_the_tool() -> None:
    spec = SessionsSpec(
        PromptSpec(FixedTokens(4), FixedTokens(1)),
        1,
        FixedTokens(200),
        concurrency=1,
        think_time=FixedDelay(1e-6),
        tool_time=FixedDelay(5e-6),
        tool_fraction=0.25,
    )
    played = play(build_source(spec, seed=0))
    gaps = [b.t_ns - end for (_, end), (b, _) in pairwise(played)]
    assert set(gaps) == {1000, 5000}
    assert 30 < gaps.count(5000) < 70


def test_trace_window_and_rate_scale() -> None:
    rows = trace([5_000, 1_000_005_000, 2_000_005_000, 3_000_005_000])
    spec = TraceSpec("t", start_s=1.0, duration_s=2.0, rate_scale=2.0)
    timed = build_source(spec, seed=0, rows=rows).initial()
    assert [(one.t_ns, one.item.line) for one in timed] == [(0, 3), (500_000_000, 4)]
    limited = TraceSpec("t", max_requests=3)
    assert len(build_source(limited, seed=0, rows=rows).initial()) == 3


def test_trace_pacing() -> None:
    rows = trace([0, 10, 20, 30])
    sequential = play(build_source(TraceSpec("t", concurrency=1), seed=0, rows=rows))
    assert [timed.t_ns for timed, _ in sequential] == [0, 200, 400, 600]
    assert [timed.item.line for timed, _ in sequential] == [2, 3, 4, 5]
    two = play(build_source(TraceSpec("t", concurrency=2), seed=0, rows=rows))
    assert [timed.t_ns for timed, _ in two] == [0, 0, 200, 200]


def test_jitter_is_off_by_default_and_stays_within_its_bound() -> None:
    rows = trace([0] * 200 + [10**9] * 200)
    plain = build_source(TraceSpec("t"), seed=0, rows=rows).initial()
    assert [one.t_ns for one in plain] == [0] * 200 + [10**9] * 200
    timed = build_source(TraceSpec("t", jitter_s=3.0), seed=0, rows=rows).initial()
    times = [one.t_ns for one in timed]
    assert times == sorted(times)
    for one in timed:
        recorded = rows.rows[one.item.seq].t_ns
        assert recorded <= one.t_ns < recorded + 3 * 10**9
    assert len(set(times)) > 390


def test_a_trace_that_cannot_be_played_as_asked() -> None:
    with pytest.raises(TraceError, match="records lengths only"):
        build_source(TraceSpec("t"), seed=0, rows=trace([0, 0], timed=False))
    with pytest.raises(TraceError, match="no row between start_s=9"):
        build_source(TraceSpec("t", start_s=9), seed=0, rows=trace([0, 10**9]))
    with pytest.raises(TraceError, match="not read"):
        build_source(TraceSpec("t"), seed=0)
    source = build_source(TraceSpec("t", concurrency=1), seed=0, rows=trace([0, 0], timed=False))
    assert source.num_requests == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedTokens(0), "fixed"),
        (lambda: UniformTokens(5, 4), "uniform"),
        (lambda: LognormalTokens(0, 1), "lognormal.median"),
        (lambda: LognormalTokens(1, -1), "lognormal.sigma"),
        (lambda: LognormalTokens(1, 1, 3, 2), "min <= max"),
        (lambda: HistogramTokens(()), "at least one bin"),
        (lambda: HistogramTokens(((2, 1, 1.0),)), "low <= high"),
        (lambda: HistogramTokens(((1, 2, 0.0),)), "all weights are zero"),
        (lambda: FixedDelay(-1), "delay"),
        (lambda: ExponentialDelay(0), "exponential"),
        (lambda: PromptSpec(FixedTokens(1), FixedTokens(1), -1), "shared_prefix_tokens"),
        (lambda: PromptSpec(FixedTokens(1), FixedTokens(1), 0, 0), "distinct_prompts"),
        (lambda: ClosedLoopSpec(PROMPTS, 0, 1), "concurrency"),
        (lambda: ClosedLoopSpec(PROMPTS, 1, 0), "num_requests"),
        (lambda: BurstSpec(PROMPTS, 1, -1), "warmup_requests"),
        (lambda: OpenLoopSpec(PROMPTS, "gamma", 1.0, 1), "arrivals"),
        (lambda: OpenLoopSpec(PROMPTS, "poisson", 0.0, 1), "rate_per_s"),
        (lambda: OpenLoopSpec(PROMPTS, "poisson", 1.0), "exactly one"),
        (lambda: OpenLoopSpec(PROMPTS, "poisson", 1.0, duration_s=0.0), "duration_s"),
        (lambda: SessionsSpec(PROMPTS, 0, FixedTokens(1), 1), "num_sessions"),
        (lambda: SessionsSpec(PROMPTS, 1, FixedTokens(1)), "exactly one"),
        (lambda: SessionsSpec(PROMPTS, 1, FixedTokens(1), 0), "concurrency"),
        (lambda: SessionsSpec(PROMPTS, 1, FixedTokens(1), rate_per_s=0.0), "rate_per_s"),
        (lambda: SessionsSpec(PROMPTS, 1, FixedTokens(1), 1, tool_fraction=2), "tool_fraction"),
        (lambda: TraceSpec("t", start_s=-1), "start_s"),
        (lambda: TraceSpec("t", duration_s=0), "duration_s"),
        (lambda: TraceSpec("t", rate_scale=0), "rate_scale"),
        (lambda: TraceSpec("t", concurrency=0), "concurrency"),
        (lambda: TraceSpec("t", jitter_s=-1), "jitter_s"),
        (lambda: TraceSpec("t", jitter_s=1, concurrency=1), "jitter_s"),
        (lambda: TraceSpec("t", id_tokens=0), "id_tokens"),
        (lambda: TraceSpec("t", max_requests=0), "max_requests"),
    ],
)
def test_a_bad_value_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_every_kind_is_a_workload_spec() -> None:
    kinds = {ClosedLoopSpec, BurstSpec, OpenLoopSpec, SessionsSpec, TraceSpec}
    assert set(WorkloadSpec.__args__) == kinds
