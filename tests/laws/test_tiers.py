"""The laws hold with tiers under the GPU: macro-steps, replay, conservation in every tier."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Fetched, Finished, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.tiers.host_radix import HostRadixCache
from frontier_mock.serving.tiers.offload import Offload
from frontier_mock.serving.tiers.specs import (
    PREFETCH_POLICIES,
    HostTierSpec,
    LaneSpec,
    OffloadSpec,
    StorageSpec,
)
from frontier_mock.serving.tiers.stored_radix import StoredRadixCache
from tests.engine import ranked_cluster, toy_cluster
from tests.laws import test_macro_steps as vllm
from tests.laws import test_sglang_macro_steps as sglang
from tests.laws.test_drafted_macro_steps import drafted_schedulers, drafted_sglang


@st.composite
def offloads(draw: st.DrawFn) -> OffloadSpec:
    return OffloadSpec(
        "OffloadingConnector",
        num_chunks=draw(st.sampled_from([0, 3, 20, 100])),
        block_bytes=1000,
        load=LaneSpec(draw(st.sampled_from([1e5, 1e7, 1e9])), 1e-5),
        store=LaneSpec(draw(st.sampled_from([1e5, 1e7, 1e9])), 1e-5),
        blocks_per_chunk=draw(st.sampled_from([1, 1, 3])),
        eviction_policy=draw(st.sampled_from(["lru", "arc"])),
        store_threshold=draw(st.sampled_from([0, 0, 2])),
        max_tracker_size=draw(st.sampled_from([5, 1000])),
        offload_prompt_only=draw(st.booleans()),
        whole_prefix=draw(st.booleans()),
        blocking=draw(st.booleans()),
    )


def offload_of(cluster: Cluster) -> Offload:
    tier = cluster.workers[0].scheduler.offload
    assert isinstance(tier, Offload)
    return tier


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_tiers_keep_every_law(data: st.DataObject) -> None:
    plain = data.draw(st.one_of(vllm.schedulers(), drafted_schedulers()))
    spec = replace(plain, offload=data.draw(offloads()))
    controls = data.draw(st.booleans())
    timed = data.draw(vllm.commands(spec.block_size, controls=controls))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    macro = toy_cluster(spec, frontend_s=frontend_s)
    single = toy_cluster(spec, frontend_s=frontend_s, single_step=True)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    assert sorted(ended) == list(range(sum(isinstance(c, Submit) for _, c in timed)))
    kv = macro.workers[0].kv
    kv.check()
    assert kv.num_free == kv.num_blocks
    tier = offload_of(macro)
    tier.pool.check()
    assert tier.stats() == offload_of(single).stats()
    again = toy_cluster(spec, frontend_s=frontend_s)
    lines = [to_line(t_ns, command, spec.block_size) for t_ns, command in timed]
    assert replay(again, from_lines(lines)) == macro.log.digest()
    fetched = sum(e.tokens for e in macro.log.events if isinstance(e, Fetched))
    assert tier.hit_tokens <= fetched


@st.composite
def host_tiers(draw: st.DrawFn) -> HostTierSpec:
    return HostTierSpec(
        num_pages=draw(st.sampled_from([0, 8, 60, 1000])),
        page_bytes=1000,
        load=LaneSpec(draw(st.sampled_from([1e5, 1e7, 1e9])), 1e-5),
        store=LaneSpec(draw(st.sampled_from([1e4, 1e5, 1e7, 1e9])), 1e-5),
        layers=draw(st.sampled_from([1, 30])),
        threshold=draw(st.sampled_from([1, 1, 2])),
        storage=draw(st.none() | storages()),
    )


def storages() -> st.SearchStrategy[StorageSpec]:
    rates = st.sampled_from([1e4, 1e6, 1e9])
    return st.builds(
        StorageSpec,
        backend=st.just("mooncake"),
        pool=st.just("mooncake"),
        load=st.builds(LaneSpec, rates, st.just(1e-5)),
        store=st.builds(LaneSpec, rates, st.just(1e-5)),
        policy=st.sampled_from(PREFETCH_POLICIES),
        threshold_tokens=st.sampled_from([1, 32]),
        timeout_base_s=st.sampled_from([0.001, 1.0]),
        timeout_per_page_s=st.just(0.001),
        contributed_pages=st.sampled_from([0, 0, 20]),
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_host_tiers_keep_every_law(data: st.DataObject) -> None:
    plain = data.draw(st.one_of(sglang.schedulers(), drafted_sglang()))
    spec = replace(plain, enable_radix_cache=True, host_tier=data.draw(host_tiers()))
    controls = data.draw(st.booleans())
    timed = data.draw(vllm.commands(spec.page_size, controls=controls))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    macro = toy_cluster(spec, frontend_s=frontend_s)
    single = toy_cluster(spec, frontend_s=frontend_s, single_step=True)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    assert sorted(ended) == list(range(sum(isinstance(c, Submit) for _, c in timed)))
    for cluster in (macro, single):
        kv = cluster.workers[0].kv
        assert isinstance(kv, HostRadixCache)
        kv.check()
        assert kv.num_free == kv.num_blocks
        assert not kv.copying
    assert macro.workers[0].scheduler.offload is not None
    assert (
        macro.workers[0].gauges(macro.now_ns).tiers == single.workers[0].gauges(macro.now_ns).tiers
    )
    again = toy_cluster(spec, frontend_s=frontend_s)
    lines = [to_line(t_ns, command, spec.page_size) for t_ns, command in timed]
    assert replay(again, from_lines(lines)) == macro.log.digest()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_engines_that_share_storage_keep_every_law(data: st.DataObject) -> None:
    plain = data.draw(sglang.schedulers())
    host = replace(data.draw(host_tiers()), storage=data.draw(storages()))
    spec = replace(plain, enable_radix_cache=True, host_tier=host)
    timed = data.draw(vllm.commands(spec.page_size, controls=data.draw(st.booleans())))
    ranked = data.draw(st.booleans())

    def two_engines(single_step: bool = False) -> Cluster:
        if ranked:
            return ranked_cluster(spec, ranks=2, single_step=single_step)
        return toy_cluster(spec, workers=2, single_step=single_step)

    macro, single = two_engines(), two_engines(single_step=True)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    assert sorted(ended) == list(range(sum(isinstance(c, Submit) for _, c in timed)))
    for one, other in zip(macro.workers, single.workers, strict=True):
        assert isinstance(one.kv, StoredRadixCache)
        one.kv.check()
        assert one.kv.num_free == one.kv.num_blocks
        assert not one.kv.fetching
        now_ns = macro.now_ns
        assert one.gauges(now_ns).tiers == other.gauges(now_ns).tiers
    again = two_engines()
    lines = [to_line(t_ns, command, spec.page_size) for t_ns, command in timed]
    assert replay(again, from_lines(lines)) == macro.log.digest()
