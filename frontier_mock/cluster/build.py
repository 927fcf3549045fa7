"""From specs to a running cluster."""

from collections.abc import Sequence

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.cost.protocol import StepCost


def build_cluster(spec: ClusterSpec, costs: Sequence[StepCost]) -> Cluster:
    """A cluster at t = 0; `costs[i]` prices the steps of `spec.workers[i]`.

    Raises ValueError for a worker that could never run one sequence of its own maximum length.
    """
    return Cluster(spec, costs)
