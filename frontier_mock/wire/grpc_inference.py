"""`vllm.Inference`: from its requests to sequences, and from tokens to its responses.

Rules are those of vLLM's Rust front end (rust/src/server/src/grpc): zero stands for "not given", an
empty temperature is greedy, one sequence per request, and a stream begins with the prompt alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from frontier_mock.core.commands import Submit
from frontier_mock.stubs import vllm_inference_pb2 as pb
from frontier_mock.wire.continuation import RESUMABLE_TOKENS
from frontier_mock.wire.errors import ApiError, data_parallel_rank_out_of_range
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import HandedOver, LogprobsPlan, Outcome, SequencePlan
from frontier_mock.wire.grpc_logprobs import Position, positions
from frontier_mock.wire.grpc_status import (
    FAILED_PRECONDITION,
    INTERNAL,
    NOT_FOUND,
    GrpcError,
    code_of_http,
    invalid_argument,
)
from frontier_mock.wire.grpc_transfer import from_struct, to_struct, transferred
from frontier_mock.wire.grpc_vllm import check_length, constraint_of
from frontier_mock.wire.plan import (
    check_prompt_ids,
    effective_max_tokens,
    plan_sequences,
)
from frontier_mock.wire.sampling import check_against_model, check_sampling
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured_vllm import vllm_writer
from frontier_mock.wire.tokenizer import Json, TokenIds

NO_LORA = "engine was not started with LoRA enabled"

_CARRIER = "fmock-"

_REASONS = {
    "length": pb.FinishInfo.LENGTH,
    "stop": pb.FinishInfo.STOP,
    "abort": pb.FinishInfo.ABORTED,
}


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """A parsed GenerateRequest; the flags say which parts its answer has."""

    request_id: str
    stream: bool
    stream_interval: int
    prompt_ids: TokenIds
    sequence: SequencePlan
    logprobs: LogprobsPlan
    rank: int = -1
    handed_over: HandedOver | None = None
    prompt_token_ids: bool = False
    output_text: bool = True
    output_token_ids: bool = False

    def submits(self) -> list[Submit]:
        """The command that submits it, to the rank it is pinned to if to any."""
        submit = self.sequence.submit
        return [submit if self.rank < 0 else replace(submit, rank=self.rank)]


def read_generate(
    request: pb.GenerateRequest, rank: str | None, stream: bool, served: ServedModel
) -> InferenceCall:
    """The call a request makes; `rank` is its x-data-parallel-rank metadata.

    Raises GrpcError for what vLLM refuses.
    """
    if request.model and request.model not in served.names:
        raise GrpcError(NOT_FOUND, f"model `{request.model}` not found")
    if request.lora_name and request.lora_name not in served.adapters:
        if served.deployment.max_loras == 0:
            raise GrpcError(FAILED_PRECONDITION, NO_LORA)
        raise GrpcError(NOT_FOUND, f"LoRA adapter `{request.lora_name}` is not loaded")
    if request.media:
        raise invalid_argument("the model served here takes text only")
    try:
        return _read(request, _rank(rank, served), stream, served)
    except ApiError as error:
        raise GrpcError(code_of_http(error.status), error.message) from None


def carried_by(salt: str) -> tuple[str | None, str]:
    """The actor whose lease a cache salt carries, and the salt proper.

    vllm-router hands on neither headers nor ids, nor any other word of the client's: over it a
    lease travels as `fmock-<actor>--<salt>`.
    """
    if salt.startswith(_CARRIER):
        name, found, rest = salt[len(_CARRIER) :].partition("--")
        if found and name:
            return name, rest
    return None, salt


def _rank(text: str | None, served: ServedModel) -> int:
    if text is None:
        return -1
    if not text.strip().isdecimal() or int(text) >= 1 << 32:
        raise invalid_argument("x-data-parallel-rank metadata must be an unsigned 32-bit integer")
    rank = int(text)
    if rank >= served.data_parallel_size:
        raise data_parallel_rank_out_of_range(rank, served.data_parallel_size)
    return rank


def _read(
    request: pb.GenerateRequest, rank: int, stream: bool, served: ServedModel
) -> InferenceCall:
    which = request.WhichOneof("prompt")
    if which == "token_ids":
        ids: TokenIds = np.array(request.token_ids.ids, np.uint32)
    elif which == "text":
        ids = served.tokenizer.encode(request.text, True)
    else:
        raise invalid_argument("prompt is required")
    if request.truncate_prompt_tokens:
        ids = ids[-request.truncate_prompt_tokens :]
    check_prompt_ids(ids, served, encoded=which == "text")
    check_length(len(ids), served.max_model_len)
    if request.sampling.num_sequences > 1:
        raise invalid_argument("num_sequences > 1 is not supported")
    fields = _fields(request)
    plan = _logprobs(request.response)
    if plan.prompt is not None:
        fields["prompt_logprobs"] = plan.prompt
    if plan.token_ids:
        fields["logprob_token_ids"] = list(plan.token_ids)
    cap = effective_max_tokens(request.stopping.max_new_tokens or None, len(ids), served)
    check_sampling(fields, 1, cap, served)
    check_against_model(fields, plan.top, served)
    resumable = RESUMABLE_TOKENS if which == "token_ids" else 0
    write = vllm_writer(fields, served)
    (sequence,) = plan_sequences(
        ids,
        0,
        1,
        cap,
        fields,
        request.priority,
        served,
        resumable=resumable,
        write=write,
        reads_cache=plan.prompt is None and not request.kv.bypass_prefix_cache,
        session_id=request.session_id or None,
    )
    wishes = request.response
    request_id = request.request_id or served.new_id()
    params = from_struct(request.kv.kv_transfer_params)
    moved = transferred([sequence], params or None, request_id, len(ids), served)
    return InferenceCall(
        request_id=request_id,
        stream=stream,
        stream_interval=served.stream_interval,
        prompt_ids=ids,
        sequence=moved.sequences[0],
        logprobs=plan,
        rank=rank,
        handed_over=moved.handed_over,
        prompt_token_ids=wishes.prompt_token_ids,
        output_text=wishes.output_text if wishes.HasField("output_text") else True,
        output_token_ids=wishes.output_token_ids,
    )


def _fields(request: pb.GenerateRequest) -> Fields:
    """Sampling parameters under vLLM's own names."""
    sampling, decoding, stopping = request.sampling, request.decoding, request.stopping
    given: tuple[tuple[str, Json], ...] = (
        ("temperature", request.temperature if request.HasField("temperature") else None),
        ("top_k", sampling.top_k),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("presence_penalty", decoding.presence_penalty),
        ("frequency_penalty", decoding.frequency_penalty),
        ("repetition_penalty", decoding.repetition_penalty),
        ("allowed_token_ids", list(decoding.allowed_token_ids)),
        ("logit_bias", {str(key): value for key, value in decoding.logit_bias.items()}),
        ("min_tokens", stopping.min_new_tokens),
        ("stop_token_ids", list(stopping.stop_token_ids)),
        ("stop", list(stopping.stop_strings)),
        ("include_stop_str_in_output", stopping.include_stop_strings),
        ("ignore_eos", stopping.ignore_eos),
        ("cache_salt", carried_by(request.kv.cache_salt)[1]),
        ("model", request.lora_name),
    )
    fields: Fields = {name: value for name, value in given if value}
    if sampling.HasField("seed"):
        fields["seed"] = sampling.seed
    which = decoding.WhichOneof("structured_output")
    if which == "json":
        try:
            json.loads(decoding.json)
        except (ValueError, RecursionError) as error:
            raise invalid_argument(f"invalid json schema: {error}") from None
    elif which in ("grammar", "regex") and not getattr(decoding, which).strip():
        raise invalid_argument(f"{which} cannot be an empty string")
    constraint = constraint_of(decoding, "structured_output")
    if constraint:
        fields["structured_outputs"] = constraint
    return fields


def _logprobs(wishes: pb.ResponseOptions) -> LogprobsPlan:
    """Which candidates are asked for; None counts where no figures are."""
    top: int | None = None
    ids: tuple[int, ...] = ()
    if wishes.output_logprobs:
        top, ids = _candidates(wishes.output_candidates)
    prompt: int | None = None
    if wishes.prompt_logprobs:
        if wishes.prompt_candidates.WhichOneof("select") == "token_ids":
            raise invalid_argument("prompt_candidates token_ids selector is not supported")
        prompt, _ = _candidates(wishes.prompt_candidates)
    return LogprobsPlan(top=top, token_ids=ids, prompt=prompt)


def _candidates(asked: pb.CandidateTokens) -> tuple[int, tuple[int, ...]]:
    which = asked.WhichOneof("select")
    if which == "top_n":
        # Larger than any limit on it.
        return min(asked.top_n, 1 << 30), ()
    if which == "all" and asked.all:
        return -1, ()
    return 0, tuple(asked.token_ids.ids)


class InferenceSpeech:
    """The messages of one call."""

    __slots__ = ("_call", "_text", "_told", "stream", "stream_interval")

    def __init__(self, call: InferenceCall) -> None:
        self._call = call
        self._text = call.sequence.text
        self._told = False
        self.stream = call.stream
        self.stream_interval = call.stream_interval if call.stream else 0

    def delta(
        self, position: int, first: int, last: int, cached_tokens: int
    ) -> Sequence[pb.GenerateResponse]:
        """Output tokens [first, last) exist."""
        return (*self._opening(), pb.GenerateResponse(outputs=self._output(first, last, False)))

    def finish(self, position: int, first: int, ended: Outcome) -> Sequence[pb.GenerateResponse]:
        """The sequence has ended; its tokens from `first` on are new."""
        output = self._output(first, max(first, ended.output_tokens), True)
        self._end(output, ended)
        return (*self._opening(), pb.GenerateResponse(outputs=output))

    def whole(self, endings: Sequence[Outcome]) -> Sequence[pb.GenerateResponse]:
        """Everything at once."""
        (ended,) = endings
        output = self._output(0, ended.output_tokens, True)
        self._end(output, ended)
        return (pb.GenerateResponse(prompt_info=_prompt_info(self._call), outputs=output),)

    def _opening(self) -> Sequence[pb.GenerateResponse]:
        """What comes before everything else in a stream."""
        if self._told:
            return ()
        self._told = True
        return (pb.GenerateResponse(prompt_info=_prompt_info(self._call)),)

    def _output(self, first: int, last: int, final: bool) -> pb.SequenceOutput:
        call, text = self._call, self._text
        ids = text.ids(first, last)
        output = pb.SequenceOutput(num_tokens=last - first)
        if call.output_text:
            output.text = text.piece(first, last, final)
        if call.output_token_ids:
            output.token_ids.extend(ids)
        if call.logprobs.top is not None:
            top = call.logprobs.top
            _add_figures(output, positions(ids, first, call.logprobs, top, text.ring))
        return output

    def _end(self, output: pb.SequenceOutput, ended: Outcome) -> None:
        info = output.finish_info
        info.num_output_tokens = ended.output_tokens
        reason = _REASONS.get(ended.finish_reason)
        if reason is None:
            raise GrpcError(INTERNAL, "Internal server error")
        info.finish_reason = reason
        handed_over = self._call.handed_over
        told = None if handed_over is None else handed_over.params(ended)
        if told is not None:
            info.kv_transfer_params.CopyFrom(to_struct(told))
        if ended.finish_reason != "stop":
            return
        if isinstance(ended.stop_reason, int):
            info.stop_token_id = ended.stop_reason
        elif ended.stop_reason is not None:
            info.stop_string = ended.stop_reason
        else:
            info.eos_token_id = self._text.ring.end_id


def _prompt_info(call: InferenceCall) -> pb.PromptInfo:
    info = pb.PromptInfo(num_prompt_tokens=len(call.prompt_ids))
    ids: list[int] = call.prompt_ids.tolist()
    if call.prompt_token_ids:
        info.token_ids.extend(ids)
    if call.logprobs.prompt is not None:
        # Nothing comes before the first token that could have foretold it.
        info.logprobs.append(0.0)
        info.ranks.append(0)
        info.candidate_tokens.add()
        ring = call.sequence.text.ring
        _add_figures(info, positions(ids[1:], 1, LogprobsPlan(), call.logprobs.prompt, ring))
    return info


def _add_figures(message: pb.SequenceOutput | pb.PromptInfo, found: Sequence[Position]) -> None:
    """Figures of each token, and of the candidates beside it."""
    for own, shown in found:
        message.logprobs.append(own.logprob)
        message.ranks.append(own.rank)
        others = message.candidate_tokens.add().tokens
        for token_id, logprob, rank in shown:
            if token_id != own.token_id:
                others.add(id=token_id, logprob=logprob, rank=rank)
