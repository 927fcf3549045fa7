"""Trace readers: what they read, what they refuse, and that they account for every row."""

import json
from pathlib import Path

import numpy as np
import pytest

from frontier_mock.workload.build import build_source
from frontier_mock.workload.readers import detect_format, read_trace
from frontier_mock.workload.rows import SkippedRow, TraceError, TraceRows
from frontier_mock.workload.specs import TraceSpec

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "traces"
MOONCAKE = (
    '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
    '{"timestamp": 27.5, "input_length": 512, "output_length": 6, "hash_ids": [0]}\n'
)


def read(text: str, format: str | None = None) -> TraceRows:
    return read_trace(text.splitlines(keepends=True), "t", format)


def plain(rows: TraceRows) -> list[tuple[int, int, int, int]]:
    return [(row.t_ns, row.prompt_tokens, row.output_tokens, row.line) for row in rows.rows]


def mooncake_row(**changes: object) -> str:
    """A good row with some fields changed, or with None left out."""
    row = {"timestamp": 1, "input_length": 5, "output_length": 5} | changes
    return json.dumps({key: value for key, value in row.items() if value is not None})


def shared_trace(path: str) -> TraceRows:
    file = TRACES / path
    if not file.exists():
        pytest.skip(f"needs ../shared/data/traces/{path}")
    with file.open(encoding="utf-8") as lines:
        return read_trace(lines, path)


def means(rows: TraceRows) -> tuple[float, float]:
    count = len(rows.rows)
    prompts = sum(row.prompt_tokens for row in rows.rows)
    return prompts / count, sum(row.output_tokens for row in rows.rows) / count


def test_mooncake() -> None:
    rows = read(MOONCAKE)
    assert rows.format == "mooncake"
    assert rows.timed
    assert plain(rows) == [(0, 700, 5, 1), (27_500_000, 512, 6, 2)]
    ids = rows.rows[0].ids
    assert ids is not None
    assert ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("stamp", "nanoseconds"),
    [
        ("2023-11-16 18:15:46.6805900", 0),
        ("2023-11-16 18:15:47", 319_410_000),
        ("2023-11-17 18:15:46.680590001+00:00", 86_400_000_000_001),
        ("2023-11-16T20:15:46.680590+02:00", 0),
        ("2023-11-16 16:15:46.680590-02:00", 0),
        ("2023-11-16 18:15:46.680590Z", 0),
    ],
)
def test_azure_timestamps_of_every_year(stamp: str, nanoseconds: int) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens,NumImages\n2023-11-16 18:15:46.6805900,1,1,0\n"
    rows = read(f"{head}{stamp},374,44,2\n")
    assert rows.format == "azure"
    first, second = rows.rows
    assert second.t_ns - first.t_ns == nanoseconds
    assert second[1:3] == (374, 44)
    assert rows.census.ignored == ("NumImages",)


def test_vidur_and_frontier() -> None:
    rows = read("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n")
    assert rows.format == "vidur"
    assert plain(rows) == [(0, 374, 44, 2), (4_314_579_000, 396, 109, 3)]
    frontier = read(
        "arrived_at,num_prefill_tokens,num_decode_tokens,priority,session_id,block_hash_ids\n"
        '1,600,2,3,s,11|22\n2,600,2,,s,"[11,23]"\n3,600,2,,s,\n4,600,2,,s,11\n5,600,2,,s,a|b\n'
    )
    assert [row.priority for row in frontier.rows] == [3, 0, 0]
    found = [None if row.ids is None else row.ids.tolist() for row in frontier.rows]
    assert found == [[11, 22], [11, 23], None]
    assert frontier.census.ignored == ("session_id",)
    assert [line for line, _ in frontier.census.skipped] == [5, 6]


def test_lengths_without_times() -> None:
    rows = read(
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n5,6,11,0.8\n5,6,11,0.8\n"
    )
    assert not rows.timed
    assert rows.census.duplicates == 0
    assert rows.census.ignored == ()


def test_burstgpt_failed_requests_are_skipped_and_named() -> None:
    rows = read(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n"
    )
    assert plain(rows) == [(5_000_000_000, 472, 18, 2)]
    assert rows.census.skipped == (
        SkippedRow(3, "Response tokens is 0: a request that failed when recorded"),
    )


def test_llmservingsim() -> None:
    rows = read('{"input_toks":10,"output_toks":70,"arrival_time_ns":469,"input_tok_ids":[1]}\n')
    assert plain(rows) == [(469, 10, 70, 1)]
    assert rows.census.ignored == ("input_tok_ids",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        (mooncake_row(timestamp=None), "no timestamp"),
        (mooncake_row(input_length=None), "no input_length"),
        (mooncake_row(output_length=None), "no output_length"),
        (mooncake_row(timestamp=True), "timestamp is true, not a number"),
        (mooncake_row(timestamp=float("nan")), "not a finite number"),
        (mooncake_row(timestamp="x"), "'x', not a number"),
        (mooncake_row(input_length=5.5), "not a whole number"),
        (mooncake_row(input_length=-5), "out of range"),
        (mooncake_row(output_length=1e30), "out of range"),
        (mooncake_row(output_length=[5]), "not a number"),
        (mooncake_row(hash_ids="0"), "not a list"),
        (mooncake_row(hash_ids=[True]), "not a list"),
        (mooncake_row(input_length=600, hash_ids=[1]), "1 hash ids for 600"),
        (mooncake_row(hash_ids=[]), "0 hash ids for 5"),
    ],
)
def test_an_unreadable_row_is_named_with_its_line(line: str, reason: str) -> None:
    rows = read(f"{MOONCAKE}\n{line}\n{MOONCAKE.splitlines()[1]}\n", "mooncake")
    census = rows.census
    assert (census.rows, census.read, census.blank) == (4, 3, 1)
    ((number, found),) = census.skipped
    assert number == 4
    assert reason in found
    assert [row.line for row in rows.rows] == [1, 2, 5]
    assert f"line 4: skipped: {found}" in census.lines()


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("2023-11-16 18:15:46,1", "2 fields where the header has 3"),
        ("2023-11-16 18:15:46,1,2,3", "4 fields where the header has 3"),
        ("yesterday,1,2", "not a timestamp"),
        ("2023-13-16 18:15:46,1,2", "not a date"),
        ("2023-11-16 18:15:46,many,2", "contexttokens is 'many', not a number"),
        ("2023-11-16 18:15:46,,2", "not a number"),
    ],
)
def test_an_unreadable_csv_row_is_named_with_its_line(cells: str, reason: str) -> None:
    good = "2023-11-16 18:15:46.6805900,374,44"
    rows = read(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{good}\n{cells}\n{good}\n")
    ((number, found),) = rows.census.skipped
    assert number == 3
    assert reason in found
    assert rows.census.duplicates == 1


def test_a_csv_error_is_a_row_like_any_other() -> None:
    long = "x" * 200_000
    rows = read(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{long},1,2\n2023-11-16 18:15:46,3,4\n")
    ((number, found),) = rows.census.skipped
    assert number == 2
    assert "not valid CSV" in found
    assert len(rows.rows) == 1


def test_zero_lengths_become_one_and_are_counted() -> None:
    rows = read("arrived_at,num_prefill_tokens,num_decode_tokens\n0,0,5\n1,5,0\n2,5,5\n")
    assert [row[1:3] for row in rows.rows] == [(1, 5), (5, 1), (5, 5)]
    assert rows.census.clipped == 2
    assert "2 with a length of 0, raised to 1" in rows.census.lines()


def test_rows_out_of_order_are_sorted_stably_and_counted() -> None:
    rows = read("arrived_at,num_prefill_tokens,num_decode_tokens\n5,1,1\n3,2,2\n4,3,3\n5,4,4\n")
    assert [row.prompt_tokens for row in rows.rows] == [2, 3, 1, 4]
    assert rows.census.out_of_order == 2


def test_huge_ids_are_renumbered_consistently() -> None:
    big = 18_446_744_073_709_551_615
    text = "".join(
        f'{{"timestamp": {i}, "input_length": 1024, "output_length": 1, "hash_ids": [{a}, {b}]}}\n'
        for i, (a, b) in enumerate([(big, 7), (big, -3), (big, 7)])
    )
    rows = read(text)
    ids = [row.ids for row in rows.rows]
    assert [None if one is None else one.tolist() for one in ids] == [[0, 1], [0, 2], [0, 1]]
    source = build_source(TraceSpec("t"), seed=0, rows=rows)
    first, second, third = (one.submit.prompt.block_keys(16) for one in source.initial())
    assert first == third
    assert first[:256] == second[:256]
    assert first != second


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("", None, "cannot recognise"),
        ("hello\n", None, "cannot recognise the trace format from its first line 'hello'"),
        ("{broken\n", None, "cannot recognise"),
        ('{"a": 1}\n', None, "set format to one of mooncake, azure"),
        (MOONCAKE, "vidur2", "unknown trace format 'vidur2'"),
        (MOONCAKE, "azure", "not a azure trace: no column TIMESTAMP"),
        ("arrived_at,num_prefill_tokens\n", "vidur", "no column num_decode_tokens"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n", None, "no readable row in 0"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\nx,1,1\n", None, "line 2: arrived_at"),
        (MOONCAKE.replace('"hash_ids"', '"session_id": "s", "hash_ids"'), None, "session_id"),
    ],
)
def test_a_trace_that_is_none(text: str, format: str | None, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        read(text, format)
    assert str(caught.value).startswith("t: ")


def test_a_byte_order_mark_is_ignored() -> None:
    assert detect_format("\ufeffarrived_at,num_prefill_tokens,num_decode_tokens", "t") == "vidur"
    assert read("\ufeffarrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n").timed
    assert len(read("\ufeff" + MOONCAKE).rows) == 2


@pytest.mark.golden
def test_conversation_trace_has_its_published_statistics() -> None:
    rows = shared_trace("mooncake/conversation_trace.jsonl")
    census = rows.census
    assert (census.rows, census.read, census.skipped) == (12_031, 12_031, ())
    assert (census.clipped, census.out_of_order) == (0, 0)
    assert sum(row.prompt_tokens for row in rows.rows) == 144_793_823
    assert round(means(rows)[1]) == 343
    assert max(row.prompt_tokens for row in rows.rows) == 126_195
    assert (rows.rows[-1].t_ns - rows.rows[0].t_ns) // 10**9 == 3536
    assert len({row.t_ns for row in rows.rows}) == 1_180


@pytest.mark.golden
@pytest.mark.parametrize(
    ("block_tokens", "hit_tokens"), [(16, 54_097_440), (64, 54_093_952), (512, 54_063_104)]
)
def test_block_keys_of_the_conversation_trace_hit_exactly(
    block_tokens: int, hit_tokens: int
) -> None:
    """Endless cache, full blocks, at most all tokens but the last: the published counts."""
    rows = shared_trace("mooncake/conversation_trace.jsonl")
    cached: set[int] = set()
    hits = 0
    for timed in build_source(TraceSpec("t"), seed=0, rows=rows).initial():
        prompt = timed.submit.prompt
        keys = np.frombuffer(prompt.block_keys(block_tokens), np.uint64).tolist()
        usable = (prompt.num_tokens - 1) // block_tokens
        # Each hash id has one place in the tree of prompts, so its keys alone name a path.
        matched = next((i for i in range(usable) if keys[i] not in cached), usable)
        hits += matched * block_tokens
        cached.update(keys)
    assert hits == hit_tokens


@pytest.mark.golden
@pytest.mark.parametrize(
    ("path", "format", "count", "prompt_mean", "output_mean"),
    [
        ("azure2023/AzureLLMInferenceTrace_conv.csv", "azure", 19_366, 1155, 211),
        ("vidur_processed/splitwise_conv.csv", "vidur", 19_366, 1155, 211),
        (
            "vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
            "vidur",
            28_257,
            2588,
            291,
        ),
        ("sharegpt_lengths/sharegpt_val_10k_llama2.csv", "vidur", 10_000, 246, 326),
        ("llmservingsim/workload_me2_01_mixed.jsonl", "llmservingsim", 608, 9218, 3021),
        ("llmservingsim/sharegpt-llama-3.1-8b-300-sps10.jsonl", "llmservingsim", 300, 857, 653),
    ],
)
def test_other_traces_have_their_published_statistics(
    path: str, format: str, count: int, prompt_mean: float, output_mean: float
) -> None:
    rows = shared_trace(path)
    assert rows.format == format
    assert rows.census.read == rows.census.rows == count
    prompts, outputs = means(rows)
    assert (round(prompts), round(outputs)) == (prompt_mean, output_mean)


@pytest.mark.golden
def test_azure_and_vidur_hold_the_same_requests() -> None:
    azure = shared_trace("azure2023/AzureLLMInferenceTrace_conv.csv")
    vidur = shared_trace("vidur_processed/splitwise_conv.csv")
    zero = azure.rows[0].t_ns
    for a, b in zip(azure.rows, vidur.rows, strict=True):
        assert a[1:3] == b[1:3]
        assert abs(a.t_ns - zero - b.t_ns) <= 1_000
