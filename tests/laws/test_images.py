"""Prompts with images keep the laws: macro-steps, journals, and everybody gets an answer."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.core.commands import Abort, Command, Media, Submit
from frontier_mock.core.events import Finished, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.schedulers.sglang import SglangScheduler
from frontier_mock.serving.schedulers.vllm import VllmScheduler
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec
from tests.engine import LinearCost, step_spec
from tests.laws import test_macro_steps as vllm
from tests.laws import test_sglang_macro_steps as sglang

ITEM = 12
"""Tokens of the largest image."""


class EncodingCost(LinearCost):
    """And 10 us for each patch."""

    def encode_ns(self, images: Sequence[int]) -> int:
        return 10_000 * sum(images)


@st.composite
def pictured(draw: st.DrawFn, submit: Submit) -> Submit:
    media, start = [], draw(st.integers(0, 20))
    while start + ITEM <= submit.prompt.num_tokens and len(media) < 6:
        tokens = draw(st.integers(1, ITEM))
        media.append(Media(draw(st.integers(0, 5)), start, tokens, 4 * tokens))
        start += tokens + draw(st.integers(0, 9))
    return replace(submit, media=tuple(media))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    of_vllm = data.draw(st.booleans())
    scheduler: AnySchedulerSpec = data.draw(vllm.schedulers() if of_vllm else sglang.schedulers())
    room = data.draw(st.sampled_from([ITEM, 2 * ITEM, 100]))
    if isinstance(scheduler, SchedulerSpec):
        budget = data.draw(st.sampled_from([ITEM, 30]))
        scheduler = replace(
            scheduler, encoder_budget_tokens=budget, encoder_cache_tokens=max(room, budget)
        )
    else:
        scheduler = replace(scheduler, encoder_cache_tokens=room)
    timed: list[tuple[int, Command]] = []
    for t_ns, command in data.draw(vllm.commands(scheduler.block_size)):
        if isinstance(command, Submit):
            # Equal keys are equal sizes, as equal images have.
            command = _alike(data.draw(pictured(replace(command, worker=0))))
        if isinstance(command, Submit | Abort):
            timed.append((t_ns, command))
    runs = [play(scheduler, timed, single_step) for single_step in (False, True)]
    assert runs[0].log.events == runs[1].log.events
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    again = cluster_of(scheduler, single_step=False)
    assert replay(again, from_lines(lines)) == runs[0].log.digest()
    submits = sum(isinstance(command, Submit) for _, command in timed)
    ends = [e for e in runs[0].log.events if isinstance(e, Finished | Rejected)]
    assert len(ends) == submits


def _alike(submit: Submit) -> Submit:
    media = [replace(item, tokens=2 * item.key + 2) for item in submit.media]
    kept: list[Media] = []
    for item in media:
        if not kept or item.start >= kept[-1].start + kept[-1].tokens:
            kept.append(replace(item, patches=4 * item.tokens))
    inside = [item for item in kept if item.start + item.tokens <= submit.prompt.num_tokens]
    return replace(submit, media=tuple(inside))


def cluster_of(scheduler: AnySchedulerSpec, *, single_step: bool) -> Cluster:
    worker = WorkerSpec("w0", 8000, "colocated", "toy", step_spec(0.001), scheduler)
    return build_cluster(ClusterSpec((worker,), "round_robin", 0, single_step), [EncodingCost()])


def play(
    scheduler: AnySchedulerSpec, timed: Sequence[tuple[int, Command]], single_step: bool
) -> Cluster:
    cluster = cluster_of(scheduler, single_step=single_step)
    for t_ns, command in timed:
        cluster.feed(t_ns, command)
    while (due := cluster.next_time()) is not None:
        cluster.advance_to(due)
    worker = cluster.workers[0]
    assert isinstance(worker.scheduler, SglangScheduler | VllmScheduler)
    worker.scheduler.encoder.check()
    worker.kv.check()
    return cluster
