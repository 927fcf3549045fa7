"""The three ways requests follow each other: open loop, closed loop, sessions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.simtime import SimTime
from frontier_mock.workload.prompts import Piece, StreamPrompt
from frontier_mock.workload.source import Item, Timed

NthSubmit = Callable[[int], Submit]
"""The submission of request `seq`; called once for each, in the order they are sent."""


class OpenLoop:
    """Everything at its own time, whatever the server does."""

    releases = False
    feeds_back = False
    lanes_apart = True

    def __init__(self, timed: Sequence[Timed]) -> None:
        """`timed` sorted by (t_ns, item.seq)."""
        self._timed = timed
        self.num_requests = len(timed)

    def initial(self) -> Sequence[Timed]:
        """All of it."""
        return self._timed

    def on_finish(self, item: Item, t_ns: SimTime) -> Sequence[Timed]:
        """Nothing: completions release nothing."""
        return ()


class ClosedLoop:
    """`concurrency` lanes over a numbered list of requests, in two phases.

    Warm-up requests come first, over the same lanes; the measured phase opens with a burst over
    all lanes at the moment the last warm-up request ends. Requests go out in the order of their
    number, so lengths and prompts do not depend on the server, only the lane that sends them does.
    """

    releases = True
    feeds_back = False
    lanes_apart = False

    def __init__(
        self,
        nth: NthSubmit,
        concurrency: int,
        num_requests: int,
        warmup_requests: int,
        think_ns: Callable[[int], SimTime],
        lines: Sequence[int] = (),
    ) -> None:
        """`think_ns(seq)` is the pause before request `seq`; `lines` the trace line of each."""
        self._nth = nth
        self._concurrency = concurrency
        self._warmup = warmup_requests
        self.num_requests = warmup_requests + num_requests
        self._think_ns = think_ns
        self._lines = lines
        self._next = 0
        self._warm_running = warmup_requests

    def initial(self) -> Sequence[Timed]:
        """The opening burst of the warm-up, or of the measured phase if there is none."""
        return self._burst(0)

    def on_finish(self, item: Item, t_ns: SimTime) -> Sequence[Timed]:
        """The lane's next request, or the measured burst after the last warm-up request."""
        if not item.measured:
            self._warm_running -= 1
            if self._warm_running == 0:
                return self._burst(t_ns)
            if self._next == self._warmup:
                return ()
        if self._next == self.num_requests:
            return ()
        return (self._send(t_ns + self._think_ns(self._next), item.lane),)

    def _burst(self, t_ns: SimTime) -> list[Timed]:
        last = self._warmup if self._next < self._warmup else self.num_requests
        lanes = min(self._concurrency, last - self._next)
        return [self._send(t_ns, lane) for lane in range(lanes)]

    def _send(self, t_ns: SimTime, lane: int) -> Timed:
        seq = self._next
        self._next = seq + 1
        line = self._lines[seq] if self._lines else 0
        return Timed(t_ns, self._nth(seq), Item(seq, seq >= self._warmup, lane, 0, line))


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: what is added to the conversation, and the pause before it."""

    input_pieces: tuple[Piece, ...]
    output: Piece
    pause_ns: SimTime


class Sessions:
    """Conversations whose prompts grow by each output and each new input.

    With `starts_ns` every session begins at its own time; without, `concurrency` of them begin at
    t = 0 and each one that ends makes room for the next. A turn that was rejected or aborted is
    followed by the next all the same, as a client that does not look would.
    """

    releases = True
    feeds_back = True

    def __init__(
        self,
        sessions: Sequence[Sequence[Turn]],
        salt: int,
        block_tokens: int,
        concurrency: int = 0,
        starts_ns: Sequence[SimTime] = (),
    ) -> None:
        """`block_tokens` is the engine's block size, for the keys of output blocks."""
        self._sessions = sessions
        self._salt = salt
        self._block_tokens = block_tokens
        self._concurrency = concurrency
        self._starts_ns = starts_ns
        self._first_seq: list[int] = []
        total = 0
        for turns in sessions:
            self._first_seq.append(total)
            total += len(turns)
        self.num_requests = total
        self._said: list[StreamPrompt | None] = [None] * len(sessions)
        self._begun = 0

    @property
    def lanes_apart(self) -> bool:
        """True unless sessions wait for each other to end."""
        return bool(self._starts_ns) or self._concurrency >= len(self._sessions)

    def initial(self) -> Sequence[Timed]:
        """The first turns of the sessions that begin by themselves."""
        if self._starts_ns:
            self._begun = len(self._sessions)
            return [self._turn(s, 0, t_ns) for s, t_ns in enumerate(self._starts_ns)]
        self._begun = min(self._concurrency, len(self._sessions))
        return [self._turn(s, 0, 0) for s in range(self._begun)]

    def on_finish(self, item: Item, t_ns: SimTime) -> Sequence[Timed]:
        """The session's next turn, or the first of a session that was waiting for a place."""
        turn = item.turn + 1
        turns = self._sessions[item.lane]
        if turn < len(turns):
            return (self._turn(item.lane, turn, t_ns + turns[turn].pause_ns),)
        if self._begun == len(self._sessions):
            return ()
        self._begun += 1
        return (self._turn(self._begun - 1, 0, t_ns),)

    def _turn(self, session: int, turn: int, t_ns: SimTime) -> Timed:
        now = self._sessions[session][turn]
        before = self._said[session]
        pieces = now.input_pieces
        prompt = StreamPrompt(self._salt, pieces) if before is None else before.grown(pieces)
        said = prompt.grown((now.output,))
        last = turn + 1 == len(self._sessions[session])
        self._said[session] = None if last else said
        full = prompt.num_tokens // self._block_tokens
        keys = said.block_keys(self._block_tokens)[full * KEY_BYTES :]
        tokens = now.output.tokens
        submit = Submit(prompt, tokens, tokens, output_keys=keys)
        seq = self._first_seq[session] + turn
        return Timed(t_ns, submit, Item(seq, True, session, turn))
