"""vLLM's decodes from their first token to their last: who joins, who leaves, who ends when.

Rule 1. A sequence joins in the step after the one that computes its last prompt token, and leaves
        after its last step.
Rule 2. With async scheduling a length cap is foreseen, an end of sequence is not: such a sequence
        occupies one more step (specs/vllm.md section 8.4).
"""

from heapq import heappop, heappush

from frontier_mock.serving.schedulers.decode_set import DecodeSet
from frontier_mock.serving.sequence import DECODE, DRAINING, Sequence


class Decodes(DecodeSet):
    """The sequences whose prompt is computed. `joining` decode from the next step on, those in
    `leaving` not after the step they stand under.

    `ends` is a heap of (step, place, sequence) over last tokens, outdated entries included.
    """

    __slots__ = ("_foresees", "ends", "joining", "leaving")

    def __init__(self, block: int, foresees: bool) -> None:
        """`foresees`: a step is scheduled before the output of the one before it is seen."""
        super().__init__(block)
        self._foresees = foresees
        self.leaving: dict[int, list[Sequence]] = {}
        self.joining: list[Sequence] = []
        self.ends: list[tuple[int, int, Sequence]] = []

    def last_step(self, seq: Sequence) -> int:
        """The last step that computes a token for `seq`, wanted or not."""
        return seq.finish_step + 1 if self._foresees and seq.stops_early else seq.finish_step

    def start(self, seq: Sequence, step: int, padding: int = 0) -> None:
        """The prefill of `seq` completes in `step`: its next token ends that step.

        `padding` are tokens computed beside it for drafts that nobody made.
        """
        seq.state = DECODE
        seq.first_step = step
        seq.offset = seq.goal - step
        self._set_finish(seq, step + seq.output_tokens - seq.base - 1)
        if self.last_step(seq) > step:
            self.joining.append(seq)

    def slots(self, seq: Sequence, step: int) -> int:
        """Tokens of `seq` that have their place once `step` is decided."""
        return seq.offset + min(step, self.last_step(seq))

    def known(self, seq: Sequence, had_turn: bool) -> int:
        """Tokens of `seq` whose content is known when it has to go before it is done.

        The newest token was a placeholder when its slot was allocated under async scheduling: a
        block it completes is cached only once the output of its step is processed. `had_turn`: it
        was given its token in the step being decided, too.
        """
        return self.slots(seq, self.decided + had_turn) - self._foresees

    def known_at_abort(self, seq: Sequence) -> int:
        """The same when `seq` is aborted, before the output of the step that has just ended."""
        return self.known(seq, had_turn=False)

    def known_at_end(self, seq: Sequence) -> int:
        """The same when `seq` has produced its last token."""
        return seq.offset + seq.finish_step

    def narrow(self, seq: Sequence, step: int, tokens: int) -> None:
        """`seq` gets fewer tokens in `step` than it wants, and at least one: that cannot be."""
        raise AssertionError(f"a decode of one token got {tokens} in step {step}")

    def _set_finish(self, seq: Sequence, step: int) -> None:
        seq.finish_step = step
        heappush(self.ends, (step, seq.place, seq))
        if not seq.stops_early and self._foresees:
            self.leaving.setdefault(step, []).append(seq)

    def roll(self, step: int) -> None:
        """Bring the set from `step - 1` to `step`."""
        if self.leaving:
            for seq in self.leaving.pop(step - 1, ()):
                if seq.counted and seq.finish_step == step - 1:
                    self.uncount(seq)
        if self.joining:
            for seq in self.joining:
                if seq.state == DECODE:
                    self.count(seq)
            self.joining.clear()

    def hold_back(self, seq: Sequence, step: int) -> None:
        """`seq` gets nothing in `step`: it repeats its turn in the next one."""
        self.uncount(seq)
        finish = seq.finish_step + 1
        seq.close_span(step - 1)
        seq.first_step = step + 1
        seq.offset -= 1
        self._set_finish(seq, finish)
        self.joining.append(seq)

    def take_over(self, seq: Sequence, step: int) -> None:
        """`seq`, which had no turn among others, decodes here from `step` on, the next one."""
        seq.first_step = step
        seq.offset = seq.prompt_tokens + seq.base - step
        self._set_finish(seq, step + seq.output_tokens - seq.base - 1)
        self.joining.append(seq)

    def drop(self, seq: Sequence) -> None:
        """`seq`, if it is among them, decodes no more."""
        if seq.counted:
            self.uncount(seq)
        if seq in self.joining:
            self.joining.remove(seq)

    def next_finish(self) -> int | None:
        """The earliest step in which some sequence produces its last token."""
        ends = self.ends
        while ends:
            step, _, seq = ends[0]
            if seq.finish_step == step and seq.state in (DECODE, DRAINING):
                return step
            heappop(ends)
        return None

    def pop_finished(self, step: int) -> Sequence | None:
        """The next one whose last token `step` produced."""
        return heappop(self.ends)[2] if self.next_finish() == step else None
