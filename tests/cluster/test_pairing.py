"""Prefill and decode engines: what becomes of a request that is served by two of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec, ConnectorSpec, WorkerSpec, ranks_of
from frontier_mock.core.commands import Abort, Submit, Transfer
from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    KvFailed,
    KvReceived,
    KvReleased,
    Scheduled,
    Submitted,
    prefill_leg,
)
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from frontier_mock.serving.speculation import SpeculationSpec
from frontier_mock.simtime import NS_PER_MS, NS_PER_S
from tests.engine import DraftedLinearCost, LinearRankCost, prompt, step_spec

VLLM = SchedulerSpec(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256, num_blocks=64)
SGLANG = SglangSchedulerSpec(
    max_running_requests=8,
    context_length=256,
    num_pages=1024,
    chunked_prefill_size=64,
    num_reserved_decode_tokens=16,
)
PULL = ConnectorSpec("NixlConnector")
ROOM = ConnectorSpec("mooncake", "room", 300.0, streams=True)


def pools(
    scheduler: AnySchedulerSpec = VLLM,
    connector: ConnectorSpec = PULL,
    *,
    prefill: int = 1,
    decode: int = 1,
    decode_scheduler: AnySchedulerSpec | None = None,
    fabric: FabricSpec | None = None,
    frontend_s: float = 0.0,
    single_step: bool = False,
    ranks: int = 1,
) -> Cluster:
    """Decode servers have `ranks` engines each, in lock-step if more than one."""
    roles = ["prefill"] * prefill + ["decode"] * decode
    servers = [
        WorkerSpec(
            f"{role}{i}",
            8000 + i,
            role,
            "toy",
            step_spec(frontend_s, ranks if role == "decode" else 1),
            scheduler if role == "prefill" else decode_scheduler or scheduler,
            dp_size=ranks if role == "decode" else 1,
            connector=connector,
        )
        for i, role in enumerate(roles)
    ]
    specs = tuple(engine for server in servers for engine in ranks_of(server))
    spec = ClusterSpec(
        specs, "round_robin", 0, single_step, fabric=fabric or FabricSpec(gpus_per_node=1)
    )
    drafts = any(engine.scheduler.speculation is not None for engine in specs)
    cost = DraftedLinearCost if drafts else LinearRankCost
    return build_cluster(spec, [cost() for _ in specs])


def finish(cluster: Cluster) -> None:
    while (due := cluster.next_time()) is not None:
        cluster.advance_to(due)


def of(events: Sequence[Event], kind: type, rid: int | None = None) -> list[Event]:
    return [e for e in events if isinstance(e, kind) and (rid is None or e.rid == rid)]


def check_rest(cluster: Cluster) -> None:
    """Nothing is held anywhere once everything has ended."""
    assert cluster.pairing is not None
    assert cluster.pairing.num_open == 0
    assert len(cluster.pairing.fabric) == 0
    for worker in cluster.workers:
        assert worker.in_frontend == worker.expected == 0
        worker.kv.check()
        assert worker.kv.num_free == worker.kv.num_blocks
        assert worker.scheduler.num_live == 0


def test_a_prompt_is_computed_once_and_decoded_elsewhere() -> None:
    cluster = pools()
    cluster.feed(0, Submit(prompt(50, 1, 16), 20, 20))
    finish(cluster)
    events = cluster.log.events
    (received,) = of(events, KvReceived)
    assert isinstance(received, KvReceived)
    leg = prefill_leg(0)
    assert (received.worker, received.rid) == (1, 0)
    assert received.num_bytes == 50 * 4 * 16 * 2 * 2
    (first,) = of(events, FirstToken, leg)
    assert received.computed_ns == first.t_ns
    assert received.allocated_ns >= first.t_ns
    # 0.4 ms before the first byte, then 12,800 bytes at 7.2 GB/s.
    assert received.t_ns - received.allocated_ns == 400_000 + 1778 + 1
    (scheduled,) = of(events, Scheduled, 0)
    assert scheduled.t_ns >= received.t_ns
    ends = {e.rid: (e.worker, e.output_tokens) for e in events if isinstance(e, Finished)}
    assert ends == {leg: (0, 1), 0: (1, 20)}
    (released,) = of(events, KvReleased)
    assert (released.rid, released.reason) == (leg, "sent")
    check_rest(cluster)


def test_blocks_stay_with_the_sender_until_they_have_been_fetched() -> None:
    cluster = pools()
    cluster.feed(0, Submit(prompt(50, 1, 16), 20, 20))
    while not of(cluster.log.events, Finished, prefill_leg(0)):
        cluster.advance_to(cluster.next_time() or 0)
    sender = cluster.workers[0].kv
    assert sender.num_blocks - sender.num_free == 4
    while not of(cluster.log.events, KvReleased):
        assert sender.num_blocks - sender.num_free == 4
        cluster.advance_to(cluster.next_time() or 0)
    assert sender.num_free == sender.num_blocks


def test_what_the_decode_engine_has_cached_need_not_come() -> None:
    cluster = pools()
    cluster.feed(0, Submit(prompt(50, 1, 16), 5, 5))
    finish(cluster)
    cluster.feed(cluster.now_ns, Submit(prompt(50, 1, 16), 5, 5))
    finish(cluster)
    sizes = [e.num_bytes for e in cluster.log.events if isinstance(e, KvReceived)]
    assert sizes == [50 * 256, 2 * 256]
    check_rest(cluster)


def test_sglang_allocates_before_it_computes_and_streams_chunks() -> None:
    slow = FabricSpec(gpus_per_node=1, nic_bytes_per_s=5e6)
    cluster = pools(SGLANG, ROOM, fabric=slow)
    cluster.feed(0, Submit(prompt(150, 1, 1), 20, 20))
    finish(cluster)
    events = cluster.log.events
    (received,) = of(events, KvReceived)
    assert isinstance(received, KvReceived)
    assert received.allocated_ns < received.scheduled_ns < received.computed_ns
    whole_ns = 150 * 256 / 3.6e6 * 1e9
    # Two chunks of 64 had left before the third was computed.
    assert received.t_ns - received.computed_ns < 0.9 * whole_ns
    (first,) = of(events, FirstToken, 0)
    assert first.t_ns >= received.t_ns
    ends = {e.rid: e for e in events if isinstance(e, Finished)}
    # The prefill engine answers when everything has been sent.
    assert ends[prefill_leg(0)].t_ns > received.t_ns
    assert ends[0].output_tokens == 20
    check_rest(cluster)


def test_a_full_decode_engine_holds_prefill_back() -> None:
    small = replace(SGLANG, num_pages=260)
    cluster = pools(SGLANG, ROOM, decode_scheduler=small)
    for i in range(3):
        cluster.feed(0, Submit(prompt(120, i, 1), 40, 40))
    finish(cluster)
    events = cluster.log.events
    begun = [of(events, Scheduled, prefill_leg(i))[0].t_ns for i in range(3)]
    ended = [of(events, Finished, i)[0].t_ns for i in range(3)]
    assert begun[2] > min(ended[:2])
    check_rest(cluster)


@pytest.mark.parametrize(
    ("scheduler", "connector"), [(VLLM, PULL), (SGLANG, ROOM)], ids=["vllm", "sglang"]
)
@pytest.mark.parametrize("step", range(0, 40, 1))
def test_an_abort_at_any_moment_leaves_nothing_behind(
    scheduler: AnySchedulerSpec, connector: ConnectorSpec, step: int
) -> None:
    block = scheduler.block_size
    cluster = pools(scheduler, connector)
    cluster.feed(0, Submit(prompt(100, 1, block), 20, 20))
    for _ in range(step):
        if (due := cluster.next_time()) is not None:
            cluster.advance_to(due)
    cluster.feed(cluster.now_ns, Abort(0))
    finish(cluster)
    ends = [e.rid for e in cluster.log.events if isinstance(e, Finished)]
    assert sorted(ends) == [prefill_leg(0), 0]
    check_rest(cluster)


def live(key: str, *, sends: bool, style: str = "pull", recompute: bool = False) -> Transfer:
    return Transfer(key, sends, style, 30 * NS_PER_S, recompute)


def test_blocks_nobody_comes_for_are_freed_when_the_lease_ends() -> None:
    cluster = pools()
    cluster.feed(0, Submit(prompt(50, 1, 16), 1, 1, worker=0, transfer=live("k", sends=True)))
    finish(cluster)
    (released,) = of(cluster.log.events, KvReleased)
    (end,) = of(cluster.log.events, Finished)
    assert released.t_ns - end.t_ns == 30 * NS_PER_S
    assert released.reason == "expired"
    check_rest(cluster)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_receiver_without_a_sender_fails_or_computes_the_prompt(recompute: bool) -> None:
    cluster = pools()
    wish = live("nowhere", sends=False, recompute=recompute)
    cluster.feed(0, Submit(prompt(50, 1, 16), 5, 5, worker=1, transfer=wish))
    finish(cluster)
    (failed,) = of(cluster.log.events, KvFailed)
    assert isinstance(failed, KvFailed)
    assert failed.reason == "unknown"
    (end,) = of(cluster.log.events, Finished)
    assert isinstance(end, Finished)
    assert (end.reason, end.output_tokens) == (("length", 5) if recompute else ("error", 0))
    check_rest(cluster)


@pytest.mark.parametrize("style", ["push", "room"])
@pytest.mark.parametrize("sender_first", [True, False])
@pytest.mark.parametrize("gap_ms", [0, 1, 40])
def test_legs_may_come_in_either_order(style: str, sender_first: bool, gap_ms: int) -> None:
    scheduler: AnySchedulerSpec = SGLANG if style == "room" else VLLM
    cluster = pools(scheduler, ConnectorSpec("any", style))
    block = scheduler.block_size
    legs = [
        Submit(prompt(50, 1, block), 1, 1, worker=0, transfer=live("k", sends=True, style=style)),
        Submit(prompt(50, 1, block), 9, 9, worker=1, transfer=live("k", sends=False, style=style)),
    ]
    for i, leg in enumerate(legs if sender_first else reversed(legs)):
        cluster.feed(i * gap_ms * NS_PER_MS, leg)
    finish(cluster)
    ends = {
        e.worker: (e.reason, e.output_tokens) for e in cluster.log.events if isinstance(e, Finished)
    }
    assert ends == {0: ("length", 1), 1: ("length", 9)}
    check_rest(cluster)


@pytest.mark.parametrize("style", ["push", "room"])
@pytest.mark.parametrize("sends", [True, False])
def test_a_leg_that_stays_alone_gives_up(style: str, sends: bool) -> None:
    scheduler: AnySchedulerSpec = SGLANG if style == "room" else VLLM
    cluster = pools(scheduler, ConnectorSpec("any", style))
    leg = live("k", sends=sends, style=style)
    cluster.feed(
        0, Submit(prompt(50, 1, scheduler.block_size), 1, 1, worker=1 - sends, transfer=leg)
    )
    finish(cluster)
    (end,) = of(cluster.log.events, Finished)
    assert isinstance(end, Finished)
    if style == "push" and sends:
        assert end.reason == "length"
        assert of(cluster.log.events, KvReleased)[0].t_ns >= 30 * NS_PER_S
    else:
        assert end.reason == "error"
        assert end.t_ns >= 30 * NS_PER_S
    check_rest(cluster)


def test_who_takes_the_place_of_one_that_is_gone_goes_with_it() -> None:
    cluster = pools(SGLANG, ConnectorSpec("any", "room"), ranks=2)
    first = Submit(prompt(8, 1, 1), 1, 1, worker=0, transfer=live("k", sends=True, style="room"))
    other = replace(first, worker=1, transfer=live("k", sends=False, style="room"))
    cluster.feed(0, first)
    cluster.feed(0, other)
    cluster.feed(0, Abort(0))
    cluster.feed(1, first)
    finish(cluster)
    ends = {e.rid: e.reason for e in cluster.log.events if isinstance(e, Finished)}
    assert ends == {0: "abort", 1: "error", 2: "error"}
    check_rest(cluster)


def test_transfers_that_share_a_link_take_longer() -> None:
    def last_ms(decode: int) -> float:
        slow = FabricSpec(gpus_per_node=1, nic_bytes_per_s=2e6)
        cluster = pools(prefill=2, decode=decode, fabric=slow)
        for i in range(2):
            cluster.feed(0, Submit(prompt(60, i, 16), 5, 5))
        finish(cluster)
        check_rest(cluster)
        return max(e.t_ns for e in cluster.log.events if isinstance(e, KvReceived)) / NS_PER_MS

    alone_ms = 60 * 256 / 1.44e6 * 1e3
    assert last_ms(2) == pytest.approx(alone_ms, rel=0.4)
    assert last_ms(1) - last_ms(2) == pytest.approx(alone_ms, rel=0.1)


def test_layers_leave_while_the_others_are_computed() -> None:
    def tail_ns(streams: bool) -> int:
        slow = FabricSpec(gpus_per_node=1, nic_bytes_per_s=2e7)
        connector = ConnectorSpec("MoRIIOConnector", "push", 480.0, streams=streams)
        cluster = pools(VLLM, connector, fabric=slow)
        cluster.feed(0, Submit(prompt(150, 1, 16), 5, 5))
        finish(cluster)
        check_rest(cluster)
        assert cluster.pairing is not None
        (received,) = [e for e in cluster.log.events if isinstance(e, KvReceived)]
        assert sum(use.num_bytes for use in cluster.pairing.use(cluster.now_ns)) == 2 * 150 * 256
        return received.t_ns - received.computed_ns

    whole_ns = 150 * 256 / 14.4e6 * 1e9
    assert tail_ns(False) == pytest.approx(400_000 + whole_ns, rel=0.01)
    assert tail_ns(True) < 0.5 * whole_ns


def test_a_request_refused_by_one_side_is_refused() -> None:
    short = replace(VLLM, max_model_len=64)
    cluster = pools(decode_scheduler=short)
    cluster.feed(0, Submit(prompt(60, 1, 16), 20, 20))
    finish(cluster)
    assert [type(e).__name__ for e in cluster.log.events] == ["Submitted", "Rejected"] * 2
    assert [e.rid for e in of(cluster.log.events, Submitted)] == [prefill_leg(0), 0]
    check_rest(cluster)


@pytest.mark.parametrize(("tokens", "reason"), [(0, "sent"), (40, "expired")])
def test_only_a_receiver_of_a_whole_prompt_keeps_the_lease_alive(tokens: int, reason: str) -> None:
    one_at_a_time = replace(VLLM, max_num_seqs=1, num_blocks=16)
    cluster = pools(decode_scheduler=one_at_a_time)
    block = VLLM.block_size
    wish = replace(live("k", sends=True), patience_ns=20 * NS_PER_MS)
    cluster.feed(0, Submit(prompt(50, 1, block), 1, 1, worker=0, transfer=wish))
    # Its blocks leave no room for the receiver's until long after the lease.
    cluster.feed(0, Submit(prompt(190, 2, block), 60, 60, worker=1))
    wish = replace(wish, sends=False, tokens=tokens)
    cluster.feed(5 * NS_PER_MS, Submit(prompt(50, 1, block), 5, 5, worker=1, transfer=wish))
    finish(cluster)
    (released,) = [e for e in cluster.log.events if isinstance(e, KvReleased)]
    assert released.reason == reason
    assert len(of(cluster.log.events, KvReceived)) == (reason == "sent")
    check_rest(cluster)


def test_drafts_of_a_prompt_that_came_wait_for_blocks_of_their_own() -> None:
    # Two prompts fill the cache; the slots of the drafts behind them do not fit as well.
    drafts = SpeculationSpec(3, (0.5, 0.5, 0.5), lookahead=3)
    cluster = pools(prefill=2, decode_scheduler=replace(VLLM, num_blocks=16, speculation=drafts))
    for content in range(2):
        cluster.feed(0, Submit(prompt(128, content, 16), 20, 20))
    finish(cluster)
    ends = [e for e in of(cluster.log.events, Finished) if e.rid >= 0]
    assert [(e.reason, e.output_tokens) for e in ends] == [("length", 20)] * 2
    assert cluster.workers[2].scheduler.preemptions == 0
    check_rest(cluster)
