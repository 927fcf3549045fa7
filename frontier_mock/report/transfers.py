"""Prefill/decode disaggregation in figures: what a first token waited for, and what links did.

A request's time to first token is cut where the next part could begin: having its images encoded
elsewhere (`encode`, 0 if it has none), waiting for a prefill engine (`queue`, its front end
included), computing the prompt (`prefill`), waiting for blocks on the
decode engine (`decode_queue`, 0 if it had them before), moving KV (`transfer`, what is left of it
once the prompt is computed and the blocks are there) and the decode engine's first step, with what
that waits for (`first_step`). The six add up to the time to first token.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from frontier_mock.cluster.encoding import Encoders
from frontier_mock.cluster.fabric import LinkUse
from frontier_mock.cluster.pairing import Pairing
from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    KvFailed,
    KvReceived,
    KvReleased,
    MediaReceived,
    Submitted,
    prefill_leg,
)
from frontier_mock.report.latency import LatencyStats, Sample
from frontier_mock.simtime import NS_PER_S, SimTime

PARTS = ("encode", "queue", "prefill", "decode_queue", "transfer", "first_step")
"""The parts of a time to first token, in their order."""


class LinkStats(TypedDict):
    """One direction of a link. `utilisation` is the share of what it could have carried."""

    name: str
    gb_per_s: float
    gigabytes: float
    busy_fraction: float
    utilisation: float


class EncodingStats(TypedDict):
    """Images that encoders apart have encoded for others: what requests waited for, and moved.

    `encoded` are images encoded, less than `images` where encoders still knew one.
    """

    requests: int
    images: int
    encoded: int
    gigabytes: float
    encode_ms: LatencyStats


class TransferStats(TypedDict):
    """What moved. `failed` and `released` count by reason; idle links are left out."""

    requests: int
    gigabytes: float
    ttft_parts_ms: dict[str, LatencyStats]
    failed: dict[str, int]
    released: dict[str, int]
    links: list[LinkStats]


class TtftParts(NamedTuple):
    """Nanoseconds of each part of one request's time to first token."""

    encode: SimTime
    queue: SimTime
    prefill: SimTime
    decode_queue: SimTime
    transfer: SimTime
    first_step: SimTime


def ttft_parts(events: Iterable[Event]) -> dict[int, TtftParts]:
    """The parts for every request whose prompt came from elsewhere and that got a first token."""
    arrived: dict[int, SimTime] = {}
    received: dict[int, KvReceived] = {}
    encoding: dict[int, SimTime] = {}
    parts: dict[int, TtftParts] = {}
    for event in events:
        if isinstance(event, Submitted):
            arrived[event.rid] = event.t_ns
        elif isinstance(event, KvReceived):
            received[event.rid] = event
        elif isinstance(event, MediaReceived):
            # It is the prefill leg that has images to wait for.
            rid = event.rid if event.rid >= 0 else prefill_leg(event.rid)
            encoding[rid] = event.t_ns - event.asked_ns
        elif isinstance(event, FirstToken):
            came = received.pop(event.rid, None)
            if came is not None:
                encode_ns = encoding.pop(event.rid, 0)
                parts[event.rid] = _parts(came, arrived[event.rid], event.t_ns, encode_ns)
        elif isinstance(event, Finished):
            received.pop(event.rid, None)
    return parts


def _parts(
    came: KvReceived, submitted_ns: SimTime, first_ns: SimTime, encode_ns: SimTime
) -> TtftParts:
    # Behind a real router that sends one leg after the other, the first one is the arrival.
    arrival_ns = min(submitted_ns, came.arrived_ns)
    ready_ns = max(came.computed_ns, came.allocated_ns)
    return TtftParts(
        encode=encode_ns,
        queue=came.scheduled_ns - arrival_ns - encode_ns,
        prefill=came.computed_ns - came.scheduled_ns,
        decode_queue=ready_ns - came.computed_ns,
        transfer=came.t_ns - ready_ns,
        first_step=first_ns - came.t_ns,
    )


def transfer_stats(
    pairing: Pairing, events: Sequence[Event], now_ns: SimTime, measured: Sequence[bool] | None
) -> TransferStats:
    """Everything about transfers by `now_ns`, the present; parts of measured requests only."""
    parts = ttft_parts(events)
    kept = [
        part
        for rid, part in parts.items()
        if measured is None or rid >= len(measured) or measured[rid]
    ]
    columns = np.array(kept, np.int64).reshape(len(kept), len(PARTS))
    moved = [event for event in events if isinstance(event, KvReceived)]
    failed = [event.reason for event in events if isinstance(event, KvFailed)]
    released = [event.reason for event in events if isinstance(event, KvReleased)]
    return TransferStats(
        requests=len(moved),
        gigabytes=sum(event.num_bytes for event in moved) / 1e9,
        ttft_parts_ms={name: Sample(columns[:, i]).stats_ms() for i, name in enumerate(PARTS)},
        failed={reason: failed.count(reason) for reason in sorted(set(failed))},
        released={reason: released.count(reason) for reason in sorted(set(released))},
        links=[_link(use, now_ns) for use in pairing.use(now_ns) if use.num_bytes],
    )


def encoding_stats(encoders: Encoders, events: Sequence[Event]) -> EncodingStats:
    """Everything about images encoded elsewhere."""
    came = [event for event in events if isinstance(event, MediaReceived)]
    waits = np.array([event.t_ns - event.asked_ns for event in came], np.int64)
    return EncodingStats(
        requests=len(came),
        images=sum(event.num_items for event in came),
        encoded=sum(encoder.num_encoded for encoder in encoders.encoders),
        gigabytes=sum(event.num_bytes for event in came) / 1e9,
        encode_ms=Sample(waits).stats_ms(),
    )


LINK_HEAD = ("link", "GB/s", "GB", "busy", "utilisation")


def link_cells(link: LinkStats) -> tuple[str, ...]:
    """One link as a row under `LINK_HEAD`."""
    return (
        link["name"],
        f"{link['gb_per_s']:,.1f}",
        f"{link['gigabytes']:,.1f}",
        f"{link['busy_fraction']:.2%}",
        f"{link['utilisation']:.2%}",
    )


def transfer_title(transfers: TransferStats) -> str:
    """How much moved, and what did not go as it should."""
    title = f"KV transfers: {transfers['requests']:,}, {transfers['gigabytes']:,.1f} GB"
    for kind, counts in (("failed", transfers["failed"]), ("released", transfers["released"])):
        other = [f"{n:,} {why}" for why, n in counts.items() if why != "sent"]
        if other:
            title += f"; {kind}: {', '.join(other)}"
    return title


def _link(use: LinkUse, now_ns: SimTime) -> LinkStats:
    possible = use.bytes_per_s * now_ns / NS_PER_S
    return LinkStats(
        name=use.name,
        gb_per_s=use.bytes_per_s / 1e9,
        gigabytes=use.num_bytes / 1e9,
        busy_fraction=use.busy_ns / now_ns if now_ns else 0.0,
        utilisation=use.num_bytes / possible if possible else 0.0,
    )
