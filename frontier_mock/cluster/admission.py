"""Who is turned away at the door: the limits on a server's queue."""

from collections.abc import Iterable, Sequence

from frontier_mock.serving.sequence import DONE
from frontier_mock.serving.sequence import Sequence as EngineSequence
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime


def limited(spec: AnySchedulerSpec) -> bool:
    """Whether there is any such limit."""
    tokens = spec.max_num_queued_tokens if isinstance(spec, SchedulerSpec) else None
    return bool(spec.max_num_queued_reqs) or tokens is not None


def refusal(
    worker: Worker, ranks: Sequence[Worker], live: Iterable[EngineSequence], now_ns: SimTime
) -> str:
    """Why `worker` takes no further sequence at `now_ns`, "" if it does.

    `ranks` are the engines of its server, itself among them, `live` all sequences not forgotten.
    vLLM 0.33 bounds what a whole server has in flight, running or not, and the prompt tokens of
    what has no output yet (`AsyncLLM.check_admission`); SGLang what waits in one engine.
    """
    spec = worker.spec
    limit = spec.max_num_queued_reqs
    if not isinstance(spec, SchedulerSpec):
        waiting = worker.in_frontend + worker.scheduler.num_waiting
        return "queue_full" if limit and waiting >= limit else ""
    if limit and sum(rank.in_frontend + rank.scheduler.num_live for rank in ranks) >= limit:
        return "queue_full"
    most_tokens = spec.max_num_queued_tokens
    if most_tokens is not None and _queued_tokens(ranks, live, now_ns) >= most_tokens:
        return "backlog_full"
    return ""


def _queued_tokens(ranks: Sequence[Worker], live: Iterable[EngineSequence], now_ns: SimTime) -> int:
    """Prompt tokens of the sequences of `ranks` that have produced nothing by `now_ns`.

    Neither hits nor chunks already computed are subtracted: vLLM's front end knows of neither.
    """
    last_of = {rank.index: rank.steps_by(now_ns) for rank in ranks}
    return sum(
        seq.prompt_tokens
        for seq in live
        if seq.state != DONE
        and seq.worker in last_of
        and not seq.produced_by(last_of[seq.worker](seq))
    )
