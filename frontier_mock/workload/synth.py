"""A trace to play when none is at hand: statistically Mooncake's conversation trace.

Theory of operation. Conversations begin uniformly over the hour; each goes on with a probability
that grows with its depth, after a pause. A first turn is one block common to all prompts and blocks
of its own. A later turn repeats the full blocks of the one before it, or, now and then, only the
beginning of them (an edited or shortened history), and adds new ones. Arrivals are then put on the
trace's three-second ticks. All draws come from one stream of the seed.

The tables are quantiles and counts that we computed from `conversation_trace.jsonl` of
kvcache-ai/Mooncake at 3b5a594 (Apache-2.0), whose totals are published in the FAST'25 paper: 12,031
requests, 37 % of prompt tokens reusable. Tests compare what comes out with those totals.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from frontier_mock.rng import stream
from frontier_mock.simtime import NS_PER_MS, NS_PER_S
from frontier_mock.workload.rows import Census, TraceRow, TraceRows

CONVERSATION = "synthetic:conversation"
"""What a scenario's `trace:` says to get this trace."""

NUM_REQUESTS = 12_031
SPAN_S = 3_537
TICK_S = 3
ID_TOKENS = 512
MAX_PROMPT_TOKENS = 126_195

_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Quantile levels of the tables below."""
_FIRST_TOKENS = (
    891, 894, 897, 905, 1092, 1756, 3913, 5264, 7418, 10770, 15871, 25559, 38493, 89867, 121160,
    MAX_PROMPT_TOKENS,
)  # fmt: skip
"""Prompt tokens of a conversation's first turn."""
_ADDED_TOKENS = (
    1, 1, 163, 304, 473, 590, 697, 829, 992, 1678, 5018, 9741, 14690, 26704, 54156, 94968
)  # fmt: skip
"""Prompt tokens of a later turn beyond the blocks it repeats."""
_PAUSE_S = (1, 12, 30, 42, 60, 75, 96, 123, 162, 222, 318, 483, 615, 1477, 2639, 3030)
"""Seconds from one turn's arrival to the next's."""
_OUTPUT_TOKENS = (1, 3, 10, 24, 100, 213, 291, 350, 399, 447, 504, 597, 698, 1118, 2000, 2000)
_CONTINUE = (0.325, 0.45, 0.56, 0.64, 0.66, 0.73, 0.80)
"""Probability of one more turn, by depth; the last one holds from there on."""
_SHORT_TOKENS, _LONG_TOKENS = 2_000, 16_000
_SHORT_FACTOR, _MIDDLE_FACTOR, _LONG_FACTOR = 0.6, 1.3, 0.73
"""Turns shorter or longer than these are followed up less often than those between."""
_CUT = 0.15
"""Share of later turns that repeat only the beginning of what came before."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One request before blocks are numbered: the first `repeated` blocks are the parent's."""

    time_s: float
    conversation: int
    depth: int
    prompt_tokens: int
    output_tokens: int
    repeated: int


def synthesise_conversation(seed: int, num_requests: int = NUM_REQUESTS) -> TraceRows:
    """Exactly `num_requests` rows at the trace's rate; the same seed gives the same rows."""
    rng = stream(seed, "workload/synth/conversation")
    span_s = SPAN_S * num_requests / NUM_REQUESTS
    turns: list[_Turn] = []
    conversation = 0
    while len(turns) < num_requests:
        turns.extend(_conversation(rng, span_s, conversation))
        conversation += 1
    del turns[num_requests:]
    turns.sort(key=lambda turn: (turn.time_s, turn.conversation, turn.depth))
    rows = _number_blocks(turns)
    census = Census(rows=len(rows), read=len(rows))
    return TraceRows(CONVERSATION, "mooncake", rows, ID_TOKENS, True, census)


def mooncake_lines(rows: TraceRows) -> Iterator[str]:
    """A trace as Mooncake JSON lines, each with its newline.

    Mooncake counts from the trace's beginning; formats that tell the date begin at 0 here.
    """
    dated = rows.format == "azure"
    begin_ns = min((row.t_ns for row in rows.rows), default=0) if dated else 0
    for row in rows.rows:
        ids = "" if row.ids is None else f', "hash_ids": {row.ids.tolist()}'
        t_ms = (row.t_ns - begin_ns) // NS_PER_MS
        yield (
            f'{{"timestamp": {t_ms}, "input_length": {row.prompt_tokens}, '
            f'"output_length": {row.output_tokens}{ids}}}\n'
        )


def _conversation(rng: np.random.Generator, span_s: float, number: int) -> Iterator[_Turn]:
    time_s = rng.random() * span_s
    tokens = _quantile(_FIRST_TOKENS, rng.random())
    repeated = depth = 0
    while time_s < span_s:
        yield _Turn(
            time_s, number, depth, tokens, _quantile(_OUTPUT_TOKENS, rng.random()), repeated
        )
        if rng.random() >= _CONTINUE[min(depth, len(_CONTINUE) - 1)] * _follow_up(tokens):
            return
        time_s += _quantile(_PAUSE_S, rng.random())
        repeated = tokens // ID_TOKENS
        if rng.random() < _CUT:
            repeated = round(repeated * rng.random())
        repeated = max(1, repeated)
        tokens = repeated * ID_TOKENS + _quantile(_ADDED_TOKENS, rng.random())
        if tokens > MAX_PROMPT_TOKENS:
            return
        depth += 1


def _follow_up(prompt_tokens: int) -> float:
    if prompt_tokens < _SHORT_TOKENS:
        return _SHORT_FACTOR
    return _MIDDLE_FACTOR if prompt_tokens < _LONG_TOKENS else _LONG_FACTOR


def _quantile(table: tuple[int, ...], level: float) -> int:
    """The table's quantile at `level` in [0, 1), interpolated in the logarithm: tails are long."""
    i = bisect_right(_LEVELS, level) - 1
    share = (level - _LEVELS[i]) / (_LEVELS[i + 1] - _LEVELS[i])
    return round(table[i] * math.pow(table[i + 1] / table[i], share))


def _number_blocks(turns: list[_Turn]) -> list[TraceRow]:
    """Block ids by first appearance; id 0 opens every prompt, as in the real trace."""
    latest: dict[int, list[int]] = {}
    next_id = 1
    rows = []
    for line, turn in enumerate(turns, start=1):
        blocks = -(-turn.prompt_tokens // ID_TOKENS)
        ids = latest.get(turn.conversation, [0])[: max(1, turn.repeated)]
        fresh = blocks - len(ids)
        ids = [*ids, *range(next_id, next_id + fresh)]
        next_id += fresh
        latest[turn.conversation] = ids
        t_ns = int(turn.time_s // TICK_S) * TICK_S * NS_PER_S
        array = np.array(ids, np.int64)
        rows.append(TraceRow(t_ns, turn.prompt_tokens, turn.output_tokens, array, 0, line))
    return rows
