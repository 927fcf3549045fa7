"""Anthropic's messages through SGLang: conversion, refusals, and what is written."""

import json
from dataclasses import replace
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.anthropic import count_tokens_body, parse_messages
from frontier_mock.wire.sglang.anthropic_answer import MessagesStream, render_messages
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.request import Live, SglangRequest
from frontier_mock.wire.sglang.served import SglangFront
from tests.wire.sglang.test_generate import ends

TURN = [{"role": "user", "content": "hi"}]
LIVE = Live(2, 0, "default", 5.0)


def parse(served: ServedModel, **body: Any) -> SglangRequest:
    asked = {"model": "mock", "messages": TURN, "max_tokens": 4, **body}
    return parse_messages(json.dumps(asked).encode(), {}, served)


def reporting(served: ServedModel) -> ServedModel:
    front = served.sglang
    assert isinstance(front, SglangFront)
    return replace(served, sglang=replace(front, enable_cache_report=True))


def events(data: bytes) -> list[tuple[str, Any]]:
    found = []
    for frame in data.decode().strip().split("\n\n"):
        name, _, payload = frame.partition("\n")
        found.append((name.removeprefix("event: "), json.loads(payload.removeprefix("data: "))))
    return found


def streamed(request: SglangRequest) -> list[tuple[str, Any]]:
    stream, (ended,) = MessagesStream(request, 9), ends(request, cached_tokens=2)
    data = b"".join(stream.delta(0, i, i + 1, LIVE) for i in range(ended.output_tokens - 1))
    data += stream.finish(0, ended.output_tokens - 1, ended)
    return events(data + stream.tail([ended]))


def test_a_whole_message(sglang: ServedModel) -> None:
    request = parse(reporting(sglang), temperature=0.5, stop_sequences=["zzz"])
    body = json.loads(render_messages(request, ends(request, cached_tokens=2), 9))
    assert list(body) == ["id", "type", "role", "content", "model", "stop_reason", "usage"]
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "mock")
    assert [block["type"] for block in body["content"]] == ["text"]
    assert body["stop_reason"] == "max_tokens"
    assert body["usage"] == {
        "input_tokens": request.sequences[0].prompt_tokens - 2,
        "output_tokens": 4,
        "cache_read_input_tokens": 2,
    }


def test_a_stream_adds_up_to_the_whole(sglang: ServedModel) -> None:
    request = parse(sglang, max_tokens=9)
    whole = json.loads(render_messages(request, ends(request), 9))
    told = streamed(request)
    names = [name for name, _ in told]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert all(payload["type"] == name for name, payload in told)
    text = "".join(one["delta"]["text"] for name, one in told if name == "content_block_delta")
    assert text == whole["content"][0]["text"]
    start = told[0][1]["message"]
    assert (start["id"], start["usage"]["input_tokens"]) == (
        whole["id"],
        whole["usage"]["input_tokens"],
    )
    assert told[-2][1]["delta"] == {"stop_reason": "max_tokens"}
    assert told[-2][1]["usage"] == {"output_tokens": 9}


def test_blocks_become_the_turns_a_chat_would_have(sglang: ServedModel) -> None:
    asked = [
        {"role": "user", "content": [{"type": "text", "text": "look"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "tool_use", "id": "t1", "name": "see", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "seen"},
                {"type": "text", "text": "so?"},
            ],
        },
        {"role": "system", "content": " more "},
    ]
    call = {"id": "t1", "type": "function", "function": {"name": "see", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "system", "content": "be\nmore"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "seen"},
        {"role": "user", "content": "so?"},
    ]
    tool = {"name": "see", "input_schema": {}}
    function = {"name": "see", "description": "", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function | {"strict": False}}]
    ours = parse(
        sglang, messages=asked, system="be", tools=[tool, {"type": "bash_20250124", "name": "bash"}]
    )
    body = {"messages": turns, "max_tokens": 4, "tools": tools}
    theirs = parse_chat(json.dumps(body).encode(), {}, sglang)
    assert ours.sequences[0].plan.submit.prompt == theirs.sequences[0].plan.submit.prompt
    assert ours.sequences[0].prompt_tokens == theirs.sequences[0].prompt_tokens


def test_counting_is_what_a_message_would_cost(sglang: ServedModel) -> None:
    body = json.dumps({"model": "mock", "messages": TURN, "system": "be brief"}).encode()
    request = parse(sglang, system="be brief")
    assert json.loads(count_tokens_body(body, sglang)) == {
        "input_tokens": request.sequences[0].prompt_tokens
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: Value error, max_tokens must be positive"),
        ({"model": ""}, "model: Value error, Model is required"),
        ({"messages": []}, "Messages cannot be empty."),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            (
                "messages.0.content: Input should be a valid string; messages.0.content.0: Unable "
                "to extract tag using discriminator 'type'"
            ),
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 10}},
            "thinking: Value error, thinking.budget_tokens must be >= 1024 (got 10)",
        ),
        (
            {"thinking": {"type": "adaptive"}},
            "Anthropic thinking is not supported for models without a reasoning parser",
        ),
        (
            {"tool_choice": {"type": "any"}, "tools": [{"type": "bash_20250124", "name": "bash"}]},
            (
                "tool_choice='any' requires at least one custom tool; all supplied tools were "
                "server-side Anthropic built-ins which the OpenAI-compatible backend cannot invoke"
            ),
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 5000}]},
            "The input (5019 tokens) is longer than the model's context length (4096 tokens).",
        ),
    ],
)
def test_bad_requests_use_anthropics_envelope(
    sglang: ServedModel, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(SglangError) as raised:
        parse(sglang, **body)
    assert raised.value.status == 400
    assert json.loads(raised.value.body()) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": message},
    }


def test_what_is_no_json_is_told_by_place(sglang: ServedModel) -> None:
    with pytest.raises(SglangError, match="1: JSON decode error"):
        parse_messages(b"{", {}, sglang)


def test_a_stream_has_begun_before_its_prompt_is_found_too_long(sglang: ServedModel) -> None:
    with pytest.raises(LateError) as raised:
        parse(sglang, messages=[{"role": "user", "content": "x" * 5000}], stream=True)
    assert raised.value.frames is not None
    told = events(raised.value.frames(0))
    assert [name for name, _ in told] == ["message_start", "error", "message_stop"]
    assert told[1][1]["error"]["type"] == "invalid_request_error"


def test_an_engine_that_fails_closes_what_is_open(sglang: ServedModel) -> None:
    stream = MessagesStream(parse(sglang), 9)
    told = events(stream.delta(0, 0, 2, LIVE) + stream.error(SglangError(500, "gone", None)))
    names = [name for name, _ in told]
    assert names[-3:] == ["content_block_stop", "error", "message_stop"]
    assert told[-2][1]["error"] == {"type": "api_error", "message": "gone"}
