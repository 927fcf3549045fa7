"""Chat and completions in SGLang's shapes: what is parsed, refused, and written."""

import json
from dataclasses import replace
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.completions import parse_completion
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.openai import OpenAiStream, render_openai
from frontier_mock.wire.sglang.request import Live, SglangRequest
from tests.wire.sglang.test_generate import ends, events

LIVE = Live(2, 0, "default", 5.0)
TURN = [{"role": "user", "content": "hi"}]


def chat(served: ServedModel, headers: dict[str, str] | None = None, **body: Any) -> SglangRequest:
    asked = {"messages": TURN, "max_tokens": 4, **body}
    return parse_chat(json.dumps(asked).encode(), headers or {}, served)


def completion(served: ServedModel, **body: Any) -> SglangRequest:
    return parse_completion(json.dumps({"prompt": "ab", **body}).encode(), {}, served)


def whole(request: SglangRequest, **more: Any) -> Any:
    return json.loads(render_openai(request, ends(request, **more), 9))


def streamed(request: SglangRequest) -> list[Any]:
    stream = OpenAiStream(request, 9)
    data, endings = b"", ends(request)
    for sequence, ended in zip(request.sequences, endings, strict=True):
        index = sequence.plan.index
        for token in range(ended.output_tokens - 1):
            data += stream.delta(index, token, token + 1, LIVE)
        data += stream.finish(index, ended.output_tokens - 1, ended)
    return events(data + stream.tail(endings))


def test_a_whole_chat_has_sglangs_keys(sglang: ServedModel) -> None:
    request = chat(sglang, model="m:adapter", rid="r")
    body = whole(request, cached_tokens=3)
    assert (body["id"], body["model"], body["created"]) == ("r", "m:adapter", 9)
    assert request.routing.lora_path == "adapter"
    (choice,) = body["choices"]
    assert list(choice) == ["index", "message", "logprobs", "finish_reason", "matched_stop"]
    assert list(choice["message"]) == ["role", "content", "reasoning_content"]
    assert body["usage"] == {
        "prompt_tokens": request.sequences[0].prompt_tokens,
        "total_tokens": request.sequences[0].prompt_tokens + 4,
        "completion_tokens": 4,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }
    assert body["metadata"] == {"weight_version": "default"}


def test_without_a_cap_there_is_the_whole_context(sglang: ServedModel) -> None:
    (sequence,) = chat(sglang, max_tokens=None).sequences
    assert sequence.cap == 4095 - sequence.prompt_tokens - 1
    (sequence,) = chat(sglang, max_tokens=0).sequences
    assert sequence.cap == 4095 - sequence.prompt_tokens - 1
    (sequence,) = chat(sglang, max_tokens=3, max_completion_tokens=2).sequences
    assert sequence.cap == 2


def test_extras_ride_along_when_asked(sglang: ServedModel) -> None:
    request = chat(
        sglang,
        {"x-sglext-return-input-ids": "1", "x-sglext-return-output-ids": "1"},
        input_ids=[7, 8],
        return_token_ids=True,
        return_meta_info=True,
        return_cached_tokens_details=True,
        logprobs=True,
        top_logprobs=1,
    )
    body = whole(request, cached_tokens=1)
    (choice,) = body["choices"]
    assert choice["prompt_token_ids"] == [7, 8]
    assert len(choice["response_token_ids"]) == 4
    assert choice["meta_info"]["prompt_tokens"] == 2
    assert [len(row["top_logprobs"]) for row in choice["logprobs"]["content"]] == [1] * 4
    assert body["sglext"] == {
        "cached_tokens_details": {"device": 1, "host": 0},
        "input_ids": [7, 8],
        "output_ids": [choice["response_token_ids"]],
    }


def test_a_chat_stream_says_why_after_all_have_ended(sglang: ServedModel) -> None:
    request = chat(sglang, n=2, stream=True, stream_options={"include_usage": True})
    chunks = streamed(request)
    kinds = [
        "role" if "role" in c["choices"][0]["delta"] else c["choices"][0]["finish_reason"]
        for c in chunks[:-1]
    ]
    assert kinds == ["role", *[None] * 4, "role", *[None] * 4, "length", "length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert all("usage" not in chunk for chunk in chunks[:-1])
    reasons = chunks[-3:-1]
    assert [chunk["choices"][0]["delta"] for chunk in reasons] == [{"reasoning_content": None}] * 2
    texts = ["", ""]
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in whole(request)["choices"]]


def test_continuous_usage_and_logprobs_in_a_chat_stream(sglang: ServedModel) -> None:
    assert sglang.sglang is not None
    served = replace(sglang, sglang=replace(sglang.sglang, enable_cache_report=True))
    options = {"continuous_usage_stats": True}
    request = chat(served, stream=True, logprobs=True, stream_options=options)
    chunks = streamed(request)
    steps = [chunk for chunk in chunks if chunk.get("usage")]
    assert [chunk["usage"]["completion_tokens"] for chunk in steps] == [1, 2, 3, 4]
    assert steps[0]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    figures = [c["choices"][0]["logprobs"]["content"][0]["logprob"] for c in steps]
    content = whole(request)["choices"][0]["logprobs"]["content"]
    assert figures == [row["logprob"] for row in content]


def test_framed_ids_are_an_event_of_their_own(sglang: ServedModel) -> None:
    request = chat(
        sglang,
        {"x-sglext-ids-framed": "1"},
        stream=True,
        return_output_ids_in_sglext=True,
        return_cached_tokens_details=True,
    )
    endings = ends(request, cached_tokens=2)
    tail = OpenAiStream(request, 9).tail(endings).decode().split("\n\n")
    assert json.loads(tail[0].removeprefix("data: "))["sglext"] == {
        "cached_tokens_details": {"device": 2, "host": 0}
    }
    event, data = tail[1].split("\n")
    assert event == "event: sglext_ids"
    assert len(json.loads(data.removeprefix("data: "))["sglext"]["output_ids"][0]) == 4


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        ({"messages": []}, "Messages cannot be empty.", "BadRequestError"),
        (
            {"max_tokens": 5000},
            (
                "max_completion_tokens is too large: 5000.This model supports at most 4096 "
                "completion tokens."
            ),
            "BadRequestError",
        ),
        (
            {"tool_choice": "required"},
            "Tools cannot be empty if tool choice is set to required.",
            "BadRequestError",
        ),
        (
            {"stream": True, "return_meta_info": True},
            (
                "return_meta_info is not supported with streaming. Please set stream=false when "
                "using return_meta_info=true."
            ),
            "BadRequest",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "Model only supports text input; received unsupported content type 'image_url'.",
            "BadRequestError",
        ),
        ({"temperature": -1}, "temperature must be a non-negative finite number, got -1.0.", ""),
        (
            {"response_format": {"type": "json_schema"}},
            "schema_ is required for json_schema response format request.",
            "BadRequestError",
        ),
    ],
)
def test_bad_chats(sglang: ServedModel, body: dict[str, Any], message: str, kind: str) -> None:
    with pytest.raises(SglangError) as raised:
        chat(sglang, **body)
    assert raised.value.payload == {
        "object": "error",
        "message": message,
        "type": kind or "BadRequestError",
        "param": None,
        "code": 400,
    }


def test_completions_echo_and_log(sglang: ServedModel) -> None:
    request = completion(sglang, prompt=["ab", "cd"], max_tokens=2, echo=True, logprobs=1, n=2)
    body = whole(request)
    assert [choice["text"][:2] for choice in body["choices"]] == ["ab", "ab", "cd", "cd"]
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [-1] * 4
    assert logprobs["tokens"][:2] == ["a", "b"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] == 8


def test_a_completion_stream_ends_with_its_text(sglang: ServedModel) -> None:
    options = {"include_usage": True}
    request = completion(
        sglang, stream=True, stream_options=options, max_tokens=3, return_token_ids=True, echo=True
    )
    chunks = streamed(request)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "length"]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [97, 98]
    assert "prompt_token_ids" not in chunks[1]["choices"][0]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    assert text == whole(request)["choices"][0]["text"]
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 2,
        "total_tokens": 5,
        "completion_tokens": 3,
        "reasoning_tokens": 0,
    }


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        ({"prompt": ""}, "Prompt cannot be empty", "BadRequestError"),
        ({"prompt": []}, "Prompt cannot be empty", "BadRequestError"),
        ({"top_k": 0}, "top_k must be -1 (disable) or at least 1, got 0.", "BadRequestError"),
    ],
)
def test_bad_completions(
    sglang: ServedModel, body: dict[str, Any], message: str, kind: str
) -> None:
    with pytest.raises(SglangError) as raised:
        completion(sglang, **body)
    payload = raised.value.payload
    assert isinstance(payload, dict)
    assert (payload["message"], payload["type"]) == (message, kind)


def test_caps_of_completions_must_be_positive(sglang: ServedModel) -> None:
    with pytest.raises(SglangError) as raised:
        completion(sglang, max_tokens=0)
    payload = raised.value.payload
    assert isinstance(payload, dict)
    assert payload["type"] == "Bad Request"
    assert "max_tokens must be positive" in str(payload["message"])
    assert completion(sglang).sequences[0].cap == 16
