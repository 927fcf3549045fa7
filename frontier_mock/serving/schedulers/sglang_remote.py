"""A decode engine's requests before they run: SGLang's prealloc and transfer queues.

Theory of operation. A request whose prompt is computed elsewhere first waits for pages for its
whole prompt (*prealloc queue*, in order of arrival, nobody overtakes), then for its KV (*transfer
queue*), then for a slot in the batch. Pages are given while what is free, less what those on board
are reserved, exceeds the prompt and a reserve of its own. Nothing is given that would have to be
retracted at once: that is the back-pressure on prefill, which does not begin before.

Source: SGLang 0.5.23, disaggregation/decode.py (DecodePreallocQueue, DecodeTransferQueue). Its
check that some single request could still run to its end by itself is not modelled.
"""

from typing import Final

from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.sequence import RECEIVING, Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec

_SMALL_BATCH: Final = 32
"""Up to so many slots, an engine has twice as many more for requests that do not run yet."""


class Inbound:
    """Requests on their way in. `stuck`: the first one lacks pages until something is freed."""

    __slots__ = ("_kv", "_loading", "_page", "_queue", "_ready", "_reserve", "_slots", "stuck")

    def __init__(self, spec: SglangSchedulerSpec, kv: RadixCache) -> None:
        self._kv = kv
        self._page = spec.page_size
        self._reserve = spec.num_reserved_decode_tokens
        slots = spec.max_running_requests
        self._slots = slots * 3 if slots <= _SMALL_BATCH else slots
        self._queue: list[Sequence] = []
        self._loading: dict[int, Sequence] = {}
        self._ready: dict[int, Sequence] = {}
        self.stuck = False

    def __len__(self) -> int:
        return len(self._queue) + len(self._loading) + len(self._ready)

    def __contains__(self, seq: Sequence) -> bool:
        return seq.rid in self._loading or seq.rid in self._ready or seq in self._queue

    @property
    def idle(self) -> bool:
        """Whether nothing can be done for anybody until something ends or arrives."""
        return self.stuck or not (self._queue or self._ready)

    def add(self, seq: Sequence) -> None:
        """A new arrival."""
        self._queue.append(seq)
        self.stuck = False

    def allocate(self, running: int) -> list[Sequence]:
        """Give pages to whom they suffice for; those sequences, in order."""
        page = self._page
        done: list[Sequence] = []
        for seq in self._queue:
            aboard = running + len(self._loading) + len(self._ready)
            pages = -(-seq.goal // page)
            left = self._kv.num_free * page - self._reserve * aboard
            # On an empty engine whatever fits its pool may come.
            alone = not aboard and pages <= self._kv.num_free
            enough = pages * page + self._reserve <= left or alone
            if aboard >= self._slots or not enough:
                self.stuck = True
                break
            self._kv.make_room(pages)
            self._kv.take(pages)
            seq.held_blocks = pages
            seq.state = RECEIVING
            self._loading[seq.rid] = seq
            done.append(seq)
        del self._queue[: len(done)]
        return done

    def received(self, seq: Sequence) -> None:
        """Its KV has come."""
        del self._loading[seq.rid]
        self._ready[seq.rid] = seq
        self.stuck = False

    def take_ready(self, slots: int) -> list[Sequence]:
        """Let the first `slots` of those with their KV go on to the batch."""
        if len(self._ready) > slots:
            self.stuck = True
        taken = list(self._ready.values())[: max(0, slots)]
        for seq in taken:
            del self._ready[seq.rid]
        return taken

    def drop(self, seq: Sequence) -> None:
        """It will not run: its pages are free."""
        if seq.state == RECEIVING:
            self._loading.pop(seq.rid, None)
            self._ready.pop(seq.rid, None)
            self._kv.give(seq.held_blocks)
            seq.held_blocks = 0
        else:
            self._queue.remove(seq)
        self.stuck = False
