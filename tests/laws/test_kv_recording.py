"""Recorded cache changes: they tell the truth, change nothing, and do not depend on macro-steps."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.observed import KvBatch, ObservedCluster
from frontier_mock.cluster.specs import ConnectorSpec
from frontier_mock.core.commands import Command
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.kv_recording import (
    Cleared,
    RecordingKvCache,
    RecordingRadixCache,
    Removed,
    Stored,
)
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from tests.cluster.test_pairing import pools
from tests.engine import LinearRankCost, ranked_cluster, toy_cluster
from tests.laws.test_disaggregation import STYLES
from tests.laws.test_macro_steps import commands, play, schedulers
from tests.laws.test_sglang_macro_steps import schedulers as sglang_schedulers

WORKERS = 2
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Run:
    """A journal played on engines that record."""

    def __init__(
        self, plain: Cluster, journal: list[tuple[int, Command]], *, single_step: bool
    ) -> None:
        self.batches: list[KvBatch] = []
        engines = tuple(
            replace(engine, scheduler=replace(engine.scheduler, enable_kv_cache_events=True))
            for engine in plain.spec.workers
        )
        spec = replace(plain.spec, workers=engines, single_step=single_step)
        costs = [LinearRankCost() for _ in engines]
        self.cluster = build_cluster(spec, costs, on_kv=self.batches.append)
        play(self.cluster, journal)

    def told(self, worker: int) -> list[KvBatch]:
        """Its batches, and what it would publish next."""
        kv = self.cluster.workers[worker].kv
        assert isinstance(kv, RecordingKvCache | RecordingRadixCache)
        return [*self.batches, KvBatch(self.cluster.now_ns, worker, tuple(kv.changes))]


def toy(spec: AnySchedulerSpec) -> Cluster:
    return toy_cluster(spec, workers=WORKERS)


def lockstep(spec: AnySchedulerSpec) -> Cluster:
    return ranked_cluster(spec, ranks=WORKERS)


def believed(batches: list[KvBatch], worker: int) -> set[bytes]:
    """What somebody who reads the batches takes to be cached, as paths of keys."""
    cached: set[bytes] = set()
    for batch in batches:
        if batch.worker != worker:
            continue
        for change in batch.changes:
            if isinstance(change, Cleared):
                cached.clear()
                continue
            end = len(change.keys) // KEY_BYTES
            blocks = range(change.first, end)
            for i in blocks if isinstance(change, Stored) else reversed(blocks):
                path = change.keys[: (i + 1) * KEY_BYTES]
                if isinstance(change, Removed):
                    assert not any(p != path and p.startswith(path) for p in cached)
                    cached.remove(path)
                else:
                    assert path not in cached
                    assert i == 0 or path[:-KEY_BYTES] in cached
                    cached.add(path)
    return cached


def actual(kv: object) -> set[bytes]:
    """What a lookup could find, as paths of keys."""
    assert isinstance(kv, KvCache | RadixCache)
    found: set[bytes] = set()
    walk = [(b"", child) for child in kv.root.children.values()]
    while walk:
        above, node = walk.pop()
        path = above + node.keys[: node.count * KEY_BYTES]
        for end in range(len(above) + KEY_BYTES, len(path) + 1, KEY_BYTES):
            found.add(path[:end])
        walk.extend((path, child) for child in node.children.values())
    assert len(found) == kv.num_cached
    return found


def check(plain: Cluster, journal: list[tuple[int, Command]]) -> None:
    many = Run(plain, journal, single_step=False)
    one = Run(plain, journal, single_step=True)
    assert many.batches == one.batches
    assert [b.t_ns for b in many.batches] == sorted(b.t_ns for b in many.batches)
    for index, worker in enumerate(many.cluster.workers):
        assert believed(many.told(index), index) == actual(worker.kv)
    play(plain, journal)
    assert plain.log.digest() == many.cluster.log.digest()


@SETTINGS
@given(spec=schedulers(), data=st.data())
def test_vllm_batches(spec: SchedulerSpec, data: st.DataObject) -> None:
    journal = data.draw(commands(spec.block_size, controls=True))
    check(toy(spec), journal)
    check(lockstep(spec), journal)


@SETTINGS
@given(spec=sglang_schedulers(), data=st.data())
def test_sglang_batches(spec: SglangSchedulerSpec, data: st.DataObject) -> None:
    journal = data.draw(commands(spec.block_size, controls=True))
    check(toy(spec), journal)


@SETTINGS
@given(data=st.data())
def test_batches_of_prefill_and_decode_engines(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["vllm", "sglang"]))
    spec = data.draw(schedulers() if family == "vllm" else sglang_schedulers())
    style = data.draw(st.sampled_from(STYLES[family]))
    journal = data.draw(commands(spec.block_size))
    connector = ConnectorSpec("any", style, 0.05, data.draw(st.booleans()), style == "room")
    fabric = FabricSpec(gpus_per_node=1, nic_bytes_per_s=data.draw(st.sampled_from([1e10, 1e6])))
    check(pools(spec, connector, prefill=1, decode=2, fabric=fabric), journal)


def test_nobody_listens() -> None:
    """Without a listener the caches are the plain ones, whatever the spec says."""
    spec = SchedulerSpec(4, 64, 128, num_blocks=64, enable_kv_cache_events=True)
    cluster = toy(spec)
    assert type(cluster.workers[0].kv) is KvCache
    assert not isinstance(cluster, ObservedCluster)
