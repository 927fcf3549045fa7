"""How steps are numbered.

Steps are numbered by *decode ticks*: step `s` is the one in which every running decode produces a
token, and a decode has one token per tick whatever happens between ticks. A step that computes
prompts only, while the decodes wait, does not advance the tick; such steps are numbered apart, from
PREFILL_STEP on, and only the first tokens they produce refer to them. So a sequence's tokens stay a
few runs of consecutive numbers however often its decoding is interrupted.
"""

from typing import Final

PREFILL_STEP: Final = 1 << 60
"""Steps without decodes are numbered from here on, in the order in which they execute."""
