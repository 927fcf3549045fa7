"""A run as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

One process per server with a track of steps per rank, or per pipeline stage, a counter of running
sequences, and its requests as nested asynchronous slices: queue, prefill, decode, and beside them
the transfers of KV that a decode server received. Where attention and FFN are apart a
process more per server shows sampled steps from the inside, layer by layer, with the ping-pong of
micro-batches between the two sides. Times are virtual microseconds.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.events import (
    Finished,
    FirstToken,
    KvReceived,
    Preempted,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.cost.afd.pipeline import ATTENTION, FFN, STATIONS, Span, simulate
from frontier_mock.cost.afd.step import AfdStepCost
from frontier_mock.cost.protocol import RankBatch, StepCost
from frontier_mock.report.step_runs import JointRun, joint_runs
from frontier_mock.serving.pipelined import PipelinedWorker
from frontier_mock.simtime import SimTime

TraceEvent = dict[str, Any]

STEPS_DRAWN: Final = 100_000
"""Steps drawn one by one; in a longer run, equal steps of more than a few are one slice."""

REQUESTS_DRAWN: Final = 20_000

_INSIDE: Final = 1000
"""Added to a server's process number for the inside of its steps."""

_STAGE: Final = 1000
"""Added to a rank's track number for its pipeline stages."""

_STATION_NAMES: Final = {"attention": "attention", "a2f": "A to F", "ffn": "FFN", "f2a": "F to A"}


def trace_json(cluster: Cluster, costs: Sequence[StepCost], sampled_steps: int = 8) -> str:
    """The whole trace; every worker must have kept a step log."""
    events = [*_servers(cluster, costs, sampled_steps), *_requests(cluster)]
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def _servers(cluster: Cluster, costs: Sequence[StepCost], sampled: int) -> Iterator[TraceEvent]:
    all_runs = [joint_runs(cluster, server) for server in cluster.servers]
    one_by_one = sum(run.steps for runs in all_runs for run in runs) <= STEPS_DRAWN
    for number, (server, runs) in enumerate(zip(cluster.servers, all_runs, strict=True), 1):
        spec, cost = cluster.spec.workers[server.start], costs[server.start]
        yield _name("process", number, 0, f"{spec.server} ({spec.role})")
        for rank, index in enumerate(server):
            yield _name("thread", number, rank + 1, f"steps of {cluster.spec.workers[index].name}")
        for run in runs:
            yield _counter(number, run)
            yield from _steps(cluster, server, number, run, one_by_one)
        for index in server:
            worker = cluster.workers[index]
            if isinstance(worker, PipelinedWorker):
                yield from _stages(worker, number, _STAGE * (index - server.start + 1))
        if isinstance(cost, AfdStepCost):
            assert spec.afd is not None
            title = f"{spec.server}: inside sampled steps, {spec.afd.name}"
            yield _name("process", number + _INSIDE, 0, title)
            for run in _spread(runs, sampled):
                yield from _inside(cost, run, number + _INSIDE)


def _stages(worker: PipelinedWorker, number: int, first_track: int) -> Iterator[TraceEvent]:
    """A track per pipeline stage, with the steps it computes."""
    for stage in range(worker.pipeline.stages):
        yield _name("thread", number, first_track + stage, f"stage {stage}")
    for step in worker.stage_log:
        batch = step.batch
        args = {"args": _step_args(batch, step.number, 1)}
        for stage, begin in enumerate(step.starts_ns):
            name, end = _step_name(batch, 1), step.ends_ns[stage]
            yield _slice(name, number, first_track + stage, begin, end) | args


def _spread(runs: Sequence[JointRun], count: int) -> list[JointRun]:
    """About `count` runs, evenly over all of them."""
    if not runs or count < 1:
        return []
    stride = max(1, len(runs) // count)
    return list(runs[::stride][:count])


def _steps(
    cluster: Cluster, server: range, number: int, run: JointRun, one_by_one: bool
) -> Iterator[TraceEvent]:
    """The run's steps on the track of each rank that took part."""
    for rank, index in enumerate(server):
        batch, first = run.batches[rank], run.first_steps[rank]
        if not batch.num_decodes and not batch.chunks:
            continue
        if run.steps == 1 or not one_by_one or not first:
            yield _slice(_step_name(batch, run.steps), number, rank + 1, run.t_ns, run.end_ns) | {
                "args": _step_args(batch, first, run.steps)
            }
            continue
        timeline, start_ns = cluster.workers[index].timeline, run.t_ns
        for ahead in range(run.steps):
            end_ns = timeline.boundary_ns(first + ahead)
            grown = batch._replace(kv_tokens=batch.kv_tokens + ahead * batch.num_decodes)
            yield _slice(_step_name(batch, 1), number, rank + 1, start_ns, end_ns) | {
                "args": _step_args(grown, first + ahead, 1)
            }
            start_ns = end_ns


def _step_name(batch: RankBatch, steps: int) -> str:
    parts = []
    if batch.chunks:
        parts.append(f"prefill {sum(chunk.new for chunk in batch.chunks)}")
    if batch.num_decodes:
        parts.append(f"decode {batch.num_decodes}")
    name = " + ".join(parts)
    return name if steps == 1 else f"{steps} x {name}"


def _step_args(batch: RankBatch, first: int, steps: int) -> dict[str, Any]:
    args: dict[str, Any] = {"decodes": batch.num_decodes, "context_tokens": batch.kv_tokens}
    if first:
        args["step"] = first
    if steps > 1:
        args["steps"] = steps
    if batch.chunks:
        args["chunks"] = [[chunk.new, chunk.past] for chunk in batch.chunks]
    return args


def _counter(number: int, run: JointRun) -> TraceEvent:
    running = sum(batch.num_decodes + len(batch.chunks) for batch in run.batches)
    return {
        "ph": "C",
        "name": "sequences in the step",
        "pid": number,
        "ts": run.t_ns / 1e3,
        "args": {"sequences": running},
    }


def _inside(cost: AfdStepCost, run: JointRun, number: int) -> Iterator[TraceEvent]:
    """The first step of `run`, station by station; of many ranks the slowest and the fastest."""
    spans = simulate(cost.layer_runs(run.batches))
    shown = _shown_ranks(spans)
    tracks: dict[tuple[str, int], int] = {}
    for station in STATIONS:
        ranks = [0] if station == FFN else shown
        for rank in ranks:
            tracks[station, rank] = STATIONS.index(station) * 100 + rank % 100
    for (station, rank), track in tracks.items():
        which = "" if station == FFN else f", rank {rank}"
        yield _name("thread", number, track, f"{_STATION_NAMES[station]}{which}")
    for span in spans:
        track_of = tracks.get((span.station, span.rank))
        if track_of is not None and span.end_ns > span.start_ns:
            begin, end = run.t_ns + span.start_ns, run.t_ns + span.end_ns
            yield _slice(f"micro-batch {span.micro_batch}", number, track_of, begin, end) | {
                "args": {"layer": span.layer}
            }


def _shown_ranks(spans: Sequence[Span]) -> list[int]:
    """The attention ranks that work most and least."""
    work: dict[int, int] = {}
    for span in spans:
        if span.station == ATTENTION:
            work[span.rank] = work.get(span.rank, 0) + span.end_ns - span.start_ns
    order = sorted(work, key=lambda rank: (-work[rank], rank))
    return sorted({order[0], order[-1]})


def _requests(cluster: Cluster) -> Iterator[TraceEvent]:
    """Each request's phases, as far as the log goes."""
    number_of = {
        index: number for number, server in enumerate(cluster.servers, 1) for index in server
    }
    begun: dict[int, tuple[int, list[str]]] = {}
    for event in cluster.log.events:
        rid = event.rid
        if isinstance(event, Submitted):
            if rid < REQUESTS_DRAWN:
                begun[rid] = (number_of[event.worker], ["request", "queue"])
                args = {"prompt_tokens": event.prompt_tokens, "max_tokens": event.max_tokens}
                yield _phase("b", "request", begun[rid][0], rid, event.t_ns) | {"args": args}
                yield _phase("b", "queue", begun[rid][0], rid, event.t_ns)
            continue
        state = begun.get(rid)
        if state is None:
            continue
        number, phases = state
        if isinstance(event, Scheduled):
            yield from _next(phases, "prefill", number, rid, event.t_ns)
        elif isinstance(event, FirstToken):
            yield from _next(phases, "decode", number, rid, event.t_ns)
        elif isinstance(event, KvReceived):
            began_ns = max(event.computed_ns, event.allocated_ns)
            moved: TraceEvent = {"args": {"bytes": event.num_bytes, "request": rid}}
            for kind, t_ns in (("b", began_ns), ("e", event.t_ns)):
                yield _phase(kind, "KV transfer", number, rid, t_ns, "transfer") | moved
        elif isinstance(event, Preempted):
            yield from _next(phases, "preempted", number, rid, event.t_ns)
        elif isinstance(event, Finished | Rejected):
            for phase in reversed(phases):
                yield _phase("e", phase, number, rid, event.t_ns) | {"args": {"end": event.reason}}
            del begun[rid]


def _next(
    phases: list[str], phase: str, number: int, rid: int, t_ns: SimTime
) -> Iterable[TraceEvent]:
    ended, phases[-1] = phases[-1], phase
    return (_phase("e", ended, number, rid, t_ns), _phase("b", phase, number, rid, t_ns))


def _phase(
    kind: str, name: str, number: int, rid: int, t_ns: SimTime, category: str = "request"
) -> TraceEvent:
    return {
        "ph": kind,
        "cat": category,
        "name": name,
        "id": rid,
        "pid": number,
        "tid": 0,
        "ts": t_ns / 1e3,
    }


def _slice(name: str, number: int, track: int, start_ns: SimTime, end_ns: SimTime) -> TraceEvent:
    return {
        "ph": "X",
        "name": name,
        "pid": number,
        "tid": track,
        "ts": start_ns / 1e3,
        "dur": (end_ns - start_ns) / 1e3,
    }


def _name(what: str, number: int, track: int, name: str) -> TraceEvent:
    return {
        "ph": "M",
        "name": f"{what}_name",
        "pid": number,
        "tid": track,
        "ts": 0,
        "args": {"name": name},
    }
