"""Inter-token latency, exact over every pair of consecutive tokens of every sequence.

Within a span a sequence gets one token per step, so the gap after step s is the same for every
sequence that has tokens at both s and s + 1: how many there are follows from the ends of the spans
alone, and the gaps themselves from the worker's timeline in one vectorised call; lanes of steps are
counted one by one. Gaps from one span to the next (a preemption) belong to one sequence each.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from frontier_mock.core.events import Finished
from frontier_mock.report.latency import Ints, Sample
from frontier_mock.serving.steps import lane_of
from frontier_mock.serving.timeline import Timeline

_CHUNK_STEPS = 1 << 20
"""Steps evaluated at a time, so that hours of steps need no more memory than this."""


def inter_token_gaps(finished: Iterable[Finished | None], timelines: Sequence[Timeline]) -> Sample:
    """Gaps between consecutive tokens of the given sequences; timelines by worker index."""
    starts: dict[tuple[int, int], list[int]] = {}
    ends: dict[tuple[int, int], list[int]] = {}
    jumps: list[list[tuple[int, int]]] = [[] for _ in timelines]
    for done in finished:
        if done is None:
            continue
        last = 0
        for step, count in done.spans:
            if last:
                jumps[done.worker].append((last, step))
            last = step + count - 1
            if count > 1:
                line = (done.worker, lane_of(step))
                starts.setdefault(line, []).append(step)
                ends.setdefault(line, []).append(last)
    gaps: list[Ints] = []
    weights: list[Ints] = []
    for line in sorted(starts):
        for values, counts in _within(starts[line], ends[line], timelines[line[0]]):
            gaps.append(values)
            weights.append(counts)
    for worker, timeline in enumerate(timelines):
        if jumps[worker]:
            steps = timeline.boundaries_ns(np.array(jumps[worker], np.int64).ravel())
            gaps.append(steps[1::2] - steps[::2])
            weights.append(np.ones(len(jumps[worker]), np.int64))
    if not gaps:
        return Sample([])
    return Sample(np.concatenate(gaps), np.concatenate(weights))


def spread_gaps(
    finished: Iterable[Finished], bursts: Mapping[int, bytes], timeline: Timeline
) -> Sample:
    """Gaps of sequences of one worker with drafts, as SGLang counts them.

    The tokens of a step share the time since the last step that brought any, each of them an equal
    part; those of the first one are no gap. `bursts` are the tokens of each step, by rid.
    """
    gaps: list[Ints] = []
    weights: list[Ints] = []
    for done in finished:
        burst = bursts.get(done.rid)
        times = timeline.token_times_ns(done.spans)
        if burst is not None:
            counts = np.frombuffer(burst, np.uint8).astype(np.int64)
        else:
            counts = np.ones(len(times), np.int64)
        brought = counts > 0
        times, counts = times[brought], counts[brought]
        gaps.append(np.rint(np.diff(times) / counts[1:]).astype(np.int64))
        weights.append(counts[1:])
    if not gaps:
        return Sample([])
    return Sample(np.concatenate(gaps), np.concatenate(weights))


def _within(starts: list[int], ends: list[int], timeline: Timeline) -> Iterable[tuple[Ints, Ints]]:
    """(gap after step s, sequences that see it) for all s, in chunks of steps."""
    first, last = min(starts), max(ends)
    size = last - first + 1
    begun = np.bincount(np.array(starts) - first, minlength=size)
    ended = np.bincount(np.array(ends) - first, minlength=size)
    seen = np.cumsum(begun - ended)[:-1]
    for low in range(0, len(seen), _CHUNK_STEPS):
        high = min(low + _CHUNK_STEPS, len(seen))
        boundaries = timeline.boundaries_ns(np.arange(first + low, first + high + 1))
        yield np.diff(boundaries), seen[low:high]
