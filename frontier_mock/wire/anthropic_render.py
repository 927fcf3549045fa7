"""What /v1/messages answers: bodies, event streams and errors in Anthropic's shapes.

Key order and what is left out are those of vLLM 0.33 (`entrypoints/anthropic/serving.py`).
"""

import json
from collections.abc import Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.tokenizer import Json

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError) -> bytes:
    """The error as a body. What the schema refuses keeps its OpenAI shape, as in vLLM."""
    if error.kind == "Bad Request":
        return error.body()
    return dumps(_error(error)).encode()


def anthropic_error_event(error: ApiError) -> bytes:
    """The error as the last event of a stream."""
    return _event("error", _error(error))


def render_messages(generation: Generation, outcomes: Sequence[Outcome], created_s: int) -> bytes:
    """The body of a message that is not streamed, without nulls; it carries no time."""
    (outcome,) = outcomes
    plan = generation.sequences[0]
    text = plan.text.piece(0, outcome.output_tokens, final=True)
    block: dict[str, Json] = {"type": "text", "text": text}
    if plan.call is not None:
        arguments = plan.call.arguments(text)
        block = {
            "type": "tool_use",
            "id": plan.call.id,
            "name": plan.call.name,
            "input": _parsed(arguments),
        }
    body: dict[str, Json] = {
        "id": generation.id,
        "type": "message",
        "role": "assistant",
        "content": [block],
        "model": generation.model,
    }
    reason, sequence = _stop_reason(outcome, plan.call is not None)
    if reason is not None:
        body["stop_reason"] = reason
    if sequence is not None:
        body["stop_sequence"] = sequence
    body["usage"] = _usage(generation, outcome.output_tokens, outcome)
    if generation.frontier:
        body["frontier"] = json.loads(frontier_json(outcomes))
    return dumps(body).encode()


class MessagesStream:
    """Writes the events of one streamed message."""

    __slots__ = ("_generation", "_opened", "_started")

    def __init__(self, generation: Generation, created_s: int) -> None:
        """Events carry no time; `created_s` is what every renderer is told."""
        self._generation = generation
        self._started = False
        self._opened = False

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int) -> bytes:
        """Output tokens `first` to `last` (exclusive), more to follow."""
        return self._start() + self._said(first, last, final=False)

    def finish(self, index: int, first: int, outcome: Outcome) -> bytes:
        """The last output tokens, from `first` on."""
        return self._start() + self._said(first, outcome.output_tokens, final=True)

    def tail(self, outcomes: Sequence[Outcome]) -> bytes:
        """The end of the block, why the message ended, and the end of the message."""
        (outcome,) = outcomes
        call = self._generation.sequences[0].call
        reason, sequence = _stop_reason(outcome, call is not None)
        delta: Json = {"stop_reason": reason, "stop_sequence": sequence}
        usage = _usage(self._generation, outcome.output_tokens, outcome)
        event: dict[str, Json] = {"type": "message_delta", "delta": delta, "usage": usage}
        if self._generation.frontier:
            event["frontier"] = json.loads(frontier_json(outcomes))
        stop = _event("content_block_stop", {"type": "content_block_stop", "index": 0})
        end = _event("message_stop", {"type": "message_stop"})
        return (stop if self._opened else b"") + _event("message_delta", event) + end

    def error(self, error: ApiError) -> bytes:
        """An error in mid-stream, and the end of the stream."""
        return anthropic_error_event(error)

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        generation = self._generation
        message: Json = {
            "id": generation.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": generation.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(generation, 0, None),
        }
        return _event("message_start", {"type": "message_start", "message": message})

    def _said(self, first: int, last: int, *, final: bool) -> bytes:
        plan = self._generation.sequences[0]
        call = plan.call
        if call is None:
            text = plan.text.piece(first, last, final)
            block: Json = {"type": "text", "text": ""}
            delta: Json = {"type": "text_delta", "text": text}
        else:
            said = plan.text.piece(0, first) if first else ""
            text = call.arguments(said + plan.text.piece(first, last, final))
            text = text[len(call.arguments(said)) :]
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": text}
        data = b""
        if not self._opened and (text or call is not None):
            self._opened = True
            start: dict[str, Json] = {"type": "content_block_start", "index": 0}
            data = _event("content_block_start", {**start, "content_block": block})
        if text:
            event: dict[str, Json] = {"type": "content_block_delta", "index": 0, "delta": delta}
            data += _event("content_block_delta", event)
        return data


def _event(name: str, value: dict[str, Json]) -> bytes:
    return f"event: {name}\ndata: {dumps(value)}\n\n".encode()


def _error(error: ApiError) -> dict[str, Json]:
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ERROR_TYPES.get(error.status, default)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _usage(generation: Generation, output_tokens: int, outcome: Outcome | None) -> dict[str, Json]:
    """Anthropic's counts: what was cached is no input; left out unless the server shows it."""
    prompt = generation.prompt_tokens
    if outcome is None or not generation.prompt_tokens_details:
        return {"input_tokens": prompt, "output_tokens": output_tokens}
    cached = outcome.cached_tokens
    return {
        "input_tokens": 0,
        "output_tokens": output_tokens,
        "cache_creation_input_tokens": max(0, prompt - cached),
        "cache_read_input_tokens": cached,
    }


def _stop_reason(outcome: Outcome, called: bool) -> tuple[str | None, str | None]:
    """(stop_reason, stop_sequence)."""
    if outcome.finish_reason == "length":
        return "max_tokens", None
    if outcome.finish_reason not in ("stop", "tool_calls"):
        return None, None
    if called:
        return "tool_use", None
    if isinstance(outcome.stop_reason, str):
        return "stop_sequence", outcome.stop_reason
    return "end_turn", None


def _parsed(arguments: str) -> Json:
    """Arguments as a value; those of a call that was cut short are no JSON."""
    try:
        value: Json = json.loads(arguments)
    except ValueError:
        return {}
    return value
