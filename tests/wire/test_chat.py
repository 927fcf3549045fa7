"""Chat requests that are accepted: what they become."""

import json
from dataclasses import replace

import pytest

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Generation
from frontier_mock.wire.served import ServedModel

HELLO = [{"role": "user", "content": "Hello"}]
PROMPT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def chat(
    served: ServedModel, headers: dict[str, str] | None = None, **fields: object
) -> Generation:
    body = {"messages": HELLO, "max_tokens": 8, **fields}
    return parse_chat(json.dumps(body).encode(), headers or {}, served)


def prompt_of(served: ServedModel, **fields: object) -> str:
    text = chat(served, return_prompt_text=True, **fields).prompts[0].text
    assert text is not None
    return text


def test_prompt_is_the_rendered_conversation(served: ServedModel) -> None:
    generation = chat(served)
    assert prompt_of(served) == PROMPT
    assert generation.prompt_tokens == len(served.tokenizer.encode(PROMPT)) == 24
    submit = generation.sequences[0].submit
    assert submit.prompt.num_tokens == generation.prompt_tokens
    assert len(submit.prompt.block_keys(16)) == 8 * (generation.prompt_tokens // 16)
    assert (submit.max_tokens, submit.output_tokens, submit.finish_reason) == (8, 8, "length")


def test_model_is_the_first_served_name(served: ServedModel) -> None:
    for name in ({}, {"model": "alias"}, {"model": None}, {"model": ""}):
        assert chat(served, **name).model == "mock"


def test_ids_come_from_header_body_or_server(served: ServedModel) -> None:
    assert chat(served, {"x-request-id": "h"}, request_id="b").id == "chatcmpl-h"
    assert chat(served, request_id="b").id == "chatcmpl-b"
    assert chat(served).id == f"chatcmpl-{0:032x}"


def test_no_cap_means_the_rest_of_the_context(served: ServedModel) -> None:
    generation = chat(served, max_tokens=None)
    room = served.max_model_len - generation.prompt_tokens
    assert generation.sequences[0].submit.max_tokens == room
    assert chat(served, max_tokens=4096).sequences[0].submit.max_tokens == room
    configured = replace(served, max_new_tokens=100)
    assert chat(configured, max_tokens=None).sequences[0].submit.max_tokens == 100
    both = chat(served, max_tokens=5, max_completion_tokens=7)
    assert both.sequences[0].submit.max_tokens == 7


def test_content_parts_are_joined_by_lines(served: ServedModel) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c", {"text": "d"}]
    text = prompt_of(served, messages=[{"role": "user", "content": parts}])
    assert text.startswith("<|im_start|>user\na\nb\nc\nd<|im_end|>")
    nothing = prompt_of(served, messages=[{"role": "assistant", "content": None}])
    assert nothing.startswith("<|im_start|>assistant\n<|im_end|>")


def test_tools_become_part_of_the_prompt(served: ServedModel) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    text = prompt_of(served, tools=[tool], tool_choice="none")
    assert json.dumps(tool) in text


def test_unknown_fields_are_ignored(served: ServedModel) -> None:
    extras = {"guided_json": {}, "separate_reasoning": True, "best_of": "x", "metadata": {"a": 1}}
    assert chat(served, **extras).sequences[0].submit == chat(served).sequences[0].submit


def test_actor_and_frontier_are_ours(served: ServedModel) -> None:
    assert chat(served, metadata={"fmock": "agent-1"}).actor == "agent-1"
    assert chat(served).actor is None
    assert chat(served, frontier=True).frontier
    assert not chat(served, frontier="yes").frontier


def test_priority_header_beats_body(served: ServedModel) -> None:
    assert chat(served, priority=3).sequences[0].submit.priority == 3
    assert chat(served, {"x-vllm-priority": "-2"}, priority=3).sequences[0].submit.priority == -2
    assert chat(served, {"x-vllm-priority": "x"}, priority=3).sequences[0].submit.priority == 3


def test_text_depends_on_prompt_seed_salt_and_choice_only(served: ServedModel) -> None:
    def texts(model: ServedModel = served, **fields: object) -> list[str]:
        plans = chat(model, max_tokens=30, **fields).sequences
        return [plan.text.piece(0, 30) for plan in plans]

    assert texts() == texts(temperature=0.3, user="u", stream=True)
    different = [
        texts(),
        texts(seed=1),
        texts(seed=2),
        texts(cache_salt="s"),
        texts(replace(served, seed=1)),
        texts(messages=[{"role": "user", "content": "Hallo"}]),
    ]
    assert len({text[0] for text in different}) == len(different)
    assert len(set(texts(n=4))) == 4
    assert texts(n=4)[0] == texts()[0]


def test_salt_changes_the_first_block_only(served: ServedModel) -> None:
    long = [{"role": "user", "content": "x" * 40}]
    plain = chat(served, messages=long).sequences[0].submit.prompt.block_keys(16)
    salted = chat(served, messages=long, cache_salt="s").sequences[0].submit.prompt.block_keys(16)
    assert plain[:8] != salted[:8]
    assert plain[8:] == salted[8:]


def test_a_turn_extends_the_blocks_of_the_turn_before(served: ServedModel) -> None:
    first = chat(served, max_tokens=64)
    plan = first.sequences[0]
    answer = plan.text.piece(0, 64)
    again = [*HELLO, {"role": "assistant", "content": answer}, {"role": "user", "content": "?"}]
    second = chat(served, messages=again).sequences[0].submit.prompt.block_keys(16)
    before = plan.submit.prompt.block_keys(16) + plan.submit.output_keys
    assert len(before) == 8 * ((first.prompt_tokens + 64) // 16)
    assert second.startswith(before)


def test_end_of_sequence_ends_the_answer_unless_ignored(served: ServedModel) -> None:
    stopping = replace(served, eos=EosModel(20, 0))
    plan = chat(stopping, max_tokens=100).sequences[0]
    assert (plan.submit.output_tokens, plan.submit.finish_reason) == (20, "stop")
    assert plan.text.ids(0, 20)[-1] == 258
    assert len(plan.text.piece(0, 20)) == 19
    assert plan.outcome(20, "stop").stop_reason is None
    ignoring = chat(stopping, max_tokens=100, ignore_eos=True).sequences[0].submit
    assert (ignoring.output_tokens, ignoring.finish_reason) == (100, "length")
    later = chat(stopping, max_tokens=100, min_tokens=50).sequences[0].submit
    assert later.output_tokens == 51


def test_stop_strings_cut_the_text_and_are_named(served: ServedModel) -> None:
    plan = chat(served, max_tokens=500, stop=["e", "xyz"]).sequences[0]
    text = plan.text.piece(0, plan.submit.output_tokens)
    assert "e" not in text
    assert len(text) == plan.submit.output_tokens - 1
    assert plan.outcome(plan.submit.output_tokens, "stop").stop_reason == "e"
    assert plan.outcome(3, "abort").stop_reason is None


def test_number_of_stop_strings_is_the_servers_choice(served: ServedModel) -> None:
    five = list("vwxyz")
    with pytest.raises(ApiError, match="at most 4 items"):
        chat(served, stop=five)
    assert chat(replace(served, max_stop_strings=5), stop=five).sequences
    with pytest.raises(ApiError, match="at most 1 items"):
        chat(replace(served, max_stop_strings=1), stop=five)


def test_stream_options_and_interval(served: ServedModel) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    generation = chat(served, stream=True, stream_options=options, stream_interval=4)
    assert generation.include_usage
    assert generation.continuous_usage
    assert generation.stream_interval == 4
    slower = replace(served, stream_interval=8, enable_force_include_usage=True)
    assert chat(slower, stream_interval=4).stream_interval == 8
    assert chat(slower, stream=True).continuous_usage
    only_continuous = {"continuous_usage_stats": True}
    assert not chat(served, stream=True, stream_options=only_continuous).continuous_usage


def test_truncation_keeps_either_end(served: ServedModel) -> None:
    ids = served.tokenizer.encode(PROMPT).tolist()
    kept = chat(served, truncate_prompt_tokens=5, return_token_ids=True)
    assert kept.prompts[0].ids is not None
    assert kept.prompts[0].ids.tolist() == ids[:5]
    left = {"truncate_prompt_tokens": 5, "truncation_side": "left", "return_token_ids": True}
    right_end = chat(served, **left).prompts[0].ids
    assert right_end is not None
    assert right_end.tolist() == ids[-5:]
    long = [{"role": "user", "content": "x" * 9000}]
    assert chat(served, messages=long, truncate_prompt_tokens=-1).prompt_tokens == 4095


def test_role_without_generation_prompt_is_the_last_speakers(served: ServedModel) -> None:
    assert chat(served, add_generation_prompt=False).role == "user"
    assert chat(served).role == "assistant"
