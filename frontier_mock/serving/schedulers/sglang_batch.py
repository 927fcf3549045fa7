"""SGLang's running batch as sums: what a tick computes, what pages it needs, what is still owed.

A decode's context in tick `s` is `offset + s`, so a tick is `num_decodes` sequences with a total
context of `kv_offset + num_decodes * s`, and the histogram `phase_counts` of `offset mod page` says
how many of them begin a page in it. Likewise, what a request may still produce falls by one per
tick, so the sum over all of them is one number less a multiple of the tick.
"""

from frontier_mock.serving.schedulers.sglang_admission import CLIP_MAX_NEW_TOKENS
from frontier_mock.serving.sequence import Sequence


class RunningBatch:
    """Members by rid; those `counted` take part in the next tick.

    A member that is not counted has its last token in flight.
    """

    __slots__ = (
        "_long",
        "_num_fixed",
        "_num_open",
        "_owed_fixed",
        "_owed_open",
        "_page",
        "kv_offset",
        "members",
        "num_decodes",
        "phase_counts",
    )

    def __init__(self, page_size: int) -> None:
        self._page = page_size
        self.members: dict[int, Sequence] = {}
        self.num_decodes = 0
        self.kv_offset = 0
        self.phase_counts = [0] * page_size
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
            seq.counted = True
            self.num_decodes += 1
            self.kv_offset += seq.offset
            self.phase_counts[seq.offset % self._page] += 1

    def uncount(self, seq: Sequence) -> None:
        """Its last token is in the tick decided last."""
        seq.counted = False
        self.num_decodes -= 1
        self.kv_offset -= seq.offset
        self.phase_counts[seq.offset % self._page] -= 1

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

    def pages_of(self, step: int) -> int:
        """Pages that begin in tick `step`."""
        return self.phase_counts[(1 - step) % self._page]

    def pages_of_run(self, first: int, last: int) -> int:
        """Pages that begin in ticks `first` to `last`."""
        cycles, rest = divmod(last - first + 1, self._page)
        pages = cycles * self.num_decodes
        for step in range(first, first + rest):
            pages += self.phase_counts[(1 - step) % self._page]
        return pages

    def last_within(self, first: int, limit: int, pages: int) -> int:
        """Largest tick <= `limit` such that `pages` suffice for ticks `first` to there."""
        n = self.num_decodes
        count = limit - first + 1
        if count <= 0 or n * -(-count // self._page) <= pages:
            return limit
        cycles = pages // n
        step = first + cycles * self._page
        left = pages - cycles * n
        while step <= limit:
            left -= self.phase_counts[(1 - step) % self._page]
            if left < 0:
                break
            step += 1
        return min(step - 1, limit)
