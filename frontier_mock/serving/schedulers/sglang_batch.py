"""SGLang's running batch: who is in it, what a tick of it computes, and what it still owes.

What a request may still produce falls by one per tick, so the sum over all of them is one number
less a multiple of the tick.
"""

from frontier_mock.serving.schedulers.decode_set import DecodeSet
from frontier_mock.serving.schedulers.sglang_admission import CLIP_MAX_NEW_TOKENS
from frontier_mock.serving.sequence import Sequence


class RunningBatch(DecodeSet):
    """Members by rid; those counted take part in the next tick.

    A member that is not counted has its last token in flight.
    """

    __slots__ = (
        "_long",
        "_num_fixed",
        "_num_open",
        "_owed_fixed",
        "_owed_open",
        "members",
    )

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self.members: dict[int, Sequence] = {}
        self._owed_fixed = 0
        self._num_fixed = 0
        self._owed_open = 0
        self._num_open = 0
        self._long: dict[int, Sequence] = {}

    def join(self, seq: Sequence, counted: bool) -> None:
        """Take in a sequence whose prompt is computed or in flight."""
        self.members[seq.rid] = seq
        self._owe(seq, 1)
        if seq.max_new - seq.base > CLIP_MAX_NEW_TOKENS:
            self._long[seq.rid] = seq
        if counted:
            self.count(seq)

    def part(self, seq: Sequence) -> None:
        """Let a sequence go, before its output so far is closed."""
        del self.members[seq.rid]
        self._owe(seq, -1)
        self._long.pop(seq.rid, None)
        if seq.counted:
            self.uncount(seq)

    def produced_first(self, seq: Sequence) -> None:
        """A member's `base` has grown by the token of its prefill step."""
        if seq.fixed_length:
            self._owed_fixed -= 1
        else:
            self._owed_open -= 1

    def _owe(self, seq: Sequence, sign: int) -> None:
        owed = seq.max_new - seq.base + seq.first_step - 1
        if seq.fixed_length:
            self._owed_fixed += sign * owed
            self._num_fixed += sign
        else:
            self._owed_open += sign * owed
            self._num_open += sign

    def promised(self, done: int, ratio: float) -> float:
        """Output that members may still produce after tick `done`, in tokens.

        Each counts at most CLIP_MAX_NEW_TOKENS, and those that may end early only `ratio` of it.
        """
        fixed = self._owed_fixed - self._num_fixed * done
        open_ended = self._owed_open - self._num_open * done
        for seq in self._long.values():
            excess = seq.max_new - seq.base + seq.first_step - 1 - done - CLIP_MAX_NEW_TOKENS
            if excess > 0:
                if seq.fixed_length:
                    fixed -= excess
                else:
                    open_ended -= excess
        return fixed + open_ended * ratio
