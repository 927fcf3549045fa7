"""SGLang's running batch: who is in it, who is about to be, who ends when, and what it still owes.

Rule 1. A prompt computed by the step decided last is in the batch when the next one is decided.
Rule 2. With overlap a step is decided before the output of the one before it is seen. A sequence
        that step will end by its length cap is left out; one that meets EOS takes part in one step
        too many, if that step is a decode (`classic`: so does every sequence).
Rule 3. What a request may still produce falls by one per tick, so the sum over all of them is one
        number less a multiple of the tick.
"""

from heapq import heappop, heappush

from frontier_mock.serving.schedulers.decode_set import DecodeSet
from frontier_mock.serving.schedulers.sglang_admission import CLIP_MAX_NEW_TOKENS
from frontier_mock.serving.sequence import DECODE, Sequence


class RunningBatch(DecodeSet):
    """Members by rid; those counted take part in the next tick.

    A member that is not counted has its last token in flight. `joining` are those whose prompt is
    in the step decided last; `ends` is a heap of (tick, push, rid, sequence) over last tokens,
    outdated entries included.
    """

    __slots__ = (
        "_first_place",
        "_foresees",
        "_in_front",
        "_last_place",
        "_leaving",
        "_long",
        "_num_fixed",
        "_num_open",
        "_owed_fixed",
        "_owed_open",
        "_pushes",
        "ends",
        "joining",
        "members",
    )

    def __init__(self, page_size: int, foresees: bool) -> None:
        """`foresees`: ends by length cap are known a step ahead, and have to be."""
        super().__init__(page_size)
        self._foresees = foresees
        self.members: dict[int, Sequence] = {}
        self.joining: list[Sequence] = []
        self._in_front = False
        self._first_place = 0
        self._last_place = 0
        self._leaving: dict[int, list[Sequence]] = {}
        self.ends: list[tuple[int, int, int, Sequence]] = []
        self._pushes = 0
        self._owed_fixed = 0
        self._num_fixed = 0
        self._owed_open = 0
        self._num_open = 0
        self._long: dict[int, Sequence] = {}

    def start(self, seq: Sequence, step: int, number: int) -> None:
        """The last chunk of `seq` is in step `number`; `step` is its tick, or the next one."""
        seq.state = DECODE
        seq.prefill = number
        seq.first_step = step
        left = seq.output_tokens - seq.base
        # What is computed together with decodes goes before them in the batch.
        self._in_front = number == step
        if number == step:
            seq.offset = seq.goal - step
            self.set_finish(seq, step + left - 1)
        else:
            seq.offset = seq.goal + 1 - step
            if left > 1:
                self.set_finish(seq, step + left - 2)
            else:
                # It ends with this step, not with a tick.
                seq.finish_step = step - 1
        self.joining.append(seq)

    def set_finish(self, seq: Sequence, step: int) -> None:
        """Its last token will be that of tick `step`."""
        self._push_end(seq, step, self._foresees and not seq.stops_early)

    def _push_end(self, seq: Sequence, step: int, foreseen: bool) -> None:
        seq.finish_step = step
        self._pushes += 1
        # Ends of one tick come in batch order; a joining sequence's place is not known yet.
        heappush(self.ends, (step, self._pushes, seq.rid, seq))
        if foreseen:
            self._leaving.setdefault(step, []).append(seq)

    def roll(self, step: int) -> bool:
        """Bring the batch from the step decided last to the one about to be decided.

        True if somebody joined an empty batch, or its front.
        """
        if self._leaving:
            for seq in self._leaving.pop(step - 1, ()):
                if seq.counted and seq.finish_step == step - 1:
                    self.uncount(seq)
        joining = self.joining
        if not joining:
            return False
        renewed = self._in_front or not self.members
        if self._in_front:
            self._first_place -= len(joining)
            place = self._first_place
        else:
            place = self._last_place
            self._last_place += len(joining)
        for seq in joining:
            if seq.state == DECODE:
                seq.place = place
                self._join(seq, self._takes_part(seq, step))
            place += 1
        joining.clear()
        return renewed

    def _takes_part(self, seq: Sequence, step: int) -> bool:
        """Whether a sequence that joins is in tick `step`.

        One whose last token is in flight already has no tick left, if that is foreseen.
        """
        return not self._foresees or seq.stops_early or seq.finish_step >= step

    def next_finish(self) -> int | None:
        """The earliest tick in which some sequence produces its last token."""
        ends = self.ends
        while ends:
            step, _, _, seq = ends[0]
            # What ended in a tick before it was retracted may now end with the prefill before it.
            if seq.finish_step == step >= seq.first_step and seq.state == DECODE:
                return step
            heappop(ends)
        return None

    def pop_ended(self, step: int) -> list[Sequence]:
        """Those whose last token was that of tick `step`, in batch order.

        An end that was set twice is there twice.
        """
        ended = []
        while self.next_finish() == step:
            ended.append(heappop(self.ends)[3])
        if len(ended) > 1:
            ended.sort(key=lambda seq: seq.place)
        return ended

    def context(self, seq: Sequence, last_scheduled: int) -> int:
        """Tokens of `seq` that have a place in the cache, as of the last tick decided."""
        if seq.counted:
            return seq.offset + max(last_scheduled, seq.first_step - 1)
        return seq.goal if seq.finish_step < seq.first_step else seq.offset + seq.finish_step

    def known(self, seq: Sequence, context: int) -> int:
        """Of those, tokens whose content is known when `seq` ends."""
        return context

    def room_of(self, step: int) -> int:
        """Pages that must be free, or freed, before tick `step` takes its own."""
        return self.num_decodes

    def _join(self, seq: Sequence, counted: bool) -> None:
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
