"""The runs of steps that a server's engines executed together, out of their step logs."""

from collections.abc import Iterable
from dataclasses import dataclass

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cost.protocol import RankBatch
from frontier_mock.serving.step_log import StepRun
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_IDLE = RankBatch(0, 0)


@dataclass(frozen=True, slots=True)
class JointRun:
    """`steps` equal steps from `t_ns` to `end_ns`; `batches[i]` is that of rank i in the first.

    `first_steps[i]` is its number, 0 if the rank was idle or the step has none.
    """

    t_ns: SimTime
    end_ns: SimTime
    steps: int
    batches: tuple[RankBatch, ...]
    first_steps: tuple[int, ...]

    def batches_after(self, steps: int) -> list[RankBatch]:
        """The batches `steps` steps after the first one."""
        return [
            batch._replace(kv_tokens=batch.kv_tokens + steps * batch.num_decodes)
            for batch in self.batches
        ]


def keep_step_logs(cluster: Cluster, servers: Iterable[range] | None = None) -> None:
    """Let these servers, or all, log what they execute; before anything has been executed."""
    for server in cluster.servers if servers is None else servers:
        for index in server:
            cluster.workers[index].step_log = []


def take_runs(cluster: Cluster, server: range) -> list[JointRun]:
    """All runs of one server but the present one, which its step logs forget."""
    logs = [cluster.workers[index].step_log or [] for index in server]
    begun_ns = max((log[-1].t_ns for log in logs if log), default=0)
    runs = [run for run in joint_runs(cluster, server) if run.t_ns < begun_ns]
    for log in logs:
        log[:] = [run for run in log if run.t_ns >= begun_ns]
    return runs


def joint_runs(cluster: Cluster, server: range) -> list[JointRun]:
    """All runs of one server in order of time. Its engines must have kept step logs.

    Ranks that step together begin their runs together; of a server whose ranks are independent,
    each one's runs come out alone.
    """
    at: dict[tuple[SimTime, int], dict[int, tuple[StepRun, int, SimTime]]] = {}
    together = cluster.spec.workers[server.start].step.parallel.dp > 1
    for rank, index in enumerate(server):
        for run, steps, end_ns in _ends(cluster.workers[index], cluster.now_ns):
            at.setdefault((run.t_ns, -1 if together else rank), {})[rank] = (run, steps, end_ns)
    made = []
    for (t_ns, _), ranks in sorted(at.items()):
        first = next(iter(ranks.values()))
        parts = [ranks.get(rank) for rank in range(len(server))]
        made.append(
            JointRun(
                t_ns,
                first[2],
                first[1],
                tuple(_IDLE if part is None else part[0].batch for part in parts),
                tuple(
                    0 if part is None or part[0].pause_end_ns else part[0].first_step
                    for part in parts
                ),
            )
        )
    return made


def _ends(worker: Worker, now_ns: SimTime) -> Iterable[tuple[StepRun, int, SimTime]]:
    """Each run with its number of steps and its end; what takes no time is left out."""
    log = worker.step_log
    assert log is not None, "no step log was kept"
    last = worker.step_ended_by(now_ns)
    for index, run in enumerate(log):
        if run.pause_end_ns:
            if run.pause_end_ns > run.t_ns:
                yield run, 1, run.pause_end_ns
            continue
        end = log[index + 1].first_step - 1 if index + 1 < len(log) else last
        if end >= run.first_step:
            yield run, end - run.first_step + 1, worker.timeline.boundary_ns(end)
