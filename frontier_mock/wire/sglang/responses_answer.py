"""What /v1/responses answers: the response object, and the events that build it.

Keys and order are those of SGLang 0.5.23 (`openai/protocol.py`, `serving_responses.py`).
"""

import json
from collections.abc import Mapping, Sequence

from frontier_mock.wire.generation import ToolCall
from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.sglang.calls import Progress, arguments_of, progress
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.request import Ended, Live, SglangRequest, finish_reason
from frontier_mock.wire.tokenizer import Json

_STATUSES = {"length": "incomplete", "abort": "failed"}
"""How a response ended, by why generation did; anything else is "completed"."""

_FAULT = "server_error"


def render_responses(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of a whole answer; `created_s` is unix time."""
    return dumps(finished_response(request, endings, created_s)).encode("utf-8", "surrogatepass")


def queued_response(request: SglangRequest, created_s: int) -> dict[str, Json]:
    """What there is of a response that is made in the background."""
    return _response(request.echo, created_s, "queued", [])


def said_in(response: Mapping[str, Json]) -> tuple[Json, ...]:
    """The output of a response as items of a conversation."""
    output = response["output"]
    return tuple(_without_nulls(item) for item in (output if isinstance(output, list) else ()))


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def failed_frames(echo: Mapping[str, Json], message: str, created_s: int) -> bytes:
    """The stream of a response that fails before there is any output."""
    head, number = _opening(echo, created_s)
    return head + _failure(echo, message, created_s, number)


class ResponsesStream:
    """Bytes of one event stream; see `GenerateStream` for who calls what, when."""

    __slots__ = ("_created_s", "_number", "_open", "_request")

    def __init__(self, request: SglangRequest, created_s: int) -> None:
        """`created_s` is the unix time that the response carries."""
        self._request = request
        self._created_s = created_s
        self._number = 0
        self._open = False

    def head(self) -> bytes:
        """What is said before there is any output."""
        data, self._number = _opening(self._request.echo, self._created_s)
        return data

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """The text of output tokens [first, last)."""
        return self._said(first, last, final=False)

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last text."""
        last = self._request.sequences[0].shown(ended.output_tokens)
        return self._said(min(first, last), last, final=True)

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """The item as a whole, and the response as a whole."""
        response = finished_response(self._request, endings, self._created_s)
        data = b""
        output = response["output"]
        if self._open and isinstance(output, list):
            data = self._close(output[0])
        return data + self._event(f"response.{response['status']}", {"response": response})

    def error(self, error: SglangError) -> bytes:
        """What ends the stream if the engine fails."""
        echo, message = self._request.echo, error.message
        if self._number == 0:
            return failed_frames(echo, message, self._created_s)
        return _failure(echo, message, self._created_s, self._number)

    def _said(self, first: int, last: int, *, final: bool) -> bytes:
        plan = self._request.sequences[0].plan
        if plan.call is not None:
            return self._called(plan.call, progress(plan, first, last))
        text = plan.text.piece(first, last, final=final)
        if not text:
            return b""
        opening = b""
        if not self._open:
            self._open = True
            item = _item(self._request, "", "in_progress")
            opening = self._event("response.output_item.added", {"item": item, "output_index": 0})
            opening += self._event(
                "response.content_part.added", self._place() | {"part": _part("")}
            )
        said = {**self._place(), "delta": text, "logprobs": []}
        return opening + self._event("response.output_text.delta", said)

    def _called(self, call: ToolCall, step: Progress) -> bytes:
        data = b""
        if step.begins:
            self._open = True
            item = _call_item(self._request, call, "", "in_progress")
            data = self._event("response.output_item.added", {"item": item, "output_index": 0})
        if step.arguments:
            more: dict[str, Json] = {"delta": step.arguments, "item_id": _call_id(self._request)}
            name = "response.function_call_arguments.delta"
            data += self._event(name, more | {"output_index": 0})
        return data

    def _close(self, item: Json) -> bytes:
        assert isinstance(item, dict)
        if item["type"] == "function_call":
            done: dict[str, Json] = {
                "arguments": item["arguments"],
                "item_id": item["id"],
                "name": item["name"],
                "output_index": 0,
            }
            return self._event("response.function_call_arguments.done", done) + self._event(
                "response.output_item.done", {"item": item, "output_index": 0}
            )
        content = item["content"]
        assert isinstance(content, list)
        (part,) = content
        assert isinstance(part, dict)
        place = self._place()
        said = {**place, "logprobs": [], "text": part["text"]}
        return (
            self._event("response.output_text.done", said)
            + self._event("response.content_part.done", {**place, "part": part})
            + self._event("response.output_item.done", {"item": item, "output_index": 0})
        )

    def _place(self) -> dict[str, Json]:
        return {"content_index": 0, "item_id": _item_id(self._request), "output_index": 0}

    def _event(self, name: str, fields: Mapping[str, Json]) -> bytes:
        data = _event(name, fields, self._number)
        self._number += 1
        return data


def _opening(echo: Mapping[str, Json], created_s: int) -> tuple[bytes, int]:
    """The two events that begin every stream, and the number of the next."""
    response = _response(echo, created_s, "in_progress", [])
    names = ("response.created", "response.in_progress")
    return b"".join(_event(name, {"response": response}, i) for i, name in enumerate(names)), 2


def _failure(echo: Mapping[str, Json], message: str, created_s: int, number: int) -> bytes:
    response = _response(echo, created_s, "failed", [])
    response["error"] = {"code": _FAULT, "message": message}
    return _event("response.failed", {"response": response}, number)


def _event(name: str, fields: Mapping[str, Json], number: int) -> bytes:
    value: Json = {**fields, "sequence_number": number, "type": name}
    return f"event: {name}\ndata: {dumps(value)}\n\n".encode("utf-8", "surrogatepass")


def finished_response(
    request: SglangRequest, endings: Sequence[Ended], created_s: int
) -> dict[str, Json]:
    """The response as a value."""
    (ended,) = endings
    (sequence,) = request.sequences
    shown = sequence.shown(ended.output_tokens)
    text = sequence.plan.text.piece(0, shown, final=True)
    finish = finish_reason(sequence, ended)
    status = _STATUSES.get(str(finish["type"]), "completed")
    output = [_item(request, text, "completed")] if text else []
    call = sequence.plan.call
    if call is not None and text:
        # A list that was cut short is text in a whole answer, and an unfinished call in a stream.
        arguments = arguments_of(sequence.plan, text)
        if arguments is not None:
            output = [_call_item(request, call, arguments, "completed")]
        elif request.stream:
            begun = progress(sequence.plan, 0, shown).begins
            item = _call_item(request, call, call.arguments(text), "incomplete")
            output = [item] if begun else []
    response = _response(request.echo, created_s, status, output)
    cached = ended.cached_tokens if request.cache_report else 0
    response["usage"] = {
        "input_tokens": sequence.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": shown,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sequence.prompt_tokens + shown,
    }
    if status == "failed":
        message = finish.get("message") or "Generation aborted"
        response["error"] = {"code": _FAULT, "message": message}
    if request.wishes.frontier:
        response["frontier"] = json.loads(frontier_json([ended.outcome]))
    return response


def _response(
    echo: Mapping[str, Json], created_s: int, status: str, output: list[Json]
) -> dict[str, Json]:
    text = echo["text"]
    if text is None and output and _is_message(output[0]):
        text = {"format": {"type": "text"}}
    cut: Json = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": echo["id"],
        "object": "response",
        "created_at": created_s,
        "model": echo["model"],
        "output": output,
        "status": status,
        "usage": None,
        **{name: echo[name] for name in ("parallel_tool_calls", "tool_choice", "tools")},
        "error": None,
        "incomplete_details": cut,
        **{name: value for name, value in echo.items() if name not in _EARLIER},
        "text": text,
    }


_EARLIER = frozenset(("id", "model", "parallel_tool_calls", "tool_choice", "tools"))


def _item(request: SglangRequest, text: str, status: str) -> Json:
    return {
        "id": _item_id(request),
        "content": [_part(text)] if status == "completed" else [],
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": "final_answer",
    }


def _is_message(item: Json) -> bool:
    return isinstance(item, dict) and item["type"] == "message"


def _call_item(request: SglangRequest, call: ToolCall, arguments: str, status: str) -> Json:
    return {
        "arguments": arguments,
        "call_id": call.id,
        "name": call.name,
        "type": "function_call",
        "id": _call_id(request),
        "namespace": None,
        "status": status,
    }


def _call_id(request: SglangRequest) -> str:
    return f"fc_{request.sequences[0].rid.removeprefix('resp_')[:8]}"


def _item_id(request: SglangRequest) -> str:
    return f"msg_{request.sequences[0].rid.removeprefix('resp_')}"


def _part(text: str) -> Json:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
