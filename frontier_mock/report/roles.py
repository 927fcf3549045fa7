"""What each role's GPUs did and cost: utilisation, bubbles, tokens per dollar.

A role's utilisation is the share of the simulated time in which its GPUs work. Engines that do
everything themselves work while they execute steps; pipeline stages, each for as long as it
computes, and what is left of the time in which anything is in flight is the bubble. Where attention
and FFN are apart, each side works for as long as its station of the pipeline is occupied, averaged
over ranks, and the rest of the steps' time is its bubble: filling and draining, waiting for the
other side, for transfers or for the slowest rank. A server counts for the whole run, in the role it
begins with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cost.afd.step import AfdStepCost, Occupied
from frontier_mock.cost.protocol import StepCost
from frontier_mock.report.step_runs import JointRun, joint_runs, keep_step_logs, take_runs
from frontier_mock.serving.pipelined import PipelinedWorker
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_RUNS_LOOKED_AT = 4096
"""Of more runs, every second, third, ... is looked at."""

ATTENTION = "attention"
FFN = "ffn"
LINKS = ("a2f", "f2a")


class RoleStats(TypedDict):
    """All GPUs of one role on one type of hardware.

    `bubble` is the share of the time in steps in which they do not work, None where a step is not
    looked into. The links between attention and FFN have rows of their own, without GPUs.
    """

    role: str
    hardware: str
    gpus: int
    utilization: float
    bubble: float | None
    usd_per_hour: float


class CostStats(TypedDict):
    """What the GPUs cost at `prices`, USD per GPU and hour by hardware.

    Tokens are those of measured, completed requests, per dollar for the time they took.
    """

    usd_per_hour: float
    prices: dict[str, float]
    output_tokens_per_usd: float
    tokens_per_usd: float
    usd_per_million_output_tokens: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """Nanoseconds that each station worked, and that steps took."""

    occupied: Occupied
    in_steps_ns: int

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        both = (a + b for a, b in zip(self.occupied, other.occupied, strict=True))
        return Work(Occupied(*both), self.in_steps_ns + other.in_steps_ns)

    @property
    def by_row(self) -> tuple[float, float, float, float]:
        """In the order of a server's rows."""
        one = self.occupied
        return one.attention_ns, one.ffn_ns, one.to_ffn_ns, one.to_attention_ns


_NO_WORK = Work(Occupied(0.0, 0.0, 0.0, 0.0), 0)


class StationBook:
    """For how long each station of servers with attention and FFN apart has worked.

    Make it before anything is executed. `settle` moves what step logs say into the book, for
    servers that run long; the logs are read up to the present either way.
    """

    def __init__(self, cluster: Cluster, costs: Sequence[StepCost]) -> None:
        """`costs` are by engine, as the cluster was built with."""
        self._cluster = cluster
        self._costs: dict[int, AfdStepCost] = {}
        self._done: dict[int, Work] = {}
        for server in cluster.servers:
            cost = costs[server.start]
            if isinstance(cost, AfdStepCost):
                self._costs[server.start] = cost
                self._done[server.start] = _NO_WORK
                keep_step_logs(cluster, [server])

    def settle(self) -> None:
        """Enter all runs of steps but the present ones, and let the logs forget them."""
        for server in self._cluster.servers:
            cost = self._costs.get(server.start)
            if cost is not None:
                work = _work(cost, take_runs(self._cluster, server))
                self._done[server.start] = self._done[server.start].plus(work)

    def work(self, server: range) -> Work | None:
        """All work of a server's stations up to the present; None if it has none."""
        cost = self._costs.get(server.start)
        if cost is None:
            return None
        return self._done[server.start].plus(_work(cost, joint_runs(self._cluster, server)))


def role_stats(cluster: Cluster, book: StationBook | None = None) -> list[RoleStats]:
    """A row per role and hardware, in the order of the servers.

    With a `book`, servers with attention and FFN apart are looked into.
    """
    made: dict[tuple[str, str], RoleStats] = {}
    for server in cluster.servers:
        work = None if book is None else book.work(server)
        for row in _server_rows(cluster, server, work):
            key = (row["role"], row["hardware"])
            known = made.get(key)
            made[key] = row if known is None else _added(known, row)
    return list(made.values())


def cost_stats(
    roles: Sequence[RoleStats], output_tokens_per_s: float, input_tokens_per_s: float
) -> CostStats:
    """Tokens per dollar of a whole cluster."""
    usd_per_hour = sum(row["usd_per_hour"] for row in roles)
    prices = {
        row["hardware"]: row["usd_per_hour"] / row["gpus"] for row in roles if row["gpus"] > 0
    }
    outputs = _per_usd(output_tokens_per_s, usd_per_hour)
    return CostStats(
        usd_per_hour=usd_per_hour,
        prices=prices,
        output_tokens_per_usd=outputs,
        tokens_per_usd=_per_usd(output_tokens_per_s + input_tokens_per_s, usd_per_hour),
        usd_per_million_output_tokens=1e6 / outputs if outputs > 0 else None,
    )


def _per_usd(tokens_per_s: float, usd_per_hour: float) -> float:
    return tokens_per_s * 3600.0 / usd_per_hour if usd_per_hour > 0 else 0.0


def _server_rows(cluster: Cluster, server: range, work: Work | None) -> list[RoleStats]:
    spec, now_ns = cluster.spec.workers[server.start], cluster.now_ns
    workers = cluster.workers[server.start : server.stop]
    busy = sum(worker.gauges(now_ns).busy_ns for worker in workers) / len(workers)
    if cluster.pairing is not None and cluster.pairing.encoders is not None:
        encoders = cluster.pairing.encoders.encoders
        busy += sum(one.worked_ns(now_ns) for one in encoders if one.number in server)
    share = busy / now_ns if now_ns else 0.0
    hardware = spec.step.hardware
    gpus = spec.gpus * len(workers)

    def row(role: str, where: str, number: int, price: float) -> RoleStats:
        return RoleStats(
            role=role,
            hardware=where,
            gpus=number,
            utilization=share,
            bubble=None,
            usd_per_hour=number * price,
        )

    if spec.afd is None:
        one = row(spec.role, hardware.name, gpus, hardware.usd_per_hour)
        shares = [stage_shares(worker, now_ns) for worker in workers]
        if all(shares) and share:
            one["utilization"] = sum(map(sum, shares)) / sum(map(len, shares))
            one["bubble"] = max(0.0, 1.0 - one["utilization"] / share)
        return [one]
    other = spec.afd.ffn_hardware
    of = "prefill " if spec.role == "prefill" else ""
    rows = [
        row(of + ATTENTION, hardware.name, gpus, hardware.usd_per_hour),
        row(of + FFN, other.name, spec.afd.ffn_gpus, other.usd_per_hour),
        *(row(of + link, f"{hardware.name}, {other.name}", 0, 0.0) for link in LINKS),
    ]
    if work is None or not now_ns:
        return rows[:2]
    for one, working_ns in zip(rows, work.by_row, strict=True):
        one["utilization"] = working_ns / now_ns
        one["bubble"] = 1.0 - working_ns / work.in_steps_ns if work.in_steps_ns else 0.0
    return rows


def stage_shares(worker: Worker, now_ns: SimTime) -> list[float]:
    """The share of the time in which each pipeline stage works; empty without stages."""
    if not isinstance(worker, PipelinedWorker) or not now_ns:
        return []
    return [busy / now_ns for busy in worker.stages_busy_ns(now_ns)]


def _work(cost: AfdStepCost, runs: Sequence[JointRun]) -> Work:
    """Work at each station over all runs; within a run it grows steadily."""
    stride = -(-len(runs) // _RUNS_LOOKED_AT) if runs else 1
    total = [0.0] * len(Occupied._fields)
    seen_ns = 0
    for run in runs[::stride]:
        first = cost.occupied(run.batches)
        last = first if run.steps == 1 else cost.occupied(run.batches_after(run.steps - 1))
        for station, (a, b) in enumerate(zip(first, last, strict=True)):
            total[station] += run.steps * (a + b) / 2.0
        seen_ns += run.end_ns - run.t_ns
    all_ns = sum(run.end_ns - run.t_ns for run in runs)
    scale = all_ns / seen_ns if seen_ns else 0.0
    return Work(Occupied(*(one * scale for one in total)), all_ns)


def _added(left: RoleStats, right: RoleStats) -> RoleStats:
    """Two rows of one role and hardware; shares are weighted by GPUs, or equally without any."""
    weights = (left["gpus"] or 1, right["gpus"] or 1)
    whole = sum(weights)

    def mean(a: float, b: float) -> float:
        return (a * weights[0] + b * weights[1]) / whole

    bubbles = (left["bubble"], right["bubble"])
    bubble = None if bubbles[0] is None or bubbles[1] is None else mean(bubbles[0], bubbles[1])
    return RoleStats(
        role=left["role"],
        hardware=left["hardware"],
        gpus=left["gpus"] + right["gpus"],
        utilization=mean(left["utilization"], right["utilization"]),
        bubble=bubble,
        usd_per_hour=left["usd_per_hour"] + right["usd_per_hour"],
    )


def role_cells(row: RoleStats) -> tuple[str, ...]:
    """One row of the table, as `ROLE_HEAD` names its columns."""
    return (
        row["role"],
        row["hardware"],
        f"{row['gpus']:,}" if row["gpus"] else "",
        f"{row['utilization']:.1%}",
        "-" if row["bubble"] is None else f"{row['bubble']:.1%}",
        f"{row['usd_per_hour']:,.2f}" if row["gpus"] else "",
    )


ROLE_HEAD = ("role", "hardware", "GPUs", "utilisation", "bubbles", "$/hour")


def cost_lines(cost: CostStats) -> list[tuple[str, str]]:
    """Name and value of each figure, for a terminal or a page."""
    if not cost["usd_per_hour"]:
        return []
    prices = ", ".join(f"{name} {price:.2f}" for name, price in cost["prices"].items())
    lines = [
        ("output tokens/$", f"{cost['output_tokens_per_usd']:,.0f}"),
        ("tokens/$", f"{cost['tokens_per_usd']:,.0f}"),
    ]
    million = cost["usd_per_million_output_tokens"]
    if million is not None:
        lines.append(("$ per million output tokens", f"{million:,.3f}"))
    return [*lines, ("$ per GPU-hour (made up unless cluster.prices)", prices)]
