"""Completion requests that are accepted: what they become."""

import json
from dataclasses import replace

import pytest

from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.generation import Generation
from frontier_mock.wire.served import ServedModel


def completion(served: ServedModel, **fields: object) -> Generation:
    body = {"prompt": "Hello", **fields}
    return parse_completion(json.dumps(body).encode(), {}, served)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", [[72, 105]]),
        (["Hi", "a"], [[72, 105], [97]]),
        ([72, 105], [[72, 105]]),
        ([[72], [105, 0]], [[72], [105, 0]]),
        ([72.0, 105], [[72, 105]]),
        ([True, 105], [[1, 105]]),
        (["Hi", ""][:1], [[72, 105]]),
    ],
)
def test_prompt_forms(served: ServedModel, prompt: object, expected: list[list[int]]) -> None:
    generation = completion(served, prompt=prompt, return_token_ids=True)
    assert [p.ids.tolist() for p in generation.prompts if p.ids is not None] == expected
    assert generation.prompt_tokens == sum(map(len, expected))


def test_max_tokens_is_sixteen_by_default(served: ServedModel) -> None:
    for fields in ({}, {"max_tokens": None}):
        assert completion(served, **fields).sequences[0].submit.max_tokens == 16


def test_choices_are_prompt_major(served: ServedModel) -> None:
    generation = completion(served, prompt=["a", "b", "c"], n=2)
    assert [(p.index, p.prompt_index) for p in generation.sequences] == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
        (5, 2),
    ]
    assert generation.id.startswith("cmpl-")


def test_text_and_its_ids_are_the_same_prompt(served: ServedModel) -> None:
    text = completion(served, prompt="x" * 40).sequences[0].submit
    ids = completion(served, prompt=[120] * 40).sequences[0].submit
    assert text == ids


def test_each_prompt_has_its_own_room(served: ServedModel) -> None:
    generation = completion(served, prompt=["x" * 4090, "x"], max_tokens=100)
    assert [p.submit.max_tokens for p in generation.sequences] == [6, 100]


def test_echo_without_output_runs_one_token(served: ServedModel) -> None:
    generation = completion(served, echo=True, max_tokens=0)
    assert generation.prompt_only
    assert generation.sequences[0].submit.output_tokens == 1
    assert generation.prompts[0].text == "Hello"


def test_prompt_text_is_decoded_from_ids_for_echo(served: ServedModel) -> None:
    assert completion(served, echo=True, prompt=[72, 105]).prompts[0].text == "Hi"
    assert completion(served, prompt=[72, 105]).prompts[0].text is None


def test_ids_beyond_the_tokenizer_but_in_the_model_are_valid(served: ServedModel) -> None:
    wide = replace(served, vocab_size=128_256)
    assert completion(wide, prompt=[128_255]).prompt_tokens == 1
    assert completion(wide, stop_token_ids=[128_255])
