"""Encoders apart: images of prompts are encoded on other engines, and move."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec, ConnectorSpec, WorkerSpec
from frontier_mock.core.commands import Abort, Media, Submit
from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    MediaReceived,
    Queued,
    Submitted,
    prefill_leg,
)
from frontier_mock.cost.specs import VisionSpec
from frontier_mock.report.summary import report_cluster
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.simtime import NS_PER_MS
from tests.engine import LinearCost, prompt, step_spec

EventT = TypeVar("EventT", bound=Event)

PATCH_NS = 10_000
FRONT_END_NS = 1_100_000
"""A millisecond, and a microsecond for each token of a prompt (`tests.engine.step_spec`)."""
VISION = VisionSpec(2, 64, 128, 2, 14, out_size=100, max_pixels=28 * 28 * 64)
SCHEDULER = SchedulerSpec(
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=256,
    num_blocks=64,
    encoder_budget_tokens=64,
    encoder_cache_tokens=64,
)


class EncodingCost(LinearCost):
    """And 10 us for each patch."""

    def encode_ns(self, images: Sequence[int]) -> int:
        return PATCH_NS * sum(images)


def cluster_of(*roles: str, nic: float | None = None, single_step: bool = False) -> Cluster:
    step = step_spec(0.001)
    step = replace(step, model=replace(step.model, vision=VISION))
    pairs = "prefill" in roles
    connector = ConnectorSpec("NixlConnector") if pairs else None
    workers = tuple(
        WorkerSpec(
            f"{role}{i}",
            8000 + i,
            role,
            "toy",
            step,
            SCHEDULER,
            connector=connector if role in ("prefill", "decode") else None,
        )
        for i, role in enumerate(roles)
    )
    fabric = FabricSpec(gpus_per_node=1, nic_bytes_per_s=nic)
    spec = ClusterSpec(workers, "round_robin", 0, single_step, fabric=fabric)
    return build_cluster(spec, [EncodingCost() for _ in workers])


def seen(*keys: int, tokens: int = 100) -> Submit:
    """A prompt with an image of 20 tokens, 80 patches, for each key."""
    media = tuple(Media(key, 2 + 25 * i, 20, 80) for i, key in enumerate(keys))
    return Submit(prompt(tokens, keys[0], 16), 5, 5, media=media)


def finish(cluster: Cluster) -> None:
    while (due := cluster.next_time()) is not None:
        cluster.advance_to(due)


def of(cluster: Cluster, kind: type[EventT]) -> list[EventT]:
    return [event for event in cluster.log.events if isinstance(event, kind)]


def test_an_image_is_encoded_elsewhere_and_its_embedding_moves() -> None:
    cluster = cluster_of("colocated", "encoder", nic=1e6)
    cluster.feed(0, seen(1))
    finish(cluster)
    (came,) = of(cluster, MediaReceived)
    assert (came.worker, came.num_items, came.num_bytes) == (0, 1, 20 * 100 * 2)
    # 50 us to ask, 80 patches, 0.4 ms, 4,000 bytes at 0.72 MB/s.
    assert came.asked_ns == FRONT_END_NS
    assert came.encoded_ns == FRONT_END_NS + 50_000 + 80 * PATCH_NS
    assert came.t_ns - came.encoded_ns == pytest.approx(400_000 + 4000 / 0.72e6 * 1e9, rel=0.01)
    (queued,) = of(cluster, Queued)
    assert queued.t_ns == came.t_ns
    (end,) = of(cluster, Finished)
    assert (end.worker, end.reason, end.output_tokens) == (0, "length", 5)


def test_what_was_encoded_elsewhere_costs_its_engine_nothing() -> None:
    def first_step_ns(*roles: str) -> int:
        cluster = cluster_of(*roles)
        cluster.feed(0, seen(1, tokens=40))
        finish(cluster)
        (queued,), (first,) = of(cluster, Queued), of(cluster, FirstToken)
        return int(first.t_ns - queued.t_ns)

    assert first_step_ns("colocated") - first_step_ns("colocated", "encoder") == 80 * PATCH_NS


def test_images_of_a_prompt_are_spread_over_encoders_and_equal_ones_encoded_once() -> None:
    took = []
    for encoders in (1, 2):
        cluster = cluster_of("colocated", *["encoder"] * encoders)
        cluster.feed(0, seen(1, 2, 1))
        finish(cluster)
        (came,) = of(cluster, MediaReceived)
        assert came.num_items == 2
        took.append(came.encoded_ns - came.asked_ns)
    assert took[0] - took[1] == 80 * PATCH_NS


def test_an_encoder_remembers_what_it_has_encoded() -> None:
    cluster = cluster_of("colocated", "encoder")
    for t_ms in (0, 0, 50):
        cluster.feed(t_ms * NS_PER_MS, seen(1))
    finish(cluster)
    first, second, third = of(cluster, MediaReceived)
    # The second is being encoded when it is asked for, the third has been long ago.
    assert first.encoded_ns == second.encoded_ns
    assert third.encoded_ns - third.asked_ns == 50_000
    result = report_cluster(cluster, "toy", 0.0).result
    assert result["encoding"]["images"] == 3
    assert result["encoding"]["encoded"] == 1
    (role,) = [row for row in result["roles"] if row["role"] == "encoder"]
    assert role["utilization"] == pytest.approx(80 * PATCH_NS / cluster.now_ns)


def test_encoders_generate_nothing_and_text_needs_none() -> None:
    cluster = cluster_of("encoder", "colocated")
    for _ in range(4):
        cluster.feed(0, Submit(prompt(50, 1, 16), 5, 5))
    finish(cluster)
    assert {event.worker for event in of(cluster, Submitted)} == {1}
    assert not of(cluster, MediaReceived)


def test_encoding_is_a_part_of_time_to_first_token_with_prefill_and_decode_apart() -> None:
    cluster = cluster_of("prefill", "decode", "encoder")
    cluster.feed(0, seen(1))
    finish(cluster)
    (came,) = of(cluster, MediaReceived)
    assert (came.worker, came.rid) == (0, prefill_leg(0))
    result = report_cluster(cluster, "toy", 0.0).result
    parts = result["transfers"]["ttft_parts_ms"]
    means = {name: stats["mean"] for name, stats in parts.items()}
    assert means["encode"] == pytest.approx((came.t_ns - came.asked_ns) / NS_PER_MS)
    assert sum(means.values()) == pytest.approx(result["ttft_ms"]["mean"])


@pytest.mark.parametrize("step", range(12))
def test_an_abort_at_any_moment_leaves_nothing_behind(step: int) -> None:
    logs = []
    for single_step in (False, True):
        cluster = cluster_of("colocated", "encoder", single_step=single_step)
        cluster.feed(0, seen(1, 2))
        cluster.feed(step * NS_PER_MS // 4, Abort(0))
        finish(cluster)
        (end,) = of(cluster, Finished)
        assert end.reason == "abort"
        for worker in cluster.workers:
            assert worker.in_frontend == 0
            assert worker.kv.num_free == worker.kv.num_blocks
        assert cluster.pairing is not None
        assert len(cluster.pairing.fabric) == 0
        logs.append(cluster.log.digest())
    assert logs[0] == logs[1]
