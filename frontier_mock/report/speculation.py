"""What speculative decoding came to: `result["speculation"]`.

All figures are of measured requests that ended, as they count in vLLM's and SGLang's metrics: a
verification whose last tokens went over a request's cap has accepted them.
"""

from collections.abc import Iterable, Sequence
from typing import TypedDict

from frontier_mock.core.events import Drafted, Event


class SpeculationStats(TypedDict):
    """`acceptance_length` is tokens per verification, the one that needs no draft included.

    `accepted_per_position[i]` is the share of verifications in which draft i was accepted, and all
    before it.
    """

    verifications: int
    draft_tokens: int
    accepted_tokens: int
    acceptance_length: float
    acceptance_rate: float
    accepted_per_position: list[float]


def speculation_stats(
    events: Iterable[Event], measured: Sequence[bool] | None
) -> SpeculationStats | None:
    """Add up the drafts of a log; None if there were none. `measured` is by rid, None: all are."""
    steps: list[int] = []
    draft_tokens = 0
    for event in events:
        if not isinstance(event, Drafted):
            continue
        if event.rid < 0 or (measured is not None and not measured[event.rid]):
            continue
        steps += [0] * (len(event.accepted_steps) - len(steps))
        for accepted, times in enumerate(event.accepted_steps):
            steps[accepted] += times
        draft_tokens += event.draft_tokens
    verifications = sum(steps)
    if not verifications:
        return None
    accepted_tokens = sum(accepted * times for accepted, times in enumerate(steps))
    return SpeculationStats(
        verifications=verifications,
        draft_tokens=draft_tokens,
        accepted_tokens=accepted_tokens,
        acceptance_length=1 + accepted_tokens / verifications,
        acceptance_rate=accepted_tokens / draft_tokens,
        accepted_per_position=[
            sum(steps[position:]) / verifications for position in range(1, len(steps))
        ],
    )
