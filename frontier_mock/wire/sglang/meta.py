"""`meta_info`, with every key in SGLang's order, and log-probabilities as triples.

The figures are made up, deterministic and plausible (`wire.logprobs`). A token's depend on what it
is and where it stands in the whole context, so that a prompt that repeats earlier output gets, as
input, the figures that output had.
"""

from collections.abc import Sequence

from frontier_mock.wire.generation import LogprobsPlan
from frontier_mock.wire.logprobs import candidates
from frontier_mock.wire.render import dumps
from frontier_mock.wire.sglang.request import (
    Ended,
    Live,
    LogprobWish,
    SglangRequest,
    SglangSequence,
    finish_reason,
)
from frontier_mock.wire.tokenizer import Json, Tokenizer

_NS_PER_S = 1e9


class Triples:
    """The rendered log-probabilities of one sequence, growing with its output.

    Each list is kept as the JSON of its elements, so that a cumulative stream costs what it sends.
    """

    __slots__ = (
        "_input_ids",
        "_input_sampled",
        "_input_top",
        "_sequence",
        "_tokenizer",
        "_wish",
        "chosen",
        "done",
        "sampled",
        "top",
    )

    def __init__(self, request: SglangRequest, sequence: SglangSequence) -> None:
        wish = sequence.logprobs
        assert wish is not None
        self._wish = wish
        self._sequence = sequence
        self._tokenizer: Tokenizer = request.tokenizer
        self.done = 0
        self.sampled: list[str] = []
        self.top: list[str] = []
        self.chosen: list[str] = []
        self._input_sampled = self._input_top = self._input_ids = "[]"
        if wish.start >= 0:
            self._read_prompt(request, wish)

    def grow(self, last: int) -> None:
        """Output tokens up to `last` exist now."""
        first, self.done = self.done, max(self.done, last)
        if last <= first:
            return
        position = self._sequence.prompt_tokens + first
        ids = self._sequence.plan.text.ids(first, last)
        sampled, top, chosen = self._figures(ids, position)
        self.sampled += sampled
        self.top += top
        self.chosen += chosen

    def fields(self, first: int) -> str:
        """The keys of meta_info, with output from token `first` on; ends with a comma."""
        wish = self._wish
        text = (
            f'"input_token_logprobs":{self._input_sampled},'
            f'"output_token_logprobs":[{",".join(self.sampled[first:])}],'
            f'"output_token_logprobs_length":{self.done},'
        )
        if wish.top > 0:
            text += (
                f'"input_top_logprobs":{self._input_top},'
                f'"output_top_logprobs":[{",".join(self.top[first:])}],'
            )
        if wish.token_ids:
            text += (
                f'"input_token_ids_logprobs":{self._input_ids},'
                f'"output_token_ids_logprobs":[{",".join(self.chosen[first:])}],'
            )
        return text

    def _read_prompt(self, request: SglangRequest, wish: LogprobWish) -> None:
        kept = request.prompt_of(self._sequence).ids
        assert kept is not None
        ids = kept[wish.start :].tolist()
        if not ids:
            return
        sampled, top, chosen = self._figures(ids, wish.start)
        # Nothing comes before the first token asked for that could have foretold it.
        sampled[0] = self._triple(None, ids[0])
        top[:1] = ["null"]
        chosen[:1] = ["null"]
        self._input_sampled = f"[{','.join(sampled)}]"
        self._input_top = f"[{','.join(top)}]"
        self._input_ids = f"[{','.join(chosen)}]"

    def _figures(self, ids: Sequence[int], position: int) -> tuple[list[str], list[str], list[str]]:
        wish = self._wish
        ring = self._sequence.plan.text.ring
        sampled, top, chosen = [], [], []
        for i, token_id in enumerate(ids):
            found = candidates(token_id, position + i, _PLAIN, wish.top, ring)
            sampled.append(self._triple(found[0].logprob, token_id))
            if wish.top > 0:
                rows = [self._triple(c.logprob, c.token_id) for c in found[: wish.top]]
                top.append(f"[{','.join(rows)}]")
            if wish.token_ids:
                plan = LogprobsPlan(token_ids=wish.token_ids)
                by_id = {
                    c.token_id: c.logprob for c in candidates(token_id, position + i, plan, 0, ring)
                }
                rows = [self._triple(by_id[other], other) for other in wish.token_ids]
                chosen.append(f"[{','.join(rows)}]")
        return sampled, top, chosen

    def _triple(self, logprob: float | None, token_id: int) -> str:
        text = dumps(self._tokenizer.token_text(token_id)) if self._wish.text else "null"
        figure = "null" if logprob is None else repr(logprob)
        return f"[{figure},{token_id},{text}]"


_PLAIN = LogprobsPlan()


def live_meta(sequence: SglangSequence, live: Live, triples: str, completion: int) -> str:
    """meta_info of a sequence that goes on, without its closing brace."""
    cached = live.cached_tokens
    return (
        f'{{"id":{dumps(sequence.rid)},"finish_reason":null,'
        f'"prompt_tokens":{sequence.prompt_tokens},'
        f'"weight_version":{dumps(live.weight_version)},'
        f'"num_retractions":{live.retractions},{triples}'
        f'"reasoning_tokens":0,"completion_tokens":{completion},"cached_tokens":{cached},'
        f'"cached_tokens_details":{cached_details(live)},'
        f'"dp_rank":{_rank(live.dp_rank)}'
    )


def ended_meta(request: SglangRequest, sequence: SglangSequence, ended: Ended, triples: str) -> str:
    """meta_info of a sequence that has ended, complete."""
    finish = dumps(finish_reason(sequence, ended))
    version = dumps(ended.weight_version)
    completion = sequence.shown(ended.output_tokens)
    latency_s = max(0, ended.finish_ns - ended.arrival_ns) / _NS_PER_S
    spans = _spans(ended)
    rid = dumps(sequence.rid)
    if ended.queued:
        # SGLang's `_handle_abort_req` knows little of what it never ran.
        return (
            f'{{"id":{rid},"finish_reason":{finish},"weight_version":{version},'
            f'"e2e_latency":{latency_s!r}{"," + spans if spans else ""},{triples}'
            f'"completion_tokens":{completion}}}'
        )
    cached = ended.cached_tokens
    return (
        f'{{"id":{rid},"finish_reason":{finish},"prompt_tokens":{sequence.prompt_tokens},'
        f'"weight_version":{version},"num_retractions":{ended.retractions},'
        f"{_queue_fields(request, ended)}{triples}"
        f'"reasoning_tokens":0,"completion_tokens":{completion},"cached_tokens":{cached},'
        f"{spans + ',' if spans else ''}"
        f'"cached_tokens_details":{cached_details(ended)},'
        f'"dp_rank":{_rank(ended.dp_rank)},"e2e_latency":{latency_s!r},'
        f"{_draft_fields(ended, completion)}{_time_fields(request, ended)}"
        f'"response_sent_to_client_ts":{ended.now_s!r}}}'
    )


def _draft_fields(ended: Ended, completion: int) -> str:
    """What became of its drafts, with a comma behind; empty without a verification.

    The length is of all its tokens, the first one included, over its verifications.
    """
    calls, correct, proposed = ended.drafts
    if ended.drafted is None or not calls:
        return ""
    steps = list(ended.drafted.accepted_steps)
    while not steps[-1]:
        steps.pop()
    return (
        f'"spec_accept_rate":{correct / proposed!r},'
        f'"spec_accept_length":{completion / calls!r},'
        f'"spec_num_correct_drafts":{correct},"spec_num_proposed_drafts":{proposed},'
        f'"spec_verify_ct":{calls},"spec_correct_drafts_histogram":{dumps([*steps])},'
    )


def _rank(dp_rank: int) -> str:
    """`dp_rank`: null where there are no ranks."""
    return str(dp_rank) if dp_rank >= 0 else "null"


def cached_details(of: Live | Ended) -> str:
    """`cached_tokens_details`: null where nothing was cached."""
    return dumps(cached_by_tier(of)) if of.cached_tokens else "null"


def cached_by_tier(of: Live | Ended) -> dict[str, Json]:
    """Where cached tokens came from; storage is named only where there is one."""
    host, stored = of.host_tokens, of.stored_tokens
    found: dict[str, Json] = {"device": of.cached_tokens - host - stored, "host": host}
    if of.storage:
        found["storage"] = stored
        found["storage_backend"] = of.storage
    return found


def weight_metadata(ended: Ended) -> str:
    """`metadata` of an OpenAI answer."""
    spans = _spans(ended)
    return f'{{"weight_version":{dumps(ended.weight_version)}{"," + spans if spans else ""}}}'


def _spans(ended: Ended) -> str:
    if not ended.weight_versions:
        return ""
    spans: list[Json] = [
        {"version": version, "start": start, "end": end}
        for version, start, end in ended.weight_versions
    ]
    return f'"weight_versions":{dumps(spans)}'


def _queue_fields(request: SglangRequest, ended: Ended) -> str:
    """What the scheduler's clock adds under --enable-metrics; times are unix seconds."""
    if not request.metrics:
        return ""
    begun_s = ended.now_s - max(0, ended.finish_ns - ended.scheduled_ns) / _NS_PER_S
    first_s = ended.now_s - max(0, ended.finish_ns - ended.first_token_ns) / _NS_PER_S
    waited_s = max(0, ended.scheduled_ns - ended.arrival_ns) / _NS_PER_S
    return (
        f'"forward_entry_time":{begun_s!r},"prefill_finished_time":{first_s!r},'
        f'"queue_time":{waited_s!r},'
    )


def _time_fields(request: SglangRequest, ended: Ended) -> str:
    """What the front end's clock adds under --enable-metrics; times are unix seconds."""
    if not request.metrics:
        return ""
    received_s = ended.now_s - max(0, ended.finish_ns - ended.arrival_ns) / _NS_PER_S
    first_s = max(0, ended.first_token_ns - ended.arrival_ns) / _NS_PER_S
    decode_s = max(0, ended.finish_ns - ended.first_token_ns) / _NS_PER_S
    text = (
        f'"request_received_ts":{received_s!r},"first_token_latency":{first_s!r},'
        f'"api_server_dispatch_finish_ts":{received_s!r},"request_finished_ts":{ended.now_s!r},'
    )
    if ended.output_tokens > 1 and decode_s > 0:
        text += f'"decode_throughput":{(ended.output_tokens - 1) / decode_s!r},'
    return text
