"""What a scheduler's own books say about its load: a fold over one worker's events.

Sums that /v1/loads and /metrics report and the engine does not keep: tokens that wait, the hit rate
of the last 15 seconds, how long prompts have been computed, and the rate of generation.
"""

from collections import deque
from collections.abc import Iterable
from operator import add
from typing import NamedTuple

from frontier_mock.core.events import (
    Drafted,
    Event,
    Finished,
    FirstToken,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.serving.gauges import Gauges
from frontier_mock.simtime import NS_PER_S, NS_PER_US, SimTime
from frontier_mock.wire.sglang.info import RankLoad

_WINDOW_NS = 15 * NS_PER_S
"""Window of `cache_hit_rate` (SGLang 0.5.23 metrics_reporter)."""

_RATE_NS = NS_PER_S
"""Least span that the rate of generation is taken over."""

_SAMPLES = 64


class _Open:
    """A sequence that has not ended: `waiting` tokens are what it has in the queue now."""

    __slots__ = ("computing", "prompt_tokens", "running", "waiting")

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.waiting = 0
        self.computing = False
        self.running = False


class _Sample(NamedTuple):
    t_ns: SimTime
    tokens: int


def added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Counts of accepted drafts, put together."""
    return tuple(map(add, one, other)) if one else other


class LoadFold:
    """The books of one worker. `fold` takes only that worker's events, in order."""

    __slots__ = (
        "_computing",
        "_computing_since_ns",
        "_hits",
        "_open",
        "_samples",
        "_window_hits",
        "_window_tokens",
        "accepted_steps",
        "finished_tokens",
        "prefill_busy_ns",
        "prefilled_tokens",
        "retracted",
        "running_prompt_tokens",
        "waiting_tokens",
    )

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._hits: deque[tuple[SimTime, int, int]] = deque()
        self._window_hits = 0
        self._window_tokens = 0
        self._samples: deque[_Sample] = deque([_Sample(0, 0)], maxlen=_SAMPLES)
        self._computing = 0
        self._computing_since_ns: SimTime = 0
        self.accepted_steps: tuple[int, ...] = ()
        self.finished_tokens = 0
        self.prefill_busy_ns = 0
        self.prefilled_tokens = 0
        self.retracted = 0
        self.running_prompt_tokens = 0
        self.waiting_tokens = 0

    def fold(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, Submitted):
            self._open[event.rid] = _Open(event.prompt_tokens)
            return
        if isinstance(event, Drafted):
            self.accepted_steps = added(self.accepted_steps, event.accepted_steps)
            return
        state = self._open.get(event.rid)
        if state is None:
            return
        if isinstance(event, Queued):
            self._wait(state, state.prompt_tokens)
        elif isinstance(event, Scheduled):
            self._admit(event, state)
        elif isinstance(event, FirstToken):
            self._computed(state, event.t_ns)
        elif isinstance(event, Preempted):
            self._computed(state, event.t_ns)
            self.retracted += 1
            self._stop(state)
            self._wait(state, state.prompt_tokens + event.output_tokens)
        elif isinstance(event, Finished | Rejected):
            del self._open[event.rid]
            self._computed(state, event.t_ns)
            self._stop(state)
            if state.waiting:
                self._leave_queue(state)
            if isinstance(event, Finished):
                self.finished_tokens += event.output_tokens

    def _wait(self, state: _Open, tokens: int) -> None:
        self.waiting_tokens += tokens - state.waiting
        state.waiting = tokens

    def _stop(self, state: _Open) -> None:
        if state.running:
            state.running = False
            self.running_prompt_tokens -= state.prompt_tokens

    def _leave_queue(self, state: _Open) -> None:
        self.waiting_tokens -= state.waiting
        state.waiting = 0

    def _admit(self, event: Scheduled, state: _Open) -> None:
        tokens = state.waiting
        if event.resumed:
            self.retracted -= bool(tokens)
        self._leave_queue(state)
        if not state.running:
            state.running = True
            self.running_prompt_tokens += state.prompt_tokens
        cached = event.cached_tokens
        self.prefilled_tokens += max(0, tokens - cached)
        self._hits.append((event.t_ns, cached, tokens))
        self._window_hits += cached
        self._window_tokens += tokens
        self._forget(event.t_ns)
        # Nothing says when a retracted sequence has been computed anew.
        if not state.computing and not event.resumed:
            state.computing = True
            if not self._computing:
                self._computing_since_ns = event.t_ns
            self._computing += 1

    def _computed(self, state: _Open, t_ns: SimTime) -> None:
        if not state.computing:
            return
        state.computing = False
        self._computing -= 1
        if not self._computing:
            self.prefill_busy_ns += max(0, t_ns - self._computing_since_ns)

    def _forget(self, now_ns: SimTime) -> None:
        hits = self._hits
        while hits and hits[0][0] < now_ns - _WINDOW_NS:
            _, cached, tokens = hits.popleft()
            self._window_hits -= cached
            self._window_tokens -= tokens

    def hit_rate(self, now_ns: SimTime) -> float:
        """Share of the last 15 seconds' prompt tokens that came from the cache."""
        self._forget(now_ns)
        return self._window_hits / self._window_tokens if self._window_tokens else 0.0

    def rate(self, now_ns: SimTime, running_tokens: int, idle: bool) -> float:
        """Tokens generated per second of virtual time, over at least a second; 0 when idle."""
        total = self.finished_tokens + running_tokens
        samples = self._samples
        if now_ns - samples[-1].t_ns >= _RATE_NS:
            samples.append(_Sample(now_ns, total))
        if idle:
            return 0.0
        base = samples[0]
        for sample in reversed(samples):
            if now_ns - sample.t_ns >= _RATE_NS:
                base = sample
                break
        span_ns = now_ns - base.t_ns
        return (total - base.tokens) * NS_PER_S / span_ns if span_ns > 0 else 0.0

    def load(
        self,
        gauges: Gauges,
        now_ns: SimTime,
        running_tokens: int,
        live: Iterable[tuple[int, ...]] = (),
    ) -> RankLoad:
        """The worker's load at `now_ns`.

        `running_tokens` were produced by unfinished sequences, `live` is what became of their
        drafts.
        """
        steps = self.accepted_steps
        for accepted in live:
            steps = added(steps, accepted)
        hit_rate = self.hit_rate(now_ns)
        idle = not gauges.running and not gauges.waiting
        return RankLoad(
            gauges,
            waiting_tokens=self.waiting_tokens,
            waiting_uncached_tokens=int(self.waiting_tokens * (1.0 - hit_rate)),
            gen_throughput=self.rate(now_ns, running_tokens, idle),
            cache_hit_rate=hit_rate,
            prefilled_tokens=self.prefilled_tokens,
            prefill_busy_us=self.prefill_busy_ns // NS_PER_US,
            retracted=self.retracted,
            accepted_steps=steps,
        )
