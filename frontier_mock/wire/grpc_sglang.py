"""`sglang.grpc.scheduler.SglangScheduler`: from its requests to sequences, and to its responses.

Rules are those of SGLang's Python servicer (smg-grpc-servicer 0.14.1, sglang/servicer.py): token
ids only, protobuf's zero stands for "not given" where zero makes no sense, chunks carry new tokens
beside counts of all of them, and the message that ends a streamed sequence repeats its last chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from frontier_mock.wire.continuation import RESUMABLE_TOKENS
from frontier_mock.wire.generation import LogprobsPlan, PromptText
from frontier_mock.wire.grpc_logprobs import Position, positions
from frontier_mock.wire.grpc_status import (
    GrpcError,
    code_of_http,
    constraint_failed,
    invalid_argument,
)
from frontier_mock.wire.logprobs import Candidate, candidates
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.plan import check_length, front_of, plan_prompt
from frontier_mock.wire.sglang.request import (
    Bootstrap,
    Ended,
    LogprobWish,
    Routing,
    SglangRequest,
    SglangSequence,
    finish_reason,
    in_order,
)
from frontier_mock.wire.sglang.sampling import read_sampling
from frontier_mock.wire.structured import ConstraintError
from frontier_mock.wire.tokenizer import Json, TokenIds

KIND = "grpc"
"""`SglangRequest.kind` of what comes this way."""


@dataclass(frozen=True, slots=True)
class SglangCall:
    """A parsed GenerateRequest; `request_id` is what its responses repeat."""

    request_id: str
    request: SglangRequest


def read_generate(message: pb.GenerateRequest, served: ServedModel) -> SglangCall:
    """The call a message makes. Raises GrpcError for what SGLang refuses, in its words."""
    try:
        return SglangCall(message.request_id, _read(message, served))
    except ConstraintError as error:
        raise constraint_failed(str(error)) from None
    except ValueError as error:
        raise invalid_argument(str(error)) from None


def _read(message: pb.GenerateRequest, served: ServedModel) -> SglangRequest:
    front = front_of(served)
    if not message.HasField("tokenized"):
        raise ValueError("Tokenized input must be provided")
    _check_support(message, served)
    ids: TokenIds = np.array(message.tokenized.input_ids, np.uint32)
    if len(ids) == 0:
        raise ValueError("input_ids cannot be empty.")
    if int(ids.max()) >= served.num_token_ids:
        raise ValueError("input_ids contains token ids that are out of vocabulary.")
    ids = check_length(ids, served)
    given = sampling_params(message.sampling_params)
    sampling = read_sampling(given, served.model_vocab_size)
    n = max(1, sampling.n)
    rank = message.data_parallel_rank if message.HasField("data_parallel_rank") else None
    if rank is not None and not 0 <= rank < front.num_dp_ranks:
        raise ValueError(f"routed_dp_rank={rank} out of range [0, {front.num_dp_ranks})")
    plans, cap = plan_prompt(
        ids,
        0,
        n,
        sampling,
        served,
        namespace=message.lora_id,
        rank=rank,
        resumable=RESUMABLE_TOKENS,
    )
    wish = _logprob_wish(message, len(ids), served)
    base = message.request_id or f"grpc-{served.new_id()}"
    where = _bootstrap(message)
    sequences = tuple(
        SglangSequence(base if n == 1 else f"{base}-{plan.index}", plan, cap, len(ids), wish, where)
        for plan in plans
    )
    kept = ids if wish is not None and wish.start >= 0 else None
    return SglangRequest(
        kind=KIND,
        sequences=sequences,
        prompts=(PromptText(len(ids), kept, None),),
        tokenizer=served.tokenizer,
        stream=message.stream,
        stream_interval=sampling.stream_interval or front.stream_interval,
        n=n,
        single=n == 1,
        metrics=front.enable_metrics,
        routing=Routing(routed_dp_rank=rank, log_metrics=message.log_metrics),
    )


def _check_support(message: pb.GenerateRequest, served: ServedModel) -> None:
    """What this server was not started for. Raises ValueError."""
    front = front_of(served)
    if message.return_hidden_states:
        if not front.enable_return_hidden_states:
            raise ValueError(
                "The server is not configured to return hidden states. Please launch with "
                "`--return-hidden-states-mode full` to allow return_hidden_states=True."
            )
        raise ValueError(
            "Hidden states are served by the Rust servicer: run the worker with "
            "`--servicer-impl rust` (or SMG_SGLANG_SERVICER_IMPL=rust). The Python servicer does "
            "not return them."
        )
    if message.custom_logit_processor and not front.enable_custom_logit_processor:
        raise ValueError(
            "The server is not configured to enable custom logit processor. Please set "
            "`--enable-custom-logit-processor` to enable this feature."
        )
    if message.lora_id and not front.enable_lora:
        raise ValueError(
            "The server is not configured to serve LoRA adapters. Please set `--enable-lora`."
        )
    media = message.mm_inputs
    if message.HasField("mm_inputs") and (media.image_urls or media.HasField("pixel_values")):
        raise ValueError("mm_inputs are given, but the model served here takes text only.")


def sampling_params(params: pb.SamplingParams) -> dict[str, Json]:
    """`sampling_params` as the HTTP routes name them; an absent cap asks for all there is."""
    given: dict[str, Json] = {
        "temperature": params.temperature,
        "min_p": params.min_p,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "min_new_tokens": params.min_new_tokens,
        "n": params.n or 1,
        "max_new_tokens": params.max_new_tokens if params.HasField("max_new_tokens") else None,
    }
    if params.top_p != 0.0:
        given["top_p"] = params.top_p
    if params.top_k != 0:
        given["top_k"] = params.top_k
    if params.repetition_penalty != 0.0:
        given["repetition_penalty"] = params.repetition_penalty
    if params.stop:
        given["stop"] = list(params.stop)
    if params.stop_token_ids:
        given["stop_token_ids"] = list(params.stop_token_ids)
    if params.ignore_eos:
        given["ignore_eos"] = True
    if params.no_stop_trim:
        given["no_stop_trim"] = True
    if params.HasField("stream_interval"):
        given["stream_interval"] = params.stream_interval
    if params.logit_bias:
        given["logit_bias"] = dict(params.logit_bias)
    which = params.WhichOneof("constraint")
    if which is not None:
        given["ebnf" if which == "ebnf_grammar" else which] = getattr(params, which)
    return given


def _logprob_wish(
    message: pb.GenerateRequest, prompt_tokens: int, served: ServedModel
) -> LogprobWish | None:
    if not message.return_logprob:
        return None
    start = message.logprob_start_len
    if start > prompt_tokens:
        raise ValueError(
            f"req.logprob_start_len={start} is higher than the number of input tokens "
            f"len(req.origin_input_ids)={prompt_tokens}. "
            "Please use a smaller logprob_start_len."
        )
    ids = tuple(message.token_ids_logprob)
    vocab = served.model_vocab_size
    for token_id in ids:
        if token_id >= vocab:
            raise ValueError(
                f"token_ids_logprob contains out-of-vocabulary token id {token_id}; valid range "
                f"is [0, {vocab})."
            )
    top = max(0, min(message.top_logprobs_num, vocab))
    return LogprobWish(max(-1, start), top, ids)


def _bootstrap(message: pb.GenerateRequest) -> Bootstrap | None:
    if not message.HasField("disaggregated_params"):
        return None
    given = message.disaggregated_params
    return Bootstrap(given.bootstrap_host, given.bootstrap_port, given.bootstrap_room)


class SglangSpeech:
    """The messages of one call. Its ends may raise GrpcError: an abort that has a status."""

    __slots__ = ("_call", "_inputs", "_request", "_told", "stream", "stream_interval")

    def __init__(self, call: SglangCall) -> None:
        request = self._request = call.request
        self._call = call
        self._inputs = [_input_logprobs(request, sequence) for sequence in request.sequences]
        self._told = [False] * len(request.sequences)
        self.stream = request.stream
        self.stream_interval = request.stream_interval if request.stream else 0

    def delta(
        self, position: int, first: int, last: int, cached_tokens: int
    ) -> Sequence[pb.GenerateResponse]:
        """Output tokens [first, last) of a sequence exist."""
        ids = self._request.sequences[position].plan.text.ids(first, last)
        return (self._chunk(position, first, ids, cached_tokens),)

    def finish(self, position: int, first: int, ended: Ended) -> Sequence[pb.GenerateResponse]:
        """A streamed sequence has ended; its tokens from `first` on are new."""
        _check(ended)
        sequence = self._request.sequences[position]
        shown = sequence.shown(ended.output_tokens)
        first = min(first, shown)
        ids = sequence.plan.text.ids(first, shown)
        return (
            self._chunk(position, first, ids, ended.cached_tokens),
            self._complete(position, first, ids, ended),
        )

    def whole(self, endings: Sequence[Ended]) -> Sequence[pb.GenerateResponse]:
        """Everything at once, for a call that does not stream."""
        messages = []
        for ended in in_order(endings):
            _check(ended)
            sequence = self._request.sequences[ended.index]
            ids = sequence.plan.text.ids(0, sequence.shown(ended.output_tokens))
            messages.append(self._complete(ended.index, 0, ids, ended))
        return messages

    def _chunk(
        self, position: int, first: int, ids: list[int], cached_tokens: int
    ) -> pb.GenerateResponse:
        sequence = self._request.sequences[position]
        chunk = pb.GenerateStreamChunk(
            token_ids=ids,
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=first + len(ids),
            cached_tokens=cached_tokens,
            index=position,
        )
        if sequence.logprobs is not None:
            chunk.output_logprobs.CopyFrom(_output_logprobs(sequence, first, ids))
            inputs = self._inputs[position]
            if inputs is not None and not self._told[position]:
                self._told[position] = True
                chunk.input_logprobs.CopyFrom(inputs)
        return pb.GenerateResponse(request_id=self._call.request_id, chunk=chunk)

    def _complete(
        self, position: int, first: int, ids: list[int], ended: Ended
    ) -> pb.GenerateResponse:
        sequence = self._request.sequences[position]
        _, correct_drafts, proposed_drafts = ended.drafts
        complete = pb.GenerateComplete(
            output_ids=ids,
            finish_reason=ended.reason,
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=first + len(ids),
            cached_tokens=ended.cached_tokens,
            index=position,
            spec_accepted_tokens=correct_drafts,
            spec_draft_tokens=proposed_drafts,
        )
        matched = finish_reason(sequence, ended).get("matched")
        if isinstance(matched, int):
            complete.matched_token_id = matched
        elif isinstance(matched, str):
            complete.matched_stop_str = matched
        if sequence.logprobs is not None:
            complete.output_logprobs.CopyFrom(_output_logprobs(sequence, first, ids))
            inputs = self._inputs[position]
            if inputs is not None:
                complete.input_logprobs.CopyFrom(inputs)
        return pb.GenerateResponse(request_id=self._call.request_id, complete=complete)


def _check(ended: Ended) -> None:
    """Raise GrpcError for an abort that is an error."""
    if ended.reason == "abort" and ended.status:
        raise GrpcError(code_of_http(ended.status), ended.message or "aborted by the scheduler")


_PLAIN = LogprobsPlan()


def _output_logprobs(sequence: SglangSequence, first: int, ids: list[int]) -> pb.OutputLogProbs:
    wish = sequence.logprobs
    assert wish is not None
    ring = sequence.plan.text.ring
    where = sequence.prompt_tokens + first
    found = positions(ids, where, _PLAIN, wish.top, ring)
    chosen = []
    if wish.token_ids:
        plan = LogprobsPlan(token_ids=wish.token_ids)
        for i, token_id in enumerate(ids):
            by_id = {one.token_id: one for one in candidates(token_id, where + i, plan, 0, ring)}
            chosen.append(_top([by_id[other] for other in wish.token_ids]))
    return pb.OutputLogProbs(
        token_logprobs=[one.token.logprob for one in found],
        token_ids=ids,
        top_logprobs=[_top(one.candidates) for one in found] if wish.top else (),
        token_ids_logprobs=chosen,
    )


def _input_logprobs(request: SglangRequest, sequence: SglangSequence) -> pb.InputLogProbs | None:
    """Figures of the prompt from where they were asked for, the first without any."""
    wish = sequence.logprobs
    if wish is None or wish.start < 0:
        return None
    kept = request.prompt_of(sequence).ids
    assert kept is not None
    ids: list[int] = kept[wish.start :].tolist()
    ring = sequence.plan.text.ring
    found: list[Position] = positions(ids[1:], wish.start + 1, _PLAIN, wish.top, ring)
    tops = [pb.TopLogProbs(), *(_top(one.candidates) for one in found)] if ids else []
    values = [pb.InputTokenLogProb(value=one.token.logprob) for one in found]
    return pb.InputLogProbs(
        token_logprobs=[pb.InputTokenLogProb(), *values] if ids else (),
        token_ids=ids,
        top_logprobs=tops if wish.top else (),
    )


def _top(shown: Sequence[Candidate]) -> pb.TopLogProbs:
    return pb.TopLogProbs(
        values=[one.logprob for one in shown], token_ids=[one.token_id for one in shown]
    )


def load_message(entry: Mapping[str, Json]) -> pb.SchedulerLoad:
    """One rank's load, from its entry of GET /v1/loads."""
    sections = {
        "memory": pb.MemoryMetrics,
        "speculative": pb.SpeculativeMetrics,
        "disaggregation": pb.DisaggregationMetrics,
        "queues": pb.QueueMetrics,
        "lora": pb.LoRAMetrics,
    }
    running, waiting = entry["num_running_reqs"], entry["num_waiting_reqs"]
    assert isinstance(running, int)
    assert isinstance(waiting, int)
    load = pb.SchedulerLoad(num_total_reqs=running + waiting)
    for field in pb.SchedulerLoad.DESCRIPTOR.fields:
        value = entry.get(field.name)
        kind = sections.get(field.name)
        if value is None:
            continue
        if kind is None:
            setattr(load, field.name, value)
        elif isinstance(value, dict):
            known = {one.name for one in kind.DESCRIPTOR.fields}
            # SGLang renamed a counter that the gateway still calls by its old name.
            named = {_OLD_NAMES.get(name, name): number for name, number in value.items()}
            made = kind(**{name: number for name, number in named.items() if name in known})
            getattr(load, field.name).CopyFrom(made)
    return load


_OLD_NAMES = {"prefill_bootstrap_queue_reqs": "prefill_prealloc_queue_reqs"}


def aggregate(loads: Sequence[pb.SchedulerLoad]) -> pb.AggregateMetrics:
    """All ranks together."""
    count = max(1, len(loads))
    return pb.AggregateMetrics(
        total_running_reqs=sum(load.num_running_reqs for load in loads),
        total_waiting_reqs=sum(load.num_waiting_reqs for load in loads),
        total_reqs=sum(load.num_total_reqs for load in loads),
        avg_token_usage=sum(load.token_usage for load in loads) / count,
        avg_throughput=sum(load.gen_throughput for load in loads) / count,
        avg_utilization=sum(load.utilization for load in loads) / count,
    )
