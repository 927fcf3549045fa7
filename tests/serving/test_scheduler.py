"""The scheduler's rules, one by one, as vLLM 0.33 showed them.

Every expected figure here is what the real scheduler does: `scripts/oracle/rules.py` runs this very
module with vLLM's scheduler in place of ours. Steps last 1 ms. A step reads "2d 8@16 4@0": two
decodes, 8 prompt tokens of one sequence after 16 computed ones, the first 4 of another.
"""

from dataclasses import dataclass, field

import pytest

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import EventLog, Finished, Preempted, Scheduled
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.cost.protocol import DecodeLine
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.worker import Worker
from tests.engine import prompt

MS = 1_000_000


@dataclass(frozen=True)
class Ask:
    """A request: `prompt` tokens in, `output` tokens out, at `at_ms`.

    The first `shared` blocks of its prompt are the same for all. It ends by an end of sequence if
    `cap` allows more tokens than `output`, else by its length. If it comes `after` another, its
    prompt begins with that one's prompt and output.
    """

    at_ms: float
    prompt: int
    output: int
    cap: int = 0
    priority: int = 0
    shared: int = 0
    after: int | None = None


@dataclass(frozen=True)
class Leave:
    """The client of request `rid` goes away."""

    at_ms: float
    rid: int


@dataclass
class Story:
    """What happened; times are milliseconds, requests are numbered in order of arrival."""

    steps: list[str] = field(default_factory=list)
    admitted: list[tuple[float, int, int]] = field(default_factory=list)
    """When it was decided, who, tokens found in the cache."""
    preempted: list[tuple[float, int]] = field(default_factory=list)
    finished: list[tuple[float, int, str, int]] = field(default_factory=list)
    """When, who, why, after how many tokens."""


def spec(
    *,
    seats: int = 8,
    budget: int = 64,
    blocks: int = 64,
    async_scheduling: bool = False,
    caching: bool = False,
    threshold: int = 0,
    policy: str = "fcfs",
    reserve_full_isl: bool = True,
    chunked: bool = True,
    watermark: float = 0.0,
    scheduled: int = 0,
    active: int = 0,
    adaptive: bool = False,
    interval: int = 1,
) -> SchedulerSpec:
    """A small engine with 16-token blocks."""
    return SchedulerSpec(
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        max_model_len=16 * min(blocks, 16),
        num_blocks=blocks,
        enable_prefix_caching=caching,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=threshold,
        policy=policy,
        async_scheduling=async_scheduling,
        reserve_full_isl=reserve_full_isl,
        watermark=watermark,
        max_num_scheduled_tokens=scheduled,
        max_num_active_seqs=active,
        long_prefill_token_threshold_adaptive=adaptive,
        prefill_schedule_interval=interval,
    )


class OneMillisecond:
    """Every step takes 1 ms."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        return DecodeLine(float(MS), 0.0, 1 << 60)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: object) -> int:
        return MS


def submit_of(item: Ask, rid: int, before: Submit | None, block: int) -> Submit:
    """The Submit of an Ask that goes on from `before`."""
    keys = prompt(item.prompt, rid, block, item.shared).keys
    if before is not None:
        past = before.prompt.block_keys(block) + before.output_keys
        keys = past + keys[len(past) :]
    full = item.prompt // block * 8
    every = prompt(item.prompt + item.output, rid, block).keys
    early = item.cap > item.output
    return Submit(
        KeyedPrompt(item.prompt, block, keys[:full]),
        item.output,
        item.cap or item.output,
        "stop" if early else "length",
        priority=item.priority,
        output_keys=every[full:],
    )


def describe(num_decodes: int, chunks: list[tuple[int, int]]) -> str:
    parts = [f"{num_decodes}d"] if num_decodes else []
    return " ".join(parts + [f"{new}@{past}" for new, past in chunks])


def play(settings: SchedulerSpec, *inputs: Ask | Leave) -> Story:
    """Run one worker, step by step, until nothing is left."""
    story = Story()
    log = EventLog()
    worker = Worker(0, settings, OneMillisecond(), log, single_step=True)
    decide = worker.scheduler.schedule

    def schedule(step: int, t_ns: int) -> object:
        decided = decide(step, t_ns)
        if decided is not None:
            story.steps.append(
                describe(decided.num_decodes, [(c.new, c.past) for c in decided.chunks])
            )
        return decided

    worker.scheduler.schedule = schedule
    sequences: list[Sequence] = []
    for item in (*inputs, None):
        t_ns = None if item is None else round(item.at_ms * MS)
        while worker.wake_ns is not None and (t_ns is None or worker.wake_ns <= t_ns):
            worker.wake(worker.wake_ns)
        if isinstance(item, Ask):
            rid = len(sequences)
            before = None if item.after is None else sequences[item.after].submit
            submit = submit_of(item, rid, before, settings.block_size)
            sequences.append(Sequence(rid, submit, 0))
            worker.in_frontend += 1
            worker.deliver(sequences[-1], t_ns)
        elif isinstance(item, Leave):
            worker.abort(sequences[item.rid], t_ns)
    for event in log.events:
        now = event.t_ns / MS
        if isinstance(event, Scheduled):
            story.admitted.append((now, event.rid, event.cached_tokens))
        elif isinstance(event, Preempted):
            story.preempted.append((now, event.rid))
        elif isinstance(event, Finished):
            story.finished.append((now, event.rid, event.reason, event.output_tokens))
    worker.kv.check()
    assert worker.kv.num_free == settings.num_blocks
    return story


def test_a_head_of_line_that_does_not_fit_holds_back_everyone_behind_it() -> None:
    # Of 16 blocks the first holds 7 and more; the second wants 10, the third only 1.
    story = play(spec(blocks=16), Ask(0, 100, 20), Ask(0.5, 160, 3), Ask(0.6, 16, 3))
    assert story.steps == [
        "64@0",
        "36@64",
        *["1d"] * 19,
        "64@0",
        "64@64",
        "32@128 16@0",
        *["2d"] * 2,
    ]
    assert story.admitted == [(0, 0, 0), (21, 1, 0), (23, 2, 0)]
    assert story.finished == [(21, 0, "length", 20), (26, 1, "length", 3), (26, 2, "length", 3)]


def test_the_whole_prompt_must_fit_not_only_its_first_chunk() -> None:
    asks = Ask(0, 100, 4), Ask(0.5, 160, 3)
    story = play(spec(blocks=16), *asks)
    assert story.steps == ["64@0", "36@64", "1d", "1d", "1d", "64@0", "64@64", "32@128", "1d", "1d"]
    assert story.preempted == []
    # Without --scheduler-reserve-full-isl the second is let in, runs out of blocks, starts again.
    story = play(spec(blocks=16, reserve_full_isl=False), *asks)
    assert story.steps == [
        "64@0",
        "36@64 28@0",
        "1d 63@28",
        "1d",
        "1d 63@0",
        "64@63",
        "33@127",
        "1d",
        "1d",
    ]
    assert story.preempted == [(3, 1)]
    assert story.admitted == [(0, 0, 0), (1, 1, 0), (4, 1, 0)]


def test_the_latest_is_preempted_and_computes_its_output_again() -> None:
    asks = Ask(0, 16, 30), Ask(0.5, 16, 20), Ask(0.6, 16, 8)
    story = play(spec(blocks=5), *asks)
    assert story.preempted == [(2, 2), (18, 1)]
    assert story.steps == [
        "16@0",
        "1d 16@0 16@0",
        *["2d"] * 16,
        *["1d"] * 12,
        "33@0 17@0",
        "2d",
        "2d",
        *["1d"] * 4,
    ]
    # Who was preempted goes to the front of the queue: 1 before 2, though 2 waited longer.
    assert story.admitted == [(0, 0, 0), (1, 1, 0), (1, 2, 0), (30, 1, 0), (30, 2, 0)]
    assert story.finished == [(30, 0, "length", 30), (33, 1, "length", 20), (37, 2, "length", 8)]


def test_a_token_in_flight_is_delivered_although_its_sequence_is_preempted() -> None:
    asks = Ask(0, 16, 30), Ask(0.5, 16, 20), Ask(0.6, 16, 8)
    story = play(spec(blocks=5, async_scheduling=True), *asks)
    # Decided at 18 ms for the step from 19 ms on; the step from 18 ms gives sequence 1 a token.
    assert story.preempted == [(2, 2), (18, 1)]
    assert story.steps == [
        "16@0",
        "1d",
        "1d 16@0 16@0",
        *["2d"] * 16,
        *["1d"] * 11,
        "33@0 17@0",
        "2d",
        "2d",
        *["1d"] * 4,
    ]
    assert story.finished == [(30, 0, "length", 30), (33, 1, "length", 20), (37, 2, "length", 8)]


def test_with_async_scheduling_an_arrival_joins_the_step_after_the_next() -> None:
    asks = Ask(0, 10, 8), Ask(2.5, 20, 2)
    story = play(spec(), *asks)
    assert story.steps == ["10@0", "1d", "1d", "1d 20@0", "2d", "1d", "1d", "1d"]
    story = play(spec(async_scheduling=True), *asks)
    assert story.steps == ["10@0", "1d", "1d", "1d", "1d 20@0", "2d", "1d", "1d"]
    assert story.admitted == [(0, 0, 0), (3, 1, 0)]
    assert story.finished == [(6, 1, "length", 2), (8, 0, "length", 8)]


def test_decodes_come_first_then_prompts_share_what_is_left_of_the_budget() -> None:
    story = play(spec(budget=32), Ask(0, 10, 6), Ask(0.5, 70, 2), Ask(0.6, 20, 2))
    assert story.steps == ["10@0", "1d 31@0", "1d 31@31", "1d 8@62 20@0", "3d", "1d"]


def test_without_chunked_prefill_a_prompt_waits_for_a_step_that_holds_it_whole() -> None:
    story = play(
        spec(budget=256, chunked=False, blocks=32),
        Ask(0, 200, 3),
        Ask(0.5, 200, 2),
        Ask(0.6, 100, 2),
        Ask(0.7, 20, 1),
    )
    assert story.steps == ["200@0", "1d 200@0", "2d", "100@0 20@0", "1d"]


def test_the_watermark_is_a_share_of_all_blocks_the_null_block_among_them() -> None:
    # 19 usable blocks are 20 in all: 5 % of them is one block, which admission leaves free.
    asks = Ask(0, 144, 4), Ask(0.5, 144, 1)
    story = play(spec(blocks=19, budget=256), *asks)
    assert story.admitted == [(0, 0, 0), (1, 1, 0)]
    story = play(spec(blocks=19, budget=256, watermark=0.05), *asks)
    assert story.admitted == [(0, 0, 0), (4, 1, 0)]
    # With nothing running it does not apply.
    assert play(spec(blocks=16, watermark=0.9), Ask(0, 240, 2)).admitted == [(0, 0, 0)]


def test_max_num_seqs_bounds_the_running_list() -> None:
    asks = Ask(0, 10, 3), Ask(0.5, 20, 3), Ask(0.6, 30, 2), Ask(0.7, 40, 1)
    story = play(spec(seats=2), *asks)
    assert story.steps == ["10@0", "1d 20@0", "2d", "1d 30@0", "1d 40@0"]


def test_priority_admits_the_smallest_number_first_and_preempts_the_largest() -> None:
    story = play(
        spec(seats=1, policy="priority"),
        Ask(0, 10, 3, priority=1),
        Ask(0.5, 20, 2, priority=2),
        Ask(0.6, 30, 2, priority=0),
    )
    assert story.admitted == [(0, 0, 0), (3, 2, 0), (5, 1, 0)]
    story = play(
        spec(blocks=4, policy="priority"),
        Ask(0, 16, 20, priority=2),
        Ask(0.5, 16, 20, priority=0),
        Ask(0.6, 16, 20, priority=1),
    )
    assert story.preempted == [(2, 0), (18, 2)]
    assert story.admitted == [(0, 0, 0), (1, 1, 0), (1, 2, 0), (21, 2, 0), (24, 0, 0)]
    assert story.finished == [(21, 1, "length", 20), (24, 2, "length", 20), (42, 0, "length", 20)]


def test_a_victim_that_had_its_turn_already_keeps_the_block_it_filled() -> None:
    # Both want a block in the step decided at 6 ms. Sequence 0 gets the last one and is then
    # preempted for sequence 1; its first block, the 16th token now known, is cached by that turn.
    story = play(
        spec(blocks=3, policy="priority", async_scheduling=True, caching=True),
        Ask(0, 10, 20, priority=2),
        Ask(0.5, 12, 10, priority=0),
    )
    assert story.preempted == [(6, 0)]
    assert story.admitted == [(0, 0, 0), (1, 1, 0), (12, 0, 16)]


def test_a_long_prefill_threshold_caps_chunks_unless_the_prompt_is_alone() -> None:
    assert play(spec(threshold=8), Ask(0, 40, 2)).steps == ["40@0", "1d"]
    story = play(spec(threshold=8, budget=20), Ask(0, 40, 2), Ask(0.5, 30, 2), Ask(0.6, 20, 2))
    assert story.steps == [
        "20@0",
        "8@20 8@0 4@0",
        "8@28 8@8 4@4",
        "4@36 8@16 8@8",
        "1d 6@24 4@16",
        "2d",
    ]


def test_an_adaptive_threshold_is_at_least_a_fair_share_of_the_budget() -> None:
    asks = Ask(0, 10, 1), Ask(0.5, 60, 1), Ask(0.5, 60, 1)
    story = play(spec(threshold=8, adaptive=True), *asks)
    assert story.steps == ["10@0", "32@0 32@0", "28@32 28@32"]


def test_a_step_computes_no_more_than_it_may_schedule() -> None:
    assert play(spec(scheduled=16), Ask(0, 40, 1)).steps == ["16@0", "16@16", "8@32"]


def test_no_more_run_than_may_be_active() -> None:
    asks = Ask(0, 10, 1), *(Ask(0.5, 8, 2) for _ in range(3))
    assert play(spec(active=2), *asks).steps == ["10@0", "8@0 8@0", "2d", "8@0", "1d"]


def test_prompts_wait_for_their_interval_while_decodes_run() -> None:
    # The first step carries a prompt; the next may do so three steps later, in the fourth.
    story = play(spec(interval=3), Ask(0, 10, 8), Ask(0.5, 10, 1), Ask(3.5, 70, 1))
    assert story.steps == ["10@0", "1d", "1d", "1d 10@0", "1d", "1d", "1d 63@0", "1d", "7@63"]
    # Nobody decodes: nobody has to wait.
    assert play(spec(interval=5), Ask(0, 10, 1), Ask(0.5, 10, 1)).steps == ["10@0", "10@0"]
    # A release that leaves somebody waiting is followed by another at once.
    asks = Ask(0, 10, 1), Ask(0.5, 10, 3), Ask(0.5, 10, 2), Ask(0.5, 10, 2)
    story = play(spec(interval=9, seats=2), *asks)
    assert story.steps == ["10@0", "10@0 10@0", "2d", "1d 10@0", "1d"]
    # A prompt that is cached but for one token is no prefill.
    story = play(
        spec(interval=9, caching=True),
        Ask(0, 33, 6, shared=2),
        Ask(1.5, 33, 2, shared=2),
        Ask(2.5, 40, 1),
    )
    assert story.steps == ["33@0", "1d", "1d 1@32", "2d", "1d", "1d", "40@0"]


def test_a_decode_that_overtook_a_held_prompt_starves_behind_it() -> None:
    story = play(
        spec(interval=3, budget=16, caching=True),
        Ask(0, 33, 12, shared=2),
        Ask(3.5, 46, 1),
        Ask(6.5, 33, 3, shared=2),
    )
    assert story.steps[:3] == ["16@0", "16@16", "1@32"]
    assert story.steps[3:8] == ["1d", "1d", "1d 15@0", "1d", "1d 1@32"]
    assert story.steps[8:] == ["1d 15@15", "2d", "2d", "1d 15@30", "1d", "1d", "1@45"]


def test_a_hit_leaves_at_least_one_token_to_compute() -> None:
    story = play(
        spec(caching=True),
        Ask(0, 32, 1, shared=2),
        Ask(10, 32, 1, shared=2),
        Ask(20, 33, 1, shared=2),
        Ask(30, 40, 1, shared=1),
    )
    # floor((n - 1) / 16) blocks at most: 32 cached tokens of 32 are worth one block, of 33 two.
    assert story.admitted == [(0, 0, 0), (10, 1, 16), (20, 2, 32), (30, 3, 16)]
    assert story.steps == ["32@0", "16@16", "1@32", "24@16"]


def test_a_prompt_hits_what_another_computes_in_the_same_step() -> None:
    asks = Ask(0, 40, 1), Ask(0.4, 40, 2, shared=2), Ask(0.5, 40, 2, shared=2)
    story = play(spec(caching=True), *asks)
    assert story.steps == ["40@0", "40@0 8@32", "2d"]


def test_an_end_of_sequence_costs_one_more_step_under_async_scheduling() -> None:
    asks = Ask(0, 10, 3, cap=9), Ask(0.5, 10, 1)
    assert play(spec(seats=1), *asks).steps == ["10@0", "1d", "1d", "10@0"]
    story = play(spec(seats=1, async_scheduling=True), *asks)
    assert story.steps == ["10@0", "1d", "1d", "1d", "10@0"]
    assert story.finished == [(3, 0, "stop", 3), (5, 1, "length", 1)]


def test_a_length_cap_is_foreseen_under_async_scheduling() -> None:
    asks = Ask(0, 10, 3), Ask(0.5, 10, 1)
    story = play(spec(seats=1, async_scheduling=True), *asks)
    # The cap frees the seat only when the step's output is processed, but wastes no decode.
    assert story.steps == ["10@0", "1d", "1d", "10@0"]
    assert story.finished == [(3, 0, "length", 3), (4, 1, "length", 1)]


def test_an_abort_comes_before_the_output_of_the_step_it_fell_into() -> None:
    story = play(spec(), Ask(0, 10, 9), Leave(3.5, 0))
    assert story.steps == ["10@0", "1d", "1d", "1d"]
    assert story.finished == [(4, 0, "abort", 3)]
    story = play(spec(async_scheduling=True), Ask(0, 10, 9), Ask(0.2, 20, 6), Leave(3.5, 0))
    # The step decided before the abort still has both decodes.
    assert story.steps == ["10@0", "1d", "1d 20@0", "2d", "2d", "1d", "1d", "1d"]
    assert story.finished == [(4, 0, "abort", 3), (8, 1, "length", 6)]


def test_an_abort_drops_the_token_in_flight_of_a_preempted_sequence() -> None:
    # Sequence 2 is preempted at 2 ms while the step that ends at 3 ms computes its first token.
    asks = Ask(0, 16, 30), Ask(0.5, 16, 20), Ask(0.6, 16, 8)
    story = play(spec(blocks=5, async_scheduling=True), *asks, Leave(2.5, 2))
    assert story.preempted[0] == (2, 2)
    assert story.finished[0] == (3, 2, "abort", 0)
    story = play(spec(blocks=5, async_scheduling=True), *asks, Leave(3.5, 2))
    assert story.finished[0] == (4, 2, "abort", 1)


def test_an_abort_in_the_last_step_wins_over_the_finish() -> None:
    story = play(spec(async_scheduling=True), Ask(0, 10, 4), Leave(3.5, 0))
    assert story.finished == [(4, 0, "abort", 3)]


def test_sequences_that_end_in_one_step_end_in_the_order_of_the_running_list() -> None:
    story = play(
        spec(seats=2, policy="priority"),
        Ask(0, 10, 1),
        Ask(0.5, 20, 3, priority=2),
        Ask(0.6, 30, 3, priority=1),
    )
    assert story.admitted == [(0, 0, 0), (1, 2, 0), (1, 1, 0)]
    assert story.finished == [(1, 0, "length", 1), (4, 2, "length", 3), (4, 1, "length", 3)]


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("cap", [7, 9])
def test_a_block_filled_in_the_last_step_is_cached(async_scheduling: bool, cap: int) -> None:
    # 10 tokens in and 7 out: the last step computes the 16th, and the 17th is never computed.
    settings = spec(caching=True, async_scheduling=async_scheduling)
    story = play(settings, Ask(0, 10, 7, cap=cap), Ask(20, 27, 1, after=0))
    assert story.admitted == [(0, 0, 0), (20, 1, 16)]
    story = play(settings, Ask(0, 10, 6, cap=cap), Ask(20, 26, 1, after=0))
    assert story.admitted == [(0, 0, 0), (20, 1, 0)]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_an_abort_caches_no_block_that_only_the_step_decided_ahead_fills(
    async_scheduling: bool,
) -> None:
    # The step from 7 ms computes the 16th token; with async scheduling it is decided at 6 ms.
    settings = spec(caching=True, async_scheduling=async_scheduling)
    for leave_ms, hit in ((6.5, 0), (7.5, 16)):
        story = play(settings, Ask(0, 9, 20), Leave(leave_ms, 0), Ask(20, 29, 1, after=0))
        assert story.admitted == [(0, 0, 0), (20, 1, hit)]
