"""`metrics` of vLLM's answers: what became of a request's drafts.

Only under --per-request-spec-decode-metrics, and of requests for one choice. vLLM 0.33 v1/metrics/
stats.py (RequestSpecDecodeMetrics), entrypoints/generate/base/protocol.py (PerRequestMetrics).
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.core.events import Drafted
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.tokenizer import Json

_TIMES = ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms")
_ARRAYS = ("per_step_accepted", "per_step_drafted")


def with_metrics(generation: Generation, outcome: Outcome, drafted: Drafted | None) -> Outcome:
    """The same outcome with what is to be told of its drafts, if anything is."""
    if not generation.told_drafts or len(generation.sequences) > 1 or drafted is None:
        return outcome
    return replace(outcome, drafts=_drafts(drafted, generation.told_drafts))


def whole_metrics(outcomes: Sequence[Outcome]) -> str:
    """`metrics` of a whole answer, with its nulls."""
    told = outcomes[0].drafts if outcomes else None
    if told is None:
        return "null"
    metrics: dict[str, Json] = dict.fromkeys((*_TIMES, "tokens_per_second"))
    metrics["speculative_decoding"] = {**told, **dict.fromkeys(_ARRAYS)}
    return _compact(metrics)


def last_metrics(outcomes: Sequence[Outcome]) -> str:
    """The same of a stream's usage chunk, which leaves out nulls; a comma goes before."""
    told = outcomes[0].drafts if outcomes else None
    return "" if told is None else f',"metrics":{_compact({"speculative_decoding": {**told}})}'


def _compact(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


def _drafts(drafted: Drafted, num_drafts: int) -> dict[str, Json]:
    histogram = list(drafted.accepted_steps)[: num_drafts + 1]
    histogram += [0] * (num_drafts + 1 - len(histogram))
    steps = sum(histogram)
    accepted = sum(count * times for count, times in enumerate(histogram))
    tokens = drafted.draft_tokens
    return {
        "mean_acceptance_length": 1.0 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / tokens if tokens else 0.0,
        "acceptance_histogram": [*histogram],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": tokens,
        "num_spec_tokens": num_drafts,
    }
