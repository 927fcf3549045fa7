"""Prompts whose KV comes from another engine, as vLLM's scheduler holds them.

Theory of operation. A receiver takes its turn in the queue, gets blocks for its whole prompt and
stands aside. When the KV has come, the engine learns of it with the output of the step that it
launches next; then the sequence goes to the front of the queue and has computed what did not come,
its last token at least.

A prompt that is loaded from a tier under the GPU waits the same way, without an exchange.

Source: vLLM 0.33.0, v1/core/sched/scheduler.py (WAITING_FOR_REMOTE_KVS, _update_from_kv_xfer_
finished); specs/vllm.md section 6.
"""

from collections import deque
from collections.abc import Iterable

from frontier_mock.serving.remote_kv import Exchange
from frontier_mock.serving.schedulers.vllm_holdings import Holdings
from frontier_mock.serving.sequence import RECEIVING, Sequence
from frontier_mock.simtime import SimTime


def awaited_tokens(seq: Sequence) -> int:
    """Tokens of its prompt that a receiver gets from elsewhere, those it has cached included."""
    transfer = seq.transfer
    assert transfer is not None
    return min(transfer.tokens or seq.goal, seq.goal)


def has_enough(seq: Sequence, hit: int) -> bool:
    """Whether so little of what would come is missing that it is better computed."""
    assert seq.transfer is not None
    return awaited_tokens(seq) - hit < max(1, seq.transfer.threshold)


class Receivers:
    """Sequences whose KV is on its way, or has come and is not known to have, or is known to have.

    `arrived` has the second kind, `ready` the third, in the order in which they became so.
    """

    __slots__ = (
        "_holdings",
        "_loads",
        "_steps_to_know",
        "arrived",
        "exchange",
        "members",
        "ready",
    )

    def __init__(self, holdings: Holdings, steps_to_know: int) -> None:
        """The engine learns of what comes so many steps after the one being executed then."""
        self._holdings = holdings
        self._steps_to_know = steps_to_know
        self.members: dict[int, Sequence] = {}
        self._loads: dict[int, int] = {}
        self.arrived: list[Sequence] = []
        self.ready: deque[Sequence] = deque()
        self.exchange: Exchange | None = None

    def __len__(self) -> int:
        return len(self.members)

    def waiting(self) -> Iterable[Sequence]:
        """All of them."""
        return self.members.values()

    def add(self, seq: Sequence, hit: int, t_ns: SimTime) -> None:
        """Take aside `seq`, which has its blocks, of which `hit` tokens are cached."""
        seq.state = RECEIVING
        self.members[seq.rid] = seq
        assert self.exchange is not None
        self.exchange.allocated(seq, hit, t_ns)

    def load(self, seq: Sequence, tokens: int) -> None:
        """Take aside `seq`, whose first `tokens` tokens come from a tier or are cached."""
        seq.state = RECEIVING
        self.members[seq.rid] = seq
        self._loads[seq.rid] = tokens

    def received(self, seq: Sequence, step: int) -> None:
        """The KV has come while `step` was executing."""
        seq.known_at = step + self._steps_to_know
        self.arrived.append(seq)

    def notice(self, step: int, t_ns: SimTime, idle: bool) -> None:
        """Those whose KV is known to be here when `step` is decided are ready.

        With nothing to compute (`idle`) the engine looks all the time.
        """
        late = []
        for seq in self.arrived:
            if seq.known_at > step and not idle:
                late.append(seq)
                continue
            loaded = self._loads.pop(seq.rid, 0)
            awaited = loaded or awaited_tokens(seq)
            self._holdings.commit(seq, awaited)
            seq.computed = min(awaited, seq.goal - 1)
            if not loaded:
                self.go_onward(seq, t_ns)
            self.ready.append(seq)
        self.arrived = late

    def pop_ready(self) -> Sequence:
        """The first one that is ready, which goes on to run."""
        seq = self.ready.popleft()
        del self.members[seq.rid]
        return seq

    def go_onward(self, seq: Sequence, t_ns: SimTime) -> None:
        """Nothing more will come; what it has, and will have, may be for others."""
        seq.transfer = seq.submit.onward
        if seq.transfer is not None and self.exchange is not None:
            self.exchange.arrives(seq, t_ns)

    def do_without(self, seq: Sequence, t_ns: SimTime) -> None:
        """What would come to `seq`, which is not among them, is not needed."""
        if self.exchange is not None:
            self.exchange.gone(seq, t_ns)
        self.go_onward(seq, t_ns)

    def part(self, seq: Sequence) -> None:
        """Let `seq` go, without its blocks."""
        del self.members[seq.rid]
        self._loads.pop(seq.rid, None)
        if seq in self.ready:
            self.ready.remove(seq)
        elif seq in self.arrived:
            self.arrived.remove(seq)
        self._holdings.drop(seq)
        seq.computed = 0
