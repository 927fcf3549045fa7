"""The exchange between prefill and decode engines: who waits for whom, and when KV moves. PURE.

Theory of operation. A *room* is one transfer, found by its key. It sees a sender and a receiver,
in the order in which their engines tell of them, and moves KV as its style allows:

1. pull: when the receiver has its blocks, from a sender that has finished. A sender nobody asks for
   within its patience is released ("expired"); a receiver of a whole prompt that has arrived keeps
   it alive, as D's heartbeats do. One that fetches the head of its prompt back from D sends none.
   A receiver whose sender is not there, or not done, fails once it has blocks.
2. push: when both are ready, in either order. With `streams` layer by layer from the first on.
   deposit: as push, chunk by chunk, to a stand-in (`cluster.deposits`) that is ready at once. The
   sender is over when all has moved.
3. room: the sender is not admitted before the receiver has its blocks. It moves chunk by chunk, and
   the sender is over when all has moved.
4. Either side that waits longer than its patience fails; a side that is aborted tells the other,
   which takes `control_ns`.
5. What moves, and how fast, is the `cluster.carrying.Carrier`'s.
6. Nothing happens at the nanosecond that caused it (`serving.remote_kv`).
7. The two halves of a room may be in different processes. Then each side has a room of its own, in
   which the receiver stands for itself on the sender's side, and they exchange words
   (`core.words`), which take `control_ns`. The sender's side moves the bytes.

Sources: vLLM 0.33 NIXL and Mooncake connectors (vllm.md section 6), SGLang 0.5.23 disaggregation
(sglang_and_routers.md section 4).
"""

from collections.abc import Callable, Sequence

from frontier_mock.cluster.carrying import Carrier
from frontier_mock.cluster.deposits import depositary, tier_of
from frontier_mock.cluster.encoding import Encoder, Encoders
from frontier_mock.cluster.fabric import Fabric, LinkUse
from frontier_mock.cluster.links import FabricSpec, Topology
from frontier_mock.cluster.rooms import (
    FAR,
    NEVER,
    Action,
    Room,
    Timers,
    stand_in,
    transfer_of,
)
from frontier_mock.core.commands import Transfer
from frontier_mock.core.events import EventLog, KvFailed, KvReceived, KvReleased, KvTold
from frontier_mock.core.words import Over, Ready, Sent, Word
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.sequence import DONE
from frontier_mock.serving.sequence import Sequence as Seq
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime, from_seconds


class Pairing:
    """See the theory of operation at the top of this module (`serving.remote_kv.Exchange`).

    `touched` collects the engines whose next wake-up may have moved, for the cluster to look at.
    `encoders` are the engines that encode images for others. `handed_on(rid, t_ns)` is called when
    the prefill leg of the cluster's own router is done, or has failed (`failed_leg`), and its
    decode leg may go on.
    """

    def __init__(
        self,
        spec: FabricSpec,
        workers: Sequence[Worker],
        names: Sequence[str],
        steps: Sequence[StepSpec],
        log: EventLog,
        encoders: Sequence[Encoder] = (),
    ) -> None:
        self._timers = Timers()
        self._carrier = Carrier(spec, names, steps, self._timers, self._arrive)
        self.touched: list[int] = []
        self.handed_on: Callable[[int, SimTime], None] = _nobody
        self.failed_leg: Callable[[int, SimTime], None] = _nobody
        self._control_ns = max(1, from_seconds(spec.control_s))
        self._workers = workers
        self._log = log
        self._rooms: dict[str, Room] = {}
        self._count = 0
        for worker in workers:
            worker.exchange = self
        self.encoders: Encoders | None = None
        if encoders:
            carrier, delay_ns = self._carrier, self._control_ns
            self.encoders = Encoders(encoders, carrier, delay_ns, log, self._enter)

    @property
    def topology(self) -> Topology:
        """The links."""
        return self._carrier.topology

    @property
    def fabric(self) -> Fabric:
        """What is on them."""
        return self._carrier.fabric

    @property
    def num_open(self) -> int:
        """Transfers that are not over."""
        return len(self._rooms)

    def next_time(self) -> SimTime | None:
        """When something will happen next."""
        dues = [self._timers.next_time(), self.fabric.next_time()]
        if self.encoders is not None:
            dues.append(self.encoders.next_time())
        return min([due for due in dues if due is not None], default=None)

    def advance(self, t_ns: SimTime) -> None:
        """Do what is due at `t_ns`: flows that end first, then timers in the order of setting."""
        self._carrier.advance(t_ns)
        if self.encoders is not None:
            self.encoders.advance(t_ns)
        self._timers.run(t_ns)

    def _enter(self, seq: Seq, t_ns: SimTime) -> None:
        """A sequence whose images have been encoded goes to its engine."""
        self._workers[seq.worker].deliver(seq, t_ns)
        self.touched.append(seq.worker)

    def use(self, t_ns: SimTime) -> list[LinkUse]:
        """What each link has carried."""
        return self.fabric.use(t_ns)

    # What engines say (serving.remote_kv) ------------------------------------------------------

    def arrives(self, seq: Seq, t_ns: SimTime) -> bool:
        """A sequence with a transfer is handed over."""
        transfer = transfer_of(seq)
        room = self._rooms.get(transfer.key)
        if room is None:
            room = self._open(transfer.key)
        elif (room.sender if transfer.sends else room.receiver) is not None:
            # The key is taken: these are not the two halves of one transfer.
            stray = Room(transfer.key, 0)
            self._after(self._control_ns, stray, self._stray(seq), t_ns)
            return transfer.style != "room" or not transfer.sends
        if transfer.sends:
            room.sender = seq
            room.arrived_ns = seq.arrived_ns
            if transfer.style == "deposit":
                room.receiver = depositary(seq, transfer)
                room.allocated_ns = t_ns
                tier = tier_of(self._workers[transfer.target])
                room.cached_tokens = tier.held_tokens(seq.submit.prompt) if tier else 0
            if transfer.style == "room":
                self._await(room, transfer, t_ns)
                if room.allocated_ns >= 0:
                    self._after(self._control_ns, room, self._admit, t_ns)
                return False
            return True
        room.receiver = seq
        room.peer = transfer.peer
        return True

    def allocated(self, seq: Seq, cached_tokens: int, t_ns: SimTime) -> None:
        """A receiver has blocks."""
        transfer = transfer_of(seq)
        room = self._room_of(seq)
        if room is None:
            # Its sender has been and gone, or the key was another's.
            self._after(self._control_ns, Room(transfer.key, 0), self._stray(seq), t_ns)
            return
        sender = room.sender
        if transfer.style == "pull" and not transfer.far and room.computed_ns < 0:
            # Blocks have names once their sender is done.
            room.receiver = None
            if sender is None:
                self._close(room)
            self._after(self._control_ns, Room(transfer.key, 0), self._stray(seq), t_ns)
            return
        room.allocated_ns = t_ns
        room.cached_tokens = cached_tokens
        if transfer.far:
            # It is there, wherever that is: only this side's links are in sight.
            room.arrived_ns = seq.arrived_ns
            room.scheduled_ns = room.computed_ns = t_ns
            room.computed_tokens = seq.prompt_tokens
            self._carrier.fetch(room, t_ns)
            return
        if room.peer:
            self._await(room, transfer, t_ns)
            self._tell(seq, self._carrier.ready(room, seq.worker), t_ns)
            return
        if transfer.style == "pull":
            room.deadline_ns = NEVER
        else:
            self._await(room, transfer, t_ns)
        if transfer.style == "room" and sender is not None:
            self._after(self._control_ns, room, self._admit, t_ns)
        self._carrier.move(room, t_ns)

    def scheduled(self, seq: Seq, t_ns: SimTime) -> None:
        """A sender's prompt is being computed."""
        room = self._room_of(seq)
        if room is not None and room.scheduled_ns < 0:
            room.scheduled_ns = t_ns

    def computing(self, seq: Seq, tokens: int, t_ns: SimTime, until_ns: SimTime) -> None:
        """Part of a sender's prompt will exist, and leaves layer by layer until then."""
        room = self._room_of(seq)
        if room is None or room.moving or room.receiver is None or room.allocated_ns < 0:
            return
        if transfer_of(seq).style == "deposit":
            # LMCache sends what a step has computed when it has ended.
            return
        if tokens > room.computed_tokens:
            room.computed_tokens = tokens
            room.pace_ns = until_ns - t_ns
            self._carrier.move(room, t_ns)

    def computed(self, seq: Seq, tokens: int, t_ns: SimTime) -> None:
        """Part of a sender's prompt exists."""
        room = self._room_of(seq)
        if room is None or not transfer_of(seq).streams:
            return
        if room.pace_ns:
            self._carrier.uncap(room, t_ns)
        if tokens > room.computed_tokens:
            room.computed_tokens = tokens
            self._carrier.move(room, t_ns)

    def finished(self, seq: Seq, t_ns: SimTime) -> None:
        """A sender is done."""
        room = self._room_of(seq)
        transfer = transfer_of(seq)
        if room is None:
            self._release_later(Room(transfer.key, 0), seq, "abandoned", t_ns)
            return
        room.computed_ns = t_ns
        room.computed_tokens = seq.pinned
        if transfer.style == "pull":
            self.handed_on(seq.rid, t_ns)
        receiver = room.receiver
        if receiver is None or transfer.style != "pull" or not _renews(receiver):
            self._await(room, transfer, t_ns)
        self._carrier.move(room, t_ns)

    def gone(self, seq: Seq, t_ns: SimTime) -> None:
        """A side has ended; the other will hear of it."""
        transfer = transfer_of(seq)
        if transfer.sends:
            self.failed_leg(seq.rid, t_ns)
        room = self._rooms.get(transfer.key)
        side = None if room is None else room.sender if transfer.sends else room.receiver
        # A receiver may be gone before its engine had it; its sender need not wait for it.
        if room is None or (side is not seq and (transfer.sends or side is not None)):
            return
        if room.moving:
            self._carrier.stop(room, t_ns)
        if transfer.sends:
            room.sender = None
        else:
            room.receiver = None
        if room.sender is None and room.receiver is None:
            self._part(room, seq, "abandoned", t_ns)
            self._close(room)
        else:
            self._after(self._control_ns, room, self._abandon, t_ns)

    # What the other half says, from another process ----------------------------------------------

    def hear(self, word: Word, t_ns: SimTime) -> None:
        """A word has come in; what follows from it is a nanosecond later."""
        room = self._rooms.get(word.key)
        if isinstance(word, Ready):
            self._hear_ready(room, word, t_ns)
        elif room is None or not room.peer or room.closed:
            # This side was over before it could hear that.
            return
        elif isinstance(word, Sent):
            if room.receiver is not None and room.far is None and not room.moving:
                arrived, scheduled, computed = (max(0, t_ns - age) for age in word.ages_ns)
                room.arrived_ns, room.scheduled_ns, room.computed_ns = arrived, scheduled, computed
                room.sent_bytes, room.source_ranks = word.num_bytes, word.ranks
                room.moving = True
                delay_ns = 1 + self._carrier.relayout_ns(room, room.receiver.worker)
                self._after(delay_ns, room, self._arrive, t_ns)
        else:
            self._hear_over(room, word.reason, t_ns)

    def _hear_ready(self, room: Room | None, word: Ready, t_ns: SimTime) -> None:
        if room is None:
            room = self._open(word.key)
        elif room.receiver is not None:
            # The key is taken: these are not the two halves of one transfer.
            self._tell(None, Over(word.key, word.peer, "unknown"), t_ns)
            return
        room.peer, room.far, room.receiver = word.peer, word, stand_in(word)
        room.allocated_ns = t_ns
        room.cached_tokens = word.cached_tokens
        if room.sender is not None:
            self._await(room, transfer_of(room.sender), t_ns)
            self._after(1, room, self._admit, t_ns)
            self._carrier.move(room, t_ns)

    def _hear_over(self, room: Room, reason: str, t_ns: SimTime) -> None:
        # It knows; nobody has to be told.
        room.peer = ""
        if room.moving:
            self._carrier.stop(room, t_ns)
        if room.far is not None:
            room.receiver = None
        if room.sender is None and room.receiver is None:
            self._close(room)
        else:
            self._after(1, room, lambda late, at_ns: self._end_both(late, reason, at_ns), t_ns)

    def _part(self, room: Room, seq: Seq | None, reason: str, t_ns: SimTime) -> None:
        """A sender in another process that knows of this receiver hears, once, that it is over."""
        if room.peer and room.far is None and room.allocated_ns >= 0:
            self._tell(seq, Over(room.key, room.peer, reason), t_ns)
            room.peer = ""

    def _tell(self, seq: Seq | None, word: Word, t_ns: SimTime) -> None:
        worker, rid = (0, -1) if seq is None else (seq.worker, seq.rid)
        due_ns = t_ns + self._control_ns
        self._log.append(KvTold(t_ns, worker, rid, due_ns, word))

    def _sent(self, room: Room, worker: int, t_ns: SimTime) -> Sent:
        due_ns = t_ns + self._control_ns
        times = room.arrived_ns, room.scheduled_ns, room.computed_ns
        arrived, scheduled, computed = (due_ns - time_ns for time_ns in times)
        ages = arrived, scheduled, computed
        return Sent(room.key, room.peer, room.sent_bytes, self._carrier.ranks(worker), ages)

    # What follows --------------------------------------------------------------------------------

    def _admit(self, room: Room, t_ns: SimTime) -> None:
        """The receiver has its blocks, and the sender knows."""
        sender = room.sender
        if sender is None or sender.state == DONE:
            return
        self._workers[sender.worker].admit(sender, t_ns)
        self.touched.append(sender.worker)

    def _arrive(self, room: Room, t_ns: SimTime) -> None:
        """All of it is where it should be."""
        sender, receiver = room.sender, room.receiver
        if receiver is None or not room.has_source():
            # Gone since; the other side will hear of it.
            room.moving = False
            return
        worker = receiver.worker
        if transfer_of(receiver).style == "deposit":
            assert sender is not None
            tier = tier_of(self._workers[worker])
            if tier is not None:
                tier.deposit(receiver.submit.prompt)
            self._close(room)
            self._release_later(room, sender, "sent", t_ns)
            return
        if worker == FAR:
            assert sender is not None
            self._tell(sender, self._sent(room, sender.worker, t_ns), t_ns)
            self._close(room)
            # Its word has to be there first, and what follows from it is a notification as well.
            self._release_later(room, sender, "sent", t_ns + self._control_ns)
            return
        self._log.append(
            KvReceived(
                t_ns,
                worker,
                receiver.rid,
                room.arrived_ns,
                room.scheduled_ns,
                room.computed_ns,
                room.allocated_ns,
                room.sent_bytes,
                room.cached_tokens,
            )
        )
        self._workers[worker].received(receiver, t_ns)
        self.touched.append(worker)
        self._close(room)
        if sender is not None:
            self._release_later(room, sender, "sent", t_ns)

    def _release_later(self, room: Room, sender: Seq, reason: str, t_ns: SimTime) -> None:
        """Tell the sender that its blocks are not needed any more, which takes a notification."""

        def release(notice: Room, at_ns: SimTime) -> None:
            if sender.pinned:
                self._release(sender, reason, at_ns)

        # A room of its own: the transfer is over, this is not.
        self._after(self._control_ns, Room(room.key, room.number), release, t_ns)

    def _release(self, sender: Seq, reason: str, t_ns: SimTime) -> None:
        self._log.append(KvReleased(t_ns, sender.worker, sender.rid, reason))
        self._workers[sender.worker].release(sender, t_ns, failed=reason != "sent")
        self.touched.append(sender.worker)

    # Failures ------------------------------------------------------------------------------------

    def _await(self, room: Room, transfer: Transfer, t_ns: SimTime) -> None:
        """From now on the other side has so long."""
        room.deadline_ns = t_ns + transfer.patience_ns
        self._after(transfer.patience_ns, room, self._expire, t_ns)

    def _expire(self, room: Room, t_ns: SimTime) -> None:
        """One side has waited long enough."""
        if room.deadline_ns != t_ns:
            return
        sender, receiver = room.sender, room.receiver
        if room.moving:
            waiting = receiver or sender
            assert waiting is not None
            self._await(room, transfer_of(waiting), t_ns)
            return
        if sender is not None and transfer_of(sender).style == "pull" and receiver is not None:
            if not _renews(receiver):
                # It still waits for blocks, and will find its sender gone once it has them.
                self._close(room)
                self._release(sender, "expired", t_ns)
            return
        self._end_both(room, "timeout" if room.computed_ns < 0 else "expired", t_ns)

    def _abandon(self, room: Room, t_ns: SimTime) -> None:
        """One side is gone, and with it the transfer, whoever has come in its place since."""
        self._end_both(room, "abandoned", t_ns)

    def _end_both(self, room: Room, reason: str, t_ns: SimTime) -> None:
        sender = room.sender
        self._part(room, room.receiver, reason, t_ns)
        self._fail_receiver(room, reason, t_ns)
        self._close(room)
        if sender is None:
            return
        if sender.pinned:
            self._release(sender, reason, t_ns)
        elif sender.state != DONE:
            if transfer_of(sender).style == "room":
                self._log.append(KvFailed(t_ns, sender.worker, sender.rid, reason))
                self._workers[sender.worker].lost(sender, t_ns)
            else:
                # It goes on, and its blocks will be of use to nobody.
                sender.transfer = None
                self.failed_leg(sender.rid, t_ns)
            self.touched.append(sender.worker)

    def _fail_receiver(self, room: Room, reason: str, t_ns: SimTime) -> None:
        receiver = room.receiver
        if receiver is None or receiver.state == DONE or receiver.transfer is None:
            return
        if receiver.transfer.style == "deposit":
            return
        if receiver.worker == FAR:
            self._tell(room.sender, Over(room.key, room.peer, reason), t_ns)
            return
        self._log.append(KvFailed(t_ns, receiver.worker, receiver.rid, reason))
        self._workers[receiver.worker].lost(receiver, t_ns)
        self.touched.append(receiver.worker)

    def _stray(self, seq: Seq) -> Action:
        def fail(room: Room, t_ns: SimTime) -> None:
            if seq.state == DONE or seq.transfer is None:
                return
            self._log.append(KvFailed(t_ns, seq.worker, seq.rid, "unknown"))
            self._workers[seq.worker].lost(seq, t_ns)
            self.touched.append(seq.worker)

        return fail

    def break_worker(self, worker: int, t_ns: SimTime) -> None:
        """Every transfer to or from an engine breaks off, as when it dies."""
        for room in self._rooms_of(worker):
            if room.moving:
                self._carrier.stop(room, t_ns)
            self._end_both(room, "broken", t_ns)

    def cut_worker(self, worker: int, t_ns: SimTime) -> None:
        """What moves to or from an engine is lost on the way, and sent again from its start."""
        for room in self._rooms_of(worker):
            self._carrier.restart(room, t_ns)

    def set_speed(self, worker: int, factor: float, t_ns: SimTime) -> None:
        """An engine's links have `factor` of their speed from now on."""
        self._carrier.set_speed(worker, factor, t_ns)

    def _rooms_of(self, worker: int) -> list[Room]:
        return [
            room
            for room in self._rooms.values()
            if any(seq is not None and seq.worker == worker for seq in (room.sender, room.receiver))
        ]

    # Books ---------------------------------------------------------------------------------------

    def _open(self, key: str) -> Room:
        self._count += 1
        room = self._rooms[key] = Room(key, self._count)
        return room

    def _close(self, room: Room) -> None:
        room.closed = True
        if self._rooms.get(room.key) is room:
            del self._rooms[room.key]

    def _room_of(self, seq: Seq) -> Room | None:
        """The room in which `seq` is one side."""
        if seq.transfer is None:
            return None
        room = self._rooms.get(seq.transfer.key)
        return room if room is not None and seq in (room.sender, room.receiver) else None

    def _after(self, delay_ns: SimTime, room: Room, action: Action, t_ns: SimTime) -> None:
        self._timers.set(t_ns + delay_ns, room, action)


def _renews(receiver: Seq) -> bool:
    """Whether a receiver keeps its sender's lease alive: P never does (vLLM 0.33 NIXL)."""
    return not transfer_of(receiver).tokens


def _nobody(rid: int, t_ns: SimTime) -> None:
    """No router of the cluster's own is interested."""
