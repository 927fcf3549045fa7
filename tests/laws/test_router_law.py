"""A router that looks into caches must see them as they are, however the steps were taken."""

import pytest

from frontier_mock.core.commands import Submit
from frontier_mock.rng import draw_u64
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

TIGHT = SchedulerSpec(
    max_num_seqs=6, max_num_batched_tokens=128, max_model_len=256, block_size=4, num_blocks=80
)


@pytest.mark.parametrize("seed", range(12))
def test_prefix_aware_routing_does_not_depend_on_how_steps_are_taken(seed: int) -> None:
    digests = []
    for single_step in (False, True):
        cluster = toy_cluster(TIGHT, workers=3, policy="prefix_aware", single_step=single_step)
        now_ns = 0
        for i in range(60):
            now_ns += draw_u64(seed, "gap", i) % 40_000_000
            length = 20 + draw_u64(seed, "length", i) % 60
            content = draw_u64(seed, "content", i) % 4
            cluster.feed(now_ns, Submit(prompt(length, content, 4), 90, 90))
        cluster.advance_to(now_ns + 10**10)
        digests.append(cluster.log.digest())
    assert digests[0] == digests[1]
