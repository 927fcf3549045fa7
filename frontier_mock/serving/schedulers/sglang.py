"""SGLang's scheduler, at the cost of changes instead of the cost of batches.

Theory of operation. SGLang forms one batch per step: prompts first, decodes only when no prompt can
be admitted (or both together with `--enable-mixed-chunk`). Tokens are numbered by decode ticks
(`protocol`), so that prompts that come in between cost the decodes nothing.

Rule 1. Tick `s` contains every counted sequence (`decode_set`), whose pages are its blocks.
Rule 2. A prompt computed by the step decided last is in the running batch (`sglang_batch`) when the
        next one is decided, whether or not its token is known yet. One request at most is chunked;
        it is not in the running batch, and no decode-only step runs before its last chunk is out.
Rule 3. Admission stops being tried when the batch is *full*: a request did not fit the memory or
        the request slots. Only a request leaving the batch makes it try again; arrivals do not.
Rule 4. If a tick lacks pages even after eviction, requests are retracted, those with the least
        output first, until it has them; they go to the end of the waiting queue. What is in flight
        for a retracted request is thrown away. If a request is about to end anyway, the tick is put
        off until it has ended instead.
Rule 5. The new-token ratio, by which output is promised memory at admission, falls with every
        decode tick that is decided and is set anew by a retraction and when the engine is idle.
Rule 6. An abort of a running request takes effect with its next token.
Rule 7. On a decode engine (`sglang_remote`) a request gets pages for its whole prompt before that
        is computed elsewhere, if that leaves enough for those that run; when its KV has come it
        joins the batch in a step of no duration, whose first token has come with the KV. A prefill
        engine's request is over when its pages have been sent.

Source: SGLang 0.5.23, managers/scheduler.py and schedule_batch.py; specs/sglang_and_routers.md
section 8. `classic` rules from 0.5.5 and 0.5.9.
"""

from frontier_mock.core.events import EventLog, Fetched, Finished, FirstToken, Preempted, Scheduled
from frontier_mock.cost.protocol import Chunk
from frontier_mock.serving.encoder_cache import EncoderCache
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.remote_kv import Exchange, sends
from frontier_mock.serving.schedulers.drafted_set import StepLoads
from frontier_mock.serving.schedulers.protocol import Load, Step, Tier
from frontier_mock.serving.schedulers.sglang_admission import (
    Admission,
    Verdict,
)
from frontier_mock.serving.schedulers.sglang_batch import RunningBatch
from frontier_mock.serving.schedulers.sglang_drafted import DraftedBatch
from frontier_mock.serving.schedulers.sglang_holdings import Holdings
from frontier_mock.serving.schedulers.sglang_policy import WaitingOrder
from frontier_mock.serving.schedulers.sglang_ratio import RETRACT_DECODE_STEPS, NewTokenRatio
from frontier_mock.serving.schedulers.sglang_remote import Inbound
from frontier_mock.serving.schedulers.sglang_retraction import keep_order, preemptible
from frontier_mock.serving.sequence import (
    DECODE,
    DONE,
    FRONTEND,
    PREFILL,
    RECEIVING,
    SENDING,
    WAITING,
    Sequence,
)
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.speculation import drafted
from frontier_mock.serving.steps import PREFILL_STEP
from frontier_mock.serving.tiers.host_radix import HostRadixCache
from frontier_mock.serving.tiers.stored_radix import StoredRadixCache
from frontier_mock.simtime import SimTime


class SglangScheduler:
    """Waiting and running sequences of one engine, and the rules that move them."""

    def __init__(
        self, spec: SglangSchedulerSpec, kv: RadixCache, log: EventLog, worker: int
    ) -> None:
        if spec.retraction_policy not in ("length", "priority"):
            raise ValueError(
                f"unknown retraction policy {spec.retraction_policy!r}: one of length, priority"
            )
        self.spec = spec
        self.kv = kv
        self._log = log
        self._worker = worker
        self._page = spec.page_size
        self._lag = spec.enable_overlap
        self._mixed = spec.enable_mixed_chunk and spec.chunked_prefill_size > 0
        self._preempts = spec.enable_priority_scheduling and not spec.disable_priority_preemption
        self._ratio = NewTokenRatio(spec.schedule_conservativeness)
        self._holdings = Holdings(kv, not spec.classic)
        self._order = WaitingOrder(spec, kv, self._holdings.content_keys)
        self._batch = _batch(spec)
        self._inbound = Inbound(spec, kv)
        self._num_pinned = 0
        room = spec.encoder_cache_tokens
        self.encoder = EncoderCache(room, room)
        self._sending: dict[int, tuple[Sequence, int]] = {}
        self.exchange: Exchange | None = None
        self._host = kv if isinstance(kv, HostRadixCache) else None
        self._stored = kv if isinstance(kv, StoredRadixCache) else None
        self.offload: Tier | None = self._host
        self._waiting: list[Sequence] = []
        self._chunked: Sequence | None = None
        self._had_chunk = False
        self._marked: list[Sequence] = []
        self._full = False
        self._entered = 0
        self._prefill_steps = 0
        self.seen_step = 0
        self.blocked = False
        self.hit_tokens = 0
        self.query_tokens = 0
        self.preemptions = 0

    # Waiting ---------------------------------------------------------------------------------

    @property
    def running(self) -> dict[int, Sequence]:
        """All that run."""
        return self._batch.members

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, retracted ones included."""
        return len(self._waiting) + len(self._inbound)

    @property
    def num_live(self) -> int:
        """Waiting and running sequences, and those whose prompt is being computed."""
        computing = sum(seq.state == DECODE for seq in self._batch.joining)
        computing += self._chunked is not None
        return self.num_waiting + len(self._batch.members) + computing

    def enqueue(self, seq: Sequence, t_ns: SimTime) -> None:
        """Put a new arrival at the end of the waiting queue.

        What it may generate is cut to what an empty pool can hold. (SGLang leaves one page and one
        token; another page keeps a retracted request admissible whatever its length.)
        """
        page = self._page
        room = self.spec.num_pages * page - -(-seq.prompt_tokens // page) * page - 2 * page - 1
        if self.spec.speculation is not None:
            room -= self.spec.speculation.reserve
        seq.max_new = min(seq.submit.max_tokens, room)
        seq.fixed_length = (
            seq.submit.finish_reason == "length"
            and seq.output_tokens == seq.submit.max_tokens
            and not self.spec.classic
        )
        if seq.transfer is not None and not seq.transfer.sends:
            seq.state = WAITING
            self._inbound.add(seq)
            self.blocked = False
            return
        self._queue(seq, t_ns)

    def _queue(self, seq: Sequence, t_ns: SimTime) -> None:
        seq.state = WAITING
        if self._stored is not None:
            limit = (seq.goal - 1) // self._page
            self._stored.arrives(seq, self._holdings.content_keys(seq, limit), limit, t_ns)
        seq.entered = self._entered
        self._entered += 1
        self._waiting.append(seq)
        if not self._full or self._preempts:
            self.blocked = False

    def _requeue(self, seq: Sequence, t_ns: SimTime) -> None:
        """A retracted request waits again, unless the queue is full: then it is aborted."""
        limit = self.spec.max_queued_requests
        if limit and len(self._waiting) + 1 > limit:
            seq.state = DONE
            if seq.progress is not None:
                self._log.append(drafted(t_ns, self._worker, seq.rid, seq.progress))
            end = Finished(t_ns, self._worker, seq.rid, "abort", seq.base, tuple(seq.spans))
            self._log.append(end)
            return
        self._queue(seq, t_ns)

    # Output ----------------------------------------------------------------------------------

    def next_finish(self) -> int | None:
        """The earliest tick in which some sequence produces its last token."""
        return self._batch.next_finish()

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """Take the output of `executed`, the last of a run that ends with tick `step`."""
        finished: list[Sequence] = []
        number = executed.number
        if number in self._sending:
            self._tell_computed(number, t_ns)
        for seq in executed.firsts:
            if seq.prefill != number:
                continue
            seq.prefill = 0
            if not executed.ticks:
                self._take_first(seq, number)
            if len(seq.spans) + executed.ticks == 1:
                self._log.append(FirstToken(t_ns, self._worker, seq.rid))
            if not executed.ticks and (seq.aborted or seq.base == seq.output_tokens):
                seq.finish_step = seq.first_step - 1
                self._end(seq)
                finished.append(seq)
            elif seq.finish_step > step or not executed.ticks:
                self._holdings.checkpoint(seq, seq.goal)
        ends = self._batch.ends
        if executed.ticks and ends and ends[0][0] <= step:
            for seq in self._batch.pop_ended(step):
                if seq.state == DECODE:
                    self._end(seq)
                    finished.append(seq)
        return finished

    def _take_first(self, seq: Sequence, number: int) -> None:
        """The token of a prefill-only step, which is a span of its own."""
        seq.spans.append((number, 1))
        seq.base += 1
        if seq.progress is not None:
            seq.progress.first_token()
        if seq.rid in self._batch.members:
            self._batch.produced_first(seq)

    def _end(self, seq: Sequence) -> None:
        """A sequence is over: its prompt and output go to the tree, the rest is freed."""
        context = self._batch.context(seq, self._batch.decided)
        known = self._batch.known(seq, context)
        if seq.rid in self._batch.members:
            self._batch.part(seq)
        seq.close_span(seq.finish_step)
        self._holdings.checkpoint(seq, min(known, seq.prompt_tokens + seq.base))
        if sends(seq) and not seq.aborted:
            seq.pinned = context
            self._num_pinned += 1
            room = seq.transfer is not None and seq.transfer.style == "room"
            seq.state = SENDING if room else DONE
        else:
            self._holdings.release(seq, context)
            seq.state = DONE
        self._full = False
        self._inbound.stuck = False
        self.blocked = False

    def unpin(self, seq: Sequence) -> None:
        """Free what a sequence that has ended still holds."""
        self._holdings.release(seq, seq.pinned)
        seq.pinned = 0
        self._num_pinned -= 1
        self._full = False
        self._inbound.stuck = False
        self.blocked = False

    def received(self, seq: Sequence, step: int) -> None:
        """The KV of `seq` is here: the next decision sees it."""
        self._inbound.received(seq)
        self.blocked = False

    def ask_again(self, seqs: list[Sequence], t_ns: SimTime) -> None:
        """What has been copied to the host by `t_ns` may go; the next decision sees that."""
        if self._host is not None:
            self._host.end_copies(t_ns)
        self.blocked = False

    def lost(self, seq: Sequence, t_ns: SimTime) -> None:
        """Its pages are free again, and it waits like any other."""
        self._inbound.drop(seq)
        seq.transfer = None
        self._queue(seq, t_ns)

    def layerwise(self, step: int) -> list[tuple[Sequence, int]]:
        """None: chunks are sent when they are computed."""
        return []

    def _tell_computed(self, number: int, t_ns: SimTime) -> None:
        """A chunk of a prompt that another engine waits for is computed."""
        seq, tokens = self._sending.pop(number)
        if self.exchange is not None and seq.state != DONE:
            self.exchange.computed(seq, tokens, t_ns)

    def abort(self, seq: Sequence, step: int) -> bool:
        """Stop `seq`: at once while it waits or is chunked, else with its next token."""
        if seq.state == DECODE:
            self._marked.append(seq)
            return False
        if seq.state == RECEIVING or seq in self._inbound:
            self._inbound.drop(seq)
        elif seq.state == WAITING:
            self._waiting.remove(seq)
            if self._stored is not None:
                self._stored.leaves(seq)
        elif seq.state == PREFILL:
            self._holdings.release(seq, seq.computed)
            self._chunked = None
        if seq.state != FRONTEND:
            self._inbound.stuck = False
            self.blocked = False
        seq.state = DONE
        return True

    def _end_marked(self, done: int) -> None:
        """Aborted running requests end with the token that comes next."""
        for seq in self._marked:
            if seq.state == DONE:
                continue
            seq.aborted = True
            if seq.state == DECODE:
                last = max(seq.first_step, done + 1)
                if last < seq.finish_step:
                    seq.stops_early = True
                    self._batch.set_finish(seq, last)
        self._marked.clear()
        self.blocked = False

    # One step --------------------------------------------------------------------------------

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide the next step, tick `step` if it has decodes; None if there is nothing to do."""
        done = self.seen_step
        if self._marked:
            self._end_marked(done)
        if self._had_chunk:
            self._full = self._had_chunk = False
            if self._chunked is not None:
                self._holdings.checkpoint(self._chunked, self._chunked.computed)
        if self._host is not None:
            self._host.begin_copies(t_ns)
        if self._batch.roll(step):
            self._full = False
        if self._preempts or not self._batch.members:
            self._full = False
        decided = None
        if len(self._inbound):
            decided = self._take_in(step, t_ns)
        if decided is None and (self._chunked is not None or (self._waiting and not self._full)):
            decided = self._prefill(step, t_ns, done)
        if decided is None:
            decided = self._decode(step, t_ns, done)
        self.blocked = (
            self._chunked is None
            and not self._batch.joining
            and (not self._waiting or (self._full and not self._preempts))
            and self._inbound.idle
        )
        return decided

    def _take_in(self, step: int, t_ns: SimTime) -> Step | None:
        """Give pages to prompts computed elsewhere; a step with those whose KV has come."""
        inbound = self._inbound
        running = len(self._batch.members)
        for seq in inbound.allocate(running):
            if self.exchange is not None:
                self.exchange.allocated(seq, 0, t_ns)
        ready = inbound.take_ready(self.spec.max_running_requests - running)
        if not ready:
            return None
        number = PREFILL_STEP + self._prefill_steps
        self._prefill_steps += 1
        for seq in ready:
            seq.computed = seq.goal
            if seq.cached_tokens < 0:
                seq.cached_tokens = 0
                self.query_tokens += seq.goal
            seq.transfer = None
            self._log.append(Scheduled(t_ns, self._worker, seq.rid, 0, False))
            self._batch.start(seq, step, number)
        return Step(number, 0, 0, (), tuple(ready), 0)

    def begin_copies(self, t_ns: SimTime) -> None:
        """What goes to the host begins to, with no decision to come that would begin it."""
        if self._host is not None:
            self._host.begin_copies(t_ns)

    def went_idle(self) -> None:
        """With nothing in flight SGLang starts afresh with its new-token ratio."""
        self._ratio.reset()

    def _prefill(self, step: int, t_ns: SimTime, done: int) -> Step | None:
        """A step that computes prompts, or None if there are none to compute."""
        spec = self.spec
        waiting = self._waiting
        chunked = self._chunked
        slots = self._seats()
        if len(self._batch.members) >= slots and chunked is None and not self._preempts:
            self._full = True
            return None
        self._order.arrange(waiting)
        mixed = len(self._batch.members) if self._mixed else 0
        batch = Admission(self.kv, spec, self._batch.promised(done, self._ratio.current), mixed)
        if chunked is not None:
            if not batch.resume(chunked):
                self._chunked = None
            elif not batch.grants:
                return None
        preempted: list[Sequence] = []
        taken, passed = 0, False
        for seq in waiting:
            if batch.verdict() is Verdict.OTHER:
                break
            if len(batch.grants) >= slots - len(self._batch.members):
                self._full = True
            if self._full and not (
                self._preempts and self._preempt_for(seq, batch, preempted, t_ns, done)
            ):
                break
            if self._stored is not None and not self._stored.ready(seq, t_ns):
                passed = True
                continue
            granted = len(batch.grants)
            verdict = self._offer(seq, batch, done)
            taken += len(batch.grants) - granted
            if verdict is not Verdict.CONTINUE:
                if verdict is Verdict.NO_TOKEN:
                    self._full = bool(batch.grants) or bool(self._batch.members)
                break
        if passed:
            granted_rids = {seq.rid for seq, _ in batch.grants}
            waiting[:] = [seq for seq in waiting if seq.rid not in granted_rids]
        else:
            del waiting[:taken]
        for seq in preempted:
            self._requeue(seq, t_ns)
        return self._form(batch, step, t_ns) if batch.grants else None

    def _seats(self) -> int:
        """How many requests may run together."""
        return self.spec.max_running_requests

    def _others_hold(self) -> bool:
        """Whether pages are held by requests that run, but not in this batch."""
        return False

    def _offer(self, seq: Sequence, batch: Admission, done: int) -> Verdict:
        """Look `seq` up in the tree and ask for its admission."""
        kv = self.kv
        if not kv.enabled:
            seq.node, seq.computed = kv.root, 0
            if seq.fixed_length:
                running = (
                    (other, other.produced_by(done)) for other in self._batch.members.values()
                )
                return batch.add_of_fixed_length(seq, running, self._ratio.current)
            return batch.add(seq, kv.root, 0)
        limit = (seq.goal - 1) // self._page
        if self._host is not None:
            keys = self._holdings.content_keys(seq, limit)
            node, pages, below = self._host.match_all(keys, limit)
            seq.node, seq.computed = node, pages * self._page
            return batch.add(seq, node, seq.computed, below if below.pages else None)
        node, pages = kv.match(self._holdings.content_keys(seq, limit), limit)
        seq.node, seq.computed = node, pages * self._page
        return batch.add(seq, node, seq.computed)

    def _form(self, batch: Admission, step: int, t_ns: SimTime) -> Step:
        """Allocate what `batch` admitted and make it a step."""
        page = self._page
        if batch.cut is not None:
            self._chunked = batch.cut
        self._had_chunk = self._chunked is not None
        tokens = pages = 0
        chunks: list[Chunk] = []
        images: tuple[int, ...] = ()
        for seq, new in batch.grants:
            if seq.state == WAITING:
                self._admit(seq, t_ns, batch.fetched.get(seq.rid, 0))
            chunks.append(Chunk(new, seq.computed))
            if seq.submit.media:
                images += self.encoder.take(seq, seq.computed, new)
                # Its cache is one of what was used last, and nobody's.
                self.encoder.drop(seq)
            seq.computed += new
            tokens += new
            held = -(-seq.computed // page)
            pages += held - seq.held_blocks
            seq.held_blocks = held
        kv = self.kv
        # For pages of several tokens SGLang makes room for one more page per request than needed.
        kv.make_room(tokens if page == 1 else -(-tokens // page) + len(chunks))
        kv.take(pages)
        decodes = 0
        if self._mixed and self._batch.num_decodes:
            if len(self._batch.members) > self._batch.num_decodes:
                self._full = False
            decodes = self._take_tick(step)
        number = step if decodes else PREFILL_STEP + self._prefill_steps
        self._prefill_steps += not decodes
        for seq, _ in batch.grants:
            if sends(seq) and seq.computed < seq.goal:
                self._sending[number] = (seq, seq.computed)
        firsts = [seq for seq, _ in batch.grants if seq.computed == seq.goal]
        for seq in firsts:
            self._batch.start(seq, step, number)
        offset = self._batch.kv_offset if decodes else 0
        load = None
        if batch.fetched and self._host is not None:
            load = Load(self._host.carry(sum(batch.fetched.values())), self._host.layers)
        ticks = int(decodes > 0)
        return Step(
            number, decodes, offset, tuple(chunks), tuple(firsts), ticks, load, images=images
        )

    def _admit(self, seq: Sequence, t_ns: SimTime, fetched: int) -> None:
        """First chunk of a request that waited: its cached prefix is locked already.

        `fetched` pages of that come from the host.
        """
        hit = seq.computed
        if self._host is not None:
            self._tell_fetched(self._host, seq, fetched, t_ns)
        seq.held_blocks = seq.protected = hit // self._page
        seq.inserted = 0
        seq.state = PREFILL
        if seq.cached_tokens < 0:
            seq.cached_tokens = hit
            self.query_tokens += seq.goal
            self.hit_tokens += hit
        self._log.append(Scheduled(t_ns, self._worker, seq.rid, hit, seq.preemptions > 0))
        if sends(seq) and self.exchange is not None:
            self.exchange.scheduled(seq, t_ns)
            self.exchange.computed(seq, hit, t_ns)

    def _tell_fetched(self, host: HostRadixCache, seq: Sequence, pages: int, t_ns: SimTime) -> None:
        tokens, page = pages * self._page, self._page
        stored = 0
        if self._stored is not None:
            tokens, stored = self._stored.take_fetched(seq, seq.computed, tokens)
        if seq.cached_tokens < 0:
            host.query_tokens += seq.goal - seq.computed + pages * page
            host.hit_tokens += tokens
        for tier, found in (("cpu", tokens), ("storage", stored)):
            if found:
                num_bytes = found // page * host.page_bytes
                self._log.append(Fetched(t_ns, self._worker, seq.rid, tier, found, num_bytes))
        if stored and seq.cached_tokens < 0 and self._stored is not None:
            self._stored.storage_hit_tokens += stored

    def _decode(self, step: int, t_ns: SimTime, done: int) -> Step | None:
        """Tick `step` of the running batch, or None if it is empty or has to wait."""
        ending = len(self._batch.members) - self._batch.num_decodes
        if ending:
            self._full = False
        if not self._batch.num_decodes:
            return None
        if self._batch.blocks_of(step) > self.kv.num_free:
            if ending:
                return None
            self._retract(step, t_ns, done)
            if not self._batch.num_decodes:
                return None
        else:
            self._ratio.decay(1)
        decodes = self._take_tick(step)
        assert decodes, "a tick after retraction has its pages"
        return Step(step, decodes, self._batch.kv_offset, (), ())

    def _take_tick(self, step: int) -> int:
        """Allocate the pages of tick `step`; returns its decodes, 0 if there are too few pages."""
        need = self._batch.blocks_of(step)
        if need > self.kv.num_free:
            return 0
        self.kv.make_room(self._batch.room_of(step))
        self.kv.take(need)
        self._batch.decided = step
        return self._batch.num_decodes

    # Retraction ------------------------------------------------------------------------------

    def _retract(self, step: int, t_ns: SimTime, done: int) -> None:
        """Take requests out of the batch until tick `step` has the pages it needs."""
        kept = keep_order(self._batch.members.values(), self.spec, done)
        retracted: list[Sequence] = []
        # A chunked request that found no page is waiting for everybody.
        # So does one whose pages are held by requests on their way in or out.
        held = self._num_pinned or len(self._inbound) or self._others_hold()
        held = held or (self._host is not None and self._host.copying)
        least = 0 if self._chunked is not None or held else 1
        while len(kept) > least:
            if retracted:
                need = self._batch.blocks_of(step)
                self.kv.make_room(need)
                if need <= self.kv.num_available:
                    break
            seq = kept.pop()
            self._evict_running(seq, t_ns, done)
            retracted.append(seq)
            self.kv.make_room(-(-RETRACT_DECODE_STEPS * len(kept) // self._page))
        output = sum(seq.produced_by(done) for seq in kept)
        self._ratio.retracted(output, sum(seq.max_new for seq in kept), len(kept))
        for seq in retracted:
            self._requeue(seq, t_ns)
        self._full = False

    def _evict_running(self, seq: Sequence, t_ns: SimTime, done: int) -> None:
        """Free what a running request holds and forget what is in flight for it."""
        context = self._batch.context(seq, self._batch.decided)
        self._batch.part(seq)
        seq.close_span(min(done, seq.finish_step))
        self._holdings.release(seq, context)
        self._inbound.stuck = False
        seq.prefill = seq.finish_step = seq.computed = 0
        seq.goal = seq.prompt_tokens + seq.base
        seq.preemptions += 1
        self.preemptions += 1
        self._log.append(Preempted(t_ns, self._worker, seq.rid, seq.base))

    def retract_all(self, t_ns: SimTime) -> None:
        """Send the batch back to the queue in its own order, with nothing in flight.

        SGLang 0.5.23's `pause_generation` in mode "retract".
        """
        done = self.seen_step
        self._batch.roll(done + 1)
        retracted = sorted(self._batch.members.values(), key=lambda seq: seq.place)
        for seq in retracted:
            self._evict_running(seq, t_ns, done)
        if self._chunked is not None:
            retracted.append(self._chunked)
            self._evict_chunked(self._chunked, t_ns)
        for seq in retracted:
            self._requeue(seq, t_ns)
        self._full = self.blocked = False

    def _evict_chunked(self, seq: Sequence, t_ns: SimTime) -> None:
        """Free what a request holds whose prompt is half computed."""
        self._holdings.release(seq, seq.computed)
        self._chunked = None
        self._had_chunk = False
        seq.computed = 0
        seq.preemptions += 1
        self.preemptions += 1
        self._log.append(Preempted(t_ns, self._worker, seq.rid, seq.base))

    def _preempt_for(
        self,
        seq: Sequence,
        batch: Admission,
        preempted: list[Sequence],
        t_ns: SimTime,
        done: int,
    ) -> bool:
        """Make place for `seq` by retracting running requests of much lower priority."""
        ratio = self._ratio.current
        victims = preemptible(seq, self._batch.members.values(), self.spec, batch, ratio, done)
        if not victims:
            return False
        batch.total_offset -= sum(owed for _, owed in victims)
        for other, _ in sorted(victims, key=lambda pair: pair[0].place):
            self._evict_running(other, t_ns, done)
            left_running = len(self._batch.members)
            self.kv.make_room(-(-RETRACT_DECODE_STEPS * left_running // self._page))
            preempted.append(other)
        return True

    # Many steps ------------------------------------------------------------------------------

    def coast_limit(self, limit: int) -> int:
        """Largest tick <= `limit` through which decodes alone certainly find their pages."""
        return self._batch.last_within(self._batch.decided + 1, limit, self.kv.num_free)

    def loads(self, first: int, last: int) -> StepLoads:
        """What ticks `first` to `last` compute for their decodes."""
        return self._batch.loads(first, last)

    def coast(self, step: int) -> None:
        """Schedule every tick up to `step`, none of which changes the set of decodes."""
        first = self._batch.decided + 1
        count = step - first + 1
        if count <= 0:
            return
        batch = self._batch
        need = batch.blocks_of_run(first, step)
        # Room is made tick by tick for a page per decode; the last tick's demand covers the others.
        self.kv.make_room(need - batch.blocks_of(step) + batch.room_of(step))
        if need:
            self.kv.take(need)
        self._ratio.decay(count)
        self._batch.decided = step


def _batch(spec: SglangSchedulerSpec) -> RunningBatch:
    """The running batch that `spec` needs."""
    foresees = spec.enable_overlap and not spec.classic
    if spec.speculation is None:
        return RunningBatch(spec.page_size, foresees)
    return DraftedBatch(spec.page_size, foresees, spec.enable_overlap, spec.speculation)
