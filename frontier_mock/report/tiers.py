"""What the tiers under the GPUs of each worker have done: hits, bytes moved, time."""

from typing import TypedDict

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.simtime import NS_PER_S


class TierReport(TypedDict):
    """One tier of one worker over the whole run, warm-up included.

    `query_tokens` of prompts were not in the GPU's cache, and `hit_tokens` of them were here.
    Bytes are those of all the worker's GPUs; `..._s` is how long its links were busy.
    """

    worker: str
    tier: str
    query_tokens: int
    hit_tokens: int
    hit_rate: float
    loads: int
    load_bytes: int
    load_s: float
    stores: int
    store_bytes: int
    store_s: float
    dropped_tokens: int
    held_tokens: int
    capacity_tokens: int


def tier_stats(cluster: Cluster) -> list[TierReport]:
    """Every tier of every worker that has any."""
    reports = []
    for spec, worker in zip(cluster.spec.workers, cluster.workers, strict=True):
        offload = worker.scheduler.offload
        for stats in () if offload is None else offload.stats():
            rate = stats.hit_tokens / stats.query_tokens if stats.query_tokens else 0.0
            reports.append(
                TierReport(
                    worker=spec.name,
                    tier=stats.tier,
                    query_tokens=stats.query_tokens,
                    hit_tokens=stats.hit_tokens,
                    hit_rate=rate,
                    loads=stats.loads,
                    load_bytes=stats.load_bytes * spec.gpus,
                    load_s=stats.load_ns / NS_PER_S,
                    stores=stats.stores,
                    store_bytes=stats.store_bytes * spec.gpus,
                    store_s=stats.store_ns / NS_PER_S,
                    dropped_tokens=stats.dropped_tokens,
                    held_tokens=stats.held_tokens,
                    capacity_tokens=stats.capacity_tokens,
                )
            )
    return reports


def tier_lines(reports: list[TierReport]) -> list[tuple[str, str]]:
    """What a terminal shows of each kind of tier, all workers together."""
    lines = []
    for tier in dict.fromkeys(report["tier"] for report in reports):
        mine = [report for report in reports if report["tier"] == tier]
        hits = sum(report["hit_tokens"] for report in mine)
        up = sum(report["load_bytes"] for report in mine)
        down = sum(report["store_bytes"] for report in mine)
        lines.append(
            (f"{tier} tier", f"{hits:,} tokens, {up / 1e9:,.1f} GB up, {down / 1e9:,.1f} GB down")
        )
    return lines
