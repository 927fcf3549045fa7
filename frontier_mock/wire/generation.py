"""What a request became: the sequences to submit, and what is needed to render their output."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from frontier_mock.core.commands import Submit
from frontier_mock.wire.embeddings import Encoded
from frontier_mock.wire.response_store import Record
from frontier_mock.wire.text import SyntheticText
from frontier_mock.wire.tokenizer import Json, TokenIds, Tokenizer

CHAT = "chat"
COMPLETION = "completion"
INFERENCE = "inference"
RESPONSES = "responses"
MESSAGES = "messages"


class WeightSpan(NamedTuple):
    """Output tokens from `start` up to `end` are by the weights called `version`."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one choice ended. Times are virtual nanoseconds, -1 for "never happened".

    `weight_versions` is None unless the client asked for it, and `drafts` unless the server tells
    what became of a request's drafts.
    """

    index: int
    output_tokens: int
    finish_reason: str
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    arrival_ns: int = -1
    first_token_ns: int = -1
    finish_ns: int = -1
    weight_versions: tuple[WeightSpan, ...] | None = None
    drafts: Mapping[str, Json] | None = None


class ToolCall(NamedTuple):
    """A forced call. `listed`: the text is a list with the call in it, not its bare arguments."""

    id: str
    name: str
    listed: bool

    def arguments(self, text: str) -> str:
        """The arguments in the text so far, as JSON, complete or not."""
        if not self.listed:
            return text
        _, found, rest = text.partition(CALL_PARAMETERS)
        if not found:
            return ""
        try:
            return rest[: json.JSONDecoder().raw_decode(rest)[1]]
        except ValueError:
            return rest


CALL_PARAMETERS = '"parameters": '
"""What stands before the arguments in the list of calls that vLLM has models write."""


class PromptText(NamedTuple):
    """A prompt as the response may have to repeat it; kept only if something asks for it."""

    num_tokens: int
    ids: TokenIds | None
    text: str | None


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """One choice: `submit` it, and read its output from `text`.

    `stop_reason` is what ends it if it ends with "stop"; `finish_reason` of the Submit says so.
    `call` is the call of a tool that its text makes, if it was forced to make one.
    """

    index: int
    prompt_index: int
    submit: Submit
    text: SyntheticText
    stop_reason: int | str | None
    call: ToolCall | None = None

    def outcome(
        self,
        output_tokens: int,
        finish_reason: str,
        cached_tokens: int = 0,
        arrival_ns: int = -1,
        first_token_ns: int = -1,
        finish_ns: int = -1,
        weight_versions: tuple[WeightSpan, ...] | None = None,
    ) -> Outcome:
        """The engine's word on how this choice ended, with the stop reason planned for it."""
        reason = self.stop_reason if finish_reason == "stop" else None
        return Outcome(
            self.index,
            output_tokens,
            finish_reason,
            reason,
            cached_tokens,
            arrival_ns,
            first_token_ns,
            finish_ns,
            weight_versions,
        )


@dataclass(frozen=True, slots=True)
class LogprobsPlan:
    """Which log-probabilities the response carries.

    `top` is how many candidates per token were asked for (-1: all), None for no logprobs at all;
    `token_ids` are particular candidates asked for instead. `prompt` likewise for the prompt.
    """

    top: int | None = None
    token_ids: tuple[int, ...] = ()
    prompt: int | None = None
    as_token_ids: bool = False


class HandedOver(Protocol):
    """What a prefill server says of a prompt it has computed."""

    def params(self, outcome: Outcome) -> dict[str, Json] | None:
        """`kv_transfer_params` of the answer."""
        ...


class Generation(NamedTuple):
    """A parsed request. `kind` is the dialect of its answer (`wire.dialects`).

    `echo_text` is what chat echo repeats before each choice; for completions `echo` is set and
    each prompt's own text is repeated. `prompt_only` marks echo with max_tokens=0, where the engine
    produces one token that nobody sees. `actor` is the lease holder named in the body's metadata,
    `data_parallel_rank` the rank pinned by header, -1 if none. `output_mode` is what the inference
    route shows, and `detail` what the answer of another dialect repeats of the request.
    `handed_over` is what the answer says of a prompt that is to be decoded elsewhere, `encoded`
    what it says of images that are encoded for others. `record` is what a server that keeps
    responses keeps of the request. `told_drafts` is how many drafts a step verifies, if the answer
    says what became of them, else 0.
    """

    id: str
    kind: str
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    stream_interval: int
    prompt_tokens: int
    sequences: tuple[SequencePlan, ...]
    prompts: tuple[PromptText, ...]
    tokenizer: Tokenizer
    system_fingerprint: str | None
    role: str = "assistant"
    n: int = 1
    logprobs: LogprobsPlan | None = None
    return_token_ids: bool = False
    return_prompt_text: bool = False
    echo: bool = False
    echo_text: str = ""
    prompt_only: bool = False
    prompt_tokens_details: bool = False
    frontier: bool = False
    actor: str | None = None
    data_parallel_rank: int = -1
    weight_versions: bool = False
    output_mode: str = "tokens"
    detail: Json = None
    handed_over: HandedOver | None = None
    encoded: Encoded | None = None
    record: Record | None = None
    told_drafts: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the engine only encodes: the token that ends a prompt is one nobody sees."""
        return self.encoded is not None and self.encoded.port.encodes_only

    @property
    def submits(self) -> list[Submit]:
        """The commands that submit its sequences, to the rank it is pinned to if to any."""
        rank = self.data_parallel_rank
        if rank < 0:
            return [plan.submit for plan in self.sequences]
        return [replace(plan.submit, rank=rank) for plan in self.sequences]
