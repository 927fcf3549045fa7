"""OpenAI's Responses API through SGLang: conversion, refusals, and what is written."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.responses import Response

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.request import Live, SglangRequest
from frontier_mock.wire.sglang.responses import parse_responses
from frontier_mock.wire.sglang.responses_answer import ResponsesStream, render_responses
from frontier_mock.wire.sglang.served import SglangFront
from tests.wire.sglang.test_anthropic import events
from tests.wire.sglang.test_generate import ends

LIVE = Live(2, 0, "default", 5.0)


def parse(served: ServedModel, **body: Any) -> SglangRequest:
    asked = {"model": "mock", "input": "hi", "max_output_tokens": 6, **body}
    return parse_responses(json.dumps(asked).encode(), {}, served)


def whole(request: SglangRequest, **more: Any) -> Any:
    return json.loads(render_responses(request, ends(request, **more), 9))


def streamed(request: SglangRequest) -> list[tuple[str, Any]]:
    stream, (ended,) = ResponsesStream(request, 9), ends(request)
    data = stream.head()
    data += b"".join(stream.delta(0, i, i + 1, LIVE) for i in range(ended.output_tokens - 1))
    data += stream.finish(0, ended.output_tokens - 1, ended)
    return events(data + stream.tail([ended]))


def test_a_whole_response(sglang: ServedModel) -> None:
    front = sglang.sglang
    assert isinstance(front, SglangFront)
    served = replace(sglang, sglang=replace(front, enable_cache_report=True))
    request = parse(served, request_id="resp_1", instructions="be nice")
    # Two tokens of the budget are kept for what frames the output.
    assert request.sequences[0].plan.submit.max_tokens == 4
    body = whole(request, cached_tokens=2)
    Response.model_validate(body)
    assert (body["id"], body["model"], body["status"]) == ("resp_1", "mock", "incomplete")
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["instructions"] == "be nice"
    assert body["output"][0]["phase"] == "final_answer"
    prompt = request.sequences[0].prompt_tokens
    assert body["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + 4,
    }
    assert list(body)[:7] == ["id", "object", "created_at", "model", "output", "status", "usage"]


def test_a_stream_adds_up_to_the_whole(sglang: ServedModel) -> None:
    request = parse(sglang, max_output_tokens=11)
    told = streamed(request)
    assert [payload["sequence_number"] for _, payload in told] == list(range(len(told)))
    assert all(payload["type"] == name for name, payload in told)
    names = [name.removeprefix("response.") for name, _ in told]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    text = "".join(one["delta"] for name, one in told if name == "response.output_text.delta")
    assert text == told[-4][1]["text"]
    assert told[-1][1]["response"] == whole(request)
    assert told[0][1]["response"]["text"] is None


def test_items_become_the_turns_a_chat_would_have(sglang: ServedModel) -> None:
    items = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "input_text", "text": "look"}]},
        {"type": "reasoning", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "ok"}],
        },
        {"type": "function_call", "call_id": "c", "name": "see", "arguments": '{"a": 1}'},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"text": "se"}, {"text": "en"}],
        },
    ]
    call = {"id": "c", "type": "function", "function": {"name": "see", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "system", "content": "be\n\nDeveloper instructions:\nshort"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "ok", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "seen"},
    ]
    ours = parse(sglang, input=items, instructions="be")
    body = {"messages": turns, "max_tokens": 4}
    theirs = parse_chat(json.dumps(body).encode(), {}, sglang)
    assert ours.sequences[0].plan.submit.prompt == theirs.sequences[0].plan.submit.prompt


@pytest.mark.parametrize(
    ("body", "status", "parameter", "message"),
    [
        ({"model": "other"}, 404, "model", "The model 'other' does not exist"),
        ({"background": True}, 400, "background", "Response store is disabled."),
        ({"previous_response_id": "resp_0"}, 400, "previous_response_id", "Response store is"),
        ({"tool_choice": "required"}, 400, None, 'tool_choice="required" requires at least one'),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            400,
            "tool_choice",
            "Tool 'f' is not declared in tools",
        ),
        ({"input": [{"type": "mcp_call"}]}, 400, None, "Unsupported Responses API input item"),
        ({"max_output_tokens": 1}, 400, None, "max_new_tokens must be at least 0, got -1."),
        ({"input": "x" * 5000}, 400, None, "The input (5019 tokens) is longer than the model's"),
        ({"input": 5}, 400, None, "2 validation errors:"),
    ],
)
def test_refusals_are_nested(
    sglang: ServedModel, body: dict[str, Any], status: int, parameter: str | None, message: str
) -> None:
    with pytest.raises(SglangError) as raised:
        parse(sglang, **body)
    assert raised.value.status == status
    told = json.loads(raised.value.body())["error"]
    assert (told["param"], told["code"]) == (parameter, status)
    assert told["message"].startswith(message)


def test_a_stream_that_cannot_be_has_failed(sglang: ServedModel) -> None:
    with pytest.raises(LateError) as raised:
        parse(sglang, input="x" * 5000, stream=True)
    assert raised.value.frames is not None
    told = events(raised.value.frames(9))
    assert [name for name, _ in told] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]
    assert told[-1][1]["response"]["error"]["code"] == "server_error"


def test_what_was_aborted_has_failed_too(sglang: ServedModel) -> None:
    request = parse(sglang)
    (ended,) = ends(request)
    body = json.loads(render_responses(request, [replace(ended, reason="abort")], 9))
    assert body["status"] == "failed"
    assert body["error"]["code"] == "server_error"
