"""Who has to go: SGLang's order of retraction, and whom a higher priority may displace.

Source: SGLang 0.5.23, managers/schedule_batch.py (_get_decode_retraction_order) and
schedule_policy.py (preempt_to_schedule).
"""

from collections.abc import Iterable

from frontier_mock.serving.schedulers.sglang_admission import CLIP_MAX_NEW_TOKENS, Admission
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec


def keep_order(running: Iterable[Sequence], spec: SglangSchedulerSpec, done: int) -> list[Sequence]:
    """The running batch, who is kept longest first; `done` is the last tick seen.

    By priority if the policy says so, then by most output, then by the shortest prompt; equals as
    they stand in the batch.
    """
    sign = -1 if spec.schedule_low_priority_values_first else 1
    by_priority = spec.retraction_policy == "priority"

    def worth(seq: Sequence) -> tuple[int, int, int]:
        rank = sign * seq.priority if by_priority else 0
        return rank, seq.produced_by(done), -seq.prompt_tokens

    order = sorted(running, key=lambda seq: seq.place)
    order.sort(key=worth, reverse=True)
    return order


def preemptible(
    seq: Sequence,
    running: Iterable[Sequence],
    spec: SglangSchedulerSpec,
    batch: Admission,
    ratio: float,
    done: int,
) -> list[tuple[Sequence, float]]:
    """Running requests to retract so that `seq` fits, each with the output promised to it.

    Only those whose priority is lower by more than the threshold, the lowest and latest first;
    empty if they do not suffice.
    """
    sign = 1 if spec.schedule_low_priority_values_first else -1
    missing = seq.goal - seq.computed + min(seq.max_new, CLIP_MAX_NEW_TOKENS) - batch.rem_total
    victims: list[tuple[Sequence, float]] = []
    for other in sorted(running, key=lambda one: (-sign * one.priority, -one.entered)):
        gap = -sign * (seq.priority - other.priority)
        if gap <= spec.priority_scheduling_preemption_threshold:
            break
        left = min(other.max_new - other.produced_by(done), CLIP_MAX_NEW_TOKENS)
        owed = left * (1.0 if other.fixed_length else ratio)
        victims.append((other, owed))
        missing -= owed
        if missing <= 0:
            return victims
    return []
