"""SGLang's new-token ratio: how much of their maximum output running requests are promised.

It starts at INIT times `--schedule-conservativeness` (at most 1), falls in a straight line to
MIN_FACTOR of that within DECAY_STEPS decode steps, is set from what requests really produced when a
retraction shows it was too low, and starts again when the engine is idle.

Source: SGLang 0.5.23, managers/scheduler_components/new_token_ratio_tracker.py and environ.py.
"""

from typing import Final

INIT: Final = 0.7
MIN_FACTOR: Final = 0.14
DECAY_STEPS: Final = 600

RETRACT_DECODE_STEPS: Final = 20
"""Decode steps that each request which stays should get through (SGLANG_RETRACT_DECODE_STEPS)."""


class NewTokenRatio:
    """The ratio as a closed form: an anchor and the decode steps since, whatever they came in."""

    __slots__ = ("_anchor", "_steps", "decay_per_step", "init", "min")

    def __init__(self, conservativeness: float) -> None:
        self.init = min(INIT * conservativeness, 1.0)
        self.min = min(self.init * MIN_FACTOR, 1.0)
        self.decay_per_step = (self.init - self.min) / DECAY_STEPS
        self._anchor = self.init
        self._steps = 0

    @property
    def current(self) -> float:
        """The ratio now."""
        if not self._steps:
            return self._anchor
        return max(self._anchor - self._steps * self.decay_per_step, self.min)

    def decay(self, steps: int) -> None:
        """`steps` decode steps were decided without a retraction."""
        self._steps += steps

    def reset(self) -> None:
        """Back to the start: the engine is idle."""
        self._anchor = self.init
        self._steps = 0

    def retracted(self, output_tokens: int, max_new_tokens: int, requests: int) -> None:
        """Set it from the requests that stayed: their output so far and their maximum output."""
        expected = output_tokens + RETRACT_DECODE_STEPS * requests
        self._anchor = min(1.0, expected / (max_new_tokens + 1))
        self._steps = 0
