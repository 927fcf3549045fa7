"""How steps are numbered.

Steps are numbered by *decode ticks*: step `s` is the one in which every running decode produces a
token, and a decode has one token per tick whatever happens between ticks. A step that computes
prompts only, while the decodes wait, does not advance the tick; such steps are numbered apart, from
PREFILL_STEP on, and only the first tokens they produce refer to them. So a sequence's tokens stay a
few runs of consecutive numbers however often its decoding is interrupted. Engines with pipeline
stages have several such lines of steps, called lanes.
"""

from typing import Final

PREFILL_STEP: Final = 1 << 60
"""Steps without decodes are numbered from here on, in the order in which they execute."""

LANE_BITS: Final = 48
"""With pipeline stages the batches in flight take turns, and each such *lane* has numbers of its
own, from `lane << LANE_BITS` on: in them, too, a decode has one token per tick."""


def lane_of(step: int) -> int:
    """The lane whose step this is; 0 where there is but one."""
    return step >> LANE_BITS
