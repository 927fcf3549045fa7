"""The synthesised conversation trace against the real one's published statistics."""

from collections import OrderedDict

import numpy as np
import pytest

from frontier_mock.workload.readers import read_trace
from frontier_mock.workload.rows import TraceRow, TraceRows
from frontier_mock.workload.synth import mooncake_lines, synthesise_conversation


def ids_of(row: TraceRow) -> list[int]:
    assert row.ids is not None
    return row.ids.tolist()


def block_hit_rate(rows: TraceRows, capacity: int) -> float:
    """Prefix hits per block with a least-recently-used cache of `capacity` blocks."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for row in rows.rows:
        ids = ids_of(row)
        total += len(ids)
        hits += next((i for i, block in enumerate(ids) if block not in cache), len(ids))
        for block in ids:
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits / total


@pytest.mark.parametrize("seed", [0, 7])
def test_the_published_statistics_come_out(seed: int) -> None:
    rows = synthesise_conversation(seed)
    prompts = np.array([row.prompt_tokens for row in rows.rows])
    outputs = np.array([row.output_tokens for row in rows.rows])
    assert len(rows.rows) == 12_031
    assert prompts.mean() == pytest.approx(12_035, rel=0.05)
    assert np.percentile(prompts, [50, 90, 99]) == pytest.approx([6909, 27_367, 85_400], rel=0.1)
    assert prompts.max() <= 126_195
    assert outputs.mean() == pytest.approx(343, rel=0.05)
    assert np.percentile(outputs, [50, 90, 99]) == pytest.approx([350, 597, 1119], rel=0.1)
    assert outputs.max() <= 2000
    times = [row.t_ns for row in rows.rows]
    assert times == sorted(times)
    assert times[0] == 0
    assert 3_500e9 < times[-1] < 3_537e9
    assert 1_150 < len(set(times)) <= 1_180
    assert all(ids_of(row)[0] == 0 for row in rows.rows)
    assert block_hit_rate(rows, 10**9) == pytest.approx(0.3664, rel=0.1)
    assert block_hit_rate(rows, 10_000) == pytest.approx(0.2112, rel=0.15)
    assert block_hit_rate(rows, 1_000) == pytest.approx(0.0445, rel=0.25)


def test_ids_are_prefix_chains() -> None:
    rows = synthesise_conversation(3, 2_000)
    place: dict[int, tuple[int, int]] = {}
    for row in rows.rows:
        ids = ids_of(row)
        assert len(ids) == -(-row.prompt_tokens // 512)
        for position, block in enumerate(ids):
            parent = ids[position - 1] if position else -1
            assert place.setdefault(block, (position, parent)) == (position, parent)
    assert sorted(place) == list(range(len(place)))


def test_the_seed_decides_and_the_rate_stays() -> None:
    short = synthesise_conversation(1, 500)
    assert list(mooncake_lines(short)) == list(mooncake_lines(synthesise_conversation(1, 500)))
    assert list(mooncake_lines(short)) != list(mooncake_lines(synthesise_conversation(2, 500)))
    assert short.rows[-1].t_ns == pytest.approx(500 / 3.4 * 1e9, rel=0.1)


def test_what_is_written_reads_back() -> None:
    rows = synthesise_conversation(0, 300)
    again = read_trace(mooncake_lines(rows), rows.name)
    assert again.format == "mooncake"
    assert again.census == rows.census
    for a, b in zip(rows.rows, again.rows, strict=True):
        assert a[:3] == b[:3]
        assert a.line == b.line
        assert ids_of(a) == ids_of(b)


def test_lengths_only_rows_are_written_without_ids() -> None:
    rows = read_trace(["arrived_at,num_prefill_tokens,num_decode_tokens\n", "1.5,7,8\n"], "t")
    assert list(mooncake_lines(rows)) == [
        '{"timestamp": 1500, "input_length": 7, "output_length": 8}\n'
    ]
