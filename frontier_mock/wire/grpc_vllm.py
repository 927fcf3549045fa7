"""`vllm.grpc.engine.VllmEngine`: from its requests to sequences, and from tokens to its responses.

Rules and defaults are those of the servicer that vLLM starts with `--grpc` (smg-grpc-servicer
0.14.1, vllm/servicer.py): protobuf's zero stands for "not given" where zero makes no sense, chunks
count what is new, and the message that ends a streamed sequence repeats its last chunk.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from frontier_mock.core.commands import Submit
from frontier_mock.wire.continuation import RESUMABLE_TOKENS
from frontier_mock.wire.errors import (
    ApiError,
    data_parallel_rank_out_of_range,
    invalid,
)
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import HandedOver, LogprobsPlan, Outcome, SequencePlan
from frontier_mock.wire.grpc_logprobs import positions
from frontier_mock.wire.grpc_status import GrpcError, code_of_http, invalid_argument
from frontier_mock.wire.grpc_transfer import transferred
from frontier_mock.wire.plan import check_prompt_ids, effective_max_tokens, plan_sequences
from frontier_mock.wire.sampling import check_against_model, check_sampling
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured_vllm import vllm_writer
from frontier_mock.wire.tokenizer import Json, TokenIds

_ADVICE = "Make sure that `max_model_len` is no smaller than the number of text tokens"


@dataclass(frozen=True, slots=True)
class VllmCall:
    """A parsed GenerateRequest. `logprobs` has the counts asked for, None for none at all.

    `handed_over` is what its answer says of a prompt that is to be decoded elsewhere.
    """

    request_id: str
    stream: bool
    stream_interval: int
    prompt_ids: TokenIds
    sequences: tuple[SequencePlan, ...]
    logprobs: LogprobsPlan
    rank: int = -1
    handed_over: HandedOver | None = None

    def submits(self) -> list[Submit]:
        """The commands that submit its sequences, to the rank it is pinned to if to any."""
        if self.rank < 0:
            return [plan.submit for plan in self.sequences]
        return [replace(plan.submit, rank=self.rank) for plan in self.sequences]


def read_generate(request: pb.GenerateRequest, served: ServedModel) -> VllmCall:
    """The call a request makes. Raises GrpcError for what vLLM refuses, in its words."""
    try:
        return _read(request, served)
    except ApiError as error:
        raise GrpcError(code_of_http(error.status), error.message) from None


def _read(request: pb.GenerateRequest, served: ServedModel) -> VllmCall:
    params_of_transfer = _transfer_params(request)
    if request.HasField("media_refs"):
        raise invalid(
            "media_refs sent but --mm-processor (SMG_VLLM_MM_PROCESSOR) is off on this worker; "
            "check the router's --mm-processing and this worker's mm_processor label"
        )
    media = request.mm_inputs
    pixels = media.HasField("pixel_values") or media.model_specific_tensors
    if pixels or request.extra_mm_inputs:
        raise invalid("mm_inputs are given, but the model served here takes text only.")
    which = request.WhichOneof("input")
    params = request.sampling_params
    if which == "tokenized":
        ids: TokenIds = np.array(request.tokenized.input_ids, np.uint32)
    elif which == "text":
        ids = served.tokenizer.encode(request.text, True)
    else:
        raise invalid("The decoder prompt cannot be empty")
    if params.HasField("truncate_prompt_tokens") and params.truncate_prompt_tokens > 0:
        ids = ids[-params.truncate_prompt_tokens :]
    check_prompt_ids(ids, served, encoded=which == "text")
    check_length(len(ids), served.max_model_len)
    fields = sampling_fields(params)
    asked = params.max_tokens if params.HasField("max_tokens") else None
    if asked is not None and asked < 1:
        raise invalid(f"max_tokens must be at least 1, got {asked}.", "max_tokens", asked)
    cap = effective_max_tokens(asked, len(ids), served)
    n = params.n or 1
    check_sampling(fields, n, cap, served)
    top = params.logprobs if params.HasField("logprobs") else None
    prompt_top = params.prompt_logprobs if params.HasField("prompt_logprobs") else None
    if prompt_top is not None:
        fields["prompt_logprobs"] = prompt_top
    check_against_model(fields, top, served)
    rank = request.data_parallel_rank if request.HasField("data_parallel_rank") else -1
    if request.HasField("data_parallel_rank") and not 0 <= rank < served.data_parallel_size:
        raise data_parallel_rank_out_of_range(rank, served.data_parallel_size)
    resumable = RESUMABLE_TOKENS if which == "tokenized" else 0
    write = vllm_writer(fields, served)
    plans = plan_sequences(
        ids,
        0,
        n,
        cap,
        fields,
        0,
        served,
        resumable=resumable,
        write=write,
        reads_cache=prompt_top is None,
    )
    moved = transferred(plans, params_of_transfer, request.request_id, len(ids), served)
    return VllmCall(
        request_id=request.request_id,
        stream=request.stream,
        stream_interval=served.stream_interval,
        prompt_ids=ids,
        sequences=moved.sequences,
        logprobs=LogprobsPlan(top=top, prompt=prompt_top),
        rank=rank,
        handed_over=moved.handed_over,
    )


def _transfer_params(request: pb.GenerateRequest) -> dict[str, Json] | None:
    """A connector's parameters, of which JSON goes first. Raises GrpcError if they are none."""
    if request.HasField("kv_transfer_params_json"):
        try:
            given = json.loads(request.kv_transfer_params_json)
        except (ValueError, RecursionError) as error:
            raise invalid_argument(f"Invalid kv_transfer_params_json: {error}") from None
        if not isinstance(given, dict):
            raise invalid_argument("kv_transfer_params_json must be a JSON object")
        return given
    if request.HasField("kv_transfer_params"):
        old = request.kv_transfer_params
        if not old.remote_host or not 1 <= old.remote_port <= 65535:
            raise invalid_argument(
                "Invalid kv_transfer_params: remote_host must be set and remote_port must be in "
                "[1, 65535]."
            )
        return {"remote_host": old.remote_host, "remote_port": old.remote_port}
    return None


def check_length(prompt_tokens: int, max_model_len: int) -> None:
    """Raise ApiError, in the engine's words, for a prompt that leaves no room for output."""
    if prompt_tokens > max_model_len:
        raise invalid(
            f"The decoder prompt (length {prompt_tokens}) is longer than the maximum model length "
            f"of {max_model_len}. {_ADVICE}."
        )
    if prompt_tokens == max_model_len:
        raise invalid(
            f"The decoder prompt (length {prompt_tokens}) plus the number of requested output "
            f"tokens (at least 1) is longer than the maximum model length of {max_model_len}. "
            f"{_ADVICE} (prompt + requested output tokens)."
        )


def sampling_fields(params: pb.SamplingParams) -> Fields:
    """Sampling parameters under the names and with the defaults of vLLM's own."""
    fields: Fields = {}
    if params.HasField("temperature"):
        fields["temperature"] = params.temperature
    if params.top_p != 0.0:
        fields["top_p"] = params.top_p
    for name, value in (
        ("top_k", params.top_k),
        ("min_p", params.min_p),
        ("frequency_penalty", params.frequency_penalty),
        ("presence_penalty", params.presence_penalty),
        ("repetition_penalty", params.repetition_penalty),
        ("min_tokens", params.min_tokens),
    ):
        if value:
            fields[name] = value
    if params.stop:
        fields["stop"] = list(params.stop)
    if params.stop_token_ids:
        fields["stop_token_ids"] = list(params.stop_token_ids)
    if params.ignore_eos:
        fields["ignore_eos"] = True
    if params.HasField("seed"):
        fields["seed"] = params.seed
    if params.include_stop_str_in_output:
        fields["include_stop_str_in_output"] = True
    if params.logit_bias:
        biases: dict[str, Json] = {str(key): value for key, value in params.logit_bias.items()}
        fields["logit_bias"] = biases
    constraint = constraint_of(params, "constraint")
    if constraint:
        fields["structured_outputs"] = constraint
    return fields


def constraint_of(params: Any, oneof: str) -> dict[str, Json]:
    """What shapes the output, under the name that HTTP's `structured_outputs` has for it."""
    which = params.WhichOneof(oneof)
    if which is None:
        return {}
    value = getattr(params, which)
    name = "json" if which == "json_schema" else which
    return {name: list(value.choices) if which == "choice" else value}


class VllmSpeech:
    """The messages of one call."""

    __slots__ = (
        "_call",
        "_prompt_logprobs",
        "_prompt_tokens",
        "_told",
        "stream",
        "stream_interval",
    )

    def __init__(self, call: VllmCall) -> None:
        self._call = call
        self._prompt_tokens = len(call.prompt_ids)
        self._prompt_logprobs = _input_logprobs(call)
        self._told = [False] * len(call.sequences)
        self.stream = call.stream
        self.stream_interval = call.stream_interval if call.stream else 0

    def delta(
        self, position: int, first: int, last: int, cached_tokens: int
    ) -> Sequence[pb.GenerateResponse]:
        """Output tokens [first, last) of a sequence exist."""
        ids = self._call.sequences[position].text.ids(first, last)
        return (self._chunk(position, first, ids, cached_tokens),)

    def finish(self, position: int, first: int, ended: Outcome) -> Sequence[pb.GenerateResponse]:
        """A streamed sequence has ended; its tokens from `first` on are new."""
        ids = self._call.sequences[position].text.ids(first, max(first, ended.output_tokens))
        return (
            self._chunk(position, first, ids, ended.cached_tokens),
            self._complete(position, first, ids, ended),
        )

    def whole(self, endings: Sequence[Outcome]) -> Sequence[pb.GenerateResponse]:
        """Everything at once, for a call that does not stream."""
        sequences = self._call.sequences
        return [
            self._complete(ended.index, 0, sequences[ended.index].text.ids(0, count), ended)
            for ended in sorted(endings, key=lambda one: one.index)
            for count in (ended.output_tokens,)
        ]

    def _chunk(
        self, position: int, first: int, ids: list[int], cached_tokens: int
    ) -> pb.GenerateResponse:
        chunk = pb.GenerateStreamChunk(
            token_ids=ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(ids),
            cached_tokens=cached_tokens,
            index=position,
        )
        if self._call.logprobs.top is not None and ids:
            chunk.output_logprobs.CopyFrom(self._output_logprobs(position, first, ids))
        if self._prompt_logprobs is not None and not self._told[position]:
            chunk.input_logprobs.CopyFrom(self._prompt_logprobs)
        self._told[position] = True
        return pb.GenerateResponse(chunk=chunk)

    def _complete(
        self, position: int, first: int, ids: list[int], ended: Outcome
    ) -> pb.GenerateResponse:
        complete = pb.GenerateComplete(
            output_ids=ids,
            finish_reason=ended.finish_reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(ids),
            cached_tokens=ended.cached_tokens,
            index=position,
        )
        if self._call.logprobs.top is not None and ids:
            complete.output_logprobs.CopyFrom(self._output_logprobs(position, first, ids))
        if self._prompt_logprobs is not None:
            complete.input_logprobs.CopyFrom(self._prompt_logprobs)
        if isinstance(ended.stop_reason, int):
            complete.matched_token_id = ended.stop_reason
        elif ended.stop_reason is not None:
            complete.matched_stop_str = ended.stop_reason
        handed_over = self._call.handed_over
        told = None if handed_over is None else handed_over.params(ended)
        if told is not None:
            complete.kv_transfer_params_json = json.dumps(told)
            host, port = told.get("remote_host"), told.get("remote_port")
            if isinstance(host, str) and isinstance(port, int):
                # For routers that do not know the other field yet.
                complete.kv_transfer_params.remote_host = host
                complete.kv_transfer_params.remote_port = port
        return pb.GenerateResponse(complete=complete)

    def _output_logprobs(self, position: int, first: int, ids: list[int]) -> pb.OutputLogProbs:
        plan = self._call.logprobs
        top = plan.top or 0
        ring = self._call.sequences[position].text.ring
        found = positions(ids, first, plan, top, ring)
        return pb.OutputLogProbs(
            token_logprobs=[one.token.logprob for one in found],
            token_ids=ids,
            top_logprobs=[_top(one.candidates) for one in found] if top else (),
        )


def _top(shown: Sequence[tuple[int, float, int]]) -> pb.TopLogProbs:
    return pb.TopLogProbs(
        values=[logprob for _, logprob, _ in shown], token_ids=[token for token, _, _ in shown]
    )


def _input_logprobs(call: VllmCall) -> pb.InputLogProbs | None:
    plan = call.logprobs
    if plan.prompt is None:
        return None
    ids = call.prompt_ids.tolist()
    ring = call.sequences[0].text.ring
    found = positions(ids[1:], 1, LogprobsPlan(), plan.prompt, ring)
    values = [pb.InputTokenLogProb(value=one.token.logprob) for one in found]
    tops = [_top(one.candidates) for one in found]
    return pb.InputLogProbs(
        # Nothing comes before the first token that could have foretold it.
        token_logprobs=[pb.InputTokenLogProb(), *values],
        token_ids=ids,
        top_logprobs=[pb.TopLogProbs(), *tops] if plan.prompt else (),
    )
