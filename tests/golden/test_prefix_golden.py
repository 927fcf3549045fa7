"""Prefix-hit counts of two production traces, exact to the block.

The expected figures are those of shared/specs/traces.md section 3.1: one global cache, requests one
after another. The Mooncake conversation trace names a prompt's content by the ids of its 512-token
blocks, the last of which may be partial; the WEKA agent sessions by their full 64-token blocks.
`lru_tail` counts every id as a block; vLLM's rule counts full engine blocks and lets at most all
but one token of a prompt hit.
"""

import json
from array import array
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import KvCache

pytestmark = pytest.mark.golden

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "traces"
TRACE_BLOCK_TOKENS = 512
AMPLE_BLOCKS = 10_000_000

LRU_TAIL_HITS = {
    100_000: 104_924,
    50_000: 102_290,
    30_000: 93_978,
    10_000: 61_046,
    5_859: 39_258,
    1_000: 12_847,
}
WEKA_LRU_TAIL_HITS = {62_500: 5_143_447, 31_250: 4_756_018, 15_625: 3_583_109}
VLLM_HIT_TOKENS = {16: 54_097_440, 64: 54_093_952, 512: 54_063_104}


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the trace."""

    num_tokens: int
    hash_ids: tuple[int, ...]


@cache
def conversation() -> tuple[Row, ...]:
    path = TRACES / "mooncake" / "conversation_trace.jsonl"
    if not path.exists():
        pytest.skip(f"no trace at {path}")
    with path.open() as lines:
        records = [json.loads(line) for line in lines]
    return tuple(Row(record["input_length"], tuple(record["hash_ids"])) for record in records)


@cache
def weka_prompts() -> tuple[bytes, ...]:
    """Block keys of every request of the 68 sessions, merged by start time.

    Ids are local to a session. A sub-agent is recorded with its completion time; its own requests
    count from its start.
    """
    paths = sorted((TRACES / "weka" / "shared").glob("*.json"))
    if not paths:
        pytest.skip(f"no WEKA sessions under {TRACES}")
    timed: list[tuple[float, bytes]] = []
    for session, path in enumerate(paths):
        pending = [(0.0, record) for record in json.loads(path.read_text())["requests"]]
        pending.reverse()
        while pending:
            base_s, record = pending.pop()
            start_s = base_s + record["t"]
            if record["type"] == "subagent":
                start_s -= record["duration_ms"] / 1000
                pending.extend((start_s, inner) for inner in reversed(record["requests"]))
            else:
                ids = array("Q", [session << 32 | key for key in record["hash_ids"]])
                timed.append((start_s, ids.tobytes()))
    timed.sort(key=lambda entry: entry[0])
    return tuple(keys for _, keys in timed)


def block_keys(row: Row, block_tokens: int) -> bytes:
    """Keys of the full blocks: each trace block is cut into blocks told apart by their offset."""
    per_id = TRACE_BLOCK_TOKENS // block_tokens
    ids = np.asarray(row.hash_ids, dtype="<u8") * per_id
    keys = (ids[:, None] + np.arange(per_id, dtype="<u8")).astype("<u8").tobytes()
    return keys[: row.num_tokens // block_tokens * KEY_BYTES]


def serve(cache: KvCache, keys: bytes, num_blocks: int, max_hit: int) -> int:
    """One request from admission to finish, prompt only; returns its hit in blocks."""
    match = cache.lookup(keys, max_hit)
    table = cache.open(match)
    cache.take(num_blocks - match.num_blocks)
    cache.commit(table, keys, num_blocks)
    cache.close(table, num_blocks, keys, num_blocks)
    return match.num_blocks


@pytest.mark.parametrize("capacity", [*LRU_TAIL_HITS, AMPLE_BLOCKS])
def test_lru_tail_hits(capacity: int) -> None:
    kv = KvCache(capacity, TRACE_BLOCK_TOKENS, prefix_caching=True)
    hits = queries = 0
    for row in conversation():
        num_blocks = len(row.hash_ids)
        queries += num_blocks
        hits += serve(kv, array("Q", row.hash_ids).tobytes(), num_blocks, num_blocks)
    kv.check()
    assert queries == 288_500
    assert hits == LRU_TAIL_HITS.get(capacity, 105_710)
    assert kv.num_free == capacity


@pytest.mark.parametrize("capacity", [*WEKA_LRU_TAIL_HITS, AMPLE_BLOCKS])
def test_lru_tail_hits_of_agent_sessions(capacity: int) -> None:
    kv = KvCache(capacity, 64, prefix_caching=True)
    hits = queries = 0
    for keys in weka_prompts():
        num_blocks = len(keys) // KEY_BYTES
        queries += num_blocks
        hits += serve(kv, keys, num_blocks, num_blocks)
    kv.check()
    assert queries == 5_487_556
    assert hits == WEKA_LRU_TAIL_HITS.get(capacity, 5_238_919)


@pytest.mark.parametrize(
    ("trace", "expected"),
    [("conversation_trace.jsonl", LRU_TAIL_HITS), ("weka[68]", WEKA_LRU_TAIL_HITS)],
)
def test_the_expected_figures_are_those_of_the_shared_file(
    trace: str, expected: dict[int, int]
) -> None:
    path = TRACES / "golden_shared.jsonl"
    if not path.exists():
        pytest.skip(f"no golden counts at {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    measured = {
        row["cap"]: row["hit_blocks"]
        for row in rows
        if row["trace"] == trace and row["policy"] == "lru_tail"
    }
    assert measured == expected


@pytest.mark.parametrize("block_tokens", [16, 64, 512])
def test_vllm_hit_tokens_with_ample_memory(block_tokens: int) -> None:
    kv = KvCache(AMPLE_BLOCKS, block_tokens, prefix_caching=True)
    hits = requests_hit = queries = 0
    for row in conversation():
        num_blocks = -(-row.num_tokens // block_tokens)
        keys = block_keys(row, block_tokens)
        hit = serve(kv, keys, num_blocks, (row.num_tokens - 1) // block_tokens)
        hits += hit
        requests_hit += hit > 0
        queries += row.num_tokens
    kv.check()
    assert queries == 144_793_823
    assert hits * block_tokens == VLLM_HIT_TOKENS[block_tokens]
    if block_tokens == 16:
        assert requests_hit == 12_030
