"""vLLM V1's scheduler, at the cost of changes instead of the cost of batches.

Theory of operation. vLLM walks its running list at every step; almost always the walk finds that
every decode gets its one token again. Here the decodes of a step are four numbers, and only what
changes them costs anything:

Rule 1. Step `s` contains every counted sequence: `num_decodes` of them, with total context
        `kv_offset + num_decodes * s` (each sequence's context is `offset + s`).
Rule 2. A decode needs a new block in the steps in which its context is 1 modulo the block size, so
        a histogram of `offset mod block` gives the blocks needed in any step.
Rule 3. A sequence joins in the step after the one that computes its last prompt token, and leaves
        after its last step. With async scheduling a length cap is foreseen, an end of sequence is
        not: such a sequence occupies one more step (specs/vllm.md section 8.4).
Rule 4. Whenever blocks or budget do not suffice for everybody, the exact walk in list order
        (`_walk`) decides: who is preempted, who is held back for a step.
Rule 5. `schedule` is called once per step, in order, when vLLM would: at the boundary before the
        step (sync), or one boundary earlier (async). `coast` stands for many calls that change
        nothing.
Rule 6. With `prefill_schedule_interval` above 1 prompts wait while decodes run, until that many
        steps have passed since the last step with a prompt in it, or the waiting queue has not
        been emptied by it.

Rule 7. A sequence whose prompt comes from another engine (`serving.remote_kv`) takes its turn in
        the queue, gets blocks for its whole prompt and stands aside. When the KV has come, the
        engine learns of it with the output of the step that it launches next; then the sequence
        goes to the front, has its last prompt token computed and decodes. One whose KV another
        engine will fetch keeps its blocks after its end.

Source of every rule: vLLM 0.33.0, v1/core/sched/scheduler.py, as specs/vllm.md section 8 has it.
"""

from collections import deque
from heapq import heapify, heappop, heappush

from frontier_mock.core.commands import Transfer
from frontier_mock.core.events import EventLog, FirstToken, Preempted, Scheduled
from frontier_mock.cost.protocol import Chunk
from frontier_mock.serving.kv_cache import KvCache, Match
from frontier_mock.serving.remote_kv import Exchange, sends
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.sequence import (
    DECODE,
    DONE,
    DRAINING,
    FRONTEND,
    PREFILL,
    RECEIVING,
    WAITING,
    Sequence,
)
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.simtime import SimTime

_UNSHARED = 1 << 63


def _awaited_tokens(seq: Sequence) -> int:
    """Tokens of its prompt that a receiver gets from elsewhere, those it has cached included."""
    transfer = seq.transfer
    assert transfer is not None
    return min(transfer.tokens or seq.goal, seq.goal)


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
        self._interval = spec.prefill_schedule_interval
        self._last_prefill_step = -self._interval
        self._prefill_bound = False
        self._deferring = False
        self._caching = spec.enable_prefix_caching
        self._lag = 1 if spec.async_scheduling else 0
        self._priority = spec.policy == "priority"
        self.exchange: Exchange | None = None
        self.running: dict[int, Sequence] = {}
        self._receiving: dict[int, Sequence] = {}
        self._streamed: dict[int, list[tuple[Sequence, int]]] = {}
        self._arrived: list[Sequence] = []
        self._ready: deque[Sequence] = deque()
        self._fcfs: deque[Sequence] = deque()
        self._heap: list[tuple[int, int, Sequence]] = []
        self._prefilling: list[Sequence] = []
        self._joining: list[Sequence] = []
        self._leaving: dict[int, list[Sequence]] = {}
        self.ends: list[tuple[int, int, Sequence]] = []
        self._phase_counts = [0] * spec.block_size
        self._grants: list[tuple[Sequence, Chunk]] = []
        self.num_decodes = 0
        self.kv_offset = 0
        self.last_scheduled = 0
        self.seen_step = 0
        self.blocked = False
        self.hit_tokens = 0
        self.query_tokens = 0
        self.preemptions = 0
        self._admitted = 0

    # Waiting ---------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, preempted ones included."""
        queued = self._heap if self._priority else self._fcfs
        return len(queued) + len(self._receiving)

    @property
    def num_live(self) -> int:
        """Waiting and running sequences."""
        return self.num_waiting + len(self.running)

    def enqueue(self, seq: Sequence) -> None:
        """Put a new arrival at the end of the waiting queue."""
        seq.state = WAITING
        if self._priority:
            heappush(self._heap, (seq.priority, seq.rid, seq))
            self.blocked = False
        else:
            # With more of them an adaptive threshold falls, and the head's first chunk may fit.
            if not self._fcfs or self.spec.long_prefill_token_threshold_adaptive:
                self.blocked = False
            self._fcfs.append(seq)

    def _requeue(self, seq: Sequence) -> None:
        seq.state = WAITING
        if self._priority:
            heappush(self._heap, (seq.priority, seq.rid, seq))
        else:
            self._fcfs.appendleft(seq)

    def _head(self) -> Sequence | None:
        if self._ready:
            return self._ready[0]
        if self._priority:
            return self._heap[0][2] if self._heap else None
        return self._fcfs[0] if self._fcfs else None

    def _pop_head(self) -> None:
        if self._ready:
            del self._receiving[self._ready.popleft().rid]
            return
        if self._priority:
            heappop(self._heap)
        else:
            self._fcfs.popleft()

    # The set of decodes ----------------------------------------------------------------------

    def _count(self, seq: Sequence) -> None:
        seq.counted = True
        self.num_decodes += 1
        self.kv_offset += seq.offset
        self._phase_counts[seq.offset % self._block] += 1

    def _uncount(self, seq: Sequence) -> None:
        seq.counted = False
        self.num_decodes -= 1
        self.kv_offset -= seq.offset
        self._phase_counts[seq.offset % self._block] -= 1

    def _last_step(self, seq: Sequence) -> int:
        return seq.finish_step + 1 if self._lag and seq.stops_early else seq.finish_step

    def _start_output(self, seq: Sequence, step: int) -> None:
        """The prefill of `seq` completes in `step`: its next token ends that step."""
        seq.state = DECODE
        seq.first_step = step
        seq.offset = seq.goal - step
        self._set_finish(seq, step + seq.output_tokens - seq.base - 1)
        if self._last_step(seq) > step:
            self._joining.append(seq)

    def _set_finish(self, seq: Sequence, step: int) -> None:
        seq.finish_step = step
        heappush(self.ends, (step, seq.place, seq))
        if not seq.stops_early and self._lag:
            self._leaving.setdefault(step, []).append(seq)

    def _roll(self, step: int) -> None:
        """Bring the set of decodes from `step - 1` to `step`."""
        for seq in self._leaving.pop(step - 1, ()):
            if seq.counted and seq.finish_step == step - 1:
                self._uncount(seq)
        if self._joining:
            for seq in self._joining:
                if seq.state == DECODE:
                    self._count(seq)
            self._joining.clear()

    def next_finish(self) -> int | None:
        """The earliest step in which some sequence produces its last token."""
        ends = self.ends
        while ends:
            step, _, seq = ends[0]
            if seq.finish_step == step and seq.state in (DECODE, DRAINING):
                return step
            heappop(ends)
        return None

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """Log the first tokens of `executed`, free and return what ended with `step`."""
        if self._streamed and self.exchange is not None:
            for seq, tokens in self._streamed.pop(step, ()):
                self.exchange.computed(seq, tokens, t_ns)
        for seq in executed.firsts:
            if seq.state != DONE and (seq.spans[0][0] if seq.spans else seq.first_step) == step:
                self._log.append(FirstToken(t_ns, self._worker, seq.rid))
        return self.pop_finished(step) if self.ends and self.ends[0][0] == step else []

    def went_idle(self) -> None:
        """Nothing to forget."""

    def pop_finished(self, step: int) -> list[Sequence]:
        """Sequences whose last token `step` produced, freed and no longer counted."""
        finished = []
        while self.next_finish() == step:
            seq = heappop(self.ends)[2]
            seq.close_span(step)
            self._release(seq, finished=True)
            finished.append(seq)
        return finished

    def _release(self, seq: Sequence, finished: bool = False) -> None:
        """Forget a sequence for good and free what it holds."""
        if seq.counted:
            self._uncount(seq)
        if seq.state == PREFILL:
            self._prefilling.remove(seq)
        if seq.state in (DECODE, PREFILL):
            del self.running[seq.rid]
            if finished and seq.transfer is not None and sends(seq):
                self._pin(seq)
            else:
                self._free(seq, finished)
        seq.state = DONE
        self.blocked = False

    def abort(self, seq: Sequence, step: int) -> bool:
        """Drop `seq`, whose last token to be delivered is that of `step`, wherever it is."""
        if seq.state == WAITING:
            if self._priority:
                self._heap = [entry for entry in self._heap if entry[2] is not seq]
                heapify(self._heap)
            else:
                self._fcfs.remove(seq)
            # If it was preempted, its last token may still be in flight.
            seq.drop_tokens_after(step)
        if seq.state == RECEIVING:
            self._part_receiver(seq)
        if seq.state in (DECODE, DRAINING):
            seq.close_span(min(step, seq.finish_step))
        if seq.state != FRONTEND:
            self._release(seq)
        seq.state = DONE
        return True

    # Blocks ----------------------------------------------------------------------------------

    def _free(self, seq: Sequence, finished: bool = False, had_turn: bool = False) -> None:
        """Free the blocks of a running sequence, as of the last step scheduled.

        `had_turn`: it was given its token in the step being scheduled, too.
        """
        table = seq.table
        if table is None:
            return
        block = self._block
        held = seq.held_blocks
        if seq.state == PREFILL:
            committed = seq.computed // block
        else:
            context = seq.offset + min(self.last_scheduled + had_turn, self._last_step(seq))
            held = max(held, -(-context // block))
            # The newest token was a placeholder when its slot was allocated under async scheduling:
            # a block it completes is cached only once the output of its step is processed.
            known = seq.offset + seq.finish_step if finished else context - self._lag
            committed = max(known, seq.goal) // block
        self.kv.writer = seq.submit
        self.kv.close(table, held, self._content_keys(seq, committed), committed)
        seq.table = None
        seq.held_blocks = 0

    def _pin(self, seq: Sequence) -> None:
        """Keep the blocks of a sequence that has ended, until another engine has them."""
        table = seq.table
        assert table is not None
        seq.pinned = seq.offset + min(self.last_scheduled, self._last_step(seq))
        seq.held_blocks = max(seq.held_blocks, -(-seq.pinned // self._block))
        full = max(seq.offset + seq.finish_step, seq.goal) // self._block
        self.kv.writer = seq.submit
        self.kv.commit(table, self._content_keys(seq, full), full)

    def unpin(self, seq: Sequence) -> None:
        """Free what a sequence that has ended still holds."""
        self._close(seq)
        seq.pinned = 0

    def _close(self, seq: Sequence) -> None:
        """Free all blocks, of which no more than now are cached."""
        assert seq.table is not None
        self.kv.writer = seq.submit
        self.kv.close(seq.table, seq.held_blocks, seq.keys, 0)
        seq.table = None
        seq.held_blocks = 0
        self.blocked = False

    def _content_keys(self, seq: Sequence, num_blocks: int) -> bytes:
        """Keys of the first `num_blocks` blocks; output nobody can ask for gets keys of its own."""
        keys = seq.keys
        missing = num_blocks - len(keys) // 8
        if missing > 0 and self._caching:
            tail = seq.submit.output_keys
            have = len(tail) // 8
            if have < missing:
                # Nothing is found beyond a first block that nobody else can name.
                first = _UNSHARED + (seq.rid << 24) + have
                tail += first.to_bytes(8, "little") + bytes(8 * (missing - have - 1))
            return keys + tail
        return keys

    def layerwise(self, step: int) -> list[tuple[Sequence, int]]:
        """Senders computed in `step` that send layer by layer, with tokens computed then."""
        return self._streamed.get(step, [])

    # Prompts from elsewhere ------------------------------------------------------------------

    def _receive(self, seq: Sequence, match: Match, t_ns: SimTime) -> None:
        """Take the head of the queue aside, with blocks for all of its prompt."""
        hit = match.num_blocks * self._block
        blocks = -(-seq.goal // self._block)
        seq.table = self.kv.open(match)
        self.kv.take(blocks - match.num_blocks)
        seq.held_blocks = blocks
        seq.cached_tokens = hit
        self.query_tokens += seq.goal
        self.hit_tokens += hit
        seq.state = RECEIVING
        self._receiving[seq.rid] = seq
        assert self.exchange is not None
        self.exchange.allocated(seq, hit, t_ns)

    def received(self, seq: Sequence, step: int) -> None:
        """The KV has come while `step` was executing.

        The step launched when that one ends looks, and its output says so.
        """
        seq.known_at = step + 2 * (1 + self._lag)
        self._arrived.append(seq)
        self.blocked = False

    def _take_arrivals(self, step: int, t_ns: SimTime) -> None:
        """Sequences whose KV is known to be here go to the front of the queue."""
        # With nothing to compute, the engine looks all the time.
        idle = not self.num_decodes and not self._prefilling and not self._joining
        late = []
        for seq in self._arrived:
            if seq.known_at > step and not idle:
                late.append(seq)
                continue
            assert seq.table is not None
            awaited = _awaited_tokens(seq)
            full = awaited // self._block
            self.kv.writer = seq.submit
            self.kv.commit(seq.table, self._content_keys(seq, full), full)
            seq.computed = min(awaited, seq.goal - 1)
            self._go_onward(seq, t_ns)
            self._ready.append(seq)
        self._arrived = late

    def _go_onward(self, seq: Sequence, t_ns: SimTime) -> None:
        """Nothing more will come; what it has, and will have, may be for others."""
        seq.transfer = seq.submit.onward
        if seq.transfer is not None and self.exchange is not None:
            self.exchange.arrives(seq, t_ns)

    @staticmethod
    def _has_enough(seq: Sequence, transfer: Transfer, hit: int) -> bool:
        """Whether so little of what would come is missing that it is better computed."""
        return _awaited_tokens(seq) - hit < max(1, transfer.threshold)

    def _tell_unneeded(self, seq: Sequence, t_ns: SimTime) -> None:
        if self.exchange is not None:
            self.exchange.gone(seq, t_ns)
        self._go_onward(seq, t_ns)

    def _resume(self, seq: Sequence, step: int, t_ns: SimTime, most: int) -> int:
        """What did not come of a prompt, its last token at least, is computed here.

        Returns how many tokens of it are, at most `most`, in this step.
        """
        new = min(seq.goal - seq.computed, most)
        self._pop_head()
        self._join_running(seq)
        self._log.append(Scheduled(t_ns, self._worker, seq.rid, seq.cached_tokens, False))
        if sends(seq) and self.exchange is not None:
            self.exchange.scheduled(seq, t_ns)
        self._grant(seq, new, step)
        return new

    def lost(self, seq: Sequence, t_ns: SimTime) -> None:
        """The KV will not come: `seq` gives its blocks back and computes its prompt itself."""
        self._go_onward(seq, t_ns)
        if seq.state == RECEIVING:
            self._part_receiver(seq)
            self._requeue(seq)

    def _part_receiver(self, seq: Sequence) -> None:
        del self._receiving[seq.rid]
        if seq in self._ready:
            self._ready.remove(seq)
        elif seq in self._arrived:
            self._arrived.remove(seq)
        self._close(seq)
        seq.computed = 0

    # One step --------------------------------------------------------------------------------

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide what `step` computes; None if there is nothing to compute."""
        if self._joining or (step - 1) in self._leaving:
            self._roll(step)
        if self._arrived:
            self._take_arrivals(step, t_ns)
        self._grants = []
        budget = self._token_budget - self.num_decodes
        need = self._phase_counts[(1 - step) % self._block]
        preempted = False
        paced = self._interval > 1
        if paced:
            self._deferring = self._defers(step)
        resting = not self._prefilling or self._deferring
        if resting and need <= self.kv.num_free and budget >= 0:
            if need:
                self.kv.take(need)
        else:
            budget, preempted = self._schedule_running(step, t_ns)
        if paced and self._grants:
            self._last_prefill_step = step
        if not preempted and (self._fcfs or self._heap or self._ready):
            self._admit(step, t_ns, budget)
        self.last_scheduled = step
        grants = self._grants
        # Without grants, nothing can be admitted later either, until something ends or arrives.
        self.blocked = not (preempted or grants or self._prefilling or self._arrived)
        if paced:
            if not preempted and not self._deferring:
                self._prefill_bound = self.num_waiting > 0
            elif self._deferring and self.num_waiting:
                self.blocked = False
        if not grants:
            return (
                Step(step, self.num_decodes, self.kv_offset, (), ()) if self.num_decodes else None
            )
        return Step(
            step,
            self.num_decodes,
            self.kv_offset,
            tuple([chunk for _, chunk in grants]),
            tuple([seq for seq, _ in grants if seq.first_step == step]),
        )

    def _defers(self, step: int) -> bool:
        """Whether prompts have to wait in `step` for the interval to pass."""
        return (
            not self._prefill_bound
            and step - self._last_prefill_step < self._interval
            and len(self.running) > len(self._prefilling)
        )

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
        left = self._token_budget - self.num_decodes
        decode_need = need = self._phase_counts[(1 - step) % self._block]
        cap = self._chunk_cap()
        plan: list[tuple[Sequence, int]] = []
        for seq in () if self._deferring else self._prefilling:
            new = min(seq.goal - seq.computed, cap, left)
            if new <= 0:
                break
            left -= new
            blocks = -(-(seq.computed + new) // self._block) - seq.held_blocks
            # What has come from elsewhere came into blocks for all of the prompt.
            if blocks > 0:
                need += blocks
            plan.append((seq, new))
        # A decode can stand behind a prefill in the list, and starve, only where chunks are capped
        # or held: those with nothing left to compute but one token overtake them.
        held = self.spec.long_prefill_token_threshold > 0 or self._interval > 1
        starved = held and left <= 0
        if need > self.kv.num_free or left < 0 or starved:
            return self._walk(step, t_ns)
        if decode_need:
            self.kv.take(decode_need)
        for seq, new in plan:
            self._grant(seq, new, step)
        return left, False

    def _walk(self, step: int, t_ns: SimTime) -> tuple[int, bool]:
        """vLLM's own loop over the running list, for steps in which something is short."""
        budget = self._token_budget
        order = list(self.running.values())
        cap = self._chunk_cap()
        spent: dict[int, int] = {}
        starved: list[Sequence] = []
        preempted = False
        i = 0
        while i < len(order):
            seq = order[i]
            tokens, blocks = self._wants(seq, step, cap, budget)
            if tokens <= 0:
                if seq.counted:
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
            budget -= tokens
            spent[seq.rid] = tokens
            if seq.state == PREFILL:
                self._grant(seq, tokens, step)
            elif blocks:
                self.kv.take(blocks)
            i += 1
        for seq in starved:
            if seq.state == DECODE:
                self._hold_back(seq, step)
        return budget, preempted

    def _wants(self, seq: Sequence, step: int, cap: int, budget: int) -> tuple[int, int]:
        """(tokens, new blocks) that a running sequence can use in `step` under `budget`."""
        if seq.state == PREFILL:
            if self._deferring:
                return 0, 0
            tokens = min(seq.goal - seq.computed, cap, budget)
            return tokens, -(-(seq.computed + tokens) // self._block) - seq.held_blocks
        if seq.counted:
            first_of_block = (seq.offset + step) % self._block == 1 % self._block
            return min(1, budget), int(first_of_block)
        return 0, 0

    def _victim(self, order: list[Sequence]) -> Sequence:
        if self._priority:
            return max(order, key=lambda seq: (seq.priority, seq.rid))
        return order[-1]

    def _hold_back(self, seq: Sequence, step: int) -> None:
        """Budget ran out before this decode: it repeats its turn in the next step."""
        self._uncount(seq)
        finish = seq.finish_step + 1
        seq.close_span(step - 1)
        seq.first_step = step + 1
        seq.offset -= 1
        self._set_finish(seq, finish)
        self._joining.append(seq)

    def _grant(self, seq: Sequence, new: int, step: int) -> None:
        """Give a running prefill its next `new` tokens in `step`."""
        past = seq.computed
        computed = past + new
        block = self._block
        held = -(-computed // block)
        if held > seq.held_blocks:
            self.kv.take(held - seq.held_blocks)
            seq.held_blocks = held
        seq.computed = computed
        table = seq.table
        assert table is not None
        full = computed // block
        if self._caching:
            self.kv.writer = seq.submit
            self.kv.commit(table, self._content_keys(seq, full), full)
        self._grants.append((seq, Chunk(new, past)))
        if self.exchange is not None and seq.transfer is not None and seq.transfer.streams:
            self._streamed.setdefault(step, []).append((seq, computed))
        if computed == seq.goal:
            self._prefilling.remove(seq)
            self._start_output(seq, step)

    def _admit(self, step: int, t_ns: SimTime, budget: int) -> None:
        cap = self._chunk_cap()
        spec = self.spec
        kv = self.kv
        block = self._block
        while budget > 0 and len(self.running) < self._max_running:
            seq = self._head()
            if seq is None:
                return
            if seq.state == RECEIVING:
                budget -= self._resume(seq, step, t_ns, min(cap, budget))
                continue
            if not seq.keys and self._caching:
                seq.keys = seq.submit.prompt.block_keys(block)
            goal = seq.goal
            keys = self._content_keys(seq, goal // block) if seq.base else seq.keys
            reads = seq.submit.reads_cache
            match = kv.lookup(keys, (goal - 1) // block if reads else 0)
            hit = match.num_blocks * block
            # A prompt with but one token left to compute is no prefill to this rule.
            transfer = seq.transfer
            remote = transfer is not None and not transfer.sends
            if transfer is not None and remote and self._has_enough(seq, transfer, hit):
                self._tell_unneeded(seq, t_ns)
                remote = False
            is_prefill = self._interval > 1 and hit < goal - 1 and not remote
            if is_prefill and self._deferring:
                return
            new = goal - hit
            if new > cap:
                new = cap
            if new > budget and not remote:
                if not spec.enable_chunked_prefill:
                    return
                new = budget
            whole = goal if spec.reserve_full_isl or remote else hit + new
            required = -(-whole // block) - match.num_blocks + match.num_evictable
            if self.running and spec.watermark > 0:
                # vLLM counts its null block among all blocks.
                required += int(spec.watermark * (kv.num_blocks + 1))
            if required > kv.num_free:
                return
            self._pop_head()
            if remote:
                self._receive(seq, match, t_ns)
                continue
            if is_prefill:
                self._last_prefill_step = step
            seq.table = kv.open(match)
            seq.held_blocks = match.num_blocks
            seq.computed = hit
            resumed = seq.preemptions > 0
            if seq.cached_tokens < 0:
                seq.cached_tokens = hit
                self.query_tokens += goal if reads else 0
                self.hit_tokens += hit
            self._join_running(seq)
            self._log.append(Scheduled(t_ns, self._worker, seq.rid, hit, resumed))
            if self.exchange is not None and sends(seq):
                self.exchange.scheduled(seq, t_ns)
            self._grant(seq, new, step)
            budget -= new

    def _join_running(self, seq: Sequence) -> None:
        seq.state = PREFILL
        self.running[seq.rid] = seq
        seq.place = self._admitted
        self._admitted += 1
        self._prefilling.append(seq)

    def _preempt(self, victim: Sequence, step: int, t_ns: SimTime, had_turn: bool) -> None:
        """Evict a running sequence while `step` is being scheduled (recompute preemption).

        `had_turn`: it was given tokens in this very step, and so the blocks they need.
        Tokens of steps already scheduled are still delivered: under async scheduling the victim's
        last token may be in flight, and then it has nothing left to recompute.
        """
        del self.running[victim.rid]
        if victim.counted:
            self._uncount(victim)
        if victim in self._joining:
            self._joining.remove(victim)
        self._grants = [grant for grant in self._grants if grant[0] is not victim]
        done = victim.state == DECODE and victim.finish_step < step
        if victim.state == PREFILL:
            self._prefilling.remove(victim)
        self._free(victim, had_turn=had_turn)
        if victim.state == DECODE and not done:
            victim.close_span(step - 1)
        victim.preemptions += 1
        self.preemptions += 1
        output = victim.produced_by(step - 1)
        self._log.append(Preempted(t_ns, self._worker, victim.rid, output))
        if done:
            victim.state = DRAINING
            return
        victim.goal = victim.prompt_tokens + victim.base
        victim.computed = 0
        victim.finish_step = 0
        self._requeue(victim)

    def retract_all(self, t_ns: SimTime) -> None:
        """Preempt everybody, the latest admitted first, with nothing in flight.

        vLLM 0.33's `reset_prefix_cache(reset_running_requests=True)`.
        """
        step = self.last_scheduled + 1
        self._roll(step)
        for seq in reversed(list(self.running.values())):
            self._preempt(seq, step, t_ns, had_turn=False)
        self.blocked = False

    # Many steps ------------------------------------------------------------------------------

    def coast_limit(self, limit: int) -> int:
        """Largest step <= `limit` through which decodes alone certainly find their blocks."""
        free = self.kv.num_free
        first = self.last_scheduled + 1
        count = limit - first + 1
        if count <= 0:
            return limit
        n = self.num_decodes
        block = self._block
        if n * (-(-count // block)) <= free:
            return limit
        cycles = free // n
        step = first + cycles * block
        left = free - cycles * n
        while step <= limit:
            left -= self._phase_counts[(1 - step) % block]
            if left < 0:
                break
            step += 1
        return min(step - 1, limit)

    def coast(self, step: int) -> None:
        """Schedule every step up to `step`, none of which changes the set of decodes."""
        first = self.last_scheduled + 1
        count = step - first + 1
        if count <= 0:
            return
        block = self._block
        cycles, rest = divmod(count, block)
        need = cycles * self.num_decodes
        phases = self._phase_counts
        for s in range(first, first + rest):
            need += phases[(1 - s) % block]
        if need:
            self.kv.take(need)
        self.last_scheduled = step
