"""The pipeline of a step: what is computed equals what is played event by event."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.cost.afd.pipeline import (
    ATTENTION,
    FFN,
    LayerRun,
    MicroBatch,
    Span,
    pipeline_ns,
    simulate,
    uniform_ns,
)

# Small numbers collide often, large ones are like real durations.
DURATION = st.one_of(st.integers(0, 12), st.integers(1, 400_000))


def end_ns(spans: list[Span]) -> int:
    return max(span.end_ns for span in spans)


@st.composite
def layer_runs(draw: st.DrawFn) -> list[LayerRun]:
    """Up to three kinds of layers, ranks and micro-batches all different."""
    batches, ranks, ffn_ranks = draw(st.tuples(*[st.integers(1, 4)] * 3))

    def times(count: int) -> tuple[int, ...]:
        return draw(st.tuples(*[DURATION] * count))

    def micro_batch() -> MicroBatch:
        return MicroBatch(times(ranks), times(ranks), times(ffn_ranks), times(ranks))

    runs = []
    for count in draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)):
        same = draw(st.booleans())
        one = micro_batch()
        rest = [one if same else micro_batch() for _ in range(batches - 1)]
        runs.append(LayerRun(count, (one, *rest)))
    return runs


@settings(max_examples=300, deadline=None)
@given(layer_runs())
def test_closed_form_equals_events(runs: list[LayerRun]) -> None:
    assert pipeline_ns(runs) == end_ns(simulate(runs))


@given(st.integers(1, 80), st.integers(1, 6), st.tuples(DURATION, DURATION, DURATION, DURATION))
def test_formula_equals_events(
    layers: int, batches: int, stages: tuple[int, int, int, int]
) -> None:
    one = MicroBatch((stages[0],), (stages[1],), (stages[2],), (stages[3],))
    runs = [LayerRun(layers, (one,) * batches)]
    assert uniform_ns(layers, batches, stages) == end_ns(simulate(runs))


@given(layer_runs())
def test_stations_serve_one_at_a_time_and_in_order(runs: list[LayerRun]) -> None:
    free: dict[tuple[str, int], tuple[int, int, int]] = {}
    for span in simulate(runs):
        before = free.get((span.station, span.rank), (-1, -1, 0))
        assert (span.layer, span.micro_batch) > before[:2]
        assert span.start_ns >= before[2]
        free[span.station, span.rank] = (span.layer, span.micro_batch, span.end_ns)


@given(layer_runs())
def test_ffn_waits_for_every_attention_rank(runs: list[LayerRun]) -> None:
    spans = simulate(runs)
    attention: dict[tuple[int, int], int] = {}
    for span in spans:
        if span.station == ATTENTION:
            key = span.layer, span.micro_batch
            attention[key] = max(attention.get(key, 0), span.end_ns)
    for span in spans:
        if span.station == FFN:
            assert span.start_ns >= attention[span.layer, span.micro_batch]


def test_no_layer_is_lost() -> None:
    one = MicroBatch((3, 4), (1, 1), (2,), (1, 2))
    spans = simulate([LayerRun(2, (one, one)), LayerRun(3, (one, one))])
    assert len(spans) == 5 * 2 * (2 + 2 + 1 + 2)


@pytest.mark.parametrize(
    ("micro_batches", "period"),
    [(1, 300), (2, 300), (3, 300), (4, 400)],
)
def test_period_of_a_layer(micro_batches: int, period: int) -> None:
    """Three micro-batches keep attention busy; fewer wait for the way round, 300 for each layer."""
    times = MicroBatch((100,), (60,), (80,), (60,))
    shorter, longer = (pipeline_ns([LayerRun(n, (times,) * micro_batches)]) for n in (50, 51))
    assert longer - shorter == period


def test_step3_identity() -> None:
    """Three micro-batches, 272 us a stage, 61 layers: 49.8 ms (arXiv 2507.19427), and a fill."""
    stage = MicroBatch((272_000,), (136_000,), (272_000,), (136_000,))
    step_ns = pipeline_ns([LayerRun(61, (stage,) * 3)])
    assert 3 * 272_000 * 61 <= step_ns <= 3 * 272_000 * 62
