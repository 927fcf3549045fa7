"""Where a sequence stops: end of sequence, stop token, stop string or the length cap.

The text of a sequence is known in advance, so the stop is found when the request arrives. The
rules are vLLM 0.33's: none but the cap applies to the first `min_tokens` tokens, a stop string
counts once its last character has appeared, and among equals tokens come before strings.
"""

from typing import NamedTuple

import numpy as np

from frontier_mock.wire.text import SyntheticText, TextRing

_SCAN_TOKENS = 4096


class StopRules(NamedTuple):
    """What may end a sequence before its cap of `max_tokens`.

    `eos_tokens` is the drawn length of the answer, the end token included, or 0 for never.
    """

    max_tokens: int
    min_tokens: int = 0
    eos_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False


class Ending(NamedTuple):
    """How a sequence ends when nobody aborts it, and the text it has then."""

    text: SyntheticText
    finish_reason: str
    stop_reason: int | str | None


def find_ending(ring: TextRing, start: int, rules: StopRules) -> Ending:
    """The first rule that applies to the ring's text from position `start`."""
    hold = 0
    if rules.stop and not rules.include_stop:
        hold = max(len(s) for s in rules.stop) - 1
    limit = rules.max_tokens
    end_id, finish_reason = -1, "length"
    stop_reason: int | str | None = None
    eos_counts = not rules.ignore_eos or ring.end_id in rules.stop_token_ids
    if rules.eos_tokens and eos_counts:
        tokens = max(rules.eos_tokens, rules.min_tokens + 1)
        if tokens <= limit:
            limit, end_id, finish_reason = tokens, ring.end_id, "stop"
            stop_reason = ring.end_id if rules.ignore_eos else None
    stopping = rules.stop_token_ids and ring.id_set.intersection(rules.stop_token_ids)
    if stopping:
        # The end token stands in for the ring's token at its place.
        before_end = limit - (end_id >= 0)
        found = _first_stop_token(ring, start, rules.min_tokens, before_end, sorted(stopping))
        if found is not None:
            limit, stop_reason, finish_reason = found[0], found[1], "stop"
            end_id = -1 if rules.include_stop else found[1]
    string = _first_stop_string(ring, start, limit - (end_id >= 0), rules) if rules.stop else None
    if string is None:
        text = SyntheticText(ring, start, limit, end_id, -1, hold)
        return Ending(text, finish_reason, stop_reason)
    tokens, cut, matched = string
    return Ending(SyntheticText(ring, start, tokens, -1, cut, hold), "stop", matched)


def _first_stop_token(
    ring: TextRing, start: int, min_tokens: int, limit: int, stopping: list[int]
) -> tuple[int, int] | None:
    """(output tokens, id) of the first stop token after `min_tokens`, within one period."""
    last = min(limit, min_tokens + ring.period)
    for first in range(min_tokens, last, _SCAN_TOKENS):
        window = ring.slice_ids(start, first, min(first + _SCAN_TOKENS, last))
        hits = np.flatnonzero(np.isin(window, stopping))
        if len(hits):
            return first + int(hits[0]) + 1, int(window[hits[0]])
    return None


def _first_stop_string(
    ring: TextRing, start: int, limit: int, rules: StopRules
) -> tuple[int, int, str] | None:
    """(output tokens, characters kept, string) of the stop string that completes first."""
    exempt = ring.chars_between(start, min(rules.min_tokens, limit))
    total = ring.chars_between(start, limit)
    best_end, best = total + 1, ""
    for stop in rules.stop:
        first = max(0, exempt - len(stop) + 1)
        last = min(total, first + ring.period_chars + len(stop))
        at = ring.slice_chars(start, first, last).find(stop)
        if at >= 0 and first + at + len(stop) < best_end:
            best_end, best = first + at + len(stop), stop
    if not best:
        return None
    cut = best_end if rules.include_stop else best_end - len(best)
    return ring.tokens_to_reach(start, best_end), cut, best
