"""Bodies and streams: golden JSON of vLLM 0.33's shapes, and what the openai SDK makes of them."""

import json
from dataclasses import replace

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.render import render_response
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import StreamRenderer

CREATED_S = 1_790_000_000
HELLO = [{"role": "user", "content": "Hello"}]


def chat(served: ServedModel, **fields: object) -> Generation:
    body = {"messages": HELLO, "max_tokens": 8, **fields}
    return parse_chat(json.dumps(body).encode(), {}, served)


def completion(served: ServedModel, **fields: object) -> Generation:
    body = {"prompt": "Hello", "max_tokens": 8, **fields}
    return parse_completion(json.dumps(body).encode(), {}, served)


def outcomes(generation: Generation) -> list[Outcome]:
    return [
        plan.outcome(plan.submit.output_tokens, plan.submit.finish_reason, cached_tokens=16)
        for plan in generation.sequences
    ]


def stream(generation: Generation) -> list[dict[str, object]]:
    """Every chunk of the stream, one token each, choices in turn."""
    renderer = StreamRenderer(generation, CREATED_S)
    ends = outcomes(generation)
    data = b""
    for end in ends:
        for token in range(end.output_tokens - 1):
            data += renderer.delta(end.index, token, token + 1)
        data += renderer.finish(end.index, end.output_tokens - 1, end)
    data += renderer.tail(ends)
    frames = data.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def body(generation: Generation) -> dict[str, object]:
    return json.loads(render_response(generation, outcomes(generation), CREATED_S))


def keys(value: object) -> object:
    """The key structure of a JSON value, in order."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [keys(item) for item in value[:1]]
    return type(value).__name__


def test_chat_body_is_vllms(served: ServedModel) -> None:
    generation = chat(served)
    text = generation.sequences[0].text.piece(0, 8)
    expected = (
        '{"id":"chatcmpl-%032d","object":"chat.completion","created":1790000000,"model":"mock",'
        '"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null,'
        '"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,'
        '"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null,'
        '"weight_versions":null}],"service_tier":null,'
        '"system_fingerprint":"vllm-0.33.0-tp4-0badcafe","usage":{"prompt_tokens":%d,'
        '"total_tokens":%d,"completion_tokens":8,"prompt_tokens_details":null,'
        '"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,'
        '"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
    )
    prompt = generation.prompt_tokens
    raw = render_response(generation, outcomes(generation), CREATED_S).decode()
    assert raw == expected % (0, text, prompt, prompt + 8)
    assert len(text) == 8


def test_completion_body_is_vllms(served: ServedModel) -> None:
    generation = completion(served)
    text = generation.sequences[0].text.piece(0, 8)
    raw = render_response(generation, outcomes(generation), CREATED_S).decode()
    expected = (
        '{"id":"cmpl-%032d","object":"text_completion","created":1790000000,"model":"mock",'
        '"choices":[{"index":0,"text":"%s","logprobs":null,"finish_reason":"length",'
        '"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,'
        '"routed_experts":null,"weight_versions":null}],"service_tier":null,'
        '"system_fingerprint":"vllm-0.33.0-tp4-0badcafe","usage":{"prompt_tokens":5,'
        '"total_tokens":13,"completion_tokens":8,"prompt_tokens_details":null,'
        '"completion_tokens_details":null},"kv_transfer_params":null,"ec_transfer_params":null,'
        '"metrics":null}'
    )
    assert raw == expected % (0, text)


def test_chat_stream_has_role_deltas_finish_and_usage(served: ServedModel) -> None:
    chunks = stream(chat(served, stream=True, stream_options={"include_usage": True}))
    head = {"id": "str", "object": "str", "created": "int", "model": "str"}
    delta = {"content": "str"}
    assert keys(chunks[0]) == {
        **head,
        "choices": [
            {
                "index": "int",
                "delta": {"role": "str", "content": "str"},
                "logprobs": "NoneType",
                "finish_reason": "NoneType",
            }
        ],
        "prompt_token_ids": "NoneType",
        "prompt_text": "NoneType",
    }
    middle = {
        "index": "int",
        "delta": delta,
        "logprobs": "NoneType",
        "finish_reason": "NoneType",
        "token_ids": "NoneType",
    }
    for chunk in chunks[1:-2]:
        assert keys(chunk) == {**head, "choices": [middle], "kv_transfer_params": "NoneType"}
    assert list(chunks[-2]["choices"][0]) == [
        "index",
        "delta",
        "logprobs",
        "finish_reason",
        "stop_reason",
        "token_ids",
        "weight_versions",
    ]
    assert list(chunks[-2]) == [*head, "choices", "kv_transfer_params"]
    assert chunks[-1]["choices"] == []
    assert list(chunks[-1]) == [*head, "choices", "usage", "system_fingerprint"]
    assert list(chunks[-1]["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens"]


def test_without_usage_the_last_chunk_carries_the_fingerprint(served: ServedModel) -> None:
    for chunks in (stream(chat(served, stream=True)), stream(completion(served, stream=True))):
        assert chunks[-1]["system_fingerprint"] == "vllm-0.33.0-tp4-0badcafe"
        assert list(chunks[-1])[-2:] == ["system_fingerprint", "kv_transfer_params"]
        assert "system_fingerprint" not in chunks[-2]


def test_completion_stream_keys(served: ServedModel) -> None:
    chunks = stream(completion(served, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert list(chunk) == [
            "id",
            "object",
            "created",
            "model",
            "choices",
            "kv_transfer_params",
        ]
        assert list(chunk["choices"][0]) == [
            "index",
            "text",
            "logprobs",
            "finish_reason",
            "stop_reason",
            "prompt_token_ids",
            "token_ids",
            "weight_versions",
        ]
    assert chunks[-1]["object"] == "text_completion"
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "total_tokens": 13, "completion_tokens": 8}


def test_continuous_usage_counts_up(served: ServedModel) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(chat(served, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert chunks[0]["usage"]["completion_tokens_details"] is None
    assert list(chunks[1])[-2:] == ["usage", "kv_transfer_params"]
    text_chunks = stream(completion(served, stream=True, stream_options=options))
    assert [c["usage"]["completion_tokens"] for c in text_chunks] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert "completion_tokens_details" not in text_chunks[0]["usage"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3, "temperature": 0.5},
        {"logprobs": True, "top_logprobs": 3},
        {"return_token_ids": True},
        {"echo": True, "messages": [*HELLO, {"role": "assistant", "content": 'So "it" is \n'}]},
    ],
)
def test_openai_models_parse_chat(served: ServedModel, extra: dict[str, object]) -> None:
    whole = chat(served, **extra)
    parsed = ChatCompletion.model_validate_json(
        render_response(whole, outcomes(whole), CREATED_S), strict=True
    )
    chunks = [
        ChatCompletionChunk.model_validate(chunk)
        for chunk in stream(chat(served, stream=True, **extra))
    ]
    for choice in parsed.choices:
        deltas = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        text = "".join(delta.delta.content or "" for delta in deltas)
        assert text == choice.message.content
        assert deltas[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            streamed = [entry for d in deltas if d.logprobs for entry in d.logprobs.content]
            assert streamed == choice.logprobs.content or [
                entry.model_dump() for entry in streamed
            ] == [entry.model_dump() for entry in choice.logprobs.content]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"prompt": ["a", "bc"], "n": 2, "temperature": 1},
        {"logprobs": 2},
        {"echo": True, "logprobs": 1, "prompt": 'He said "no"\n'},
        {"echo": True, "max_tokens": 0},
        {"return_token_ids": True, "prompt": [72, 105]},
    ],
)
def test_openai_models_read_completions(served: ServedModel, extra: dict[str, object]) -> None:
    whole = completion(served, **extra)
    parsed = Completion.construct(**body(whole))
    chunks = [
        Completion.construct(**chunk) for chunk in stream(completion(served, stream=True, **extra))
    ]
    assert [choice.index for choice in parsed.choices] == list(range(len(parsed.choices)))
    for choice in parsed.choices:
        deltas = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(delta.text for delta in deltas) == choice.text
        if choice.logprobs is not None:
            offsets = [o for d in deltas if d.logprobs for o in d.logprobs.text_offset]
            tokens = [t for d in deltas if d.logprobs for t in d.logprobs.tokens]
            assert offsets == choice.logprobs.text_offset
            assert tokens == choice.logprobs.tokens
            assert choice.text == "".join(choice.logprobs.tokens)


def test_frontier_times_only_on_request(served: ServedModel) -> None:
    generation = chat(served, frontier=True)
    plan = generation.sequences[0]
    end = plan.outcome(8, "length", 16, arrival_ns=5, first_token_ns=70, finish_ns=900)
    parsed = json.loads(render_response(generation, [end], CREATED_S))
    assert parsed["frontier"] == {
        "arrival_ns": 5,
        "first_token_ns": 70,
        "finish_ns": 900,
        "output_tokens": 8,
        "cached_tokens": 16,
    }
    assert "frontier" not in body(chat(served))
    tail = StreamRenderer(
        chat(served, stream=True, frontier=True, stream_options={"include_usage": True}), 0
    ).tail([end])
    assert json.loads(tail.decode().split("\n\n")[0][6:])["frontier"]["finish_ns"] == 900


def test_prompt_token_details_name_cached_tokens(served: ServedModel) -> None:
    detailed = replace(served, enable_prompt_tokens_details=True)
    generation = chat(detailed)
    usage = body(generation)["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 16,
        "created_cache_tokens": generation.prompt_tokens - 16,
        "multimodal_tokens": None,
    }
    chunks = stream(completion(detailed, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


def test_return_token_ids_cover_prompt_and_output(served: ServedModel) -> None:
    parsed = body(chat(served, return_token_ids=True, return_prompt_text=True))
    assert (
        bytes(i for i in parsed["choices"][0]["token_ids"]).decode()
        == (parsed["choices"][0]["message"]["content"])
    )
    assert served.tokenizer.encode(parsed["prompt_text"]).tolist() == parsed["prompt_token_ids"]
    chunks = stream(completion(served, stream=True, return_token_ids=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == list(b"Hello")
    assert chunks[1]["choices"][0]["prompt_token_ids"] is None
    assert [len(c["choices"][0]["token_ids"]) for c in chunks] == [1] * 8
