"""Log-probabilities as the engines' protobuf messages carry them: figures without text.

The figures are those of the HTTP routes (`wire.logprobs`), so the same tokens have the same ones on
either wire.
"""

from collections.abc import Sequence
from typing import NamedTuple

from frontier_mock.wire.generation import LogprobsPlan
from frontier_mock.wire.logprobs import Candidate, candidates
from frontier_mock.wire.text import TextRing


class Position(NamedTuple):
    """One token: its own figures, and the candidates the client asked to see beside it."""

    token: Candidate
    candidates: Sequence[Candidate]


def positions(
    ids: Sequence[int], first: int, plan: LogprobsPlan, top: int, ring: TextRing
) -> list[Position]:
    """Figures of tokens `ids`, which begin at position `first`; `top` candidates each, -1: all."""
    found = []
    for i, token_id in enumerate(ids):
        made = candidates(token_id, first + i, plan, top, ring)
        shown = made if plan.token_ids or top == -1 else made[:top]
        found.append(Position(made[0], shown))
    return found
