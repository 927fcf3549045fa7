"""The families that speculative decoding adds to vLLM's /metrics (0.33, v1/spec_decode/metrics.py).

Sequences are counted when they end; what those that go on have done so far comes with a scrape.
"""

from collections.abc import Iterable

from frontier_mock.core.events import Drafted, Event
from frontier_mock.wire.prometheus import Counter, Labels


class DraftMetrics:
    """The families of one engine that verifies `num_drafts` drafts a step."""

    def __init__(self, labels: Labels, created_s: float | None, num_drafts: int) -> None:
        def counter(name: str, text: str, children: list[Labels]) -> Counter:
            return Counter(f"vllm:spec_decode_{name}", text, children, created_s)

        positions: list[Labels] = [{**labels, "position": str(i)} for i in range(num_drafts)]
        self._families = (
            counter("num_drafts", "Number of spec decoding drafts.", [labels]),
            counter("num_draft_tokens", "Number of draft tokens.", [labels]),
            counter("num_accepted_tokens", "Number of accepted tokens.", [labels]),
            counter(
                "num_accepted_tokens_per_pos", "Accepted tokens per draft position.", positions
            ),
        )
        self._draft_tokens = 0
        self._steps = [0] * (num_drafts + 1)

    def fold(self, event: Event) -> None:
        """Take one event of this engine into account."""
        if isinstance(event, Drafted):
            self._draft_tokens += event.draft_tokens
            self._steps = _sums(self._steps, event.accepted_steps)

    def render(self, live: Iterable[tuple[tuple[int, ...], int]]) -> bytes:
        """The exposition; `live` has (accepted steps, draft tokens) of each unfinished sequence."""
        steps, draft_tokens = self._steps, self._draft_tokens
        for more_steps, more_tokens in live:
            steps = _sums(steps, more_steps)
            draft_tokens += more_tokens
        per_position = [float(sum(steps[position:])) for position in range(1, len(steps))]
        drafts, tokens, accepted, positions = self._families
        for family, value in ((drafts, sum(steps)), (tokens, draft_tokens)):
            family.values[0] = max(family.values[0], float(value))
        accepted.values[0] = max(accepted.values[0], sum(per_position))
        positions.values[:] = [
            max(pair) for pair in zip(positions.values, per_position, strict=True)
        ]
        return "".join(family.render() for family in self._families).encode()


def _sums(one: list[int], other: Iterable[int]) -> list[int]:
    return [mine + theirs for mine, theirs in zip(one, other, strict=True)]
