"""SGLang's running batch under speculative decoding: as `sglang_batch`, with a course for each.

Rule 1. A verification computes as many tokens of every sequence, whatever is left of its output.
Rule 2. Before a tick a sequence has pages for what is committed and a reserve beyond that, twice
        what one verification may need, since with overlap the one in flight is not seen yet. What
        is rejected is not given back before the sequence ends; it is written over.
Rule 3. With overlap a sequence is left out of a tick if the one in flight is sure to reach its cap,
        accepting nothing; else it takes part in one tick too many.

Source: SGLang 0.5.23, mem_cache/allocation_sizing.py, managers/scheduler.py
(_reqs_finishing_inflight) and scheduler_components/batch_result_processor.py.
"""

from frontier_mock.serving.schedulers.drafted_set import UNBOUNDED, BySums, DraftedSet, Ints
from frontier_mock.serving.schedulers.sglang_admission import CLIP_MAX_NEW_TOKENS
from frontier_mock.serving.schedulers.sglang_batch import RunningBatch
from frontier_mock.serving.sequence import DECODE, Sequence
from frontier_mock.serving.speculation import (
    Course,
    Progress,
    SpeculationSpec,
    Stretch,
    sglang_course,
)


class DraftedBatch(BySums, RunningBatch):
    """Members, each with its course.

    `kv_offset` is no sum here but a number that changes whenever the set does.
    """

    __slots__ = ("_ahead", "_spec", "_sums")

    def __init__(self, page_size: int, foresees: bool, ahead: bool, spec: SpeculationSpec) -> None:
        """`ahead`: with overlap; the rest as for `RunningBatch`."""
        super().__init__(page_size, foresees)
        self._ahead = ahead
        self._spec = spec
        self._sums = DraftedSet()

    def start(self, seq: Sequence, step: int, number: int) -> None:
        """The last chunk of `seq` is in step `number`; `step` is its tick, or the next one."""
        seq.state = DECODE
        seq.prefill = number
        seq.first_step = step
        self._in_front = number == step
        progress = seq.progress
        if progress is None:
            progress = seq.progress = Progress(self._spec)
        progress.origin = int(number != step)
        course = progress.course = sglang_course(
            self._spec,
            Stretch(
                rid=seq.rid,
                goal=seq.goal,
                left=seq.output_tokens - seq.base,
                cap_left=seq.submit.max_tokens - seq.base,
                longest=UNBOUNDED,
                verified=progress.verified,
                ahead=self._ahead,
            ),
        )
        finish = step + course.finish - progress.origin
        if course.finish >= progress.origin:
            self.set_finish(seq, finish)
        else:
            # It ends with this step, not with a tick.
            seq.finish_step = finish
        self.joining.append(seq)

    def set_finish(self, seq: Sequence, step: int) -> None:
        """Its last token will be that of tick `step`."""
        foreseen = not seq.aborted and self._last(seq) == step
        self._push_end(seq, step, foreseen and self._foresees)

    def _takes_part(self, seq: Sequence, step: int) -> bool:
        """Whether a sequence that joins is in tick `step`."""
        return not self._foresees or self._last(seq) >= step

    def _last(self, seq: Sequence) -> int:
        """The last tick that computes anything for `seq`, wanted or not."""
        course, origin = _course(seq)
        return seq.first_step + course.last - origin

    def count(self, seq: Sequence) -> None:
        """`seq` decodes from the next tick on."""
        seq.counted = True
        self.num_decodes += 1
        self.kv_offset += 1
        self._sums.add(self.decided + 1, self._rows(seq, self.decided + 1))

    def uncount(self, seq: Sequence) -> None:
        """`seq` decodes no more, in whatever tick is not decided yet."""
        seq.counted = False
        self.num_decodes -= 1
        self.kv_offset += 1
        self._sums.add(self.decided + 1, self._rows(seq, self.decided + 1), -1)

    def _rows(self, seq: Sequence, step: int) -> tuple[Ints, Ints, Ints]:
        """Widths, contexts and new pages of `seq` from tick `step` on."""
        course, origin = _course(seq)
        i = step - seq.first_step + origin
        held = -(-course.slots[i - 1 :] // self._block)
        return course.widths[i:], course.contexts[i:], held[1:] - held[:-1]

    def context(self, seq: Sequence, last_scheduled: int) -> int:
        """Tokens of `seq` that have a place in the cache, as of the last tick decided."""
        course, origin = _course(seq)
        i = last_scheduled - seq.first_step + origin
        return int(course.slots[min(max(i, 0), course.last)])

    def known(self, seq: Sequence, context: int) -> int:
        """Of those, tokens whose content is known when `seq` ends."""
        course, origin = _course(seq)
        i = seq.finish_step - seq.first_step + origin
        return int(course.known[max(i, 0)])

    def room_of(self, step: int) -> int:
        """Pages that must be free, or freed, before tick `step` takes its own."""
        return self.blocks_of(step)

    def promised(self, done: int, ratio: float) -> float:
        """Output that members may still produce after tick `done`, in tokens.

        Each counts at most CLIP_MAX_NEW_TOKENS, and those that may end early only `ratio` of it.
        """
        fixed = open_ended = 0
        for seq in self.members.values():
            owed = min(seq.max_new - seq.produced_by(done), CLIP_MAX_NEW_TOKENS)
            if seq.fixed_length:
                fixed += owed
            else:
                open_ended += owed
        return fixed + open_ended * ratio

    def roll(self, step: int) -> bool:
        """Bring the batch from the step decided last to the one about to be decided."""
        self.forget_seen(step)
        return super().roll(step)


def _course(seq: Sequence) -> tuple[Course, int]:
    """Its course, and the step of it that its first tick is."""
    progress = seq.progress
    assert progress is not None
    assert progress.course is not None
    return progress.course, progress.origin
