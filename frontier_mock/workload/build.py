"""From a workload's specification to a source ready to play."""

from collections.abc import Callable, Sequence

import numpy as np

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import Prompt
from frontier_mock.rng import draw, stream
from frontier_mock.simtime import NS_PER_S, SimTime, from_seconds
from frontier_mock.workload.draws import Tokens, draw_delays_ns, draw_tokens
from frontier_mock.workload.loops import ClosedLoop, NthSubmit, OpenLoop, Sessions, Turn
from frontier_mock.workload.prompts import HashedPrompt, Piece, StreamPrompt, salt_of
from frontier_mock.workload.rows import TraceError, TraceRow, TraceRows
from frontier_mock.workload.source import Item, Source, Timed
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    TraceSpec,
    WorkloadSpec,
)

SHARED_STREAM = 0
"""Stream number of the prefix common to all prompts."""


def build_source(
    spec: WorkloadSpec, *, seed: int, rows: TraceRows | None = None, block_tokens: int = 16
) -> Source:
    """The source that `spec` describes; the same arguments give the same source.

    `rows` is the trace of a TraceSpec, already read. `block_tokens` is the block size of the
    engine, needed only where outputs return in later prompts. Raises TraceError if a trace's
    selection is empty or it has no timestamps to keep to.
    """
    match spec:
        case TraceSpec():
            if rows is None:
                raise TraceError(f"{spec.path}: trace not read")
            return _trace(spec, seed, rows)
        case ClosedLoopSpec():
            return _closed_loop(spec, seed)
        case BurstSpec():
            total = spec.num_requests + spec.warmup_requests
            nth = _nth_submit(spec.prompts, seed, total)
            return ClosedLoop(nth, total, spec.num_requests, spec.warmup_requests, _no_pause)
        case OpenLoopSpec():
            return _open_loop(spec, seed)
        case SessionsSpec():
            return _sessions(spec, seed, block_tokens)


def output_stream(seq: int) -> int:
    """Stream number of what the engine says in reply to request `seq` of a sessions source."""
    return 2 * seq + 2


def select_rows(rows: TraceRows, spec: TraceSpec) -> tuple[list[TraceRow], list[SimTime]]:
    """The rows that `spec` plays, and when, before any jitter. Raises TraceError if there are none.

    Without timestamps, or with a closed loop, the whole trace can be selected but not a window of
    one that has no times.
    """
    if not rows.timed and (spec.start_s or spec.duration_s is not None or spec.concurrency is None):
        raise TraceError(
            f"{rows.name}: records lengths only, no arrival times; use pacing: sequential or "
            "{concurrency: N}, without start_s and duration_s"
        )
    zero = rows.rows[0].t_ns + from_seconds(spec.start_s)
    end = None if spec.duration_s is None else zero + from_seconds(spec.duration_s)
    chosen = [row for row in rows.rows if row.t_ns >= zero and (end is None or row.t_ns < end)][
        : spec.max_requests
    ]
    if not chosen:
        span_s = (rows.rows[-1].t_ns - rows.rows[0].t_ns) / NS_PER_S
        raise TraceError(
            f"{rows.name}: no row between start_s={spec.start_s:g} and "
            f"duration_s={spec.duration_s} later; the trace spans {span_s:.3f} s"
        )
    scale = spec.rate_scale
    if scale == 1:
        return chosen, [row.t_ns - zero for row in chosen]
    return chosen, [round((row.t_ns - zero) / scale) for row in chosen]


def _no_pause(seq: int) -> SimTime:
    return 0


def _trace(spec: TraceSpec, seed: int, rows: TraceRows) -> Source:
    chosen, times = select_rows(rows, spec)
    hashed, plain = salt_of(rows.name), salt_of(rows.name + "/lengths")
    id_tokens = rows.id_tokens

    def nth(seq: int) -> Submit:
        row = chosen[seq]
        prompt: Prompt
        if row.ids is None:
            prompt = StreamPrompt(plain, (Piece(seq, row.prompt_tokens),))
        else:
            prompt = HashedPrompt(hashed, row.ids, id_tokens, row.prompt_tokens)
        tokens = row.output_tokens
        return Submit(prompt, tokens, tokens, priority=row.priority)

    if spec.concurrency is not None:
        lines = [row.line for row in chosen]
        return ClosedLoop(nth, spec.concurrency, len(chosen), 0, _no_pause, lines)
    if spec.jitter_s:
        jitter_ns = spec.jitter_s * NS_PER_S
        times = [
            t_ns + int(draw(seed, "workload/jitter", seq) * jitter_ns)
            for seq, t_ns in enumerate(times)
        ]
    timed = [
        Timed(t_ns, nth(seq), Item(seq, line=chosen[seq].line)) for seq, t_ns in enumerate(times)
    ]
    if spec.jitter_s:
        timed.sort(key=lambda one: (one.t_ns, one.item.seq))
    return OpenLoop(timed)


def _nth_submit(spec: PromptSpec, seed: int, count: int) -> NthSubmit:
    """Prompts and output lengths of `count` synthetic requests."""
    distinct = count if spec.distinct_prompts is None else min(spec.distinct_prompts, count)
    inputs = draw_tokens(spec.input_tokens, stream(seed, "workload/input"), distinct).tolist()
    outputs = draw_tokens(spec.output_tokens, stream(seed, "workload/output"), count).tolist()
    salt = salt_of(f"synthetic/{seed}")
    shared = spec.shared_prefix_tokens

    def prompt(number: int) -> StreamPrompt:
        own = Piece(number + 1, inputs[number])
        return StreamPrompt(salt, (Piece(SHARED_STREAM, shared), own) if shared else (own,))

    if spec.distinct_prompts is None:

        def nth(seq: int) -> Submit:
            tokens = outputs[seq]
            return Submit(prompt(seq), tokens, tokens)

        return nth
    prompts = [prompt(number) for number in range(distinct)]

    def nth_again(seq: int) -> Submit:
        tokens = outputs[seq]
        return Submit(prompts[seq % distinct], tokens, tokens)

    return nth_again


def _closed_loop(spec: ClosedLoopSpec, seed: int) -> Source:
    total = spec.num_requests + spec.warmup_requests
    pauses = draw_delays_ns(spec.think_time, stream(seed, "workload/think"), total).tolist()
    think_ns: Callable[[int], SimTime] = pauses.__getitem__
    nth = _nth_submit(spec.prompts, seed, total)
    return ClosedLoop(nth, spec.concurrency, spec.num_requests, spec.warmup_requests, think_ns)


def _open_loop(spec: OpenLoopSpec, seed: int) -> Source:
    times = _arrivals_ns(spec, seed)
    nth = _nth_submit(spec.prompts, seed, len(times))
    warm = spec.warmup_requests
    return OpenLoop([Timed(t, nth(seq), Item(seq, seq >= warm)) for seq, t in enumerate(times)])


def _arrivals_ns(spec: OpenLoopSpec, seed: int) -> list[SimTime]:
    """Arrival times; raises ValueError if none falls within the duration."""
    rng = stream(seed, "workload/arrivals")
    if spec.num_requests is not None:
        return _plain(_first_arrivals_ns(spec, rng, spec.num_requests))
    assert spec.duration_s is not None
    end_ns = from_seconds(spec.duration_s)
    expected = spec.rate_per_s * spec.duration_s
    # Ten standard deviations more than expected; more draws never change the earlier ones.
    count = int(expected + 10 * expected**0.5) + 10
    times = _first_arrivals_ns(spec, rng, count)
    chosen: list[SimTime] = times[times < end_ns].tolist()
    if not chosen:
        raise ValueError(
            f"duration_s: no arrival within {spec.duration_s:g} s at {spec.rate_per_s:g}/s"
        )
    return chosen


def _first_arrivals_ns(spec: OpenLoopSpec, rng: np.random.Generator, count: int) -> Tokens:
    gap_ns = NS_PER_S / spec.rate_per_s
    if spec.arrivals == "constant":
        exact = np.arange(count) * gap_ns
    else:
        exact = np.cumsum(rng.exponential(gap_ns, count))
    times: Tokens = np.rint(exact).astype(np.int64)
    return times


def _sessions(spec: SessionsSpec, seed: int, block_tokens: int) -> Source:
    counts = draw_tokens(spec.turns, stream(seed, "workload/turns"), spec.num_sessions)
    total = int(counts.sum())
    prompts = spec.prompts
    inputs = draw_tokens(prompts.input_tokens, stream(seed, "workload/input"), total)
    outputs = draw_tokens(prompts.output_tokens, stream(seed, "workload/output"), total)
    first_seq = np.concatenate(([0], np.cumsum(counts)[:-1]))
    if spec.first_input_tokens is not None:
        rng = stream(seed, "workload/first_input")
        inputs[first_seq] = draw_tokens(spec.first_input_tokens, rng, spec.num_sessions)
    pauses = _pauses_ns(spec, seed, total)
    sessions = []
    for seq0, count in zip(first_seq.tolist(), counts.tolist(), strict=True):
        turns = []
        for seq in range(seq0, seq0 + count):
            own = Piece(2 * seq + 1, int(inputs[seq]))
            shared = prompts.shared_prefix_tokens if seq == seq0 else 0
            pieces = (Piece(SHARED_STREAM, shared), own) if shared else (own,)
            turns.append(Turn(pieces, Piece(output_stream(seq), int(outputs[seq])), pauses[seq]))
        sessions.append(turns)
    starts: Sequence[SimTime] = ()
    if spec.rate_per_s is not None:
        rng = stream(seed, "workload/arrivals")
        gaps = rng.exponential(NS_PER_S / spec.rate_per_s, spec.num_sessions)
        starts = np.rint(np.cumsum(gaps)).astype(np.int64).tolist()
    salt = salt_of(f"sessions/{seed}")
    return Sessions(sessions, salt, block_tokens, spec.concurrency or 0, starts)


def _pauses_ns(spec: SessionsSpec, seed: int, total: int) -> list[SimTime]:
    thinks = draw_delays_ns(spec.think_time, stream(seed, "workload/think"), total)
    if spec.tool_fraction == 0:
        return _plain(thinks)
    tools = draw_delays_ns(spec.tool_time, stream(seed, "workload/tool"), total)
    is_tool = stream(seed, "workload/tool_turn").random(total) < spec.tool_fraction
    return _plain(np.where(is_tool, tools, thinks))


def _plain(values: Tokens) -> list[int]:
    listed: list[int] = values.tolist()
    return listed
