"""Output of a prescribed shape: valid under its schema, counted exactly, cut where the cap is."""

import json
from dataclasses import replace
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import from_json

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.generation import Generation
from frontier_mock.wire.render import render_response
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import StreamRenderer


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Leaf(BaseModel):
    name: str = Field(min_length=3, max_length=5)
    weight: float = Field(ge=0, le=1)
    colour: Colour


class Tree(BaseModel):
    kind: Literal["oak", "elm"]
    age: int = Field(gt=9, lt=12)
    leaves: list[Leaf] = Field(min_length=2, max_length=2)
    tags: list[str]
    place: tuple[int, int]
    note: str | None
    tall: bool


def chat(served: ServedModel, content: str = "hello", **more: Any) -> Generation:
    messages = [{"role": "user", "content": content}]
    body = {"messages": messages, "max_completion_tokens": 2000, **more}
    return parse_chat(json.dumps(body).encode(), {}, served)


def whole(generation: Generation) -> dict[str, Any]:
    outcomes = [
        plan.outcome(plan.submit.output_tokens, plan.submit.finish_reason)
        for plan in generation.sequences
    ]
    body: dict[str, Any] = json.loads(render_response(generation, outcomes, 0))
    return body


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    described = {"name": model.__name__, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": described}


def test_a_schema_is_kept_and_every_token_counted(served: ServedModel) -> None:
    seen = set()
    for number in range(40):
        generation = chat(served, f"tree {number}", response_format=schema_of(Tree))
        (plan,) = generation.sequences
        text = whole(generation)["choices"][0]["message"]["content"]
        Tree.model_validate_json(text)
        seen.add(text)
        ids = plan.text.ids(0, plan.text.num_tokens)
        assert ids[-1] == served.tokenizer.eos_token_id
        assert bytes(ids[:-1]).decode() == text
        assert plan.submit.finish_reason == "stop"
        assert len(ids) == plan.submit.output_tokens == len(text) + 1
    assert len(seen) == 40


@pytest.mark.parametrize("cap", [1, 7, 60])
def test_a_cap_cuts_it_short(served: ServedModel, cap: int) -> None:
    generation = chat(served, response_format=schema_of(Tree), max_completion_tokens=cap)
    choice = whole(generation)["choices"][0]
    assert choice["finish_reason"] == "length"
    content = choice["message"]["content"]
    assert len(content) == cap
    begun = from_json(content, allow_partial=True)
    assert isinstance(begun, dict)
    assert begun.keys() <= Tree.model_fields.keys()


def test_the_pieces_of_a_stream_make_the_whole(served: ServedModel) -> None:
    generation = chat(served, response_format=schema_of(Tree), stream=True)
    (plan,) = generation.sequences
    renderer = StreamRenderer(generation, 0)
    last = plan.submit.output_tokens
    frames = b"".join(renderer.delta(0, i, i + 1) for i in range(last - 1))
    frames += renderer.finish(0, last - 1, plan.outcome(last, "stop"))
    chunks = [json.loads(part[6:]) for part in frames.decode().split("\n\n")[:-1]]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    Tree.model_validate_json(said)


@pytest.mark.parametrize(
    ("constraint", "valid"),
    [
        ({"choice": ["yes", "no", "vielleicht: ä"]}, Literal["yes", "no", "vielleicht: ä"]),
        ({"json_object": True}, dict),
        ({"json": json.dumps(Leaf.model_json_schema())}, Leaf),
        ({"json": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "integer"}}}}, int),
        ({"json": {"allOf": [{"properties": {"a": {"const": 5}}}, {"required": ["a"]}]}}, dict),
        ({"json": {"enum": [1, 2]}}, Literal[1, 2]),
        ({"json": {"type": ["null", "boolean"]}}, bool),
        ({"json": {"type": "integer", "minimum": 10, "multipleOf": 7, "maximum": 30}}, int),
    ],
)
def test_structured_outputs_of_vllms_own(
    served: ServedModel, constraint: dict[str, Any], valid: Any
) -> None:
    body = {"prompt": "x", "max_tokens": 500, "structured_outputs": constraint}
    generation = parse_completion(json.dumps(body).encode(), {}, served)
    text = whole(generation)["choices"][0]["text"]
    adapter = TypeAdapter(valid)
    if "choice" in constraint:
        adapter.validate_python(text)
    else:
        adapter.validate_json(text)


def test_a_schema_that_contains_itself_ends(served: ServedModel) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]}
    wanted = {"json": {"$ref": "#/$defs/N", "$defs": {"N": node}}}
    text = whole(chat(served, structured_outputs=wanted))["choices"][0]["message"]["content"]
    assert json.loads(text)["next"]


TOOLS = [
    {
        "type": "function",
        "function": {"name": "plant", "parameters": Tree.model_json_schema()},
    },
    {"type": "function", "function": {"name": "fell"}},
]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [({"type": "function", "function": {"name": "plant"}}, "stop"), ("required", "tool_calls")],
)
def test_a_forced_call_has_arguments_under_its_schema(
    served: ServedModel, choice: Any, reason: str
) -> None:
    served = replace(served, tool_call_parser="hermes")
    generation = chat(served, tools=TOOLS, tool_choice=choice)
    answer = whole(generation)["choices"][0]
    assert answer["finish_reason"] == reason
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "plant"
    Tree.model_validate_json(call["function"]["arguments"])
    (plan,) = generation.sequences
    renderer = StreamRenderer(generation, 0)
    last = plan.submit.output_tokens
    frames = b"".join(renderer.delta(0, i, i + 1) for i in range(last - 1))
    frames += renderer.finish(0, last - 1, plan.outcome(last, "stop"))
    chunks = [json.loads(part[6:]) for part in frames.decode().split("\n\n")[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"]["name"] == "plant"
    assert all("id" not in later for later in calls[1:])
    arguments = "".join(part["function"]["arguments"] for part in calls)
    assert arguments == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


def test_a_list_of_calls_that_is_cut_short_calls_nobody(served: ServedModel) -> None:
    served = replace(served, tool_call_parser="hermes")
    generation = chat(served, tools=TOOLS, tool_choice="required", max_completion_tokens=60)
    answer = whole(generation)["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["message"]["tool_calls"] == []
