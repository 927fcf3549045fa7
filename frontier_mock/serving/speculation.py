"""Speculative decoding: how many drafts are accepted, and what a sequence makes of each step. PURE.

Theory of operation.

Rule 1. How many drafts of a sequence's v-th verification are accepted is drawn once, from a stream
        named after the request: neither the batch it is in nor the clock changes it. A preemption
        goes on where it was interrupted.
Rule 2. Rates are vLLM's unconditional ones: `rates[i]` is the probability that the first i + 1
        drafts are all accepted. One uniform number u decides a verification: as many drafts are
        accepted as there are rates above u, which has that distribution.
Rule 3. Everything else about a stretch of decoding follows from its draws and the engine's rules,
        whatever the batch: which step computes how many tokens, what it produces, the slots it
        needs, the step it ends with. That is the sequence's `Course`, made when its prompt is done.
Rule 4. A verification that goes over the cap is cut there: the accepted drafts count as accepted,
        the tokens are not delivered (vLLM 0.33 and SGLang 0.5.23 trim likewise).

Sources: vLLM 0.33.0 config/speculative.py, v1/core/sched/scheduler.py and async_scheduler.py;
SGLang 0.5.23 mem_cache/allocation_sizing.py, speculative/eagle_utils.py.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frontier_mock.core.events import Drafted
from frontier_mock.rng import stream
from frontier_mock.simtime import SimTime

Ints = NDArray[np.int64]

_BLOCK: Final = 64
"""Verifications drawn at a time, at least."""


@dataclass(frozen=True, slots=True)
class SpeculationSpec:
    """What the scheduler is told about drafts.

    `num_drafts` tokens are proposed for a verification and `rates[i]` is the probability that the
    first i + 1 of them are all accepted. `proposed` is the share of steps in which there is
    anything to propose (n-gram look-up finds no match in the others). `lookahead` slots beyond
    those of a step are the drafter's, who writes its own keys and values there (vLLM);
    `extra_slots` of the step's token budget go to the drafter for each sequence (vLLM's draft
    models: 1). `reserve` is what SGLang keeps allocated beyond the committed context, in tokens,
    and `width` how many tokens of a sequence it verifies, 0 for one more than the drafts.
    """

    num_drafts: int
    rates: tuple[float, ...]
    seed: int = 0
    proposed: float = 1.0
    lookahead: int = 0
    extra_slots: int = 0
    reserve: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for rates that are no probabilities of such events."""
        if len(self.rates) != self.num_drafts:
            raise ValueError(f"{self.num_drafts} drafts need as many rates, not {self.rates}")
        bounds = (1.0, *self.rates, 0.0)
        if any(after > before for before, after in pairwise(bounds)):
            raise ValueError(f"rates must fall from at most 1 to at least 0: {self.rates}")

    @property
    def acceptance_length(self) -> float:
        """Mean tokens of a verification, the one that needs no draft included."""
        return 1.0 + sum(self.rates)


class Draws(NamedTuple):
    """Verifications of one request, in order: drafts proposed, and how many were accepted."""

    proposed: Ints
    accepted: Ints


def draws(spec: SpeculationSpec, rid: int, count: int) -> Draws:
    """The first `count` verifications of request `rid`, or more."""
    size = _BLOCK
    while size < count:
        size *= 2
    return _drawn(spec, rid, size)


@lru_cache(maxsize=256)
def _drawn(spec: SpeculationSpec, rid: int, count: int) -> Draws:
    """`count` verifications: rows of a stream, so that more of them begin with the same."""
    uniform = stream(spec.seed, f"speculation/{rid}").random((count, 2))
    rising = np.array(spec.rates[::-1])
    # Rates above u, and not at it: a rate of 0 is never met, one of 1 always.
    accepted = spec.num_drafts - np.searchsorted(rising, uniform[:, 0], side="right")
    proposed = np.where(uniform[:, 1] < spec.proposed, spec.num_drafts, 0)
    return Draws(proposed, np.minimum(accepted, proposed))


class Course(NamedTuple):
    """One stretch of a sequence's decoding, by steps counted from that of its last prompt chunk.

    `made[i]` tokens are delivered by the end of step i. Step i computes `widths[i]` tokens, 0 if
    the sequence sits it out, over a context of `contexts[i]` tokens, those computed included;
    `slots[i]` tokens have their place once it has been decided, and `known[i]` are computed and
    verified when it has ended. Of `proposed[i]` drafts `accepted[i]` are. Step `finish` delivers
    the last token; `last` is the last one that the sequence takes part in.
    """

    finish: int
    last: int
    made: Ints
    widths: Ints
    contexts: Ints
    slots: Ints
    known: Ints
    proposed: Ints
    accepted: Ints


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a course depends on besides its draws.

    Of the request `rid`, `goal` tokens are computed with the prompt (they are its prompt and what
    it had before), `left` tokens are to come and `cap_left` would be allowed; its context may be
    `longest` tokens. `verified` of its draws are used up. `ahead`: a step is decided before the
    output of the one before it is seen. `padding` more tokens than the prompt's are computed in the
    first step, for drafts that nobody made and nobody accepts.
    """

    rid: int
    goal: int
    left: int
    cap_left: int
    longest: int
    verified: int
    ahead: bool
    padding: int = 0


class _Made(NamedTuple):
    """What is made by a sequence that nothing narrows: the same for both engines.

    `before` is what has been made before each step, `made` by its end.
    """

    finish: int
    last: int
    before: Ints
    made: Ints
    proposed: Ints
    accepted: Ints


def vllm_course(spec: SpeculationSpec, stretch: Stretch, caps: dict[int, int]) -> Course:
    """vLLM's rules. `caps` are the tokens that the budget left it, in some of the steps.

    No step computes positions beyond the model's length, whatever of what is in flight may be
    accepted. Under async scheduling a sequence is left out of a step if the one in flight is sure
    to reach its cap, accepting nothing; else it occupies one step after its last.
    """
    reach = stretch.goal + stretch.left + 3 * (spec.num_drafts + 1)
    if caps or reach >= stretch.longest:
        return _walk(spec, stretch, caps)
    return _straight(spec, stretch)


def sglang_course(spec: SpeculationSpec, stretch: Stretch) -> Course:
    """SGLang's rules: slots for what is committed, as far as that is known, and `reserve` more."""
    goal = stretch.goal
    finish, last, before, made, proposed, accepted = _make(spec, stretch)
    widths = np.full(last + 1, spec.width or spec.num_drafts + 1)
    contexts = goal - 1 + before + widths
    contexts[0] = widths[0] = 0
    committed = goal + before + accepted
    # Decided before the output of the step before it, and with overlap of the one before that.
    seen = np.concatenate(([goal] * (1 + stretch.ahead), committed[: -1 - stretch.ahead]))
    slots = seen[: last + 1] + spec.reserve
    slots[0] = goal
    slots = np.maximum.accumulate(slots)
    known = np.minimum(committed, goal + made)
    return Course(finish, last, made, widths, contexts, slots, known, proposed, accepted)


def _make(spec: SpeculationSpec, stretch: Stretch) -> _Made:
    """What the sequence makes, step by step."""
    left = stretch.left
    count = int(left / spec.acceptance_length * 1.25) + 8
    while True:
        drawn = draws(spec, stretch.rid, stretch.verified + count)
        proposed, accepted = drawn.proposed[stretch.verified :], drawn.accepted[stretch.verified :]
        total = np.concatenate(([0, 1], 1 + np.cumsum(accepted + 1)))
        if total[-1] >= left:
            break
        count *= 2
    finish = int(np.searchsorted(total[1:], left))
    last = finish + int(stretch.ahead and total[finish] + 1 < stretch.cap_left)
    # Index i of `total` is what has been made before step i.
    total = np.minimum(total[: last + 2], left)
    return _Made(
        finish,
        last,
        before=total[:-1],
        made=total[1:],
        proposed=np.concatenate(([0], proposed[:last])),
        accepted=np.concatenate(([0], accepted[:last])),
    )


def _straight(spec: SpeculationSpec, stretch: Stretch) -> Course:
    """The course of a sequence that nothing narrows."""
    goal = stretch.goal
    finish, last, before, made, proposed, accepted = _make(spec, stretch)
    proposed[0] = stretch.padding
    widths = proposed + 1
    contexts = goal - 1 + before + widths
    slots = contexts
    if stretch.ahead:
        seen = np.concatenate(([0], before[:-1]))
        slots = goal - 1 + seen + widths + np.concatenate(([0], widths[:-1]))
    slots = np.minimum(slots + spec.lookahead, stretch.longest)
    slots[0] = min(goal + stretch.padding + spec.lookahead, stretch.longest)
    slots = np.maximum.accumulate(slots)
    known = goal - 1 + made
    contexts[0] = widths[0] = 0
    return Course(finish, last, made, widths, contexts, slots, known, proposed, accepted)


def _walk(spec: SpeculationSpec, stretch: Stretch, caps: dict[int, int]) -> Course:
    """The same step by step, where the model's length or the budget narrows some of them."""
    goal, left, longest, ahead = stretch.goal, stretch.left, stretch.longest, stretch.ahead
    drawn = draws(spec, stretch.rid, stretch.verified + left)
    made, widths, contexts, known = [1], [1 + stretch.padding], [0], [goal]
    slots = [min(goal + stretch.padding + spec.lookahead, longest)]
    proposed, accepted = [stretch.padding], [0]
    finish = 0 if left == 1 else -1
    row = stretch.verified
    while finish < 0 or (ahead and len(made) == finish + 1):
        i = len(made)
        flying = widths[-1] if ahead else 0
        seen = made[-1]
        if ahead:
            seen = made[-2] if i > 1 else 0
        computed = goal - 1 + seen + flying
        width = min(1 + int(drawn.proposed[row]), longest - computed - 1, caps.get(i, longest))
        if flying and seen + 1 >= stretch.cap_left:
            width = 0
        if finish >= 0 and width <= 0:
            break
        width = max(width, 0)
        drafts = max(width - 1, 0)
        taken = min(int(drawn.accepted[row]), drafts)
        row += width > 0 and row + 1 < len(drawn.proposed)
        contexts.append(goal - 1 + made[-1] + width if width else 0)
        slots.append(min(max(slots[-1], computed + width + spec.lookahead), longest))
        total = min(made[-1] + (1 + taken if width else 0), left)
        known.append(goal - 1 + total)
        made.append(total)
        widths.append(width)
        proposed.append(drafts)
        accepted.append(taken)
        if finish < 0 and total == left:
            finish = i
    widths[0] = 0
    columns = (made, widths, contexts, slots, known, proposed, accepted)
    return Course(finish, len(made) - 1, *(np.array(column, dtype=np.int64) for column in columns))


class Progress:
    """How far a sequence has come with its drafts.

    `bursts` are the tokens of each step of its spans. `accepted_steps[a]` verifications accepted
    `a` drafts, of `draft_tokens` verified in all; `verified` draws are used up. `course` is the
    present stretch, whose steps count from `origin`: 1 if its first token came with a step that is
    no decode tick. `caps` are what the budget left it in steps of this stretch, `padding` is that
    of its first.
    """

    __slots__ = (
        "accepted_steps",
        "bursts",
        "caps",
        "course",
        "draft_tokens",
        "origin",
        "padding",
        "verified",
    )

    def __init__(self, spec: SpeculationSpec) -> None:
        self.bursts = bytearray()
        self.accepted_steps = (0,) * (spec.num_drafts + 1)
        self.draft_tokens = 0
        self.verified = 0
        self.course: Course | None = None
        self.origin = 0
        self.caps: dict[int, int] = {}
        self.padding = 0

    def made_by(self, steps: int) -> int:
        """Tokens of the first `steps` steps of the present stretch."""
        course, origin = self.course, self.origin
        assert course is not None
        return int(course.made[origin + steps - 1]) - (int(course.made[0]) if origin else 0)

    def bursts_by(self, steps: int) -> bytes:
        """Tokens of each of the first `steps` steps of the present stretch."""
        course = self.course
        assert course is not None
        made = course.made[: self.origin + steps]
        return np.diff(made, prepend=0)[self.origin :].astype(np.uint8).tobytes()

    def close(self, steps: int) -> int:
        """The present stretch ends after `steps` steps; returns their tokens."""
        course = self.course
        assert course is not None
        self.bursts += self.bursts_by(steps)
        count = self.made_by(steps)
        self.accepted_steps, self.draft_tokens = self.so_far(steps)
        self.verified += int(np.count_nonzero(course.widths[1 : self.origin + steps]))
        self.course = None
        self.caps = {}
        return count

    def so_far(self, steps: int) -> tuple[tuple[int, ...], int]:
        """`accepted_steps` and `draft_tokens` with the first `steps` steps of this stretch."""
        course = self.course
        if course is None:
            return self.accepted_steps, self.draft_tokens
        ran = slice(0, self.origin + steps)
        drafts = course.proposed[ran]
        times = np.bincount(course.accepted[ran][drafts > 0], minlength=len(self.accepted_steps))
        sums = zip(self.accepted_steps, times.tolist(), strict=True)
        return tuple(had + more for had, more in sums), self.draft_tokens + int(drafts.sum())

    def first_token(self) -> None:
        """A step that is no decode tick brought one token, which is a span of its own."""
        self.bursts.append(1)

    def drop(self, steps: int) -> int:
        """Nobody will see the tokens of the last `steps` steps of all spans; how many those are."""
        cut = len(self.bursts) - steps
        tokens = sum(self.bursts[cut:])
        del self.bursts[cut:]
        return tokens


def drafted(t_ns: SimTime, worker: int, rid: int, progress: Progress) -> Drafted:
    """What the log says of a sequence that has ended."""
    bursts, steps = bytes(progress.bursts), progress.accepted_steps
    return Drafted(t_ns, worker, rid, bursts, steps, progress.draft_tokens)


def rates_of_length(length: float, num_drafts: int) -> tuple[float, ...]:
    """Rates with the mean acceptance length `length` and the least variance: vLLM's rule.

    As many drafts as `length` has whole tokens beyond the first are always accepted, the next one
    as often as is left, the others never. Raises ValueError for a length that cannot be.
    """
    if not 1.0 <= length <= num_drafts + 1:
        raise ValueError(f"must be in [1, {num_drafts + 1}], got {length}")
    sure = int(length - 1)
    rates = [1.0] * sure + [length - 1 - sure] + [0.0] * num_drafts
    return tuple(rates[:num_drafts])
