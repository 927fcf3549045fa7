"""/v1/score: prompts that generate nothing, and a row of figures for each."""

import json
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.request import SglangRequest
from frontier_mock.wire.sglang.score import (
    NO_EMBEDDINGS,
    parse_score,
    refuse_embeddings,
    render_score,
)
from tests.wire.sglang.test_generate import ends


def parse(served: ServedModel, **body: Any) -> SglangRequest:
    return parse_score(json.dumps(body).encode(), {}, served)


def test_each_item_is_scored(sglang: ServedModel) -> None:
    request = parse(
        sglang,
        query="Is it? ",
        items=["yes", "no way"],
        label_token_ids=[65, 66],
        apply_softmax=True,
        return_token_logprobs=True,
    )
    assert [sequence.prompt_tokens for sequence in request.sequences] == [10, 13]
    assert [sequence.plan.submit.output_tokens for sequence in request.sequences] == [1, 1]
    body = json.loads(render_score(request, ends(request), 9))
    assert [sum(row) for row in body["scores"]] == pytest.approx([1.0, 1.0])
    assert [len(row) for row in body["token_logprobs"]] == [2, 2]
    assert body["usage"]["prompt_tokens"] == 23
    assert (body["object"], body["model"]) == ("scoring", "default")


def test_items_may_be_ids_and_come_first(sglang: ServedModel) -> None:
    request = parse(
        sglang, query=[1, 2], items=[[3], [4, 5]], label_token_ids=[[65], [66]], item_first=True
    )
    assert [sequence.prompt_tokens for sequence in request.sequences] == [3, 4]
    assert request.scoring is not None
    assert request.scoring.labels == ((65,), (66,))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"items": ["a"]}, "label_token_ids is required for generation (CausalLM) models."),
        ({"label_token_ids": [1]}, "items must be provided"),
        (
            {"items": ["a"], "label_token_ids": [[1], [2]]},
            "label_token_ids must have one list per item",
        ),
        (
            {"items": ["a"], "label_token_ids": [1, 1]},
            "label_token_ids must not contain duplicate tokens",
        ),
        (
            {"items": ["a"], "label_token_ids": [5000]},
            "Token ID 5000 is out of vocabulary (vocab size: 259)",
        ),
        (
            {"items": ["a"], "label_token_ids": [1], "temperature": 2.0},
            "temperature requires apply_softmax=True",
        ),
    ],
)
def test_bad_scores(sglang: ServedModel, body: dict[str, Any], message: str) -> None:
    with pytest.raises(SglangError) as raised:
        parse(sglang, **body)
    assert raised.value.message == message
    assert raised.value.status == 400


def test_nothing_here_embeds() -> None:
    assert refuse_embeddings(b'{"input":"x"}').message == NO_EMBEDDINGS
    assert "JSON decode error" in refuse_embeddings(b"{").message
