"""/v1/models, /tokenize and /detokenize."""

import json

import pytest

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.models import models_body
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenize import detokenize_body, tokenize_body


def tokenize(served: ServedModel, **fields: object) -> dict[str, object]:
    return json.loads(tokenize_body(json.dumps(fields).encode(), served))


def test_one_card_per_name(served: ServedModel) -> None:
    body = json.loads(models_body(served, 77))
    assert [card["id"] for card in body["data"]] == ["mock", "alias"]
    assert body["object"] == "list"
    permission = body["data"][0].pop("permission")[0]
    assert body["data"][0] == {
        "id": "mock",
        "object": "model",
        "created": 77,
        "owned_by": "vllm",
        "root": "/models/mock",
        "parent": None,
        "max_model_len": 4096,
    }
    assert permission.pop("id").startswith("modelperm-")
    assert permission == {
        "object": "model_permission",
        "created": 77,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


def test_tokenize_prompt_and_chat(served: ServedModel) -> None:
    assert tokenize(served, prompt="Hü") == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [72, 195, 188],
        "token_strs": None,
    }
    assert tokenize(served, prompt=" a", return_token_strs=True)["token_strs"] == ["Ġ", "a"]
    messages = [{"role": "user", "content": "Hi"}]
    text = served.tokenizer.render_chat(messages)
    assert tokenize(served, messages=messages)["tokens"] == served.tokenizer.encode(text).tolist()
    bare = tokenize(served, messages=messages, add_generation_prompt=False)
    assert bare["count"] == len(
        served.tokenizer.encode(served.tokenizer.render_chat(messages, False))
    )
    assert tokenize(served, prompt="x" * 9000)["count"] == 9000


def test_detokenize(served: ServedModel) -> None:
    body = detokenize_body(json.dumps({"tokens": [72, 105, 258]}).encode(), served)
    assert json.loads(body) == {"prompt": "Hi<|im_end|>"}


@pytest.mark.parametrize(
    ("fields", "status", "part"),
    [
        ({}, 400, "2 validation errors"),
        ({"prompt": 5}, 400, "string_type"),
        ({"prompt": "x", "model": "y"}, 404, "does not exist"),
        ({"prompt": "\ud800"}, 400, "surrogates"),
        (
            {"messages": [], "add_generation_prompt": True, "continue_final_message": True},
            400,
            "Cannot set both",
        ),
        ({"messages": [], "chat_template": "x"}, 400, "Refused request"),
    ],
)
def test_tokenize_refuses(
    served: ServedModel, fields: dict[str, object], status: int, part: str
) -> None:
    with pytest.raises(ApiError, match=part) as caught:
        tokenize(served, **fields)
    assert caught.value.status == status


@pytest.mark.parametrize("tokens", [None, "x", [-1], [2**63]])
def test_detokenize_refuses(served: ServedModel, tokens: object) -> None:
    with pytest.raises(ApiError, match="validation error"):
        detokenize_body(json.dumps({"tokens": tokens}).encode(), served)
