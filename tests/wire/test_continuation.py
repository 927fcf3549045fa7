"""A prompt with partial output behind it goes on with the rest of that output."""

import json
from dataclasses import replace

import numpy as np
import pytest

from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.generation import SequencePlan
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.text import DISTINCT_TOKENS

PROMPT = [*b"Question: how many letters are in this sentence?\nAnswer:\n"]


def plans(served: ServedModel, prompt: list[int], **more: object) -> tuple[SequencePlan, ...]:
    body = {"prompt": prompt, "max_tokens": 3000, "temperature": 1, **more}
    return parse_completion(json.dumps(body).encode(), {}, served).sequences


def output(plan: SequencePlan) -> list[int]:
    return plan.text.ids(0, plan.text.num_tokens)


@pytest.mark.parametrize("salt", [{}, {"cache_salt": "v1"}])
@pytest.mark.parametrize("length", [1, 15, 57, 640])
def test_every_cut_of_every_choice_is_followed_by_the_rest(
    served: ServedModel, length: int, salt: dict[str, str]
) -> None:
    served = replace(served, eos=EosModel(300.0, 0.7))
    prompt = (PROMPT * 16)[-length:]
    for plan in plans(served, prompt, n=8, seed=5, **salt):
        whole = output(plan)
        for cut in {1, 2, 3, 8, 15, 16, 17, 18, 40, 41, len(whole) // 2, len(whole) - 1}:
            if not 0 < cut < len(whole) or (plan.index and cut < DISTINCT_TOKENS):
                continue
            (rest,) = plans(served, prompt + whole[:cut], seed=5, **salt)
            assert output(rest) == whole[cut:]
            assert rest.submit.finish_reason == plan.submit.finish_reason


def test_a_rest_can_be_cut_again(served: ServedModel) -> None:
    served = replace(served, eos=None)
    (whole,) = plans(served, PROMPT)
    said: list[int] = []
    while len(said) < 2000:
        (rest,) = plans(served, PROMPT + said)
        said += output(rest)[: 1 + len(said) * 7 % 300]
    assert said == output(whole)[: len(said)]


def test_blocks_of_a_resumed_output_have_the_keys_of_the_first(served: ServedModel) -> None:
    (whole,) = plans(served, PROMPT)
    (rest,) = plans(served, PROMPT + output(whole)[:100])
    size = served.block_tokens
    ours = rest.submit.prompt.block_keys(size) + rest.submit.output_keys
    theirs = whole.submit.prompt.block_keys(size) + whole.submit.output_keys
    assert ours[: len(theirs)] == theirs[: len(ours)]
    assert len(ours) > 8 * 190


def test_another_seed_another_salt_or_a_text_is_no_resumption(served: ServedModel) -> None:
    (whole,) = plans(served, PROMPT, seed=1)
    said = output(whole)
    for other in ({"seed": 2}, {"seed": 1, "cache_salt": "x"}):
        (rest,) = plans(served, PROMPT + said[:50], **other)
        assert output(rest)[:100] != said[50:150]
    as_text = bytes(PROMPT + said[:50]).decode()
    (rest,) = parse_completion(
        json.dumps({"prompt": as_text, "seed": 1, "max_tokens": 100}).encode(), {}, served
    ).sequences
    assert output(rest) != said[50:150]


def test_outputs_of_many_choices_begin_in_different_places(served: ServedModel) -> None:
    starts = served.ring.starts_for(3, 77, 64)
    assert starts.tolist() == [served.ring.start_for(3, 77, choice) for choice in range(64)]
    assert len(np.unique(starts)) == 64
    many = served.ring.starts_for(3, 77, 300)
    assert many[:64].tolist() == starts.tolist()
    assert len(np.unique(many)) > 250
