"""When vLLM lets prompts into steps, if not into every one (`--prefill-schedule-interval`).

With an interval above 1 prompts wait while decodes run, until that many steps have passed since the
last step with a prompt in it, or the waiting queue has not been emptied by it.

Source: vLLM 0.33.0, v1/core/sched/scheduler.py; specs/vllm.md section 8.
"""


class PrefillPace:
    """`deferring` says whether prompts wait in the step being scheduled. `paced`: ever at all."""

    __slots__ = ("_bound", "_interval", "_last", "deferring", "paced")

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._last = -interval
        self._bound = False
        self.paced = interval > 1
        self.deferring = False

    def begin(self, step: int, decodes_run: bool) -> None:
        """A step is about to be scheduled; `decodes_run`: some prompt is computed already."""
        self.deferring = not self._bound and step - self._last < self._interval and decodes_run

    def prefilled(self, step: int) -> None:
        """There is a prompt in `step`."""
        self._last = step

    def end(self, waiting: int) -> None:
        """A step that deferred nothing is scheduled, and so many sequences still wait."""
        self._bound = waiting > 0
