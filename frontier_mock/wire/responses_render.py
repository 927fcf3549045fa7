"""What /v1/responses answers: the response object, and the events that build it.

Keys and order are those of vLLM 0.33 (`openai/responses/protocol.py`, `streaming_events.py`).
"""

import json
from collections.abc import Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.tokenizer import Json

_KEYS = (
    *("id", "created_at", "incomplete_details", "instructions", "metadata", "model", "object"),
    *("output", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p"),
    *("background", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt"),
    *("prompt_cache_options", "prompt_cache_key", "prompt_cache_retention", "reasoning"),
    *("safety_identifier", "service_tier", "status", "text", "top_logprobs", "truncation"),
    *("usage", "user", "presence_penalty", "frequency_penalty", "kv_transfer_params"),
    *("ec_transfer_params", "input_messages", "output_messages"),
)


def render_responses(generation: Generation, outcomes: Sequence[Outcome], created_s: int) -> bytes:
    """The body of a response that is not streamed; `created_s` is unix time."""
    return dumps(finished_response(generation, outcomes, created_s)).encode()


def queued_response(generation: Generation, created_s: int) -> dict[str, Json]:
    """What there is of a response that is made in the background."""
    return _response(generation, created_s, "queued", [])


def finished_response(
    generation: Generation, outcomes: Sequence[Outcome], created_s: int
) -> dict[str, Json]:
    """The response as a value."""
    (outcome,) = outcomes
    text = generation.sequences[0].text.piece(0, outcome.output_tokens, final=True)
    status = "incomplete" if outcome.finish_reason == "length" else "completed"
    response = _response(generation, created_s, status, [_item(generation, text, status)])
    prompt, output = generation.prompt_tokens, outcome.output_tokens
    cached = outcome.cached_tokens
    response["usage"] = {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": max(0, prompt - cached),
            "input_tokens_per_turn": [prompt],
            "cached_tokens_per_turn": [cached],
        },
        "output_tokens": output,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [output],
            "tool_output_tokens_per_turn": [0],
        },
        "total_tokens": prompt + output,
    }
    if generation.frontier:
        response["frontier"] = json.loads(frontier_json(outcomes))
    return response


def _response(
    generation: Generation, created_s: int, status: str, output: list[Json]
) -> dict[str, Json]:
    echoed = generation.detail if isinstance(generation.detail, dict) else {}
    cut = status == "incomplete"
    own: dict[str, Json] = {
        "created_at": created_s,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": generation.model,
        "object": "response",
        "output": output,
        "status": status,
    }
    return {key: own.get(key, echoed.get(key)) for key in _KEYS}


def _item(generation: Generation, text: str, status: str) -> Json:
    """The only item of the output: a message, or the call that was forced."""
    call = generation.sequences[0].call
    name = _item_id(generation)
    if call is not None:
        return {
            "arguments": call.arguments(text),
            "call_id": f"call_{call.id.removeprefix('chatcmpl-tool-')}",
            "name": call.name,
            "type": "function_call",
            "id": name,
            "status": status,
        }
    part: Json = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    return {
        "id": name,
        "content": [part] if text else [],
        "role": "assistant",
        "status": status,
        "type": "message",
    }


def _item_id(generation: Generation) -> str:
    kind = "msg" if generation.sequences[0].call is None else "fc"
    return f"{kind}_{generation.id.removeprefix('resp_')}"


class ResponsesStream:
    """Writes the events of one streamed response."""

    __slots__ = ("_created_s", "_generation", "_number", "_opened")

    def __init__(self, generation: Generation, created_s: int) -> None:
        """`created_s` is the unix time the response carries."""
        self._generation = generation
        self._created_s = created_s
        self._number = 0
        self._opened = False

    def head(self) -> bytes:
        """What is said before there is any output."""
        response = _response(self._generation, self._created_s, "in_progress", [])
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def delta(self, index: int, first: int, last: int) -> bytes:
        """Output tokens `first` to `last` (exclusive), more to follow."""
        return self._said(first, last, final=False)

    def finish(self, index: int, first: int, outcome: Outcome) -> bytes:
        """The last output tokens, from `first` on."""
        return self._said(first, outcome.output_tokens, final=True)

    def tail(self, outcomes: Sequence[Outcome]) -> bytes:
        """The item as a whole, and the response as a whole."""
        response = finished_response(self._generation, outcomes, self._created_s)
        data = b""
        output = response["output"]
        assert isinstance(output, list)
        if self._opened:
            data = self._close(output[0])
        ended = "incomplete" if response["status"] == "incomplete" else "completed"
        return data + self._event(f"response.{ended}", {"response": response})

    def error(self, error: ApiError) -> bytes:
        """An error in mid-stream, and the end of the stream."""
        code = str(error.status)
        return self._event("error", {"code": code, "message": error.message, "param": error.param})

    def _said(self, first: int, last: int, *, final: bool) -> bytes:
        plan = self._generation.sequences[0]
        place = self._place()
        if plan.call is None:
            text = plan.text.piece(first, last, final)
            name = "response.output_text.delta"
            place |= {"content_index": 0, "logprobs": []}
        else:
            before = plan.call.arguments(plan.text.piece(0, first))
            text = plan.call.arguments(plan.text.piece(0, last))[len(before) :]
            name = "response.function_call_arguments.delta"
        if not text:
            return b""
        opening = self._open()
        return opening + self._event(name, {"delta": text, **place})

    def _place(self) -> dict[str, Json]:
        return {"item_id": _item_id(self._generation), "output_index": 0}

    def _open(self) -> bytes:
        if self._opened:
            return b""
        self._opened = True
        item = _item(self._generation, "", "in_progress")
        added = self._event("response.output_item.added", {"item": item, "output_index": 0})
        if self._generation.sequences[0].call is not None:
            return added
        part: Json = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        event = {"content_index": 0, **self._place(), "part": part}
        return added + self._event("response.content_part.added", event)

    def _close(self, item: Json) -> bytes:
        assert isinstance(item, dict)
        place = self._place()
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"], **place}
            data = self._event("response.function_call_arguments.done", done)
        else:
            content = item["content"]
            assert isinstance(content, list)
            part = content[0]
            assert isinstance(part, dict)
            text = part["text"]
            place["content_index"] = 0
            said: dict[str, Json] = {**place, "logprobs": [], "text": text}
            data = self._event("response.output_text.done", said)
            data += self._event("response.content_part.done", {**place, "part": part})
        return data + self._event("response.output_item.done", {"item": item, "output_index": 0})

    def _event(self, name: str, fields: dict[str, Json]) -> bytes:
        value: Json = {**fields, "sequence_number": self._number, "type": name}
        self._number += 1
        return f"event: {name}\ndata: {dumps(value)}\n\n".encode()


def responses_error_event(error: ApiError) -> bytes:
    """The error as the only event of a stream."""
    fields: Json = {
        "code": str(error.status),
        "message": error.message,
        "param": error.param,
        "sequence_number": 0,
        "type": "error",
    }
    return f"event: error\ndata: {dumps(fields)}\n\n".encode()
