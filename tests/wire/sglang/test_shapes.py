"""Prescribed output through SGLang: schemas, choices, and calls that have to be made."""

import json
from dataclasses import replace
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.anthropic_answer import render_messages
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.generate import parse_generate
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.native import GenerateStream, render_generate
from frontier_mock.wire.sglang.request import Live, SglangRequest
from frontier_mock.wire.sglang.served import SglangFront
from tests.wire.sglang import test_anthropic as anthropic
from tests.wire.sglang import test_responses as responses
from tests.wire.sglang.test_generate import ends, events
from tests.wire.sglang.test_openai import streamed, whole

LIVE = Live(2, 0, "default", 5.0)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
TOOLS = [
    {"type": "function", "function": {"name": "other", "parameters": {}}},
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
]
NAMED = {"type": "function", "function": {"name": "look"}}


def parsing(served: ServedModel, parser: str = "qwen") -> ServedModel:
    front = served.sglang
    assert isinstance(front, SglangFront)
    return replace(served, sglang=replace(front, tool_call_parser=parser))


def chat(served: ServedModel, **body: Any) -> SglangRequest:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 500, **body}
    return parse_chat(json.dumps(asked).encode(), {}, served)


def generate(served: ServedModel, **sampling: Any) -> SglangRequest:
    body = {"text": "hi", "sampling_params": {"max_new_tokens": 500, **sampling}}
    return parse_generate(json.dumps(body).encode(), {}, served)


def fits(value: Any) -> bool:
    return set(value) == {"a", "b"} and type(value["a"]) is int and value["b"] in ("x", "y")


def test_a_schema_shapes_native_output(sglang: ServedModel) -> None:
    request = generate(sglang, json_schema=json.dumps(SCHEMA))
    (ended,) = ends(request)
    body = json.loads(render_generate(request, [ended], 9))
    assert fits(json.loads(body["text"]))
    assert body["meta_info"]["finish_reason"]["type"] == "stop"
    stream = GenerateStream(request, 9)
    half = ended.output_tokens // 2
    data = stream.delta(0, 0, half, LIVE) + stream.finish(0, half, ended) + stream.tail([ended])
    chunks = events(data)
    assert chunks[-1]["text"] == body["text"]
    assert body["text"].startswith(chunks[0]["text"])


def test_choices_and_any_json(sglang: ServedModel) -> None:
    request = generate(sglang, choice=["yes", "no"])
    assert json.loads(render_generate(request, ends(request), 9))["text"] in ("yes", "no")
    request = generate(sglang, json_schema="$$ANY$$")
    assert isinstance(
        json.loads(json.loads(render_generate(request, ends(request), 9))["text"]), dict
    )
    with pytest.raises(LateError, match="Failed to compile json grammar: Expecting property name"):
        generate(sglang, json_schema="{")


@pytest.mark.parametrize("prompts", [{}, {"text": ["a", "b"]}], ids=["one", "several"])
def test_a_stream_with_a_bad_grammar_is_aborted(
    sglang: ServedModel, prompts: dict[str, Any]
) -> None:
    body = {"text": "hi", "sampling_params": {"regex": "[", "max_new_tokens": 0}, **prompts}
    body |= {"stream": True, "return_logprob": True, "rid": "r" if not prompts else ["r", "s"]}
    with pytest.raises(LateError, match="Failed to compile regex grammar") as caught:
        parse_generate(json.dumps(body).encode(), {}, sglang)
    late = caught.value
    assert late.stream
    assert late.frames is not None
    chunks = events(late.frames(7))
    assert [chunk["meta_info"]["id"] for chunk in chunks] == (["r", "s"] if prompts else ["r"])
    assert [chunk.get("index") for chunk in chunks] == ([0, 1] if prompts else [None])
    for chunk in chunks:
        meta = chunk["meta_info"]
        assert meta["finish_reason"] == {
            "type": "abort",
            "message": late.message,
            "status_code": 400,
            "err_type": "BadRequestError",
        }
        # The scheduler has made its prompt one token, and computed that.
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (1, 1)
        assert len(chunk["output_ids"]) == 1
        assert "output_token_logprobs" not in meta


def test_a_bad_grammar_without_a_stream_is_refused(sglang: ServedModel) -> None:
    body = {"text": "hi", "sampling_params": [{"regex": "["}]}
    with pytest.raises(LateError, match="Failed to compile regex grammar") as caught:
        parse_generate(json.dumps(body).encode(), {}, sglang)
    assert (caught.value.stream, caught.value.frames) == (False, None)


def test_a_response_format_shapes_a_chat(sglang: ServedModel) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    request = chat(sglang, response_format=wanted)
    text = whole(request)["choices"][0]["message"]["content"]
    assert fits(json.loads(text))
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(request)]
    assert "".join(delta.get("content") or "" for delta in deltas) == text


@pytest.mark.parametrize(("choice", "name"), [("required", "other"), (NAMED, "look")])
def test_a_call_is_made(sglang: ServedModel, choice: Any, name: str) -> None:
    request = chat(parsing(sglang), tools=TOOLS, tool_choice=choice)
    (told,) = whole(request)["choices"]
    assert (told["finish_reason"], told["matched_stop"]) == ("tool_calls", None)
    assert told["message"]["content"] == ""
    (call,) = told["message"]["tool_calls"]
    assert list(call) == ["id", "index", "type", "function"]
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == name
    if name == "look":
        assert fits(json.loads(call["function"]["arguments"]))

    chunks = streamed(request)
    calls = [
        delta["tool_calls"][0]
        for chunk in chunks
        if (delta := chunk["choices"][0]["delta"]).get("tool_calls")
    ]
    assert (calls[0]["id"], calls[0]["function"]) == (call["id"], {"name": name, "arguments": ""})
    assert all(later["id"] is None for later in calls[1:])
    said = "".join(later["function"]["arguments"] for later in calls)
    assert json.loads(said) == json.loads(call["function"]["arguments"])
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_list_that_is_cut_short_or_not_parsed_stays_text(sglang: ServedModel) -> None:
    request = chat(parsing(sglang), tools=TOOLS, tool_choice=NAMED, max_tokens=12)
    (told,) = whole(request)["choices"]
    assert told["finish_reason"] == "length"
    assert told["message"]["content"].startswith('[{"name": "l')
    (told,) = whole(chat(sglang, tools=TOOLS, tool_choice=NAMED))["choices"]
    assert told["finish_reason"] == "stop"
    assert fits(json.loads(told["message"]["content"])[0]["parameters"])


def test_ids_of_kimis_calls_count(sglang: ServedModel) -> None:
    past = {
        "role": "assistant",
        "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ],
    }
    turns = [{"role": "user", "content": "hi"}, past]
    for parser, name in (("kimi_k2", "functions.look:1"), ("kimi_k3", "look:1")):
        request = chat(parsing(sglang, parser), messages=turns, tools=TOOLS, tool_choice=NAMED)
        assert whole(request)["choices"][0]["message"]["tool_calls"][0]["id"] == name


def test_anthropics_clients_see_a_tool_used(sglang: ServedModel) -> None:
    request = anthropic.parse(
        parsing(sglang),
        max_tokens=500,
        tools=[{"name": "look", "input_schema": SCHEMA}],
        tool_choice={"type": "tool", "name": "look"},
    )
    body = json.loads(render_messages(request, ends(request), 9))
    (block,) = body["content"]
    assert (block["type"], block["name"], body["stop_reason"]) == ("tool_use", "look", "tool_use")
    assert fits(block["input"])
    told = anthropic.streamed(request)
    start = next(payload for name, payload in told if name == "content_block_start")
    assert start["content_block"] == {**block, "input": {}}
    parts = [payload["delta"] for name, payload in told if name == "content_block_delta"]
    assert json.loads("".join(part["partial_json"] for part in parts)) == block["input"]
    assert told[-2][1]["delta"] == {"stop_reason": "tool_use"}


def test_a_response_can_be_a_call(sglang: ServedModel) -> None:
    tools = [{"type": "function", "name": "look", "parameters": SCHEMA}]
    asked = {"tools": tools, "tool_choice": "required", "max_output_tokens": 500}
    request = responses.parse(sglang, **asked)
    body = responses.whole(request)
    assert (body["status"], body["text"]) == ("completed", None)
    (item,) = body["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "look", "completed")
    assert fits(json.loads(item["arguments"]))
    told = responses.streamed(request)
    names = [name.removeprefix("response.") for name, _ in told]
    assert names[2] == "output_item.added"
    ending = ["function_call_arguments.done", "output_item.done", "completed"]
    assert names[-3:] == ending
    deltas = [payload["delta"] for name, payload in told if name.endswith("arguments.delta")]
    assert json.loads("".join(deltas)) == json.loads(item["arguments"])
    assert told[-1][1]["response"]["output"] == [item]

    short = responses.parse(sglang, **{**asked, "max_output_tokens": 16})
    (item,) = responses.whole(short)["output"]
    assert item["content"][0]["text"] == '[{"name": "loo'
    cut = responses.parse(sglang, **{**asked, "max_output_tokens": 45}, stream=True)
    assert responses.streamed(cut)[-1][1]["response"]["output"][0]["status"] == "incomplete"
    hardly = responses.parse(sglang, **{**asked, "max_output_tokens": 16}, stream=True)
    assert [name for name, _ in responses.streamed(hardly)][2:] == ["response.incomplete"]
