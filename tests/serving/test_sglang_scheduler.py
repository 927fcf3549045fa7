"""SGLang's scheduling rules, each in numbers small enough to follow by hand.

Unless a test says otherwise: pages of one token, no radix cache, no overlap, so that a step is
decided on everything the one before it produced.
"""

from dataclasses import dataclass, field, replace

import pytest

from frontier_mock.core.commands import Abort, Submit
from frontier_mock.core.events import (
    EventLog,
    Finished,
    FirstToken,
    Preempted,
    Rejected,
    Scheduled,
)
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.schedulers.sglang import SglangScheduler
from frontier_mock.serving.schedulers.sglang_ratio import NewTokenRatio
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.steps import PREFILL_STEP
from tests.engine import prompt, toy_cluster

SPEC = SglangSchedulerSpec(
    max_running_requests=8,
    context_length=400,
    num_pages=1000,
    chunked_prefill_size=64,
    enable_overlap=False,
    enable_radix_cache=False,
)
CACHED = replace(SPEC, enable_radix_cache=True)


@dataclass
class Engine:
    """A scheduler stepped by hand, without overlap."""

    spec: SglangSchedulerSpec
    tick: int = 0
    rids: int = 0
    log: EventLog = field(default_factory=EventLog)
    seqs: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.spec
        self.kv = RadixCache(
            spec.num_pages, spec.page_size, spec.enable_radix_cache, spec.radix_eviction_policy
        )
        self.scheduler = SglangScheduler(spec, self.kv, self.log, 0)

    def submit(
        self,
        tokens: int,
        output: int,
        *,
        content: int | None = None,
        shared: int = 0,
        priority: int = 0,
        max_tokens: int | None = None,
    ) -> Sequence:
        """A request; without `max_tokens` it is of fixed length, as with ignore_eos."""
        body = self.rids if content is None else content
        keyed = prompt(tokens, body, self.spec.page_size, shared)
        cap = max_tokens or output
        reason = "length" if cap == output else "stop"
        seq = Sequence(self.rids, Submit(keyed, output, cap, reason, priority=priority), 0)
        self.rids += 1
        self.seqs.append(seq)
        self.scheduler.enqueue(seq, 0)
        return seq

    def step(self) -> Step | None:
        """Decide and execute one step."""
        step = self.scheduler.schedule(self.tick + 1, 0)
        if step is None:
            self.scheduler.went_idle()
            return None
        self.tick += step.ticks
        self.scheduler.seen_step = self.tick
        self.scheduler.complete(step, self.tick, 0)
        return step

    def steps(self, count: int) -> list[tuple[list[int], int]]:
        """(new tokens of each chunk, decodes) of the next `count` steps."""
        found = []
        for _ in range(count):
            step = self.step()
            assert step is not None
            found.append(([chunk.new for chunk in step.chunks], step.num_decodes))
        return found

    def drain(self) -> None:
        while self.step() is not None:
            pass

    def order(self) -> list[int]:
        """Rids in the order of their admission."""
        return [event.rid for event in self.log.events if isinstance(event, Scheduled)]


# Prefill first, or mixed ---------------------------------------------------------------------


def test_prompts_go_first_and_decodes_wait_for_them() -> None:
    engine = Engine(SPEC)
    engine.submit(10, 5)
    assert engine.steps(2) == [([10], 0), ([], 1)]
    engine.submit(20, 5)
    engine.submit(30, 5)
    assert engine.steps(2) == [([20, 30], 0), ([], 3)]


def test_with_mixed_chunk_the_decodes_ride_along() -> None:
    engine = Engine(replace(SPEC, enable_mixed_chunk=True))
    engine.submit(10, 5)
    engine.steps(1)
    engine.submit(20, 5)
    assert engine.steps(2) == [([20], 1), ([], 2)]


def test_riding_decodes_are_charged_to_the_chunk() -> None:
    engine = Engine(replace(SPEC, enable_mixed_chunk=True))
    for _ in range(3):
        engine.submit(4, 9)
    engine.steps(1)
    engine.submit(100, 5)
    assert engine.steps(2) == [([61], 3), ([39], 3)]


def test_one_long_prompt_is_cut_into_chunks_and_the_next_one_shares_the_last() -> None:
    engine = Engine(SPEC)
    engine.submit(150, 2)
    engine.submit(30, 2)
    engine.submit(40, 2)
    assert engine.steps(4) == [([64], 0), ([64], 0), ([22, 30, 12], 0), ([28], 0)]
    assert engine.order() == [0, 1, 2]


def test_no_decode_runs_while_a_prompt_is_in_chunks() -> None:
    engine = Engine(SPEC)
    engine.submit(10, 9)
    engine.steps(2)
    engine.submit(130, 2)
    assert engine.steps(4) == [([64], 0), ([64], 0), ([2], 0), ([], 2)]


def test_a_chunk_ends_on_a_page_boundary() -> None:
    engine = Engine(replace(SPEC, page_size=16, num_pages=100, chunked_prefill_size=48))
    engine.submit(20, 2)
    engine.submit(70, 2, max_tokens=3)
    # 20 tokens take two pages of the budget of three: one is left.
    assert engine.steps(3) == [([20, 16], 0), ([48], 0), ([6], 0)]


def test_without_chunking_the_first_prompt_may_exceed_the_input_budget_alone() -> None:
    engine = Engine(replace(CACHED, chunked_prefill_size=-1, max_prefill_tokens=50))
    for tokens in (80, 20, 20, 10):
        engine.submit(tokens, 2)
    assert engine.steps(2) == [([80], 0), ([20, 20], 0)]


def test_at_most_so_many_requests_per_prefill_batch() -> None:
    engine = Engine(replace(SPEC, prefill_max_requests=2))
    for _ in range(3):
        engine.submit(5, 3)
    assert engine.steps(3) == [([5, 5], 0), ([5], 0), ([], 3)]


def test_at_most_max_running_requests() -> None:
    engine = Engine(replace(SPEC, max_running_requests=2))
    for _ in range(3):
        engine.submit(5, 3)
    assert engine.steps(4) == [([5, 5], 0), ([], 2), ([], 2), ([5], 0)]


# Admission by memory -------------------------------------------------------------------------


def test_a_request_needs_its_prompt_its_whole_output_and_a_page() -> None:
    """Of 100 pages 40 + 30 + 1 leave 29, which is not more than the 20 + 8 + 1 of the next."""
    engine = Engine(replace(CACHED, num_pages=100, context_length=90))
    engine.submit(40, 30)
    engine.submit(20, 8)
    assert engine.steps(1) == [([40], 0)]
    engine = Engine(replace(CACHED, num_pages=101, context_length=90))
    engine.submit(40, 30)
    engine.submit(20, 8)
    assert engine.steps(1) == [([40, 20], 0)]


def test_classic_engines_reserve_no_page() -> None:
    engine = Engine(replace(CACHED, num_pages=99, context_length=90, classic=True))
    engine.submit(40, 30)
    engine.submit(20, 8)
    assert engine.steps(1) == [([40, 20], 0)]


def test_a_full_batch_admits_only_when_somebody_leaves() -> None:
    engine = Engine(replace(CACHED, num_pages=100, context_length=90))
    engine.submit(40, 3)
    engine.submit(50, 9)
    engine.steps(1)
    engine.submit(1, 1)  # would fit, but the head of the queue did not
    assert engine.scheduler.blocked is False
    assert engine.steps(2) == [([], 1), ([], 1)]
    assert engine.steps(1) == [([50, 1], 0)]


def test_running_requests_are_promised_their_output_by_the_new_token_ratio() -> None:
    """A running request that may stop early counts 0.7 of what is left of its cap, here 100."""

    def admits(pages: int) -> bool:
        engine = Engine(replace(CACHED, num_pages=pages, context_length=140))
        engine.submit(10, 50, max_tokens=101)
        engine.steps(1)
        engine.submit(20, 20)
        return engine.steps(1) == [([20], 0)]

    # 10 held, 0.7 * (101 - 1) promised, 20 + 20 + 1 needed, one more to be less than what is left.
    assert admits(10 + 70 + 41 + 1)
    assert not admits(10 + 70 + 41)


def test_a_request_of_fixed_length_is_promised_all_of_it() -> None:
    def admits(pages: int, classic: bool = False) -> bool:
        spec = replace(CACHED, num_pages=pages, context_length=140, classic=classic)
        engine = Engine(spec)
        engine.submit(10, 101)
        engine.steps(1)
        engine.submit(20, 20)
        return engine.steps(1) == [([20], 0)]

    assert admits(10 + 100 + 41 + 1)
    assert not admits(10 + 100 + 41)
    assert admits(10 + 70 + 40 + 1, classic=True)


def test_a_promise_is_clipped_at_4096_tokens() -> None:
    def admits(pages: int) -> bool:
        spec = replace(CACHED, num_pages=pages, context_length=8000, chunked_prefill_size=8192)
        engine = Engine(spec)
        engine.submit(10, 4200)
        engine.steps(1)
        engine.submit(20, 20)
        return engine.steps(1) == [([20], 0)]

    assert admits(10 + 4096 + 41 + 1)
    assert not admits(10 + 4096 + 41)


def test_without_a_tree_fixed_lengths_are_played_to_their_end() -> None:
    """Added up, 20 + 40 + 1 + 31 + 10 + 1 = 103 would not fit into 100 pages; but the second
    request will have given back its 41 tokens before the first one needs them."""
    engine = Engine(replace(SPEC, num_pages=100, context_length=90))
    engine.submit(20, 40)
    engine.submit(31, 10)
    assert engine.steps(1) == [([20, 31], 0)]
    engine = Engine(replace(CACHED, num_pages=100, context_length=90))
    engine.submit(20, 40)
    engine.submit(31, 10)
    assert engine.steps(1) == [([20], 0)]


# The new-token ratio -------------------------------------------------------------------------


def test_the_ratio_falls_from_0_7_to_a_seventh_of_it_in_600_steps() -> None:
    ratio = NewTokenRatio(1.0)
    assert (ratio.init, ratio.min) == (0.7, pytest.approx(0.098))
    ratio.decay(300)
    assert ratio.current == pytest.approx(0.399)
    ratio.decay(1000)
    assert ratio.current == pytest.approx(0.098)
    ratio.reset()
    assert ratio.current == 0.7


def test_conservativeness_scales_the_ratio_up_to_one() -> None:
    assert NewTokenRatio(0.5).init == 0.35
    assert NewTokenRatio(3.0).init == 1.0
    assert NewTokenRatio(3.0).min == pytest.approx(0.14)


def test_a_retraction_sets_the_ratio_from_what_was_produced() -> None:
    ratio = NewTokenRatio(1.0)
    ratio.retracted(output_tokens=30, max_new_tokens=199, requests=2)
    assert ratio.current == (30 + 20 * 2) / 200
    ratio.retracted(output_tokens=300, max_new_tokens=199, requests=2)
    assert ratio.current == 1.0


# Retraction ----------------------------------------------------------------------------------


def crowded(**changes: object) -> Engine:
    """Three requests that were promised too little: 70 pages, 42 prompt and 60 output tokens."""
    spec = replace(
        CACHED, num_pages=70, context_length=50, schedule_conservativeness=0.0, **changes
    )
    engine = Engine(spec)
    engine.submit(20, 20, max_tokens=21)
    engine.step()
    for tokens in (10, 12):
        engine.submit(tokens, 20, max_tokens=21)
        engine.step()
    return engine


def until_retraction(engine: Engine) -> Preempted:
    """Step until somebody is retracted; who that is."""
    while not engine.scheduler.preemptions:
        assert engine.step() is not None, "nobody was retracted"
    return next(event for event in engine.log.events if isinstance(event, Preempted))


def test_of_those_with_least_output_the_longest_prompt_is_retracted_first() -> None:
    engine = Engine(replace(CACHED, num_pages=70, context_length=50, schedule_conservativeness=0.0))
    engine.submit(14, 20, max_tokens=21)
    engine.steps(3)  # two tokens ahead of the others
    for tokens in (10, 12):
        engine.submit(tokens, 20, max_tokens=21)
        engine.step()
    assert until_retraction(engine).rid == 2


def test_a_retracted_request_goes_to_the_end_of_the_queue_and_computes_its_output_again() -> None:
    engine = crowded()
    retracted = until_retraction(engine)
    seq = engine.seqs[retracted.rid]
    assert seq.base == retracted.output_tokens > 0
    assert seq.goal == seq.prompt_tokens + seq.base
    late = engine.submit(1, 1)
    engine.drain()
    assert engine.order()[-2:] == [seq.rid, late.rid]
    assert [sum(count for _, count in seq.spans) for seq in engine.seqs] == [20, 20, 20, 1]
    assert engine.kv.num_free == 70


def test_a_full_queue_aborts_what_is_retracted() -> None:
    engine = crowded(max_queued_requests=1)
    engine.submit(30, 5)
    until_retraction(engine)
    (end,) = [event for event in engine.log.events if isinstance(event, Finished)]
    assert (end.reason, end.output_tokens > 0) == ("abort", True)


# Policies ------------------------------------------------------------------------------------


def held_back(spec: SglangSchedulerSpec) -> Engine:
    """An engine whose one slot is taken, so that a queue can form."""
    engine = Engine(replace(spec, max_running_requests=1))
    engine.submit(5, 4, content=90)
    engine.step()
    return engine


def test_fcfs_keeps_the_order_of_arrival() -> None:
    engine = held_back(SPEC)
    for output in (3, 9, 6):
        engine.submit(5, output)
    engine.drain()
    assert engine.order() == [0, 1, 2, 3]


def test_lof_takes_the_largest_cap_first() -> None:
    engine = held_back(replace(SPEC, schedule_policy="lof"))
    for output in (3, 9, 6):
        engine.submit(5, output)
    engine.drain()
    assert engine.order() == [0, 2, 3, 1]


def test_lpm_takes_the_longest_cached_prefix_first() -> None:
    engine = Engine(replace(CACHED, schedule_policy="lpm", max_running_requests=1))
    engine.submit(60, 4, content=1)
    engine.step()
    for tokens, content in ((40, 5), (50, 1), (60, 1)):
        engine.submit(tokens, 2, content=content)
    engine.drain()
    assert engine.order() == [0, 3, 2, 1]


def test_lpm_puts_off_a_prompt_whose_uncached_prefix_another_will_compute() -> None:
    engine = held_back(replace(CACHED, schedule_policy="lpm", chunked_prefill_size=8192))
    engine.submit(50, 2, content=1)
    engine.submit(60, 2, content=1)  # shares 50 tokens with the one before it: last
    engine.submit(40, 2, content=2)
    engine.drain()
    # Once the first has computed them, they are a cached prefix of 50, the longest there is.
    assert engine.order() == [0, 1, 2, 3]


def test_two_prompts_with_32_new_tokens_in_common_are_not_admitted_together() -> None:
    engine = Engine(replace(CACHED, schedule_policy="lpm", max_running_requests=2))
    engine.submit(32, 2, content=1)
    engine.submit(33, 2, content=1)
    engine.submit(31, 2, content=2)
    step = engine.step()
    assert step is not None
    assert engine.order() == [0, 2]


def test_lpm_gives_up_with_more_than_128_waiting() -> None:
    def order(waiting: int) -> list[int]:
        engine = Engine(
            replace(CACHED, schedule_policy="lpm", max_running_requests=1, num_pages=20_000)
        )
        engine.submit(60, 2, content=1)
        engine.step()
        for i in range(waiting - 1):
            engine.submit(40, 1, content=10 + i)
        engine.submit(60, 1, content=1)
        engine.step()
        engine.step()
        return engine.order()

    assert order(128) == [0, 128]
    assert order(129) == [0, 1]


def test_dfs_weight_takes_the_heaviest_subtree_together() -> None:
    engine = Engine(replace(CACHED, schedule_policy="dfs-weight"))
    engine.submit(20, 1, content=1)
    engine.submit(20, 1, content=2)
    engine.drain()
    for content in (1, 2, 2, 1, 2):
        engine.submit(20, 1, content=content)
    engine.step()
    assert engine.order()[2:] == [3, 4, 6, 2, 5]


def test_random_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[int]:
        engine = held_back(replace(SPEC, schedule_policy="random", random_seed=seed))
        for _ in range(6):
            engine.submit(5, 1)
        engine.drain()
        return engine.order()

    assert order(1) == order(1)
    assert sorted(order(1)) == list(range(7))
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_priorities_order_the_queue() -> None:
    def order(low_first: bool) -> list[int]:
        spec = replace(
            SPEC,
            enable_priority_scheduling=True,
            disable_priority_preemption=True,
            schedule_low_priority_values_first=low_first,
        )
        engine = held_back(spec)
        for priority in (1, 3, 2, 3):
            engine.submit(5, 1, priority=priority)
        engine.drain()
        return engine.order()

    assert order(low_first=False) == [0, 2, 4, 3, 1]
    assert order(low_first=True) == [0, 1, 3, 2, 4]


def test_a_gap_of_more_than_ten_preempts() -> None:
    def preempted(priority: int) -> int:
        engine = held_back(replace(SPEC, enable_priority_scheduling=True))
        engine.submit(5, 2, priority=priority)
        engine.steps(1)
        return engine.scheduler.preemptions

    assert preempted(10) == 0
    assert preempted(11) == 1


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule policy 'hrrn': one of fcfs"):
        Engine(replace(SPEC, schedule_policy="hrrn"))
    with pytest.raises(ValueError, match="unknown retraction policy 'oldest'"):
        Engine(replace(SPEC, retraction_policy="oldest"))


# What the tree gets --------------------------------------------------------------------------


def test_a_chunk_can_be_hit_while_the_next_one_is_computed() -> None:
    engine = Engine(replace(CACHED, chunked_prefill_size=64))
    engine.submit(150, 2, content=1)
    engine.steps(1)
    engine.submit(100, 2, content=1)
    assert engine.steps(2) == [([64], 0), ([22, 1], 0)]
    assert [event.cached_tokens for event in engine.log.events if isinstance(event, Scheduled)] == [
        0,
        99,
    ]


def test_at_least_one_token_is_computed() -> None:
    engine = Engine(CACHED)
    engine.submit(40, 1, content=1)
    engine.drain()
    engine.submit(40, 1, content=1)
    assert engine.steps(1) == [([1], 0)]
    assert engine.seqs[1].cached_tokens == 39


def test_only_full_pages_are_hit() -> None:
    engine = Engine(replace(CACHED, page_size=16, num_pages=100))
    engine.submit(40, 1, content=1)
    engine.drain()
    engine.submit(40, 1, content=1)
    assert engine.steps(1) == [([8], 0)]


def test_output_is_cached_save_for_its_last_token() -> None:
    engine = Engine(CACHED)
    keys = prompt(30, 1, 1).keys
    tail = prompt(20, 2, 1).keys
    seq = Sequence(0, Submit(KeyedPrompt(30, 1, keys), 6, 6, output_keys=tail), 0)
    engine.scheduler.enqueue(seq, 0)
    engine.drain()
    assert engine.kv.lookup(keys + tail, 50).num_blocks == 35


# Overlap -------------------------------------------------------------------------------------


def served(spec: SglangSchedulerSpec, *submits: tuple[int, Submit]) -> tuple[list[object], int]:
    """(events, steps with decodes) of a whole run."""
    cluster = toy_cluster(spec)
    for t_ns, submit in submits:
        cluster.feed(t_ns, submit)
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    worker = cluster.workers[0]
    assert worker.kv.num_free == worker.kv.num_blocks
    return list(cluster.log.events), worker.gauges(cluster.now_ns).steps


def test_a_length_cap_is_foreseen_and_an_end_of_sequence_is_not() -> None:
    overlap = replace(SPEC, enable_overlap=True)
    capped = Submit(prompt(10, 0, 1), 5, 5)
    stopped = Submit(prompt(10, 0, 1), 5, 9, "stop")
    # The prompt's step gives the first token, four ticks the others.
    assert served(overlap, (0, capped))[1] == 4
    assert served(overlap, (0, stopped))[1] == 5
    assert served(SPEC, (0, stopped))[1] == 4


def test_classic_engines_overshoot_either_way() -> None:
    spec = replace(SPEC, enable_overlap=True, classic=True)
    assert served(spec, (0, Submit(prompt(10, 0, 1), 5, 5)))[1] == 5


def test_the_first_token_comes_from_a_step_of_its_own_number() -> None:
    events, _ = served(replace(SPEC, enable_overlap=True), (0, Submit(prompt(10, 0, 1), 5, 5)))
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert end.spans == ((PREFILL_STEP, 1), (1, 4))


def test_decoding_goes_on_in_one_span_across_other_prompts() -> None:
    events, _ = served(
        replace(SPEC, enable_overlap=True),
        (0, Submit(prompt(10, 0, 1), 30, 30)),
        (9_000_000, Submit(prompt(10, 1, 1), 3, 3)),
    )
    spans = {event.rid: event.spans for event in events if isinstance(event, Finished)}
    assert spans[0] == ((PREFILL_STEP, 1), (1, 29))
    assert len(spans[1]) == 2


def test_an_aborted_request_keeps_the_token_that_comes_next() -> None:
    cluster = toy_cluster(replace(SPEC, enable_overlap=True))
    rid = cluster.feed(0, Submit(prompt(10, 0, 1), 100, 100))
    cluster.advance_to(20_000_000)
    before = cluster.tokens(rid)
    cluster.feed(20_000_000, Abort(rid))
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    (end,) = [event for event in cluster.log.events if isinstance(event, Finished)]
    # One token is in flight when the abort comes in; it is read before the next is awaited.
    assert (end.reason, end.output_tokens) == ("abort", before + 2)


def test_an_abort_ends_a_waiting_and_a_chunked_request_at_once() -> None:
    cluster = toy_cluster(replace(SPEC, max_running_requests=1))
    first = cluster.feed(0, Submit(prompt(300, 0, 1), 50, 50))
    second = cluster.feed(0, Submit(prompt(10, 1, 1), 5, 5))
    cluster.advance_to(1)
    cluster.feed(1, Abort(second))
    cluster.feed(1, Abort(first))
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    ends = [event for event in cluster.log.events if isinstance(event, Finished)]
    assert {event.rid: (event.reason, event.output_tokens) for event in ends} == {
        0: ("abort", 0),
        1: ("abort", 0),
    }
    assert not any(isinstance(event, FirstToken) for event in cluster.log.events)
    assert cluster.workers[0].kv.num_free == 1000


def test_a_router_sees_a_request_from_arrival_to_end() -> None:
    engine = Engine(replace(SPEC, max_running_requests=2))
    engine.submit(100, 2)
    engine.submit(10, 2)
    engine.submit(10, 2)
    seen = []
    while engine.step() is not None:
        seen.append((engine.scheduler.num_live, len(engine.scheduler.running)))
    # Two chunks, the second with the next prompt; a tick; the third prompt; its tick.
    assert seen == [(3, 0), (3, 0), (1, 0), (1, 0), (0, 0)]


def test_a_full_queue_refuses() -> None:
    cluster = toy_cluster(replace(SPEC, max_running_requests=1, max_queued_requests=1))
    for content in range(3):
        cluster.feed(content, Submit(prompt(10, content, 1), 50, 50))
    refused = [event for event in cluster.log.events if isinstance(event, Rejected)]
    assert [(event.rid, event.reason) for event in refused] == [(2, "queue_full")]


def test_a_pool_too_small_for_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="num_pages=403 of 1 tokens cannot hold one sequence"):
        toy_cluster(replace(SPEC, num_pages=403))
