"""One record per request: the common ground of offline runs and live replays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
    prefill_leg,
)
from frontier_mock.simtime import SimTime

COMPLETED = "completed"
REJECTED = "rejected"
ABORTED = "aborted"
UNFINISHED = "unfinished"
"""Outcomes. Unfinished: still in the engine when the log ended."""

NEVER = -1
"""For a time that never came."""


class RequestRecord(NamedTuple):
    """What happened to one request, times in virtual nanoseconds, `NEVER` where nothing did.

    `arrival_ns` is when the client's request reached the engine's front end, so that
    `first_token_ns - arrival_ns` is the client's time to first token. `detail` says more about the
    outcome: the finish reason, the reason for a rejection, or a server's own error message.
    """

    arrival_ns: SimTime
    first_token_ns: SimTime
    finish_ns: SimTime
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    outcome: str
    detail: str
    worker: int
    preemptions: int = 0
    scheduled: bool = True


class EngineRecords(NamedTuple):
    """A log folded: a record per rid, and the output spans of those that completed.

    `legs` counts, by worker, the prefill legs that the cluster's own router made.
    """

    records: list[RequestRecord]
    finished: list[Finished | None]
    legs: Mapping[int, int]


def fold_events(events: Iterable[Event]) -> EngineRecords:
    """Fold a whole event log, one record per rid in the order of submission.

    Of the prefill legs of the cluster's own router only the cached tokens count: their decode legs
    are the requests.
    """
    submitted: list[Submitted] = []
    first: dict[int, SimTime] = {}
    cached: dict[int, int] = {}
    preempted: dict[int, int] = {}
    ended: dict[int, Finished | Rejected] = {}
    legs: dict[int, int] = {}
    for event in events:
        if isinstance(event, Queued):
            continue
        if event.rid < -1:
            if isinstance(event, Submitted):
                legs[event.worker] = legs.get(event.worker, 0) + 1
            elif isinstance(event, Scheduled):
                cached.setdefault(prefill_leg(event.rid), event.cached_tokens)
            continue
        if isinstance(event, FirstToken):
            first[event.rid] = event.t_ns
        elif isinstance(event, Submitted):
            submitted.append(event)
        elif isinstance(event, Scheduled):
            cached.setdefault(event.rid, event.cached_tokens)
        elif isinstance(event, Preempted):
            preempted[event.rid] = preempted.get(event.rid, 0) + 1
        elif isinstance(event, Finished | Rejected):
            ended[event.rid] = event
    records: list[RequestRecord] = []
    finished: list[Finished | None] = []
    for arrival_ns, worker, rid, prompt_tokens, _ in submitted:
        end = ended.get(rid)
        outcome, detail, finish_ns, output_tokens, done = UNFINISHED, "", NEVER, 0, None
        if isinstance(end, Rejected):
            outcome, detail, finish_ns = REJECTED, end.reason, end.t_ns
        elif end is not None:
            ended_early = end.reason in ("abort", "error")
            outcome, detail = (ABORTED if ended_early else COMPLETED), end.reason
            finish_ns, output_tokens = end.t_ns, end.output_tokens
            done = end if outcome == COMPLETED else None
        hits = cached.get(rid)
        records.append(
            RequestRecord(
                arrival_ns,
                first.get(rid, NEVER),
                finish_ns,
                prompt_tokens,
                output_tokens,
                hits or 0,
                outcome,
                detail,
                worker,
                preempted.get(rid, 0),
                hits is not None,
            )
        )
        finished.append(done)
    return EngineRecords(records, finished, legs)


def keep_measured(records: EngineRecords, measured: Sequence[bool]) -> EngineRecords:
    """Leave warm-up requests out; `measured` is by rid."""
    if all(measured):
        return records
    return EngineRecords(
        [record for record, keep in zip(records.records, measured, strict=True) if keep],
        [done for done, keep in zip(records.finished, measured, strict=True) if keep],
        records.legs,
    )
