"""From specs to a running cluster."""

from collections.abc import Sequence

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.observed import ObservedCluster
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.cost.protocol import StepCost


def build_cluster(
    spec: ClusterSpec, costs: Sequence[StepCost], *, with_oracle: bool = False
) -> Cluster:
    """A cluster at t = 0; `costs[i]` prices the steps of `spec.workers[i]`.

    It is an `ObservedCluster` if an engine records KV events, or `with_oracle`. Raises ValueError
    for a worker that could never run one sequence of its own maximum length.
    """
    if with_oracle or any(worker.scheduler.enable_kv_cache_events for worker in spec.workers):
        return ObservedCluster(spec, costs, with_oracle=with_oracle)
    return Cluster(spec, costs)
