"""Encoders apart: who encodes a request's images, and when they are where they are needed. PURE.

Theory of operation.

1. A sequence that its front end hands over with images to encode waits outside of its engine. Each
   of its distinct images goes to an encoder of its own, in turn (as vLLM's E/P/D proxy and SGLang's
   language servers spread them), which takes `control_ns`.
2. An encoder does one image after the other, first come first served. It remembers what it has
   encoded, as much as SGLang's encoder server does by default, the longest unused forgotten first.
3. What it made, two bytes for each of a token's `out_size` numbers, moves over the fabric to the
   engine. When all of a sequence's images are there the engine gets it, with nothing to encode.
4. What an encoder has accepted it encodes, whoever is gone since.

Where servers share embeddings through a store (vLLM's ECExampleConnector), their front ends know
what is in it (`Media.stored`), and all that happens here is that it is read.

Sources: vLLM 0.33 (`--ec-transfer-config`), SGLang 0.5.23 (disaggregation/encoder).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Final

from frontier_mock.cluster.carrying import Carrier
from frontier_mock.cluster.specs import WorkerSpec
from frontier_mock.core.commands import Media
from frontier_mock.core.events import EventLog, MediaReceived
from frontier_mock.cost.protocol import EncodingCost
from frontier_mock.serving.sequence import DONE
from frontier_mock.serving.sequence import Sequence as Seq
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.simtime import SimTime, from_seconds

_REMEMBERED_BYTES: Final = 4096 << 20
"""SGLANG_VLM_CACHE_SIZE_MB's default (SGLang 0.5.23, disaggregation/encoder/server.py)."""
_NUMBER_BYTES: Final = 2


class Encoder:
    """One encoder: the engine with this number. `busy_ns` is its work, accepted work included."""

    __slots__ = (
        "_known",
        "_room",
        "busy_ns",
        "cost",
        "free_ns",
        "num_encoded",
        "number",
        "token_bytes",
    )

    def __init__(self, number: int, cost: EncodingCost, token_bytes: int) -> None:
        self.number = number
        self.cost = cost
        self.token_bytes = token_bytes
        self.free_ns: SimTime = 0
        self.busy_ns: SimTime = 0
        self.num_encoded = 0
        self._room = _REMEMBERED_BYTES // token_bytes
        self._known: dict[int, tuple[int, SimTime]] = {}
        """Tokens of what it remembers, and when that is or was there, by key."""

    def encode(self, item: Media, t_ns: SimTime) -> SimTime:
        """Take an image at `t_ns`; when its embedding is there."""
        known = self._known.pop(item.key, None)
        if known is not None:
            self._known[item.key] = known
            return max(t_ns, known[1])
        took_ns = self.cost.encode_ns([item.patches])
        self.num_encoded += 1
        self.busy_ns += took_ns
        self.free_ns = max(t_ns, self.free_ns) + took_ns
        self._known[item.key] = item.tokens, self.free_ns
        self._room -= item.tokens
        while self._room < 0 and len(self._known) > 1:
            self._room += self._known.pop(next(iter(self._known)))[0]
        return self.free_ns

    def worked_ns(self, t_ns: SimTime) -> SimTime:
        """How long it has worked by `t_ns`."""
        return self.busy_ns - max(0, self.free_ns - t_ns)


class _Waiting:
    """A sequence whose images are being encoded."""

    __slots__ = ("asked_ns", "encoded_ns", "missing", "num_bytes", "num_items", "seq")

    def __init__(self, seq: Seq, items: int, asked_ns: SimTime) -> None:
        self.seq = seq
        self.missing = self.num_items = items
        self.asked_ns = asked_ns
        self.encoded_ns = asked_ns
        self.num_bytes = 0


def read_stored(seq: Seq, worker: WorkerSpec) -> SimTime:
    """Take a sequence's embeddings from where they are; how long that takes, at least 1.

    SGLang's come from an encoder server over the NIC. vLLM's store is files, which whoever has just
    written them left in the host's memory, so they come over PCIe. Both are inferences.
    """
    vision, hardware = worker.step.model.vision, worker.step.hardware
    sglang = isinstance(worker.scheduler, SglangSchedulerSpec)
    bytes_per_s = (sglang and hardware.nic_bytes_per_s) or hardware.pcie_bytes_per_s
    assert vision is not None
    media = seq.submit.media
    sizes = {
        item.key: item.tokens * vision.out_size * _NUMBER_BYTES for item in media if item.stored
    }
    seq.submit = replace(seq.submit, media=tuple([replace(item, stored=False) for item in media]))
    return 1 + from_seconds(sum(sizes.values()) / bytes_per_s)


class Encoders:
    """See the top of this module. `enter(seq, t_ns)` hands a sequence to its engine."""

    def __init__(
        self,
        encoders: Sequence[Encoder],
        carrier: Carrier,
        control_ns: SimTime,
        log: EventLog,
        enter: Callable[[Seq, SimTime], None],
    ) -> None:
        self.encoders = encoders
        self._token_bytes = encoders[0].token_bytes
        self._carrier = carrier
        self._control_ns = control_ns
        self._log = log
        self._enter = enter
        self._next = 0
        self._count = 0
        self._due: list[tuple[SimTime, int, _Waiting, Encoder, Media]] = []

    def takes(self, seq: Seq, t_ns: SimTime) -> bool:
        """Whether a sequence has images to encode first: then it is handed over later."""
        if seq.state == DONE or (seq.transfer is not None and not seq.transfer.sends):
            # The KV of a decode leg's images comes with the rest.
            return False
        items = {item.key: item for item in seq.submit.media if item.patches}
        if not items:
            return False
        waiting = _Waiting(seq, len(items), t_ns)
        for item in items.values():
            encoder = self.encoders[self._next % len(self.encoders)]
            self._next += 1
            self._count += 1
            done_ns = encoder.encode(item, t_ns + self._control_ns)
            heappush(self._due, (done_ns, self._count, waiting, encoder, item))
        return True

    def next_time(self) -> SimTime | None:
        """When the next image has been encoded."""
        return self._due[0][0] if self._due else None

    def advance(self, t_ns: SimTime) -> None:
        """Send on what has been encoded by `t_ns`."""
        while self._due and self._due[0][0] <= t_ns:
            _, _, waiting, encoder, item = heappop(self._due)
            waiting.encoded_ns = t_ns
            size = item.tokens * self._token_bytes
            waiting.num_bytes += size
            source, target = encoder.number, waiting.seq.worker
            self._carrier.send(source, target, size, t_ns, self._arrival(waiting))

    def _arrival(self, waiting: _Waiting) -> Callable[[SimTime], None]:
        def arrive(t_ns: SimTime) -> None:
            waiting.missing -= 1
            if waiting.missing:
                return
            seq = waiting.seq
            media = tuple([replace(item, patches=0) for item in seq.submit.media])
            seq.submit = replace(seq.submit, media=media)
            if seq.state != DONE:
                self._log.append(
                    MediaReceived(
                        t_ns,
                        seq.worker,
                        seq.rid,
                        waiting.asked_ns,
                        waiting.encoded_ns,
                        waiting.num_items,
                        waiting.num_bytes,
                    )
                )
            self._enter(seq, t_ns)

        return arrive
