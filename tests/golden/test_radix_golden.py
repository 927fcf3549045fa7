"""SGLang's radix cache on two production traces.

With ample memory its hits are those of any prefix cache, so the counts of shared/specs/traces.md
section 3.1 hold exactly. With less, SGLang frees whole leaves where `lru_tail` frees single blocks
from the tail, so it keeps a little less; how much is bounded here.
"""

from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from frontier_mock.core.events import Finished
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.drive.offline import run
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.workload.build import build_source
from frontier_mock.workload.readers import read_trace
from frontier_mock.workload.specs import TraceSpec
from tests.engine import toy_cluster
from tests.golden.test_prefix_golden import (
    AMPLE_BLOCKS,
    LRU_TAIL_HITS,
    WEKA_LRU_TAIL_HITS,
    conversation,
    weka_prompts,
)

pytestmark = pytest.mark.golden

TRACE = Path(__file__).resolve().parents[3] / "shared/data/traces/mooncake/conversation_trace.jsonl"
AMPLE = SglangSchedulerSpec(
    max_running_requests=256, context_length=131_072, num_pages=12_000_000, page_size=16
)


def serve(cache: RadixCache, keys: bytes) -> int:
    """One request from admission to finish, prompt only; returns its hit in pages."""
    pages = len(keys) // KEY_BYTES
    node, hit = cache.match(keys, pages)
    cache.lock(node)
    cache.make_room(pages - hit)
    cache.take(pages - hit)
    cache.unlock(cache.checkpoint(node, hit, keys[hit * KEY_BYTES :], 0, 0, 0))
    return hit


def hits(cache: RadixCache, prompts: list[bytes]) -> int:
    total = sum(serve(cache, keys) for keys in prompts)
    cache.check()
    assert cache.num_free == cache.num_blocks
    return total


@pytest.mark.parametrize(
    ("capacity", "kept"),
    [(AMPLE_BLOCKS, 1.0), (100_000, 0.998), (50_000, 0.995), (30_000, 0.99), (10_000, 0.96)],
)
def test_hits_of_the_conversation_trace(capacity: int, kept: float) -> None:
    prompts = [array("Q", row.hash_ids).tobytes() for row in conversation()]
    best = LRU_TAIL_HITS.get(capacity, 105_710)
    found = hits(RadixCache(capacity, 512, True), prompts)
    assert kept * best <= found <= best


@pytest.mark.parametrize(
    ("capacity", "kept"), [(AMPLE_BLOCKS, 1.0), (62_500, 0.998), (31_250, 0.99)]
)
def test_hits_of_the_agent_sessions(capacity: int, kept: float) -> None:
    best = WEKA_LRU_TAIL_HITS.get(capacity, 5_238_919)
    found = hits(RadixCache(capacity, 64, True), list(weka_prompts()))
    assert kept * best <= found <= best


def test_the_conversation_trace_one_by_one_hits_what_any_prefix_cache_would() -> None:
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not here; it comes with the project's shared data")
    with TRACE.open() as lines:
        rows = read_trace(lines, TRACE.name)
    cluster = toy_cluster(AMPLE)
    run(cluster, build_source(TraceSpec(str(TRACE), concurrency=1), seed=0, rows=rows))
    gauges = cluster.workers[0].gauges(cluster.now_ns)
    assert (gauges.hit_tokens, gauges.query_tokens) == (54_097_440, 144_793_823)
    ended = [event for event in cluster.log.events if isinstance(event, Finished)]
    assert len(ended) == 12_031
    assert gauges.preemptions == 0


def test_the_same_trace_at_its_own_times_on_eight_workers_twice() -> None:
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not here; it comes with the project's shared data")
    with TRACE.open() as lines:
        rows = read_trace(lines, TRACE.name)
    digests = []
    for _ in range(2):
        spec = replace(AMPLE, num_pages=40_000, schedule_policy="lpm")
        cluster = toy_cluster(spec, workers=8, frontend_s=0.006)
        run(cluster, build_source(TraceSpec(str(TRACE)), seed=0, rows=rows))
        for worker in cluster.workers:
            worker.kv.check()
            assert worker.kv.num_free == worker.kv.num_blocks
        digests.append(cluster.log.digest())
    assert digests[0] == digests[1]
