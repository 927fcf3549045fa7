"""What a request to SGLang became: sequences to submit, and what rendering them takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from frontier_mock.core.events import Drafted
from frontier_mock.wire.generation import Outcome, PromptText, SequencePlan
from frontier_mock.wire.response_store import Record
from frontier_mock.wire.tokenizer import Json, Tokenizer

GENERATE = "generate"
CHAT = "chat"
COMPLETION = "completion"
SCORE = "score"
MESSAGES = "messages"
RESPONSES = "responses"
VERTEX = "vertex"
OLLAMA_CHAT = "ollama chat"
OLLAMA_GENERATE = "ollama generate"


class Bootstrap(NamedTuple):
    """Where prefill and decode of one sequence meet. `room` is any 64-bit number."""

    host: str | None = None
    port: int | None = None
    room: int | None = None
    pair_key: str | None = None


class LogprobWish(NamedTuple):
    """Which log-probabilities a sequence's answer carries.

    `start` is the first prompt token with figures, -1 for output alone; `top` how many candidates
    per position, `token_ids` particular ones; `text` whether tokens are spelled out.
    """

    start: int = -1
    top: int = 0
    token_ids: tuple[int, ...] = ()
    text: bool = False


@dataclass(frozen=True, slots=True)
class SglangSequence:
    """One sequence: its plan, and its share of the request.

    `cap` is `max_new_tokens` after clipping. With a cap of 0 the engine still computes one token,
    which nobody sees.
    """

    rid: str
    plan: SequencePlan
    cap: int
    prompt_tokens: int
    logprobs: LogprobWish | None = None
    bootstrap: Bootstrap | None = None

    def shown(self, output_tokens: int) -> int:
        """Output tokens that the answer carries."""
        return output_tokens if self.cap else 0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What few requests ask of their answer; names are those of the request's fields."""

    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    return_prompt_token_ids: bool = False
    return_token_ids: bool = False
    return_meta_info: bool = False
    return_cached_tokens_details: bool = False
    return_routed_experts: bool = False
    routed_experts_start_len: int = 0
    return_input_ids_in_sglext: bool = False
    return_output_ids_in_sglext: bool = False
    ids_framed: bool = False
    frontier: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """Who a request is for and what it belongs to; names are those of the request's fields.

    `rid` and `rids` of the same request differ where a batch was given one string.
    """

    routed_dp_rank: int | None = None
    disagg_prefill_dp_rank: int | None = None
    routing_key: str | None = None
    session_id: str | None = None
    session_params: Json = None
    lora_path: Json = None
    actor: str | None = None
    log_metrics: bool = True


class Scoring(NamedTuple):
    """What /v1/score wants of each prompt: how likely each of its labels comes next."""

    labels: tuple[tuple[int, ...], ...]
    softmax: bool = False
    temperature: float = 1.0
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class SglangRequest:
    """A parsed request of any route that wants the engine; `kind` is one of the words above.

    `single` says that a whole answer of /generate is an object and not an array of them. `model` is
    what OpenAI answers echo. `stream_interval` is at least 1.
    """

    kind: str
    sequences: tuple[SglangSequence, ...]
    prompts: tuple[PromptText, ...]
    tokenizer: Tokenizer
    stream: bool
    stream_interval: int
    n: int = 1
    single: bool = True
    model: str = ""
    incremental: bool = False
    cache_report: bool = False
    metrics: bool = False
    wishes: Wishes = Wishes()
    routing: Routing = Routing()
    scoring: Scoring | None = None
    echo: Mapping[str, Json] = field(default_factory=dict)
    """What an answer of /v1/responses repeats of its request."""
    record: Record | None = None
    """What a server that keeps responses keeps of it."""

    @property
    def warms(self) -> bool:
        """Whether a hidden request computes each prompt before its `n` samples are taken."""
        return self.n > 1

    def prompt_of(self, sequence: SglangSequence) -> PromptText:
        """The sequence's prompt."""
        return self.prompts[sequence.plan.prompt_index]


class Live(NamedTuple):
    """What the engine says of a sequence that goes on. `now_s` is unix time.

    `host_tokens` of the cached tokens came from the host, `stored_tokens` from the storage behind
    it, whose kind is `storage`.
    """

    cached_tokens: int
    retractions: int
    weight_version: str
    now_s: float
    dp_rank: int = -1
    host_tokens: int = 0
    stored_tokens: int = 0
    storage: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one sequence ended. Times are virtual nanoseconds, -1 for "never happened".

    `queued` is an abort that found it waiting. `status` is the HTTP status of an abort that is an
    error, 0 otherwise; `message` is why, empty for SGLang's own word, and `fault` of which kind, if
    SGLang says so. `weight_versions` are spans
    of output tokens, (version, start, end), if the version changed on the way. `drafted` is what
    became of its drafts, `verified_tokens` to a verification.
    """

    index: int
    output_tokens: int
    reason: str
    cached_tokens: int = 0
    host_tokens: int = 0
    stored_tokens: int = 0
    storage: str = ""
    retractions: int = 0
    queued: bool = False
    arrival_ns: int = -1
    scheduled_ns: int = -1
    first_token_ns: int = -1
    finish_ns: int = -1
    weight_version: str = "default"
    weight_versions: tuple[tuple[str, int, int], ...] = ()
    message: str = ""
    status: int = 0
    fault: str = ""
    now_s: float = 0.0
    dp_rank: int = -1
    drafted: Drafted | None = None
    verified_tokens: int = 0

    @property
    def drafts(self) -> tuple[int, int, int]:
        """Its verifications, the drafts they accepted, and those they were offered."""
        if self.drafted is None:
            return 0, 0, 0
        steps = self.drafted.accepted_steps
        calls = sum(steps)
        correct = sum(accepted * times for accepted, times in enumerate(steps))
        return calls, correct, calls * (self.verified_tokens - 1)

    @property
    def outcome(self) -> Outcome:
        """What every engine would say of it, for the figures under `frontier`."""
        return Outcome(
            self.index,
            self.output_tokens,
            self.reason,
            None,
            self.cached_tokens,
            self.arrival_ns,
            self.first_token_ns,
            self.finish_ns,
        )


def finish_reason(sequence: SglangSequence, ended: Ended) -> dict[str, Json]:
    """`finish_reason` of meta_info (SGLang 0.5.23 `BaseFinishReason.to_json`)."""
    if ended.reason == "stop":
        matched = sequence.plan.stop_reason
        # The end token is a match like any other; the plan leaves it unsaid.
        return {
            "type": "stop",
            "matched": sequence.plan.text.ring.end_id if matched is None else matched,
        }
    if ended.reason == "length":
        return {"type": "length", "length": sequence.cap}
    if ended.queued and not ended.status:
        return {"type": "abort", "message": ended.message or "Abort in waiting queue"}
    status: Json = ended.status or None
    message = ended.message or "Aborted"
    if ended.queued:
        return {"type": "abort", "status_code": status, "message": message}
    fault: Json = ended.fault or None
    return {"type": "abort", "message": message, "status_code": status, "err_type": fault}


def in_order(endings: Sequence[Ended]) -> list[Ended]:
    """Endings by choice, in whatever order they came."""
    return sorted(endings, key=lambda ended: ended.index)
