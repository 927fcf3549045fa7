"""A CPU tier under a small GPU cache, on the conversation trace, against a plain reference."""

from collections import OrderedDict
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.drive.offline import run
from frontier_mock.serving.specs import SchedulerSpec, SglangSchedulerSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec, OffloadSpec, StorageSpec
from frontier_mock.workload.build import build_source
from frontier_mock.workload.readers import TraceRows, read_trace
from frontier_mock.workload.source import Source
from frontier_mock.workload.specs import TraceSpec
from tests.engine import toy_cluster

pytestmark = pytest.mark.golden

TRACE = Path(__file__).resolve().parents[3] / "shared/data/traces/mooncake/conversation_trace.jsonl"
FAST = LaneSpec(1e15, 0.0)
SMALL = SchedulerSpec(
    max_num_seqs=256,
    max_num_batched_tokens=131_072,
    max_model_len=131_072,
    num_blocks=20_000,
)


def tier_of(chunks: int) -> OffloadSpec:
    return OffloadSpec("OffloadingConnector", chunks, 1000, FAST, FAST)


def rows_of(most: int) -> TraceRows:
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not here; it comes with the project's shared data")
    with TRACE.open() as lines:
        return read_trace(islice(lines, most), TRACE.name)


def source_of(rows: TraceRows) -> Source:
    return build_source(TraceSpec(str(TRACE), concurrency=1), seed=0, rows=rows)


def simulated(spec: SchedulerSpec, rows: TraceRows) -> tuple[int, int]:
    """Tokens found on the GPU, and in the tier, one request after the other."""
    cluster = toy_cluster(spec)
    run(cluster, source_of(rows))
    scheduler = cluster.workers[0].scheduler
    assert scheduler.offload is not None
    (stats,) = scheduler.offload.stats()
    return scheduler.hit_tokens, stats.hit_tokens


class Reference:
    """vLLM's free queue and its LRU tier, block by block, for one request at a time."""

    def __init__(self, blocks: int, chunks: int) -> None:
        self.names: dict[tuple[int, bytes], int] = {}
        self.queue: OrderedDict[int, None] = OrderedDict((-1 - i, None) for i in range(blocks))
        self.tier: OrderedDict[int, None] = OrderedDict()
        self.chunks = chunks
        self.spare = -1 - blocks

    def path(self, keys: bytes) -> list[int]:
        at, path = 0, []
        for i in range(0, len(keys), KEY_BYTES):
            at = self.names.setdefault((at, keys[i : i + KEY_BYTES]), len(self.names) + 1)
            path.append(at)
        return path

    def play(self, submit: Submit) -> tuple[int, int]:
        """One request from beginning to end: blocks found on the GPU and in the tier."""
        tokens = submit.prompt.num_tokens
        path = self.path(submit.prompt.block_keys(16))[: tokens // 16]
        hit = _reach(path, self.queue, 0, (tokens - 1) // 16)
        found = _reach(path, self.tier, hit, len(path))
        for name in path[:hit]:
            del self.queue[name]
        context = tokens + submit.output_tokens - 1
        held = -(-context // 16)
        for _ in range(held - hit):
            self.queue.popitem(last=False)
        used = path[hit:] if found else path
        missing = [name for name in path[hit + found if found else 0 :] if name not in self.tier]
        for name in used:
            if name in self.tier:
                self.tier.move_to_end(name)
        for _ in range(len(missing) - (self.chunks - len(self.tier))):
            self.tier.popitem(last=False)
        self.tier.update(dict.fromkeys(missing))
        for name in reversed(used):
            self.tier.move_to_end(name)
        full = context // 16
        own = [self._new() for _ in range(full - len(path))]
        for name in reversed([*path, *own]):
            self.queue[name] = None
        for _ in range(held - full):
            name = self._new()
            self.queue[name] = None
            self.queue.move_to_end(name, last=False)
        return hit, found

    def _new(self) -> int:
        self.spare -= 1
        return self.spare


def _reach(path: list[int], held: OrderedDict[int, None], first: int, last: int) -> int:
    at = first
    while at < last and path[at] in held:
        at += 1
    return at - first


@pytest.mark.parametrize("chunks", [30_000, 90_000])
def test_an_lru_tier_finds_what_the_plain_one_finds(chunks: int) -> None:
    rows = rows_of(1500)
    reference = Reference(SMALL.num_blocks, chunks)
    source = source_of(rows)
    found = [0, 0]
    timed = source.initial()
    while timed:
        one = timed.pop(0)
        for i, blocks in enumerate(reference.play(one.submit)):
            found[i] += 16 * blocks
        timed += source.on_finish(one.item, one.t_ns)
    assert found[1] > 0
    spec = replace(SMALL, offload=tier_of(chunks))
    assert simulated(spec, rows) == (found[0], found[1])


def test_a_tier_without_bounds_reaches_the_bound_of_an_unbounded_gpu() -> None:
    small, tier = simulated(replace(SMALL, offload=tier_of(10**8)), rows_of(12_031))
    assert tier > 7 * small
    # Seven prompts that end with a block are there already: a GPU would compute that block again.
    assert small + tier == 54_097_440 + 7 * 16


def test_sglangs_host_tier_reaches_the_bound_as_well() -> None:
    spec = SglangSchedulerSpec(
        max_running_requests=256,
        context_length=131_072,
        num_pages=20_000,
        page_size=16,
        host_tier=HostTierSpec(10**8, 1000, FAST, FAST, layers=32),
    )
    rows = rows_of(12_031)
    cluster = toy_cluster(spec)
    run(cluster, source_of(rows))
    gauges = cluster.workers[0].gauges(cluster.now_ns)
    assert gauges.hit_tokens == 54_097_440
    assert gauges.tiers[0].hit_tokens > 40_000_000


def test_two_sglang_engines_with_one_storage_reach_the_bound_together() -> None:
    storage = StorageSpec("mooncake", "shared", FAST, FAST, "wait_complete")
    host = HostTierSpec(60_000, 1000, FAST, FAST, layers=32, storage=storage)
    spec = SglangSchedulerSpec(
        max_running_requests=256,
        context_length=131_072,
        num_pages=20_000,
        page_size=16,
        host_tier=host,
    )
    cluster = toy_cluster(spec, workers=2)
    run(cluster, source_of(rows_of(1500)))
    apart = toy_cluster(replace(spec, host_tier=replace(host, storage=None)), workers=2)
    run(apart, source_of(rows_of(1500)))
    alone = toy_cluster(replace(spec, num_pages=10**7, host_tier=None))
    run(alone, source_of(rows_of(1500)))

    def found(of: Cluster) -> int:
        return sum(worker.gauges(of.now_ns).hit_tokens for worker in of.workers)

    # Fewer than 256 tokens are computed rather than fetched.
    assert found(alone) - 256 * 20 < found(cluster) <= found(alone)
    assert found(apart) < found(alone) // 3
