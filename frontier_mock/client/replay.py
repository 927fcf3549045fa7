"""Replay a workload against a running server or router, and report on it as `simulate` would."""

import asyncio
import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from frontier_mock.client.clock import ClockClient, ClockError, ClockState, read_clock, read_json
from frontier_mock.client.endpoint import NEVER, Endpoint, EndpointSpec
from frontier_mock.client.http1 import HttpClient
from frontier_mock.client.loadgen import (
    PACER,
    Exchange,
    Progress,
    ignore_progress,
    run_paced,
    run_warp,
)
from frontier_mock.drive.event_loop import new_event_loop
from frontier_mock.report.latency import LatencyStats, Sample
from frontier_mock.report.oracle import OracleStats
from frontier_mock.report.records import ABORTED, COMPLETED, REJECTED, RequestRecord
from frontier_mock.report.roles import RoleStats, cost_stats
from frontier_mock.report.specs import SloSpec
from frontier_mock.report.summary import (
    ClientStats,
    RunReport,
    WorkerStats,
    prefix_cache_stats,
    report_records,
)
from frontier_mock.report.transfers import EncodingStats, TransferStats
from frontier_mock.simtime import SimTime
from frontier_mock.workload.source import Source

_REAL = ClockState(mode="real", scale=1.0, now_ns=0, stalls=0, jumps=0, grace_jumps=0)
"""What is assumed of a server that has no clock to ask: the world's."""

_GC_ALLOCATIONS = 50_000


class ReplayError(Exception):
    """The replay cannot start or go on; the message says why, on one line."""


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """What to drive. `clock_url` is any mock worker's; None: ask the endpoint itself.

    `one_at_a_time` is the baton: a router in between sees one order of requests in every run.
    """

    scenario: str
    endpoint: EndpointSpec
    clock_url: str | None = None
    one_at_a_time: bool = False
    slo: SloSpec | None = None


def run_replay(source: Source, spec: ReplaySpec, progress: Progress = ignore_progress) -> RunReport:
    """Play `source` against the endpoint, in a process that does nothing else.

    Raises ReplayError.
    """
    # What is here stays; what comes is mostly kept too. Python's default thresholds would walk
    # through all of it every few hundred requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        return runner.run(replay(source, spec, progress))


async def replay(
    source: Source, spec: ReplaySpec, progress: Progress = ignore_progress
) -> RunReport:
    """Play `source` against the endpoint. Raises ReplayError."""
    _raise_file_limit()
    clients: list[HttpClient] = []
    try:
        endpoint = Endpoint(spec.endpoint)
        clients.append(endpoint.http)
        clock = endpoint.http if spec.clock_url is None else HttpClient(spec.clock_url)
        clients.append(clock)
        return await _replay(source, spec, endpoint, clock, progress)
    except* (ClockError, ValueError) as errors:
        raise ReplayError(str(_first(errors))) from None
    finally:
        for client in clients:
            client.close()


async def _replay(
    source: Source, spec: ReplaySpec, endpoint: Endpoint, clock: HttpClient, progress: Progress
) -> RunReport:
    state = await _find_clock(spec, endpoint.http, clock)
    started = time.perf_counter_ns()
    if state.mode == "warp":
        async with ClockClient(clock, [PACER]) as leases:
            start_ns = leases.now_ns
            exchanges = await run_warp(source, endpoint, leases, progress, spec.one_at_a_time)
    else:
        start_ns = state.now_ns
        exchanges = await run_paced(source, endpoint, progress, state.scale)
    wall_s = (time.perf_counter_ns() - started) / 1e9
    exchanges.sort(key=lambda exchange: exchange.item.seq)
    virtual = all(
        exchange.answer.finish_ns != NEVER
        for exchange in exchanges
        if _outcome(exchange)[0] == COMPLETED
    )
    base = _Base(virtual, start_ns, started, state.scale)
    measured = [exchange for exchange in exchanges if exchange.item.measured]
    report = report_records(
        [_record(exchange, base) for exchange in measured],
        spec.scenario,
        wall_s,
        spec.slo,
        _chunk_gaps(measured, state.scale),
        [],
        "",
        len(exchanges) - len(measured),
    )
    report.result["client"] = _client_stats(spec, state, exchanges, base, wall_s)
    if state is not _REAL:
        await _merge_server(clock, report, state)
    return report


async def _find_clock(spec: ReplaySpec, endpoint: HttpClient, clock: HttpClient) -> ClockState:
    """The clock to follow. Raises ReplayError if nothing answers at the endpoint."""
    try:
        await endpoint.request("GET", "/health")
    except (OSError, ValueError) as error:
        what = str(error) or type(error).__name__
        raise ReplayError(f"cannot reach {endpoint.url}: {what}") from None
    if spec.clock_url is not None:
        return await read_clock(clock)
    try:
        return await read_clock(clock)
    except ClockError:
        return _REAL


@dataclass(frozen=True, slots=True)
class _Base:
    """Whose time the figures are in, and where it began."""

    virtual: bool
    start_ns: SimTime
    start_wall_ns: int
    scale: float

    def from_wall(self, wall_ns: int) -> SimTime:
        """A client's wall time in the time of the scenario."""
        return self.start_ns + round((wall_ns - self.start_wall_ns) * self.scale)


def _outcome(exchange: Exchange) -> tuple[str, str]:
    answer = exchange.answer
    if answer.status == 200 and not answer.message:
        return COMPLETED, ""
    if answer.status in (0, 200):
        return ABORTED, answer.message
    return REJECTED, f"{answer.status}: {answer.message}"


def _record(exchange: Exchange, base: _Base) -> RequestRecord:
    answer = exchange.answer
    outcome, detail = _outcome(exchange)
    if outcome != COMPLETED:
        if base.virtual:
            arrival = finish = base.start_ns + exchange.due_ns
        else:
            arrival, finish = map(base.from_wall, (answer.sent_wall_ns, answer.done_wall_ns))
        return RequestRecord(
            arrival, NEVER, finish, exchange.prompt_tokens, 0, 0, outcome, detail, 0, 0, False
        )
    if base.virtual:
        arrival, first, finish = answer.arrival_ns, answer.first_token_ns, answer.finish_ns
    else:
        arrival, finish = map(base.from_wall, (answer.sent_wall_ns, answer.done_wall_ns))
        first = base.from_wall(answer.first_wall_ns) if answer.chunks_wall_ns else NEVER
    return RequestRecord(
        arrival,
        first,
        finish,
        answer.prompt_tokens or exchange.prompt_tokens,
        answer.output_tokens or len(answer.chunks_wall_ns),
        answer.cached_tokens,
        outcome,
        detail,
        0,
    )


def _chunk_gaps(exchanges: Sequence[Exchange], scale: float) -> Sample:
    """Gaps between the chunks of streams; the engine's own gaps replace them where known."""
    gaps = [np.diff(exchange.answer.chunks_wall_ns) for exchange in exchanges]
    gaps = [one for one in gaps if len(one)]
    return Sample(np.rint(np.concatenate(gaps) * scale) if gaps else [])


def _client_stats(
    spec: ReplaySpec,
    state: ClockState,
    exchanges: Sequence[Exchange],
    base: _Base,
    wall_s: float,
) -> ClientStats:
    done = [exchange for exchange in exchanges if _outcome(exchange)[0] == COMPLETED]
    return ClientStats(
        url=spec.endpoint.url,
        mode=state.mode if state.mode != "scaled" else f"scaled:{state.scale:g}",
        figures_from="engine" if base.virtual and done else "client",
        lateness_ms=Sample([exchange.lateness_ns for exchange in exchanges]).stats_ms(),
        requests_per_wall_s=len(exchanges) / wall_s if wall_s else 0.0,
        prompt_tokens_differ=sum(e.answer.prompt_tokens != e.prompt_tokens for e in done),
        output_tokens_differ=sum(e.answer.output_tokens != e.output_tokens for e in done),
        server_requests=None,
        stalls=0,
        grace_jumps=0,
    )


async def _merge_server(clock: HttpClient, report: RunReport, before: ClockState) -> None:
    """Add what only the engine knows: its workers, gaps between tokens, preemptions, digest."""
    server = await read_json(clock, "/sim/report")
    after = await read_clock(clock)
    result = report.result
    client = result["client"]
    client["stalls"] = after.stalls - before.stalls
    client["grace_jumps"] = after.grace_jumps - before.grace_jumps
    result["digest"] = str(server.get("digest", ""))
    requests = server.get("requests")
    if not isinstance(requests, dict):
        return
    client["server_requests"] = requests["submitted"]
    result["workers"] = cast(list[WorkerStats], server["workers"])
    if "roles" in server:
        roles = result["roles"] = cast(list[RoleStats], server["roles"])
        rates = (result["output_tokens_per_s"], result["input_tokens_per_s"])
        result["cost"] = cost_stats(roles, *rates)
    if "cache_oracle" in server:
        result["cache_oracle"] = cast(OracleStats, server["cache_oracle"])
    if "encoding" in server:
        result["encoding"] = cast(EncodingStats, server["encoding"])
    if "transfers" in server:
        result["transfers"] = cast(TransferStats, server["transfers"])
        # To a decode engine's API a prompt that came from elsewhere is cached as a whole.
        hits = sum(worker["hit_tokens"] for worker in result["workers"])
        queries = sum(worker["query_tokens"] for worker in result["workers"])
        result["prefix_cache"] = prefix_cache_stats(hits, queries)
    result["preemptions"] = cast(int, server["preemptions"])
    result["itl_ms"] = cast(LatencyStats, server["itl_ms"])


def _raise_file_limit() -> None:
    """As many sockets as the system lets us have; the default of 1,024 is one busy instant."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
