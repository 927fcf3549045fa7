"""Prompts that move into another engine's tier, LMCache's way."""

from dataclasses import replace

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ConnectorSpec
from frontier_mock.core.commands import Abort, Change, Submit, Transfer
from frontier_mock.core.events import (
    Fetched,
    Finished,
    FirstToken,
    KvFailed,
    KvReceived,
    KvReleased,
)
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.serving.tiers.offload import Offload
from frontier_mock.serving.tiers.specs import LaneSpec, OffloadSpec
from frontier_mock.simtime import NS_PER_S
from tests.cluster.test_pairing import VLLM, check_rest, finish, of, pools
from tests.engine import prompt

LANE = LaneSpec(1e9, 1e-5)
BUFFER = OffloadSpec(
    "LMCacheConnectorV1", 100, 4096, LANE, LANE, whole_prefix=True, blocking=True, stores=False
)
SLOW = FabricSpec(gpus_per_node=1, nic_bytes_per_s=5e6)


def one_each(*, single_step: bool = False, fabric: FabricSpec | None = None) -> Cluster:
    return pools(
        connector=ConnectorSpec("LMCacheConnectorV1"),
        decode_scheduler=replace(VLLM, offload=BUFFER),
        single_step=single_step,
        fabric=fabric,
    )


def deposit(key: str, tokens: int = 150, content: int = 1) -> Submit:
    wish = Transfer(key, True, "deposit", 30 * NS_PER_S, streams=True, target=1, notice="r")
    return Submit(prompt(tokens, content, 16), 1, 1, worker=0, transfer=wish)


def tier(cluster: Cluster) -> Offload:
    below = cluster.workers[1].scheduler.offload
    assert isinstance(below, Offload)
    return below


def test_a_deposit_moves_chunk_by_chunk_and_its_sender_ends_when_all_is_there() -> None:
    cluster = one_each(fabric=SLOW)
    cluster.feed(0, deposit("a"))
    finish(cluster)
    events = cluster.log.events
    (first,) = of(events, FirstToken)
    (end,) = of(events, Finished)
    assert isinstance(end, Finished)
    assert end.reason == "length"
    whole_ns = 150 * 256 / 3.6e6 * 1e9
    # Two chunks of 64 had left before the third was computed.
    assert 0 < end.t_ns - first.t_ns < 0.9 * whole_ns
    assert tier(cluster).held_tokens(prompt(150, 1, 16)) == 144
    assert of(events, KvReceived) == []
    check_rest(cluster)


def test_whoever_comes_with_such_a_prompt_finds_it() -> None:
    cluster = one_each()
    cluster.feed(0, deposit("a"))
    finish(cluster)
    cluster.feed(cluster.now_ns, Submit(prompt(151, 1, 16), 5, 5, worker=1))
    finish(cluster)
    (fetched,) = of(cluster.log.events, Fetched)
    assert isinstance(fetched, Fetched)
    assert (fetched.worker, fetched.tokens) == (1, 144)
    # It does not store what it computed itself.
    assert tier(cluster).stats()[0].stores == 1
    check_rest(cluster)


def test_only_what_is_not_there_yet_moves() -> None:
    cluster = one_each()
    cluster.feed(0, deposit("a"))
    finish(cluster)
    cluster.feed(cluster.now_ns, deposit("b"))
    finish(cluster)
    assert cluster.pairing is not None
    moved = {use.num_bytes for use in cluster.pairing.use(cluster.now_ns) if use.num_bytes}
    assert moved == {(150 + 6) * 256}
    assert [event.reason for event in cluster.log.events if isinstance(event, KvReleased)] == [
        "sent",
        "sent",
    ]


def test_a_full_buffer_drops_what_comes_and_counts_it() -> None:
    small = replace(BUFFER, num_chunks=4)
    cluster = pools(decode_scheduler=replace(VLLM, offload=small))
    cluster.feed(0, deposit("a"))
    finish(cluster)
    assert tier(cluster).failed_chunks == 9
    assert tier(cluster).held_tokens(prompt(150, 1, 16)) == 0
    check_rest(cluster)


@pytest.mark.parametrize("command", [Abort(0), Change(1, "fail"), Change(0, "fail")])
@pytest.mark.parametrize("step", range(14))
def test_a_break_at_any_moment_leaves_nothing_behind(command: Abort | Change, step: int) -> None:
    cluster = one_each(fabric=SLOW)
    cluster.feed(0, deposit("a"))
    for _ in range(step):
        if (due := cluster.next_time()) is not None:
            cluster.advance_to(due)
    over = bool(of(cluster.log.events, Finished))
    cluster.feed(cluster.now_ns, command)
    finish(cluster)
    (end,) = of(cluster.log.events, Finished)
    assert isinstance(end, Finished)
    if over:
        assert end.reason == "length"
    elif isinstance(command, Abort):
        assert end.reason == "abort"
    else:
        assert end.reason in ("error", "length")
    # Nobody is told of a receiver that no engine knows.
    assert all(event.rid == 0 for event in of(cluster.log.events, KvFailed))
    check_rest(cluster)


@pytest.mark.parametrize("gap_ns", [0, 300_000, 1_000_000, 40_000_000])
def test_macro_steps_see_the_same(gap_ns: int) -> None:
    digests = []
    for single_step in (False, True):
        cluster = one_each(single_step=single_step, fabric=SLOW)
        for number in range(6):
            at_ns = number * gap_ns
            cluster.feed(at_ns, deposit(str(number), 40 + 30 * number, number % 4))
            later = Submit(prompt(41 + 30 * number, number % 4, 16), 30, 30, worker=1)
            cluster.feed(at_ns + gap_ns // 2, later)
        finish(cluster)
        check_rest(cluster)
        digests.append(cluster.log.digest())
    assert digests[0] == digests[1]


def test_a_deposit_is_in_the_journal() -> None:
    (entry,) = from_lines([to_line(5, deposit("a"), 16)]).entries
    assert entry == (5, deposit("a"))
