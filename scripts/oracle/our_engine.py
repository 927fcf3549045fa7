"""frontier_mock's worker on the same case, stepping one step at a time."""

import numpy as np
from cases import STEP_NS, Arrival, Case
from record import Chunk, Run, StepRecord, content_key

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Drafted, EventLog, Finished, Preempted, Scheduled
from frontier_mock.core.prompt import KEY_BYTES, KeyedPrompt
from frontier_mock.cost.protocol import DecodeLine
from frontier_mock.serving.build import build_worker
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.prefix_tree import Extent
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.worker import Worker


class FixedCost:
    """Every step takes STEP_NS."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        return DecodeLine(float(STEP_NS), 0.0, 1 << 60)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: object) -> int:
        return STEP_NS

    def drafted(self, batch: object) -> int:
        return STEP_NS

    def drafted_run(self, seqs, tokens, kv_tokens):
        return np.where(tokens > 0, STEP_NS, 0)


class FixedStages(FixedCost):
    """Every stage takes STEP_NS, the ways between them nothing."""

    def __init__(self, stages: int) -> None:
        self.stages = (FixedCost(),) * stages
        self.gap_ns = 0.0

    def cpu_ns(self, rows: int) -> float:
        return 0.0

    def hop_ns(self, stage: int, tokens: int) -> float:
        return 0.0


def submit_of(item: Arrival, block: int) -> Submit:
    """The Submit that the wire layer would make of this arrival."""
    tokens = item.prompt + item.output
    keys = b"".join(
        content_key(tuple(tokens[i : i + block])) for i in range(0, len(tokens) - block + 1, block)
    )
    cut = len(item.prompt) // block * KEY_BYTES
    return Submit(
        prompt=KeyedPrompt(len(item.prompt), block, keys[:cut]),
        output_tokens=len(item.output),
        max_tokens=item.max_tokens,
        finish_reason="stop" if item.stops else "length",
        priority=item.priority,
        output_keys=keys[cut:],
    )


def play(case: Case, single_step: bool = True) -> Run:
    """Run the case to its end."""
    run = Run()
    log = EventLog()
    drafts = case.spec.speculation is not None
    stages = case.spec.pipeline_stages
    cost = FixedCost() if stages == 1 else FixedStages(stages)
    worker = build_worker(0, case.spec, cost, log, single_step)
    scheduler = worker.scheduler
    decide = scheduler.schedule

    def recording(step: int, t_ns: int):
        decided = decide(step, t_ns)
        if decided is not None:
            chunks = tuple(Chunk(seq.rid, *chunk) for seq, chunk in scheduler._grants)
            assert [chunk[1:] for chunk in chunks] == [tuple(c) for c in decided.chunks]
            decodes, kv_tokens = decided.num_decodes, decided.kv_tokens
            if drafts:
                decodes, kv_tokens, _ = (int(row[0]) for row in scheduler.loads(step, step))
            if decodes or chunks:
                free = worker.kv.num_free
                run.steps.append(StepRecord(t_ns, decodes, kv_tokens, chunks, free))
        return decided

    scheduler.schedule = recording
    sequences: list[Sequence] = []
    for item in case.inputs:
        advance(worker, item.t_ns)
        if isinstance(item, Arrival):
            seq = Sequence(len(sequences), submit_of(item, case.spec.block_size), 0)
            sequences.append(seq)
            worker.in_frontend += 1
            worker.deliver(seq, item.t_ns)
            advance(worker, item.t_ns)
        elif item.rid < len(sequences):
            worker.abort(sequences[item.rid], item.t_ns)
    advance(worker, None)
    bursts: dict[int, bytes] = {}
    for event in log.events:
        if isinstance(event, Scheduled):
            run.admissions.append((event.t_ns, event.rid, event.cached_tokens, event.resumed))
        elif isinstance(event, Preempted):
            run.preemptions.append((event.t_ns, event.rid))
        elif isinstance(event, Drafted):
            bursts[event.rid] = event.bursts
        elif isinstance(event, Finished):
            run.finishes.append((event.t_ns, event.rid, event.reason))
            burst = bursts.get(event.rid, b"")
            times = worker.timeline.token_times_ns(event.spans, burst).tolist()
            if times:
                run.token_times[event.rid] = times
    worker.kv.check()
    run.final_queue = eviction_order(worker.kv)
    return run.settle()


def advance(worker: Worker, t_ns: int | None) -> None:
    """Cross every boundary up to `t_ns`, or all of them."""
    while worker.wake_ns is not None and (t_ns is None or worker.wake_ns <= t_ns):
        worker.wake(worker.wake_ns)


def eviction_order(cache: KvCache) -> list[bytes | None]:
    """Every free block in the order in which it will be taken: the prefix it caches, or None."""
    order: list[bytes | None] = []
    extent = cache.queue.ends.next
    while extent is not cache.queue.ends:
        if extent.keys:
            path = path_of(cache, extent)
            first = len(path) - extent.count * KEY_BYTES
            order.extend(path[:end] for end in range(len(path), first, -KEY_BYTES))
        else:
            order.extend([None] * extent.count)
        extent = extent.next
    return order


def path_of(cache: KvCache, extent: Extent) -> bytes:
    """The keys from the root down to the end of `extent`."""
    path = b""
    while extent is not cache.root:
        path = extent.keys[: extent.count * KEY_BYTES] + path
        extent = extent.parent
    return path
