"""The carrier: KV of rooms on its way over the fabric. PURE.

Bytes of one room move in one flow at a time. A transfer's first byte takes `latency_ns`; where the
two engines cut the cache differently, the receiver then lays it out anew. What goes to a receiver
in another process passes this side's links only, no faster than the other's NICs take it.
"""

from collections.abc import Callable, Sequence

from frontier_mock.cluster.fabric import Fabric
from frontier_mock.cluster.links import FabricSpec, Topology
from frontier_mock.cluster.rooms import FAR, Action, Room, Timers, shape_of, transfer_of
from frontier_mock.core.words import Ready
from frontier_mock.cost.kv_transfer import kv_shape, same_layout
from frontier_mock.cost.specs import StepSpec
from frontier_mock.simtime import NS_PER_S, SimTime, from_seconds


class Carrier:
    """See the top of this module. `arrive(room, t_ns)` is called when all of a room has moved."""

    def __init__(
        self,
        spec: FabricSpec,
        names: Sequence[str],
        steps: Sequence[StepSpec],
        timers: Timers,
        arrive: Action,
    ) -> None:
        self.topology = Topology(spec, names, steps)
        self.fabric = Fabric(self.topology.links)
        self._latency_ns = max(1, from_seconds(spec.latency_s))
        self._steps = steps
        self._shapes = [kv_shape(step) for step in steps]
        self._timers = timers
        self._arrive = arrive
        self._by_flow: dict[int, Room] = {}
        self._parcels: dict[int, Callable[[SimTime], None]] = {}
        self._num_parcels = 0

    def advance(self, t_ns: SimTime) -> None:
        """Go on with rooms whose flow has ended by `t_ns`."""
        for flow in self.fabric.pop_done(t_ns):
            if flow < 0:
                self._parcels.pop(flow)(t_ns)
            else:
                self._moved(self._by_flow.pop(flow), t_ns)

    def move(self, room: Room, t_ns: SimTime) -> None:
        """Start the next flow of a room, if there is anything to move and somewhere to put it."""
        sender, receiver = room.sender, room.receiver
        if room.moving or sender is None or receiver is None or room.allocated_ns < 0:
            return
        if room.computed_ns < 0 and not transfer_of(sender).streams:
            return
        if self._total(room, room.computed_tokens) > room.sent_bytes:
            self.begin_after(1 if room.sent_bytes else self._latency_ns, room, t_ns)
        elif room.computed_ns >= 0:
            room.moving = True
            self._timers.set(t_ns + 1, room, self._arrive)

    def fetch(self, room: Room, t_ns: SimTime) -> None:
        """Start to move all of a room from a sender that is in no engine of this cluster."""
        self.begin_after(self._latency_ns, room, t_ns)

    def begin_after(self, delay_ns: SimTime, room: Room, t_ns: SimTime) -> None:
        """Start a flow of all that has been computed by then."""
        room.moving = True
        self._timers.set(t_ns + delay_ns, room, self._begin)

    def send(
        self,
        source: int,
        target: int,
        num_bytes: int,
        t_ns: SimTime,
        arrived: Callable[[SimTime], None],
    ) -> None:
        """Move something that is no KV from one engine to another, and say when it is there."""
        self._num_parcels += 1
        # Rooms count upwards.
        flow = -self._num_parcels
        self._parcels[flow] = arrived

        def begin(room: Room, at_ns: SimTime) -> None:
            self.fabric.start(at_ns, flow, self.topology.path(source, target), num_bytes)

        self._timers.set(t_ns + self._latency_ns, Room("", 0), begin)

    def stop(self, room: Room, t_ns: SimTime) -> None:
        """Take a room off the fabric."""
        room.moving = False
        if self._by_flow.pop(room.number, None) is not None:
            self.fabric.cancel(t_ns, room.number)

    def restart(self, room: Room, t_ns: SimTime) -> None:
        """What of a room is under way is lost, and sent again from its start."""
        if room.number in self._by_flow:
            self.stop(room, t_ns)
            room.sent_bytes = 0
            self.move(room, t_ns)

    def uncap(self, room: Room, t_ns: SimTime) -> None:
        """The step that computes what moves has ended: it may move at link speed."""
        room.pace_ns = 0
        if room.number in self._by_flow and room.far is None:
            self.fabric.uncap(t_ns, room.number)

    def set_speed(self, worker: int, factor: float, t_ns: SimTime) -> None:
        """An engine's links have `factor` of their speed from now on."""
        for link in self.topology.links_of(worker):
            rate = self.topology.links[link].bytes_per_s
            self.fabric.set_capacity(t_ns, link, rate * factor)

    def relayout_ns(self, room: Room, worker: int, source: int = FAR) -> SimTime:
        """What laying a room out anew takes the engine `worker`; `source` is the sender's, if it
        is here.
        """
        step = self._steps[worker]
        if source != FAR:
            alike = same_layout(self._steps[source], step)
        else:
            ranks = room.source_ranks
            alike = not ranks or step.model.latent is not None or ranks == step.parallel.tp
        return 0 if alike else self._shapes[worker].relayout_ns(room.sent_bytes)

    def ranks(self, worker: int) -> int:
        """Tensor-parallel ranks of an engine."""
        return self._steps[worker].parallel.tp

    def ready(self, room: Room, worker: int) -> Ready:
        """What the receiver of a room tells a sender in another process."""
        assert room.receiver is not None
        shape = self._shapes[worker]
        (way_in,) = self.topology.way_in(worker)
        return Ready(
            key=room.key,
            peer=room.peer,
            tokens=room.receiver.prompt_tokens,
            cached_tokens=room.cached_tokens,
            token_bytes=shape.token_bytes,
            window_bytes=shape.window_bytes,
            window=shape.window,
            bytes_per_s=max(1, round(self.topology.links[way_in].bytes_per_s)),
            patience_ns=transfer_of(room.receiver).patience_ns,
        )

    def _begin(self, room: Room, t_ns: SimTime) -> None:
        sender, receiver = room.sender, room.receiver
        if receiver is None or not room.has_source():
            room.moving = False
            return
        total = self._total(room, room.computed_tokens)
        self._by_flow[room.number] = room
        size = total - room.sent_bytes
        # No faster than layers are computed, while they are.
        cap = size / room.pace_ns * NS_PER_S if room.pace_ns else None
        if sender is None:
            path = self.topology.way_in(receiver.worker)
        elif room.far is not None:
            path = self.topology.way_out(sender.worker)
            cap = float(min(cap or room.far.bytes_per_s, room.far.bytes_per_s))
        else:
            path = self.topology.path(sender.worker, receiver.worker)
        self.fabric.start(t_ns, room.number, path, size, cap)
        room.sent_bytes = total

    def _moved(self, room: Room, t_ns: SimTime) -> None:
        """A flow has ended: all there was to move has moved."""
        room.moving = False
        if room.computed_ns < 0 or self._total(room, room.computed_tokens) != room.sent_bytes:
            self.move(room, t_ns)
            return
        room.moving = True
        delay_ns = 1
        if room.sender is not None and room.receiver is not None and room.far is None:
            delay_ns += self.relayout_ns(room, room.receiver.worker, room.sender.worker)
        self._timers.set(t_ns + delay_ns, room, self._arrive)

    def _total(self, room: Room, tokens: int) -> int:
        """Bytes that the first `tokens` tokens are to the receiver, less what it has already."""
        receiver = room.receiver
        assert receiver is not None
        tokens = min(tokens, transfer_of(receiver).tokens or receiver.prompt_tokens)
        tokens = min(tokens, receiver.prompt_tokens)
        shape = self._shapes[receiver.worker] if room.far is None else shape_of(room.far)
        return max(0, shape.prompt_bytes(tokens) - shape.prompt_bytes(room.cached_tokens))
