"""The result of a run: a fold over records, the same keys for `simulate` and `replay`.

Definitions (design.md section 11). A request's TTFT runs from its arrival at the engine to its
first token; E2E to its last; TPOT is (last token - first token) / (output tokens - 1), for requests
of two tokens or more; ITL is every gap between consecutive tokens, weighted by nothing
(with speculative decoding between the steps that brought some). All four
are over completed, measured requests. `duration_s` runs from the first measured arrival to the last
measured end, and rates are per that. Goodput counts completed requests that meet every target of
the SLO; a request of one token has no TPOT to miss.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.observed import ObservedCluster
from frontier_mock.report.itl import inter_token_gaps
from frontier_mock.report.latency import Ints, LatencyStats, Sample
from frontier_mock.report.oracle import OracleStats, oracle_stats
from frontier_mock.report.records import (
    ABORTED,
    COMPLETED,
    NEVER,
    REJECTED,
    EngineRecords,
    RequestRecord,
    fold_events,
    keep_measured,
)
from frontier_mock.report.roles import (
    CostStats,
    RoleStats,
    StationBook,
    cost_stats,
    role_stats,
    stage_shares,
)
from frontier_mock.report.specs import SloSpec
from frontier_mock.report.speculation import SpeculationStats, speculation_stats
from frontier_mock.report.tiers import TierReport, tier_stats
from frontier_mock.report.transfers import (
    EncodingStats,
    TransferStats,
    encoding_stats,
    transfer_stats,
)
from frontier_mock.simtime import NS_PER_MS, NS_PER_S, SimTime

Bools = npt.NDArray[np.bool_]


class RequestCounts(TypedDict):
    """Measured requests by outcome."""

    submitted: int
    completed: int
    rejected: int
    aborted: int


class PrefixCacheStats(TypedDict):
    """Prompt tokens looked up and found, at the first admission of each measured request."""

    hit_tokens: int
    query_tokens: int
    hit_rate: float


class WorkerStats(TypedDict):
    """One worker over the whole run, warm-up included."""

    name: str
    kv_capacity_tokens: int
    busy_fraction: float
    steps: int
    preemptions: int
    requests: int
    hit_tokens: int
    query_tokens: int
    stages: NotRequired[list[float]]
    """With pipeline stages: the share of the time in which each of them works."""
    bubble_fraction: NotRequired[float]
    """The share that is left, of the time in which the worker is busy, averaged over stages."""


class ClientStats(TypedDict):
    """What only a client that drove real sockets can say.

    `figures_from` is "engine" if the latencies are the engine's own virtual times, "client" if they
    were read off the client's clock. `lateness_ms` is how late requests were sent, in the time of
    the scenario. The `..._differ` count answers whose token counts were not those asked for.
    `server_requests` is how many requests the server's own report covers: more than were sent, if
    it had others too. `stalls` and `grace_jumps` are the clock's, in warp mode.
    """

    url: str
    mode: str
    figures_from: str
    lateness_ms: LatencyStats
    requests_per_wall_s: float
    prompt_tokens_differ: int
    output_tokens_differ: int
    server_requests: int | None
    stalls: int
    grace_jumps: int


class TraceStats(TypedDict):
    """What became of the rows of a trace file; `skipped` says why, line by line."""

    rows: int
    read: int
    clipped: int
    out_of_order: int
    skipped: list[str]


class Result(TypedDict):
    """The result JSON. `outcomes` counts every (outcome, detail) as "outcome: detail".

    Details that differ in their numbers only count as one, told as the first.
    """

    scenario: str
    requests: RequestCounts
    warmup_requests: int
    outcomes: dict[str, int]
    duration_s: float
    wall_s: float
    ttft_ms: LatencyStats
    tpot_ms: LatencyStats
    itl_ms: LatencyStats
    e2e_ms: LatencyStats
    output_tokens_per_s: float
    input_tokens_per_s: float
    requests_per_s: float
    goodput_requests_per_s: float | None
    prefix_cache: PrefixCacheStats
    preemptions: int
    workers: list[WorkerStats]
    digest: str
    roles: NotRequired[list[RoleStats]]
    transfers: NotRequired[TransferStats]
    encoding: NotRequired[EncodingStats]
    tiers: NotRequired[list[TierReport]]
    cost: NotRequired[CostStats]
    cache_oracle: NotRequired[OracleStats]
    speculation: NotRequired[SpeculationStats]
    trace: NotRequired[TraceStats]
    client: NotRequired[ClientStats]


def latencies(result: Result) -> list[tuple[str, LatencyStats]]:
    """The four latencies by the name that reports give them."""
    return [
        ("TTFT", result["ttft_ms"]),
        ("TPOT", result["tpot_ms"]),
        ("ITL", result["itl_ms"]),
        ("E2E", result["e2e_ms"]),
    ]


@dataclass(frozen=True, slots=True)
class Samples:
    """The latencies behind a result, for whoever draws their distributions."""

    ttft: Sample
    tpot: Sample
    itl: Sample
    e2e: Sample


@dataclass(frozen=True, slots=True)
class RunReport:
    """A result together with what it was computed from."""

    result: Result
    records: Sequence[RequestRecord]
    samples: Samples


def report_cluster(
    cluster: Cluster,
    scenario: str,
    wall_s: float,
    measured: Sequence[bool] | None = None,
    slo: SloSpec | None = None,
    book: StationBook | None = None,
) -> RunReport:
    """Report on everything in the cluster's log. `measured` is by rid, None: all of it.

    With a `book`, servers with attention and FFN apart are looked into (`report.roles`).
    """
    everything = fold_events(cluster.log.events)
    kept = everything if measured is None else keep_measured(everything, measured)
    workers = worker_stats(cluster, everything)
    gaps = inter_token_gaps(kept.finished, [worker.timeline for worker in cluster.workers])
    warmup = len(everything.records) - len(kept.records)
    digest = cluster.log.digest()
    report = report_records(kept.records, scenario, wall_s, slo, gaps, workers, digest, warmup)
    result = report.result
    result["roles"] = role_stats(cluster, book)
    result["cost"] = cost_stats(
        result["roles"], result["output_tokens_per_s"], result["input_tokens_per_s"]
    )
    if isinstance(cluster, ObservedCluster) and cluster.oracle is not None:
        stats = oracle_stats(cluster.oracle, everything.records, measured)
        report.result["cache_oracle"] = stats
    drafts = speculation_stats(cluster.log.events, measured)
    if drafts is not None:
        result["speculation"] = drafts
    if cluster.pairing is not None:
        result["transfers"] = transfer_stats(
            cluster.pairing, cluster.log.events, cluster.now_ns, measured
        )
        if cluster.pairing.encoders is not None:
            result["encoding"] = encoding_stats(cluster.pairing.encoders, cluster.log.events)
    tiers = tier_stats(cluster)
    if tiers:
        result["tiers"] = tiers
    return report


def worker_stats(cluster: Cluster, folded: EngineRecords) -> list[WorkerStats]:
    """The workers' own counters at the cluster's present time."""
    now_ns = cluster.now_ns
    requests = [folded.legs.get(index, 0) for index in range(len(cluster.workers))]
    for record in folded.records:
        requests[record.worker] += 1
    stats = []
    for spec, worker, count in zip(cluster.spec.workers, cluster.workers, requests, strict=True):
        gauges = worker.gauges(now_ns)
        one = WorkerStats(
            name=spec.name,
            kv_capacity_tokens=spec.scheduler.num_blocks * spec.scheduler.block_size,
            busy_fraction=gauges.busy_ns / now_ns if now_ns else 0.0,
            steps=gauges.steps,
            preemptions=gauges.preemptions,
            requests=count,
            hit_tokens=gauges.hit_tokens,
            query_tokens=gauges.query_tokens,
        )
        shares = stage_shares(worker, now_ns)
        if shares:
            one["stages"] = shares
            working = sum(shares) / len(shares)
            busy = one["busy_fraction"]
            one["bubble_fraction"] = max(0.0, 1.0 - working / busy) if busy else 0.0
        stats.append(one)
    return stats


def report_records(
    records: Sequence[RequestRecord],
    scenario: str,
    wall_s: float,
    slo: SloSpec | None,
    gaps: Sample,
    workers: list[WorkerStats],
    digest: str,
    warmup_requests: int = 0,
) -> RunReport:
    """Report on measured `records`, be they an engine's or a client's."""
    done = [record for record in records if record.outcome == COMPLETED]
    arrival = _column([record.arrival_ns for record in done])
    first = _column([record.first_token_ns for record in done])
    finish = _column([record.finish_ns for record in done])
    outputs = _column([record.output_tokens for record in done])
    many = outputs > 1
    tpot = np.zeros(len(done), np.int64)
    tpot[many] = np.rint((finish - first)[many] / (outputs[many] - 1)).astype(np.int64)
    seen = first != NEVER
    ttft, e2e = first - arrival, finish - arrival
    samples = Samples(Sample(ttft[seen]), Sample(tpot[many & seen]), gaps, Sample(e2e))
    duration_s = _duration_ns(records) / NS_PER_S
    inputs = sum(record.prompt_tokens for record in done)
    good = None if slo is None else int(_meets(slo, ttft, tpot, e2e, seen).sum())
    admitted = [record for record in records if record.scheduled]
    hits = sum(record.cached_tokens for record in admitted)
    queries = sum(record.prompt_tokens for record in admitted)

    def rate(count: int) -> float:
        return count / duration_s if duration_s else 0.0

    result = Result(
        scenario=scenario,
        requests=RequestCounts(
            submitted=len(records),
            completed=len(done),
            rejected=sum(record.outcome == REJECTED for record in records),
            aborted=sum(record.outcome == ABORTED for record in records),
        ),
        warmup_requests=warmup_requests,
        outcomes=_outcomes(records),
        duration_s=duration_s,
        wall_s=wall_s,
        ttft_ms=samples.ttft.stats_ms(),
        tpot_ms=samples.tpot.stats_ms(),
        itl_ms=samples.itl.stats_ms(),
        e2e_ms=samples.e2e.stats_ms(),
        output_tokens_per_s=rate(int(outputs.sum())),
        input_tokens_per_s=rate(inputs),
        requests_per_s=rate(len(done)),
        goodput_requests_per_s=None if good is None else rate(good),
        prefix_cache=prefix_cache_stats(hits, queries),
        preemptions=sum(record.preemptions for record in records),
        workers=workers,
        digest=digest,
    )
    return RunReport(result, records, samples)


def prefix_cache_stats(hits: int, queries: int) -> PrefixCacheStats:
    """So many prompt tokens found of so many looked up."""
    rate = hits / queries if queries else 0.0
    return PrefixCacheStats(hit_tokens=hits, query_tokens=queries, hit_rate=rate)


def _column(values: list[int]) -> Ints:
    return np.array(values, np.int64)


def _duration_ns(records: Sequence[RequestRecord]) -> SimTime:
    if not records:
        return 0
    start = min(record.arrival_ns for record in records)
    return max(start, max(record.finish_ns for record in records)) - start


def _meets(slo: SloSpec, ttft: Ints, tpot: Ints, e2e: Ints, seen: Bools) -> Bools:
    judged_by_first = slo.ttft_ms is not None or slo.tpot_ms is not None
    good = seen.copy() if judged_by_first else np.ones(len(seen), np.bool_)
    for target_ms, values in ((slo.ttft_ms, ttft), (slo.tpot_ms, tpot), (slo.e2e_ms, e2e)):
        if target_ms is not None:
            good &= values <= target_ms * NS_PER_MS
    return good


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _outcomes(records: Sequence[RequestRecord]) -> dict[str, int]:
    """Equal complaints count together though their numbers differ: as the first of them has it."""
    counts: dict[str, int] = {}
    firsts: dict[str, str] = {}
    differ: set[str] = set()
    masked: dict[str, str] = {}
    for record in records:
        key = f"{record.outcome}: {record.detail}" if record.detail else record.outcome
        alike = masked.get(key)
        if alike is None:
            alike = masked[key] = _NUMBER.sub("#", key)
        counts[alike] = counts.get(alike, 0) + 1
        if firsts.setdefault(alike, key) != key:
            differ.add(alike)
    shown = {
        f"{firsts[alike]} (numbers differ)" if alike in differ else firsts[alike]: count
        for alike, count in counts.items()
    }
    return dict(sorted(shown.items()))
