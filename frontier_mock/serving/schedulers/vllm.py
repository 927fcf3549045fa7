"""vLLM V1's scheduler, at the cost of changes instead of the cost of batches.

Theory of operation. vLLM walks its running list at every step; almost always the walk finds that
every decode gets its one token again. Here the decodes of a step are four numbers, and only what
changes them costs anything:

Rule 1. Step `s` contains every counted sequence (`vllm_decodes`).
Rule 2. A decode needs a new block in the steps in which its context is 1 modulo the block size.
Rule 3. Whenever blocks or budget do not suffice for everybody, the exact walk in list order
        (`_walk`) decides: who is preempted, who is held back for a step.
Rule 4. `schedule` is called once per step, in order, when vLLM would: at the boundary before the
        step (sync), or one boundary earlier (async). `coast` stands for many calls that change
        nothing.
Rule 5. A sequence whose prompt comes from another engine stands aside (`vllm_remote`) with blocks
        for all of it. One whose KV another engine will fetch keeps its blocks after its end.
Rule 6. What a tier under the GPU has of a prompt comes the same way (`serving.tiers.offload`).

Source of every rule: vLLM 0.33.0, v1/core/sched/scheduler.py, as specs/vllm.md section 8 has it.
"""

from collections.abc import Callable

from frontier_mock.core.events import EventLog, FirstToken, Preempted, Scheduled
from frontier_mock.cost.protocol import Chunk
from frontier_mock.serving.encoder_cache import EncoderCache
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.remote_kv import Exchange, sends
from frontier_mock.serving.schedulers.drafted_set import StepLoads
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.schedulers.vllm_below import Below
from frontier_mock.serving.schedulers.vllm_decodes import Decodes
from frontier_mock.serving.schedulers.vllm_drafted import DraftedDecodes
from frontier_mock.serving.schedulers.vllm_holdings import Holdings
from frontier_mock.serving.schedulers.vllm_offer import Offer, Offers, Refusal
from frontier_mock.serving.schedulers.vllm_pacing import PrefillPace
from frontier_mock.serving.schedulers.vllm_queue import WaitingQueue
from frontier_mock.serving.schedulers.vllm_remote import Receivers
from frontier_mock.serving.sequence import (
    DECODE,
    DONE,
    DRAINING,
    FRONTEND,
    PREFILL,
    RECEIVING,
    SENDING,
    WAITING,
    Sequence,
)
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.tiers.offload import Offload
from frontier_mock.simtime import SimTime


class VllmScheduler:
    """Waiting and running sequences of one engine, and the rules that move them."""

    def __init__(self, spec: SchedulerSpec, kv: KvCache, log: EventLog, worker: int) -> None:
        if spec.policy not in ("fcfs", "priority"):
            raise ValueError(f"unknown scheduling policy {spec.policy!r}")
        self.spec = spec
        self.kv = kv
        self._log = log
        self._worker = worker
        self._block = spec.block_size
        self._token_budget = spec.max_num_batched_tokens
        if spec.max_num_scheduled_tokens:
            self._token_budget = min(self._token_budget, spec.max_num_scheduled_tokens)
        self._max_running = spec.max_num_active_seqs or spec.max_num_seqs
        self._pace = PrefillPace(spec.prefill_schedule_interval)
        self._caching = spec.enable_prefix_caching
        self._lag = 1 if spec.async_scheduling else 0
        self._priority = spec.policy == "priority"
        self._holdings = Holdings(kv, spec)
        self._queue = WaitingQueue(self._priority)
        self._inbound = Receivers(self._holdings, 2 * (spec.pipeline_stages + self._lag))
        self._below: Below | None = None
        self.offload: Offload | None = None
        if spec.offload is not None:
            parts = self._holdings, self._inbound, log, worker
            self._below = Below(spec.offload, spec.block_size, *parts)
            self.offload = self._below.tier
        self._decodes = _decodes(spec)
        drafts = spec.speculation
        self._extra = 0 if drafts is None else drafts.extra_slots
        # Whether a chunk's cap may be less than a verification needs, which it then narrows.
        threshold = spec.long_prefill_token_threshold
        self._narrows = drafts is not None and 0 < threshold <= drafts.num_drafts
        # Whether steps without prompts are decided by decodes and blocks alone.
        self._plain = drafts is None and self.offload is None and not self._pace.paced
        self.running: dict[int, Sequence] = {}
        self._streamed: dict[int, list[tuple[Sequence, int]]] = {}
        self._prefilling: list[Sequence] = []
        self._grants: list[tuple[Sequence, Chunk]] = []
        self.encoder = EncoderCache(spec.encoder_budget_tokens, spec.encoder_cache_tokens)
        self._images: tuple[int, ...] = ()
        self._offers = Offers(
            spec,
            kv,
            self._holdings,
            self._inbound,
            self._below,
            self.encoder,
            self._pace,
            self.running,
            self._padding,
        )
        self.seen_step = 0
        self.blocked = False
        self.hit_tokens = 0
        self.query_tokens = 0
        self.preemptions = 0
        self._admitted = 0
        self._prompts_run = False

    # Waiting ---------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, preempted ones included."""
        deferred = 0 if self.offload is None else len(self.offload.deferred)
        return len(self._queue.entries) + len(self._inbound.members) + deferred

    @property
    def num_live(self) -> int:
        """Waiting and running sequences."""
        return self.num_waiting + len(self.running)

    def enqueue(self, seq: Sequence, t_ns: SimTime) -> None:
        """Put a new arrival at the end of the waiting queue."""
        # With more of them an adaptive threshold falls, and the head's first chunk may fit.
        adaptive = self.spec.long_prefill_token_threshold_adaptive
        if self._priority or adaptive or not self._queue.entries:
            self.blocked = False
        self._queue.append(seq)

    @property
    def exchange(self) -> Exchange | None:
        """Who moves KV between engines, if this one takes part."""
        return self._inbound.exchange

    @exchange.setter
    def exchange(self, exchange: Exchange | None) -> None:
        self._inbound.exchange = exchange

    # Output ----------------------------------------------------------------------------------

    def next_finish(self) -> int | None:
        """The earliest step in which some sequence produces its last token."""
        return self._decodes.next_finish()

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """Log the first tokens of `executed`, free and return what ended with `step`."""
        if self._streamed:
            exchange = self._inbound.exchange
            assert exchange is not None
            for seq, tokens in self._streamed.pop(step, ()):
                exchange.computed(seq, tokens, t_ns)
        if self.offload is not None:
            self.offload.computed(step, t_ns)
        for seq in executed.firsts:
            if seq.state != DONE and (seq.spans[0][0] if seq.spans else seq.first_step) == step:
                self._log.append(FirstToken(t_ns, self._worker, seq.rid))
        ends = self._decodes.ends
        return self._pop_finished(step, t_ns) if ends and ends[0][0] == step else []

    def begin_copies(self, t_ns: SimTime) -> None:
        """Stores begin when what they copy is computed."""

    def went_idle(self) -> None:
        """Nothing to forget."""

    def _pop_finished(self, step: int, t_ns: SimTime) -> list[Sequence]:
        finished = []
        while (seq := self._decodes.pop_finished(step)) is not None:
            if self.offload is not None:
                self.offload.ended(seq, seq.prompt_tokens + seq.output_tokens - 1, t_ns)
            self._release(seq, finished=True)
            seq.close_span(step)
            finished.append(seq)
        return finished

    def _release(self, seq: Sequence, finished: bool = False) -> None:
        """Forget a sequence for good and free what it holds."""
        sending = False
        if seq.counted:
            self._lane_of(seq).uncount(seq)
        if seq.state == PREFILL:
            self._prefilling.remove(seq)
        if seq.state in (DECODE, PREFILL):
            del self.running[seq.rid]
            if finished and seq.transfer is not None and sends(seq):
                decodes = self._lane_of(seq)
                known = max(decodes.known_at_end(seq), seq.goal)
                self._holdings.pin(seq, decodes.slots(seq, decodes.decided), known)
                sending = seq.transfer.style == "deposit"
            else:
                self._free(seq, finished)
        if seq.submit.media:
            self.encoder.drop(seq)
        seq.state = SENDING if sending else DONE
        self.blocked = False

    def abort(self, seq: Sequence, step: int) -> bool:
        """Drop `seq`, whose last token to be delivered is that of `step`, wherever it is."""
        if self.offload is not None:
            self.offload.ended(seq, 0, 0)
        if seq.state == WAITING:
            if self.offload is None or not self.offload.forget(seq):
                self._queue.remove(seq)
            # If it was preempted, its last token may still be in flight.
            self._forget_unseen(seq, step)
        if seq.state == RECEIVING:
            self._inbound.part(seq)
        decoding = seq.state in (DECODE, DRAINING)
        seq.aborted = True
        if seq.state != FRONTEND:
            self._release(seq)
        if decoding:
            seq.close_span(min(step, seq.finish_step))
        seq.state = DONE
        return True

    def _forget_unseen(self, seq: Sequence, step: int) -> None:
        """Nobody will see what a sequence that waits produced after `step`."""
        seq.drop_tokens_after(step)

    # Blocks ----------------------------------------------------------------------------------

    def _lane_of(self, seq: Sequence) -> Decodes:
        """The decodes among which `seq` is, or was when it ended: there is but one such set."""
        return self._decodes

    def _free(self, seq: Sequence, finished: bool = False, had_turn: bool = False) -> None:
        """Free the blocks of a running sequence; `had_turn` as for `Decodes.known`."""
        if seq.state == PREFILL:
            self._holdings.free(seq, seq.computed, seq.computed)
            return
        decodes = self._lane_of(seq)
        slots = decodes.slots(seq, decodes.decided + had_turn)
        if seq.aborted:
            known = decodes.known_at_abort(seq)
        else:
            known = decodes.known_at_end(seq) if finished else decodes.known(seq, had_turn)
        self._holdings.free(seq, slots, max(known, seq.goal))

    def unpin(self, seq: Sequence) -> None:
        """Free what a sequence that has ended still holds."""
        self._holdings.drop(seq)
        seq.pinned = 0
        self.blocked = False

    def layerwise(self, step: int) -> list[tuple[Sequence, int]]:
        """Senders computed in `step` that send layer by layer, with tokens computed then."""
        return self._streamed.get(step, [])

    # Prompts from elsewhere ------------------------------------------------------------------

    def received(self, seq: Sequence, step: int) -> None:
        """The KV has come while `step` was executing."""
        self._inbound.received(seq, step)
        self.blocked = False

    def ask_again(self, seqs: list[Sequence], t_ns: SimTime) -> None:
        """What these stood aside for has ended: they are the first of the queue again."""
        for seq in reversed(seqs):
            self._queue.put_back(seq)
        self.blocked = False

    def _resume(self, step: int, t_ns: SimTime, most: int) -> int:
        """What did not come of the first prompt that is ready is computed: at least its last token.

        Returns how many tokens of it are, at most `most`, in this step; 0 if it has to wait for
        blocks beyond those of its prompt, which drafts need.
        """
        seq = self._inbound.ready[0]
        new = min(seq.goal - seq.computed, most)
        padding = self._padding(seq.goal, seq.computed, step)
        if padding >= most:
            return most + 1
        if self._holdings.missing(seq, seq.computed + new + padding) > self.kv.num_free:
            return 0
        self._inbound.pop_ready()
        resumed = seq.preemptions > 0
        self._join_running(seq, t_ns, seq.computed if resumed else seq.cached_tokens, resumed)
        self._grant(seq, new, step, padding)
        return new + padding

    def _padding(self, goal: int, computed: int, step: int) -> int:
        """Tokens that a prompt with but one left to compute gets more than that, from `step` on.

        Beside decodes alone it would be the one sequence without drafts, and the step could not
        replay a graph of equal ones: vLLM gives it drafts that nobody made.
        """
        drafts = 0 if self.spec.speculation is None else self.spec.speculation.num_drafts
        if goal - computed != 1 or self._prompts_run or drafts >= self._token_budget:
            return 0
        if not computed and not self._decodes.tokens_of(step):
            return 0
        fits = computed + drafts + 2 <= self.spec.max_model_len
        return drafts if fits and self._chunk_cap() > drafts else 0

    def lost(self, seq: Sequence, t_ns: SimTime) -> None:
        """The KV will not come: `seq` gives its blocks back and computes its prompt itself."""
        self._inbound.go_onward(seq, t_ns)
        if seq.state == RECEIVING:
            self._inbound.part(seq)
            self._queue.put_back(seq)
            self.blocked = False

    # One step --------------------------------------------------------------------------------

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide what `step` computes; None if there is nothing to compute."""
        decodes = self._decodes
        inbound = self._inbound
        plain = self._plain
        if not plain or decodes.joining or step - 1 in decodes.leaving:
            decodes.roll(step)
        need = decodes.blocks_of(step)
        tokens = decodes.num_decodes if plain else decodes.tokens_of(step)
        budget = self._token_budget - tokens
        waits = self._prefilling or self._queue.entries or inbound.ready or inbound.arrived
        if plain and not waits and budget >= 0 and need <= self.kv.num_free:
            # Decodes get their one token each, and nothing else happens: most steps are so.
            if need:
                self.kv.take(need)
            decodes.decided = step
            self._grants = []
            self._prompts_run = False
            self.blocked = True
            return Step(step, tokens, decodes.kv_offset, (), ()) if tokens else None
        if inbound.arrived:
            inbound.notice(self._turn_of(step), t_ns, self._is_idle())
        self._grants = []
        self._images = ()
        preempted = False
        pace = self._pace
        if pace.paced:
            pace.begin(self._count_to(step), len(self.running) > len(self._prefilling))
        resting = not self._prefilling or pace.deferring
        if resting and need <= self.kv.num_free and budget >= 0 and not self._narrows:
            if need:
                self.kv.take(need)
        else:
            budget, preempted = self._schedule_running(step, t_ns)
        self._prompts_run = bool(self._grants)
        if self._prompts_run and pace.paced:
            pace.prefilled(self._count_to(step))
        cut_off = False
        if not preempted and (self._queue.entries or inbound.ready):
            cut_off = self._admit(step, t_ns, budget)
        decodes.decided = step
        grants = self._grants
        if self.offload is not None:
            self.offload.offer(step, [seq for seq, _ in grants])
        # Without grants, nothing can be admitted later either, until something ends or arrives.
        self.blocked = not (preempted or grants or self._prefilling or inbound.arrived)
        if self._narrows or (cut_off and self.spec.speculation is not None):
            # Decodes may leave more of the next step's budget.
            self.blocked = False
        if pace.paced:
            if pace.deferring:
                self.blocked = self.blocked and not self.num_waiting
            elif not preempted:
                pace.end(self._num_pressing())
        num_decodes = decodes.num_decodes
        if not grants:
            return Step(step, num_decodes, decodes.kv_offset, (), ()) if num_decodes else None
        return Step(
            step,
            num_decodes,
            decodes.kv_offset,
            tuple([chunk for _, chunk in grants]),
            tuple([seq for seq, _ in grants if seq.first_step == step]),
            1,
            None if self._below is None else self._below.take_load(),
            self._images,
        )

    def _count_to(self, step: int) -> int:
        """How many steps have something in them when `step`, being scheduled, has: differences
        count."""
        return step

    def _turn_of(self, step: int) -> int:
        """How many steps have been scheduled with `step`, empty ones among them."""
        return step

    def _num_pressing(self) -> int:
        """How many wait that could be admitted if there were room."""
        return self.num_waiting

    def _is_idle(self) -> bool:
        """Whether there is nothing to compute, and nobody about to decode."""
        decodes = self._decodes
        return not decodes.num_decodes and not self._prefilling and not decodes.joining

    def _chunk_cap(self) -> int:
        spec = self.spec
        threshold = spec.long_prefill_token_threshold
        if threshold <= 0:
            return self._token_budget
        eligible = len(self.running) + self.num_waiting
        if eligible > 1:
            if spec.long_prefill_token_threshold_adaptive:
                return max(threshold, spec.max_num_batched_tokens // eligible)
            return threshold
        return self._token_budget

    def _schedule_running(self, step: int, t_ns: SimTime) -> tuple[int, bool]:
        """Running sequences when some still prefill or something may be short.

        Returns the budget left and whether anything was preempted.
        """
        extra = self._extra
        left = self._token_budget - self._decodes.tokens_of(step)
        decode_need = need = self._decodes.blocks_of(step)
        cap = self._chunk_cap()
        plan: list[tuple[Sequence, int]] = []
        for seq in () if self._pace.deferring else self._prefilling:
            new = min(seq.goal - seq.computed, cap, left - extra)
            if new <= 0:
                break
            if seq.submit.media:
                new = self.encoder.within(seq, seq.computed, new, step)
                if not new:
                    continue
            left -= new + extra
            blocks = self._holdings.blocks_for(seq.computed + new) - seq.held_blocks
            # What has come from elsewhere came into blocks for all of the prompt.
            if blocks > 0:
                need += blocks
            plan.append((seq, new))
        # A decode can stand behind a prefill in the list, and starve, only where chunks are capped
        # or held: those with nothing left to compute but one token overtake them.
        held = self.spec.long_prefill_token_threshold > 0 or self._pace.paced
        starved = held and left <= extra
        if need > self.kv.num_free or left < 0 or starved or self._narrows:
            return self._walk(step, t_ns)
        if decode_need:
            self.kv.take(decode_need)
        for seq, new in plan:
            self._grant(seq, new, step)
        return left, False

    def _walk(self, step: int, t_ns: SimTime) -> tuple[int, bool]:
        """vLLM's own loop over the running list, for steps in which something is short."""
        budget = self._token_budget
        self.encoder.restart(step)
        order = list(self.running.values())
        cap = self._chunk_cap()
        spent: dict[int, int] = {}
        starved: list[Sequence] = []
        preempted = False
        extra, wants = self._extra, self._decode_wants()
        i = 0
        while i < len(order):
            seq = order[i]
            left = budget - extra
            if seq.state == PREFILL:
                tokens, blocks = self._prefill_wants(seq, step, min(cap, left))
            else:
                tokens, blocks = wants(seq, step)
                if tokens > left or tokens > cap:
                    tokens, blocks = self._cut_short(seq, step, min(cap, left))
            if tokens <= 0:
                if wants(seq, step)[0]:
                    starved.append(seq)
                i += 1
                continue
            while blocks > self.kv.num_free and seq in order:
                victim = self._victim(order)
                at = order.index(victim)
                del order[at]
                had_turn = victim.rid in spent
                budget += spent.pop(victim.rid, 0)
                if at < i:
                    i -= 1
                self._preempt(victim, step, t_ns, had_turn)
                preempted = True
            if i == len(order) or order[i] is not seq:
                continue
            spent[seq.rid] = taken = tokens + extra
            budget -= taken
            if seq.state == PREFILL:
                self._grant(seq, tokens, step)
            elif blocks:
                self.kv.take(blocks)
            i += 1
        for seq in starved:
            if seq.state == DECODE:
                self._hold_back(seq, step)
        return budget, preempted

    def _prefill_wants(self, seq: Sequence, step: int, most: int) -> tuple[int, int]:
        """(tokens, new blocks) that a running prefill can use in `step`, at most `most` tokens."""
        if self._pace.deferring:
            return 0, 0
        tokens = min(seq.goal - seq.computed, most)
        if seq.submit.media and tokens > 0:
            tokens = self.encoder.within(seq, seq.computed, tokens, step)
        return tokens, self._holdings.blocks_for(seq.computed + tokens) - seq.held_blocks

    def _decode_wants(self) -> Callable[[Sequence, int], tuple[int, int]]:
        """What says how many (tokens, new blocks) a decode needs in a step."""
        return self._decodes.wants

    def _cut_short(self, seq: Sequence, step: int, most: int) -> tuple[int, int]:
        """(tokens, new blocks) of a decode in `step` that needs more than `most` tokens."""
        if most <= 0:
            return 0, 0
        self._decodes.narrow(seq, step, most)
        return self._decodes.wants(seq, step)

    def _hold_back(self, seq: Sequence, step: int) -> None:
        """`seq` gets nothing in `step`, for want of budget."""
        self._decodes.hold_back(seq, step)

    def _victim(self, order: list[Sequence]) -> Sequence:
        if self._priority:
            return max(order, key=lambda seq: (seq.priority, seq.rid))
        return order[-1]

    def _grant(self, seq: Sequence, new: int, step: int, padding: int = 0) -> None:
        """Give a running prefill its next `new` tokens in `step`, and `padding` more."""
        past = seq.computed
        computed = seq.computed = past + new
        if padding:
            self._holdings.widen(seq, computed + padding)
        self._holdings.grow(seq, computed)
        self._grants.append((seq, Chunk(new + padding, past)))
        if seq.submit.media:
            self._images += self.encoder.take(seq, past, new)
        if seq.transfer is not None and seq.transfer.streams and self.exchange is not None:
            self._streamed.setdefault(step, []).append((seq, computed))
        if computed == seq.goal:
            self._prefilling.remove(seq)
            self._decodes.start(seq, step, padding)

    def _admit(self, step: int, t_ns: SimTime, budget: int) -> bool:
        """Let waiting sequences run, in order, while `budget` tokens, blocks and slots last.

        Returns whether another budget might have let one more of them in.
        """
        cap = self._chunk_cap()
        extra = self._extra
        while budget > extra and len(self.running) < self._max_running:
            left = budget - extra
            if self._inbound.ready:
                tokens = self._resume(step, t_ns, min(cap, left))
                if not tokens:
                    return False
                budget -= tokens + extra
                continue
            seq = self._next_waiting()
            if seq is None:
                return False
            offer = self._offers.size_up(seq, step, t_ns, cap, left)
            if offer is Refusal.ASIDE:
                self._queue.pop()
            elif isinstance(offer, Refusal):
                return offer is Refusal.BUDGET
            else:
                tokens = self._let_in(seq, offer, step, t_ns)
                budget -= tokens + extra if tokens else 0
        return budget <= extra

    def _let_in(self, seq: Sequence, offer: Offer, step: int, t_ns: SimTime) -> int:
        """Give the head of the queue what it was offered; tokens of it that are in `step`."""
        self._queue.pop()
        match, hit, new, padding, found, remote = offer
        below = self._below
        first = seq.cached_tokens < 0
        if first or remote:
            self._count_hit(seq, hit)
        whole = -(-seq.goal // self._block)
        if remote:
            self._holdings.open(seq, match, whole)
            self._inbound.add(seq, hit, t_ns)
            return 0
        if below is not None:
            if first:
                below.count(seq, hit, found)
            if found and not below.in_step:
                self._holdings.open(seq, match, whole)
                below.fetch(seq, hit, found, t_ns)
                return 0
        if self._pace.paced and hit < seq.goal - 1:
            self._pace.prefilled(self._count_to(step))
        self._holdings.open(seq, match, match.num_blocks)
        seq.computed = hit
        if found and below is not None:
            hit = below.load(seq, hit, found, t_ns)
        self._join_running(seq, t_ns, hit, seq.preemptions > 0)
        self._grant(seq, new, step, padding)
        return new + padding

    def _next_waiting(self) -> Sequence | None:
        """Whose turn it is to be admitted, if anybody's."""
        return self._queue.head()

    def _count_hit(self, seq: Sequence, hit: int) -> None:
        seq.cached_tokens = hit
        self.hit_tokens += hit
        self.query_tokens += seq.goal if seq.submit.reads_cache else 0

    def _join_running(self, seq: Sequence, t_ns: SimTime, hit: int, resumed: bool) -> None:
        seq.state = PREFILL
        self.running[seq.rid] = seq
        seq.place = self._admitted
        self._admitted += 1
        self._prefilling.append(seq)
        self._log.append(Scheduled(t_ns, self._worker, seq.rid, hit, resumed))
        if seq.transfer is not None and sends(seq) and self.exchange is not None:
            self.exchange.scheduled(seq, t_ns)

    def _preempt(self, victim: Sequence, step: int, t_ns: SimTime, had_turn: bool) -> None:
        """Evict a running sequence while `step` is being scheduled (recompute preemption).

        `had_turn`: it was given tokens in this very step, and so the blocks they need.
        Tokens of steps already scheduled are still delivered: under async scheduling the victim's
        last token may be in flight, and then it has nothing left to recompute.
        """
        del self.running[victim.rid]
        lane = self._lane_of(victim)
        lane.drop(victim)
        self._grants = [grant for grant in self._grants if grant[0] is not victim]
        last = step - 1 if lane is self._decodes else lane.decided
        done = victim.state == DECODE and victim.finish_step <= last
        if victim.state == PREFILL:
            self._prefilling.remove(victim)
        self._free(victim, had_turn=had_turn)
        if victim.submit.media:
            self.encoder.drop(victim)
        if victim.state == DECODE and not done:
            victim.close_span(last)
        victim.preemptions += 1
        self.preemptions += 1
        output = victim.produced_by(last)
        self._log.append(Preempted(t_ns, self._worker, victim.rid, output))
        if done:
            victim.state = DRAINING
            return
        victim.goal = victim.prompt_tokens + victim.base
        victim.computed = 0
        victim.finish_step = 0
        self._queue.put_back(victim)

    def retract_all(self, t_ns: SimTime) -> None:
        """Preempt everybody, the latest admitted first, with nothing in flight.

        vLLM 0.33's `reset_prefix_cache(reset_running_requests=True)`.
        """
        step = self._decodes.decided + 1
        self._decodes.roll(step)
        for seq in reversed(list(self.running.values())):
            self._preempt(seq, step, t_ns, had_turn=False)
        self.blocked = False

    # Many steps ------------------------------------------------------------------------------

    def coast_limit(self, limit: int) -> int:
        """Largest step <= `limit` through which decodes alone certainly find their blocks."""
        decodes = self._decodes
        first = decodes.decided + 1
        return decodes.last_within(first, limit, self.kv.num_free, self._token_budget)

    def coast(self, step: int) -> None:
        """Schedule every step up to `step`, none of which changes the set of decodes."""
        decodes = self._decodes
        first = decodes.decided + 1
        if step < first:
            return
        need = decodes.blocks_of_run(first, step)
        if need:
            self.kv.take(need)
        decodes.decided = step

    def loads(self, first: int, last: int) -> StepLoads:
        """What steps `first` to `last` compute for their decodes."""
        return self._decodes.loads(first, last)


def _decodes(spec: SchedulerSpec) -> Decodes:
    """The set of decodes that `spec` needs."""
    block, ahead = spec.block_size, spec.async_scheduling
    if spec.speculation is None:
        return Decodes(block, ahead)
    return DraftedDecodes(block, ahead, spec.max_model_len, spec.speculation)
