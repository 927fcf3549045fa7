"""vLLM's decodes under speculative decoding: as `vllm_decodes`, with a course for each.

Rule 1. A sequence takes part in the steps of its course with as many tokens as that says, and
        needs slots for what is in flight and for the drafter's own keys and values.
Rule 2. A step that has not the budget for all tokens of a sequence computes fewer of its drafts;
        the course is planned again from there.
Rule 3. With async scheduling an end is foreseen only if the step in flight is sure to bring it.

Source: vLLM 0.33.0, v1/core/sched/scheduler.py and async_scheduler.py.
"""

from heapq import heappush

from frontier_mock.serving.schedulers.drafted_set import BySums, DraftedSet, Ints
from frontier_mock.serving.schedulers.vllm_decodes import Decodes
from frontier_mock.serving.sequence import DECODE, Sequence
from frontier_mock.serving.speculation import (
    Course,
    Progress,
    SpeculationSpec,
    Stretch,
    vllm_course,
)


class DraftedDecodes(BySums, Decodes):
    """The sequences whose prompt is computed, each with its course.

    `kv_offset` is no sum here but a number that changes whenever the set does.
    """

    __slots__ = ("_longest", "_spec", "_sums")

    def __init__(self, block: int, foresees: bool, longest: int, spec: SpeculationSpec) -> None:
        """`longest` is the context that a sequence may have; the rest as for `Decodes`."""
        super().__init__(block, foresees)
        self._longest = longest
        self._spec = spec
        self._sums = DraftedSet(spec.extra_slots)

    def start(self, seq: Sequence, step: int, padding: int = 0) -> None:
        """The prefill of `seq` completes in `step`: its next token ends that step.

        `padding` are tokens computed beside it for drafts that nobody made.
        """
        seq.state = DECODE
        seq.first_step = step
        if seq.progress is None:
            seq.progress = Progress(self._spec)
        seq.progress.caps = {}
        seq.progress.padding = padding
        self._plan(seq)
        if self.last_step(seq) > step:
            self.joining.append(seq)

    def _plan(self, seq: Sequence) -> None:
        progress = seq.progress
        assert progress is not None
        stretch = Stretch(
            rid=seq.rid,
            goal=seq.goal,
            left=seq.output_tokens - seq.base,
            cap_left=seq.submit.max_tokens - seq.base,
            longest=self._longest,
            verified=progress.verified,
            ahead=self._foresees,
            padding=progress.padding,
        )
        course = progress.course = vllm_course(self._spec, stretch, progress.caps)
        seq.finish_step = seq.first_step + course.finish
        heappush(self.ends, (seq.finish_step, seq.place, seq))
        if self._foresees and course.last == course.finish:
            self.leaving.setdefault(seq.finish_step, []).append(seq)

    def last_step(self, seq: Sequence) -> int:
        """The last step that computes a token for `seq`, wanted or not."""
        return seq.first_step + _course(seq).last

    def count(self, seq: Sequence) -> None:
        """`seq` decodes from the next step on."""
        seq.counted = True
        self.num_decodes += 1
        self.kv_offset += 1
        self._sums.add(self.decided + 1, self._rows(seq, self.decided + 1))

    def uncount(self, seq: Sequence) -> None:
        """`seq` decodes no more, in whatever step is not decided yet."""
        seq.counted = False
        self.num_decodes -= 1
        self.kv_offset += 1
        self._sums.add(self.decided + 1, self._rows(seq, self.decided + 1), -1)

    def _rows(self, seq: Sequence, step: int) -> tuple[Ints, Ints, Ints]:
        """Widths, contexts and new blocks of `seq` from `step` on."""
        course = _course(seq)
        i = step - seq.first_step
        held = -(-course.slots[i - 1 :] // self._block)
        return course.widths[i:], course.contexts[i:], held[1:] - held[:-1]

    def wants(self, seq: Sequence, step: int) -> tuple[int, int]:
        """(tokens, new blocks) that `seq` needs in `step`."""
        i = step - seq.first_step
        if not seq.counted or i > _course(seq).last:
            return 0, 0
        widths, _, blocks = self._rows(seq, step)
        return int(widths[0]), int(blocks[0])

    def narrow(self, seq: Sequence, step: int, tokens: int) -> None:
        """`seq` computes only `tokens` tokens in `step`, and decodes on from there."""
        progress = seq.progress
        assert progress is not None
        self.uncount(seq)
        progress.caps[step - seq.first_step] = tokens
        self._plan(seq)
        self.count(seq)

    def hold_back(self, seq: Sequence, step: int) -> None:
        """`seq` gets nothing in `step`: it repeats its turn in the next one."""
        self.narrow(seq, step, 0)

    def slots(self, seq: Sequence, step: int) -> int:
        """Tokens of `seq` that have their place once `step` is decided."""
        course = _course(seq)
        return int(course.slots[min(step - seq.first_step, course.last)])

    def known(self, seq: Sequence, had_turn: bool) -> int:
        """Tokens of `seq` whose content is known when it has to go before it is done."""
        course = _course(seq)
        i = self.decided - seq.first_step - self._foresees
        if i < 0:
            return seq.goal
        return int(course.known[min(i, course.finish)]) + had_turn

    def known_at_abort(self, seq: Sequence) -> int:
        """The same when `seq` is aborted, before the output of the step that has just ended.

        When the next step was decided, the newest token known had its place in that step.
        """
        course = _course(seq)
        i = self.decided - seq.first_step - 1 - self._foresees
        return seq.goal if i < 0 else int(course.known[min(i, course.finish)]) + 1

    def known_at_end(self, seq: Sequence) -> int:
        """The same when `seq` has produced its last token."""
        course = _course(seq)
        return int(course.known[course.finish])

    def roll(self, step: int) -> None:
        """Bring the set from `step - 1` to `step`."""
        self.forget_seen(step)
        # A course that was narrowed may end with the same step and go on for another.
        for seq in self.leaving.pop(step - 1, ()):
            if seq.counted and self.last_step(seq) == step - 1:
                self.uncount(seq)
        super().roll(step)


def _course(seq: Sequence) -> Course:
    assert seq.progress is not None
    assert seq.progress.course is not None
    return seq.progress.course
