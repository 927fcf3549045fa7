"""Recorded cache changes: they tell the truth, change nothing, and do not depend on macro-steps."""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.observed import KvBatch, ObservedCluster
from frontier_mock.core.commands import Command
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.kv_recording import Cleared, Removed, Stored
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from tests.engine import ranked_cluster, toy_cluster
from tests.laws.test_macro_steps import commands, play, schedulers
from tests.laws.test_sglang_macro_steps import schedulers as sglang_schedulers

WORKERS = 2
SETTINGS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def run(
    spec: AnySchedulerSpec,
    journal: list[tuple[int, Command]],
    build: Callable[..., Cluster],
    single_step: bool,
) -> ObservedCluster:
    recorded = replace(spec, enable_kv_cache_events=True)
    cluster = build(recorded, single_step=single_step)
    assert isinstance(cluster, ObservedCluster)
    play(cluster, journal)
    return cluster


def toy(spec: AnySchedulerSpec, single_step: bool) -> Cluster:
    return toy_cluster(spec, workers=WORKERS, single_step=single_step)


def lockstep(spec: AnySchedulerSpec, single_step: bool) -> Cluster:
    return ranked_cluster(spec, ranks=WORKERS, single_step=single_step)


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


def pending(cluster: ObservedCluster, worker: int) -> list[KvBatch]:
    """What an idle engine still has to say."""
    changes = getattr(cluster.workers[worker].kv, "changes")  # noqa: B009
    return [KvBatch(cluster.now_ns, worker, tuple(changes))]


@SETTINGS
@given(spec=schedulers(), data=st.data())
def test_vllm_batches(spec: SchedulerSpec, data: st.DataObject) -> None:
    journal = data.draw(commands(spec.block_size, controls=True))
    for build in (toy, lockstep):
        many = run(spec, journal, build, single_step=False)
        one = run(spec, journal, build, single_step=True)
        assert many.kv_batches == one.kv_batches
        assert [b.t_ns for b in many.kv_batches] == sorted(b.t_ns for b in many.kv_batches)
        for index, worker in enumerate(many.workers):
            told = [*many.kv_batches, *pending(many, index)]
            assert believed(told, index) == actual(worker.kv)
        plain = build(spec, single_step=False)
        play(plain, journal)
        assert plain.log.digest() == many.log.digest()


@SETTINGS
@given(spec=sglang_schedulers(), data=st.data())
def test_sglang_batches(spec: SglangSchedulerSpec, data: st.DataObject) -> None:
    journal = data.draw(commands(spec.block_size, controls=True))
    many = run(spec, journal, toy, single_step=False)
    one = run(spec, journal, toy, single_step=True)
    assert many.kv_batches == one.kv_batches
    for index, worker in enumerate(many.workers):
        told = [*many.kv_batches, *pending(many, index)]
        assert believed(told, index) == actual(worker.kv)
    plain = toy(spec, single_step=False)
    play(plain, journal)
    assert plain.log.digest() == many.log.digest()
