"""From specs to a running cluster."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.observed import KvBatch, ObservedCluster
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.cost.protocol import StepCost


def build_cluster(
    spec: ClusterSpec,
    costs: Sequence[StepCost],
    *,
    on_kv: Callable[[KvBatch], None] | None = None,
    with_oracle: bool = False,
) -> Cluster:
    """A cluster at t = 0; `costs[i]` prices the steps of `spec.workers[i]`.

    `on_kv` is told what the caches of engines with `enable_kv_cache_events` do; without it nothing
    is recorded. With it, or `with_oracle`, the cluster is an `ObservedCluster`. Raises ValueError
    for a worker that could never run one sequence of its own maximum length.
    """
    if on_kv is None:
        spec = replace(spec, workers=tuple(_unrecorded(worker) for worker in spec.workers))
    if on_kv is not None or with_oracle:
        return ObservedCluster(spec, costs, on_kv=on_kv, with_oracle=with_oracle)
    return Cluster(spec, costs)


def _unrecorded(worker: WorkerSpec) -> WorkerSpec:
    if not worker.scheduler.enable_kv_cache_events:
        return worker
    return replace(worker, scheduler=replace(worker.scheduler, enable_kv_cache_events=False))
