"""Streams that are not plain: stop strings, aborts, echo, several choices, logprobs."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import internal_error
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.render import render_response
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import DONE, StreamRenderer

HELLO = [{"role": "user", "content": "Hello"}]


def chat(served: ServedModel, **fields: object) -> Generation:
    body = {"messages": HELLO, "max_tokens": 8, "stream": True, **fields}
    return parse_chat(json.dumps(body).encode(), {}, served)


def completion(served: ServedModel, **fields: object) -> Generation:
    body = {"prompt": "Hello", "max_tokens": 8, "stream": True, **fields}
    return parse_completion(json.dumps(body).encode(), {}, served)


def chunks(data: bytes) -> list[dict[str, object]]:
    frames = [f for f in data.decode().split("\n\n") if f and f != "data: [DONE]"]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def play(generation: Generation, ends: list[Outcome], step: int) -> bytes:
    """Choices interleaved, `step` tokens at a time."""
    renderer = StreamRenderer(generation, 0)
    data, longest = b"", max(end.output_tokens for end in ends)
    for first in range(0, longest, step):
        for end in ends:
            if first + step < end.output_tokens:
                data += renderer.delta(end.index, first, first + step)
            elif first < end.output_tokens:
                data += renderer.finish(end.index, first, end)
    return data + renderer.tail(ends)


def text_of(chunk: dict[str, object]) -> str:
    choice = chunk["choices"][0]
    return choice["text"] if "text" in choice else choice["delta"].get("content", "")


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 2000, "stop": ["nowhere", "ese letters"]},
        {"max_tokens": 400, "stop": "s", "include_stop_str_in_output": True},
        {"max_tokens": 300, "n": 2, "stop": ". "},
        {"max_tokens": 400, "stop_token_ids": [ord("m")]},
    ],
)
def test_streamed_text_is_the_whole_text(
    served: ServedModel, make: Callable[..., Generation], step: int, fields: dict[str, object]
) -> None:
    generation = make(served, **fields)
    ends = [
        plan.outcome(plan.submit.output_tokens, plan.submit.finish_reason)
        for plan in generation.sequences
    ]
    whole = json.loads(render_response(generation, ends, 0))
    streamed = chunks(play(generation, ends, step))
    for choice, end in zip(whole["choices"], ends, strict=True):
        own = [c for c in streamed if c["choices"] and c["choices"][0]["index"] == end.index]
        expected = choice["text"] if "text" in choice else choice["message"]["content"]
        assert "".join(map(text_of, own)) == expected
        last = own[-1]["choices"][0]
        assert last["finish_reason"] == choice["finish_reason"]
        assert last["stop_reason"] == choice["stop_reason"]
        assert choice["finish_reason"] == "stop"


def test_roles_of_all_choices_come_before_the_first_token(served: ServedModel) -> None:
    generation = chat(served, n=2)
    first = chunks(StreamRenderer(generation, 0).delta(1, 0, 1))
    deltas = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in first]
    role = {"role": "assistant", "content": ""}
    text = generation.sequences[1].text.piece(0, 1)
    assert deltas == [(0, role), (1, role), (1, {"content": text})]


def test_echo_comes_once_per_choice(served: ServedModel) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "I say"}]
    renderer = StreamRenderer(chat(served, echo=True, messages=messages), 0)
    first = chunks(renderer.delta(0, 0, 1))
    assert first[1]["choices"][0]["delta"] == {"content": "I say"}
    assert "prompt_token_ids" not in first[1]
    assert len(chunks(renderer.delta(0, 1, 2))) == 1


def test_abort_flushes_what_was_held_back(served: ServedModel) -> None:
    generation = chat(served, max_tokens=400, stop=["no such words"])
    renderer = StreamRenderer(generation, 0)
    plan = generation.sequences[0]
    data = renderer.delta(0, 0, 20) + renderer.finish(0, 20, plan.outcome(20, "abort"))
    assert "".join(map(text_of, chunks(data))) == plan.text.ring.slice_chars(plan.text.start, 0, 20)
    assert chunks(data)[-1]["choices"][0]["finish_reason"] == "abort"


def test_abort_before_the_first_token(served: ServedModel) -> None:
    generation = chat(served)
    end = generation.sequences[0].outcome(0, "abort")
    data = chunks(StreamRenderer(generation, 0).finish(0, 0, end))
    assert [c["choices"][0]["delta"] for c in data] == [{"role": "assistant", "content": ""}, {}]


def test_echoed_prompt_leads_the_first_completion_chunk(served: ServedModel) -> None:
    generation = completion(served, echo=True, logprobs=1, prompt='a"\n')
    renderer = StreamRenderer(generation, 0)
    first, second = chunks(renderer.delta(0, 0, 1) + renderer.delta(0, 1, 2))
    text = generation.sequences[0].text.piece(0, 2)
    assert first["choices"][0]["text"] == 'a"\n' + text[0]
    assert first["choices"][0]["prompt_token_ids"] == [97, 34, 10]
    assert first["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert first["choices"][0]["logprobs"]["top_logprobs"][0] is None
    assert first["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert second["choices"][0]["logprobs"]["text_offset"] == [4]
    assert second["choices"][0]["text"] == text[1]


def test_prompt_only_echo_says_nothing_of_its_token(served: ServedModel) -> None:
    generation = completion(served, echo=True, max_tokens=0, stream_options={"include_usage": True})
    end = generation.sequences[0].outcome(1, "length")
    data = chunks(play(generation, [end], 1))
    assert data[0]["choices"][0]["text"] == "Hello"
    assert data[1]["usage"] == {"prompt_tokens": 5, "total_tokens": 6, "completion_tokens": 1}


def test_errors_end_a_stream(served: ServedModel) -> None:
    data = StreamRenderer(chat(served), 0).error(internal_error())
    assert data.endswith(DONE)
    assert chunks(data) == [
        {
            "error": {
                "message": "Internal server error",
                "type": "InternalServerError",
                "param": None,
                "code": 500,
            }
        }
    ]


def test_slices_longer_than_the_ring(served: ServedModel) -> None:
    wide = replace(served, max_model_len=10**6)
    count = served.ring.period * 2 + 5
    generation = completion(wide, max_tokens=count + 10)
    renderer = StreamRenderer(generation, 0)
    data = chunks(renderer.delta(0, 0, 1) + renderer.delta(0, 1, count))
    assert len("".join(map(text_of, data))) == count
