"""One sequence's state while the engine holds it."""

from frontier_mock.core.commands import Submit
from frontier_mock.serving.kv_cache import BlockTable
from frontier_mock.serving.radix_cache import RadixNode
from frontier_mock.serving.speculation import Progress
from frontier_mock.simtime import SimTime

FRONTEND = 0
WAITING = 1
PREFILL = 2
DECODE = 3
DRAINING = 4
"""Preempted after its last token was already in flight: it holds nothing and will finish."""
DONE = 5
RECEIVING = 6
"""It has blocks for its prompt and is not in the batch: their content is coming, or has come."""
SENDING = 7
"""Computed, and not over before another engine has its blocks (SGLang, LMCache)."""


class Sequence:
    """Mutable state of one Submit; the scheduler owns it.

    The current stretch of output began at `first_step` with `base` tokens before it; it has
    produced `step - first_step + 1` more by the end of `step`. `offset + step` is the context
    length in tokens, with the token being computed, of its decode in `step`. `place` orders the
    running list: it is the number of admissions before this sequence's latest.

    SGLang's scheduler also keeps: `max_new`, the cap on output by which admission reckons, and
    `fixed_length`, whether it is sure to be reached; `entered`, the place in line of the latest
    arrival in the waiting queue; `prefill`, the step in flight that will bring the next token, if
    that is not a decode; the radix tree's `node` locked, the `protected` blocks down to it and how
    many were ever `inserted`; and `aborted`, whether the next token is to be the last.

    `transfer` is how its prompt's KV gets elsewhere, or here; None if it does not, or no more.
    `pinned` is the context, in tokens, of a sequence that has ended and still has its blocks, 0
    else; `known_at` the step in whose decision the engine knows that the KV has come; `verdict` why
    it ends, if it is to end for another reason than its own. `arrived_ns` is when its front end got
    it. `progress` is what speculative decoding makes of its steps, None without: one token each.
    """

    __slots__ = (
        "aborted",
        "arrived_ns",
        "base",
        "cached_tokens",
        "computed",
        "counted",
        "entered",
        "finish_step",
        "first_step",
        "fixed_length",
        "goal",
        "held_blocks",
        "inserted",
        "keys",
        "known_at",
        "max_new",
        "node",
        "offset",
        "output_tokens",
        "pinned",
        "place",
        "preemptions",
        "prefill",
        "priority",
        "progress",
        "prompt_tokens",
        "protected",
        "rid",
        "spans",
        "state",
        "stops_early",
        "submit",
        "table",
        "transfer",
        "verdict",
        "worker",
    )

    def __init__(self, rid: int, submit: Submit, worker: int) -> None:
        self.rid = rid
        self.submit = submit
        self.worker = worker
        self.priority = submit.priority
        self.prompt_tokens = submit.prompt.num_tokens
        self.output_tokens = submit.output_tokens
        # Reaching the cap is foreseen by the scheduler even if the last token happens to be a stop.
        self.stops_early = (
            submit.finish_reason != "length" and submit.output_tokens < submit.max_tokens
        )
        self.state = FRONTEND
        self.place = 0
        self.goal = self.prompt_tokens
        self.computed = 0
        self.base = 0
        self.cached_tokens = -1
        self.preemptions = 0
        self.keys = b""
        self.table: BlockTable | None = None
        self.held_blocks = 0
        self.first_step = 0
        self.finish_step = 0
        self.offset = 0
        self.counted = False
        self.spans: list[tuple[int, int]] = []
        self.aborted = False
        self.entered = 0
        self.fixed_length = False
        self.max_new = submit.max_tokens
        self.prefill = 0
        self.node: RadixNode | None = None
        self.protected = 0
        self.inserted = 0
        self.transfer = submit.transfer
        self.pinned = 0
        self.known_at = 0
        self.arrived_ns: SimTime = 0
        self.verdict = ""
        self.progress: Progress | None = None

    def produced_by(self, step: int) -> int:
        """Output tokens after the end of `step`."""
        first = self.first_step
        if first == 0 or step < first:
            return self.base
        steps = min(step, self.finish_step) - first + 1
        return self.base + (steps if self.progress is None else self.progress.made_by(steps))

    def close_span(self, last_step: int) -> None:
        """End the current stretch of output with the token of `last_step`."""
        first = self.first_step
        if 0 < first <= last_step:
            count = last_step - first + 1
            self.spans.append((first, count))
            self.base += count if self.progress is None else self.progress.close(count)
        self.first_step = 0

    def drop_tokens_after(self, step: int) -> None:
        """Take back tokens of ended stretches that come after `step`: nobody will see them."""
        while self.spans and sum(self.spans[-1]) - 1 > step:
            first, count = self.spans.pop()
            kept = max(step - first + 1, 0)
            dropped = count - kept
            self.base -= dropped if self.progress is None else self.progress.drop(dropped)
            if kept:
                self.spans.append((first, kept))
