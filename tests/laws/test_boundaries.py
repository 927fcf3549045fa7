"""Commands that arrive exactly when a step ends, through a front end that takes no time."""

import pytest

from frontier_mock.core.commands import Abort, Submit
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

SPEC = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=256, max_model_len=256, block_size=4, num_blocks=300
)


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("boundaries", [1, 2, 7, 39, 58, 59, 60])
def test_a_boundary_of_the_same_instant_precedes_the_command(boundaries: int, abort: bool) -> None:
    stamps = []
    digests = []
    for single_step in (False, True):
        cluster = toy_cluster(SPEC, single_step=single_step)
        cluster.feed(0, Submit(prompt(30, 0, 4), 60, 60))
        cluster.feed(0, Submit(prompt(30, 1, 4), 90, 90))
        cluster.advance_to(0)
        for _ in range(boundaries - 1):
            boundary = cluster.next_boundary(0)
            assert boundary is not None
            cluster.advance_to(boundary)
        stamp = cluster.next_boundary(0)
        assert stamp is not None
        cluster.feed(stamp, Abort(1) if abort else Submit(prompt(50, 2, 4), 20, 20))
        cluster.advance_to(stamp + 10**9)
        stamps.append(stamp)
        digests.append(cluster.log.digest())
    assert stamps[0] == stamps[1]
    assert digests[0] == digests[1]
