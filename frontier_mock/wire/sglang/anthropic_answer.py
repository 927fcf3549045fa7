"""Answers of /v1/messages: whole messages, and event streams.

SGLang 0.5.23 (`entrypoints/anthropic/serving.py`) makes them from those of its chat handler. What
matched as a stop sequence is not told, and cached tokens show only under --enable-cache-report.
"""

import json
from collections.abc import Sequence

from frontier_mock.wire.generation import ToolCall
from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.sglang.calls import Progress, arguments_of, progress
from frontier_mock.wire.sglang.errors import SglangError, anthropic_kind
from frontier_mock.wire.sglang.request import Ended, Live, SglangRequest, finish_reason
from frontier_mock.wire.tokenizer import Json

_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
"""Why a message ended; anything else is the end of a turn."""


def render_messages(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of a whole answer."""
    (ended,) = endings
    (sequence,) = request.sequences
    shown = sequence.shown(ended.output_tokens)
    text = sequence.plan.text.piece(0, shown, final=True)
    block: Json = {"type": "text", "text": text}
    arguments = arguments_of(sequence.plan, text)
    if sequence.plan.call is not None and arguments is not None:
        block = _tool_use(sequence.plan.call, json.loads(arguments))
    body: dict[str, Json] = _message(sequence.rid, request.model, [block])
    body["stop_reason"] = _reason(request, ended)
    body["usage"] = _usage(request, ended.cached_tokens, shown)
    frontier = f',"frontier":{frontier_json([ended.outcome])}' if request.wishes.frontier else ""
    return f"{dumps(body)[:-1]}{frontier}}}".encode("utf-8", "surrogatepass")


def error_frames(rid: str, model: str, message: str, status: int) -> bytes:
    """A stream that has begun and has only an error to tell."""
    return _start(rid, model, {"input_tokens": 0, "output_tokens": 0}) + _error(message, status)


class MessagesStream:
    """Bytes of one event stream; see `GenerateStream` for who calls what, when."""

    __slots__ = ("_begun", "_open", "_request")

    def __init__(self, request: SglangRequest, created_s: int) -> None:
        """`created_s` is for other kinds of stream."""
        self._request = request
        self._begun = False
        self._open = False

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """The text of output tokens [first, last)."""
        return self._said(first, last, live.cached_tokens, final=False)

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last text."""
        last = self._request.sequences[0].shown(ended.output_tokens)
        return self._said(min(first, last), last, ended.cached_tokens, final=True)

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """The end of the block and of the message."""
        (ended,) = endings
        request = self._request
        output = request.sequences[0].shown(ended.output_tokens)
        delta: dict[str, Json] = {
            "type": "message_delta",
            "delta": {"stop_reason": _reason(request, ended)},
            "usage": {"output_tokens": output},
        }
        more = f',"frontier":{frontier_json([ended.outcome])}' if request.wishes.frontier else ""
        end = f"event: message_delta\ndata: {dumps(delta)[:-1]}{more}}}\n\n".encode()
        return self._close() + end + _STOP

    def error(self, error: SglangError) -> bytes:
        """What ends the stream if the engine fails."""
        if self._begun:
            return self._close() + _error(error.message, error.status)
        request = self._request
        rid = request.sequences[0].rid
        return error_frames(rid, request.model, error.message, error.status)

    def _said(self, first: int, last: int, cached: int, *, final: bool) -> bytes:
        request = self._request
        (sequence,) = request.sequences
        text = sequence.plan.text.piece(first, last, final=final)
        opening = b""
        if not self._begun:
            self._begun = True
            opening = _start(sequence.rid, request.model, _usage(request, cached, 0))
        if sequence.plan.call is not None:
            return opening + self._called(sequence.plan.call, progress(sequence.plan, first, last))
        if not text:
            return opening
        if not self._open:
            self._open = True
            opening += (
                b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
                b'"content_block":{"type":"text","text":""}}\n\n'
            )
        frame = (
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            f'"delta":{{"type":"text_delta","text":{dumps(text)}}}}}\n\n'
        )
        return opening + frame.encode("utf-8", "surrogatepass")

    def _called(self, call: ToolCall, step: Progress) -> bytes:
        frames = ""
        if step.begins:
            self._open = True
            start: Json = {
                "type": "content_block_start",
                "index": 0,
                "content_block": _tool_use(call, {}),
            }
            frames = f"event: content_block_start\ndata: {dumps(start)}\n\n"
        if step.arguments:
            delta: Json = {"type": "input_json_delta", "partial_json": step.arguments}
            more: Json = {"type": "content_block_delta", "index": 0, "delta": delta}
            frames += f"event: content_block_delta\ndata: {dumps(more)}\n\n"
        return frames.encode("utf-8", "surrogatepass")

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = False
        return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'


def _message(rid: str, model: str, content: list[Json]) -> dict[str, Json]:
    return {
        "id": f"msg_{rid}",
        "type": "message",
        "role": "assistant",
        "content": content,
        "model": model,
    }


def _start(rid: str, model: str, usage: Json) -> bytes:
    message = {**_message(rid, model, []), "usage": usage}
    start: Json = {"type": "message_start", "message": message}
    return f"event: message_start\ndata: {dumps(start)}\n\n".encode("utf-8", "surrogatepass")


def _error(message: str, status: int) -> bytes:
    told: Json = {"type": "error", "error": {"type": anthropic_kind(status), "message": message}}
    return f"event: error\ndata: {dumps(told)}\n\n".encode("utf-8", "surrogatepass") + _STOP


def _tool_use(call: ToolCall, value: Json) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": value}


def _reason(request: SglangRequest, ended: Ended) -> str:
    (sequence,) = request.sequences
    finish = finish_reason(sequence, ended)
    if sequence.plan.call is not None and finish["type"] == "stop":
        return "tool_use"
    return _REASONS.get(str(finish["type"]), "end_turn")


def _usage(request: SglangRequest, cached: int, output: int) -> dict[str, Json]:
    """Anthropic's counts: what came from the cache is not input."""
    told = cached if request.cache_report else 0
    prompt = request.sequences[0].prompt_tokens
    usage: dict[str, Json] = {"input_tokens": prompt - told, "output_tokens": output}
    return usage | {"cache_read_input_tokens": told} if told else usage
