"""The laws of ranks that step together, and of servers that are several engines."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Abort, Command, Pause, Resume, Submit
from frontier_mock.core.events import Controlled, Finished, FirstToken, Rejected, Submitted
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec
from tests.engine import prompt, ranked_cluster
from tests.laws import test_macro_steps as vllm
from tests.laws import test_sglang_macro_steps as sglang

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256, num_blocks=256
)


def pinned(command: Command, rank: int) -> Command:
    return replace(command, rank=rank, worker=0) if isinstance(command, Submit) else command


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    scheduler: AnySchedulerSpec = data.draw(st.one_of(vllm.schedulers(), sglang.schedulers()))
    ranks = data.draw(st.integers(2, 4))
    timed = [
        (t_ns, pinned(command, data.draw(st.integers(-1, ranks - 1))))
        for t_ns, command in data.draw(vllm.commands(scheduler.block_size, controls=True))
    ]
    shape = {
        "servers": data.draw(st.integers(1, 2)),
        "ranks": ranks,
        "lockstep": data.draw(st.sampled_from([True, True, True, False])),
        "frontend_s": data.draw(st.sampled_from([0.0, 0.0004])),
    }
    macro = ranked_cluster(scheduler, **shape)
    single = ranked_cluster(scheduler, single_step=True, **shape)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    for event in macro.log.events:
        if isinstance(event, Finished):
            times = macro.workers[event.worker].timeline.token_times_ns(event.spans)
            other = single.workers[event.worker].timeline.token_times_ns(event.spans)
            assert np.array_equal(times, other)
    for left, right in zip(macro.workers, single.workers, strict=True):
        assert left.gauges(macro.now_ns) == right.gauges(single.now_ns)
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    assert sorted(ended) == list(range(sum(isinstance(c, Submit) for _, c in timed)))
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    assert replay(ranked_cluster(scheduler, **shape), from_lines(lines)) == macro.log.digest()


def submit(rank: int, output: int = 40, length: int = 40) -> Submit:
    return Submit(prompt(length, rank, 16), output, output, worker=0, rank=rank)


def ends(timed: list[tuple[int, Command]], **shape: object) -> dict[int, Finished]:
    cluster = ranked_cluster(SCHEDULER, **shape)
    vllm.play(cluster, timed)
    return {e.rid: e for e in cluster.log.events if isinstance(e, Finished)}


def test_all_ranks_have_the_boundaries_of_the_slowest() -> None:
    cluster = ranked_cluster(SCHEDULER, ranks=2)
    vllm.play(cluster, [(0, submit(0, output=20, length=16)), (0, submit(1, output=20, length=60))])
    times = {
        e.rid: cluster.workers[e.worker].timeline.token_times_ns(e.spans)
        for e in cluster.log.events
        if isinstance(e, Finished)
    }
    assert np.array_equal(times[0], times[1])


def test_a_long_prompt_on_one_rank_delays_the_decodes_of_the_other() -> None:
    decode, prefill = (0, submit(0, output=30)), (5_000_000, submit(1, length=200))
    alone = ends([decode])[0]
    together = ends([decode, prefill])[0]
    apart = ends([decode, prefill], lockstep=False)[0]
    assert together.t_ns > alone.t_ns + 10_000
    assert apart.t_ns < together.t_ns


def test_an_idle_rank_takes_part_with_a_dummy() -> None:
    assert ends([(0, submit(0))], ranks=4)[0].t_ns > ends([(0, submit(0))], ranks=2)[0].t_ns


def test_an_arrival_at_an_idle_rank_waits_for_the_common_boundary() -> None:
    cluster = ranked_cluster(SCHEDULER)
    vllm.play(cluster, [(0, submit(0, output=30)), (5_500_000, submit(1))])
    boundaries = set(cluster.workers[0].timeline.boundaries_ns(np.arange(1, 30)).tolist())
    first = next(e for e in cluster.log.events if isinstance(e, FirstToken) and e.rid == 1)
    assert first.t_ns in boundaries


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("vllm", [0, 1, 2, 0, 0, 0]), ("round_robin", [0, 1, 2, 0, 1, 2])],
)
def test_a_server_spreads_requests_over_its_ranks(policy: str, expected: list[int]) -> None:
    cluster = ranked_cluster(SCHEDULER, ranks=3, rank_policy=policy)
    for rank in (-1, -1, -1):
        cluster.feed(0, submit(rank, output=200))
    for _ in range(3):
        # The first rank's request ends before the next comes.
        cluster.feed(cluster.now_ns, Abort(_latest_on_first(cluster)))
        cluster.feed(cluster.now_ns + 30_000_000, submit(-1, output=200))
    chosen = [e.worker for e in cluster.log.events if isinstance(e, Submitted)]
    assert chosen == expected


def _latest_on_first(cluster: Cluster) -> int:
    arrivals = [e for e in cluster.log.events if isinstance(e, Submitted)]
    return max(e.rid for e in arrivals if e.worker == 0)


def test_a_pause_reaches_every_rank() -> None:
    cluster = ranked_cluster(SCHEDULER, ranks=2)
    vllm.play(cluster, [(0, submit(0)), (0, submit(1)), (9_000_000, Pause(0)), (10**9, Resume(0))])
    rests = [e for e in cluster.log.events if isinstance(e, Controlled) and e.what == "rest"]
    assert [e.worker for e in rests] == [0, 1]
    assert all(e.t_ns > 10**9 for e in cluster.log.events if isinstance(e, Finished))
