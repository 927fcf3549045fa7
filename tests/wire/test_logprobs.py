"""Log-probabilities: shapes, counts and order; the figures only have to be plausible."""

import json

import pytest

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.render import render_response
from frontier_mock.wire.served import ServedModel

HELLO = [{"role": "user", "content": "Hi"}]


def chat(served: ServedModel, **fields: object) -> dict[str, object]:
    body = {"messages": HELLO, "max_tokens": 6, **fields}
    generation = parse_chat(json.dumps(body).encode(), {}, served)
    ends = [plan.outcome(6, "length") for plan in generation.sequences]
    return json.loads(render_response(generation, ends, 0))


def completion(served: ServedModel, **fields: object) -> dict[str, object]:
    body = {"prompt": "Hello", "max_tokens": 6, **fields}
    generation = parse_completion(json.dumps(body).encode(), {}, served)
    ends = [plan.outcome(6, "length") for plan in generation.sequences]
    return json.loads(render_response(generation, ends, 0))


@pytest.mark.parametrize("top", [None, 0, 1, 5, 20])
def test_chat_entries(served: ServedModel, top: int | None) -> None:
    choice = chat(served, logprobs=True, top_logprobs=top)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        assert list(entry) == ["token", "logprob", "bytes", "top_logprobs"]
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == (top or 0)
        assert entry["logprob"] < 0
        for candidate in entry["top_logprobs"][:1]:
            assert candidate == {key: entry[key] for key in ("token", "logprob", "bytes")}
        falling = [candidate["logprob"] for candidate in entry["top_logprobs"]]
        assert falling == sorted(falling, reverse=True)
        assert len({candidate["token"] for candidate in entry["top_logprobs"]}) == (top or 0)


def test_no_logprobs_unless_asked(served: ServedModel) -> None:
    assert chat(served)["choices"][0]["logprobs"] is None
    assert completion(served)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_completion_lists(served: ServedModel, count: int) -> None:
    choice = completion(served, logprobs=count)["choices"][0]
    logprobs = choice["logprobs"]
    assert list(logprobs) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(6))
    for token, own, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == own == max(top.values())
        assert max(count, 1) <= len(top) <= count + 1


def test_tokens_as_ids(served: ServedModel) -> None:
    fields = {"logprobs": 2, "return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = completion(served, **fields)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(name.startswith("token_id:") for name in choice["logprobs"]["top_logprobs"][0])
    entry = chat(served, logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)
    first = entry["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == f"token_id:{first['bytes'][0]}"


def test_chosen_ids_are_reported_whatever_the_count(served: ServedModel) -> None:
    fields = {"logprobs": True, "logprob_token_ids": [65, 66], "return_tokens_as_token_ids": True}
    content = chat(served, **fields)["choices"][0]["logprobs"]["content"]
    for entry in content:
        names = [candidate["token"] for candidate in entry["top_logprobs"]]
        assert names == [entry["token"], "token_id:65", "token_id:66"]


def test_prompt_logprobs_start_with_null(served: ServedModel) -> None:
    body = completion(served, prompt_logprobs=1)
    entries = body["choices"][0]["prompt_logprobs"]
    assert len(entries) == 5
    assert entries[0] is None
    own = entries[1][str(ord("e"))]
    assert list(own) == ["logprob", "rank", "decoded_token"]
    assert (own["rank"], own["decoded_token"]) == (1, "e")
    whole = chat(served, prompt_logprobs=0)
    assert len(whole["prompt_logprobs"]) == whole["usage"]["prompt_tokens"]
    assert all(len(entry) == 1 for entry in whole["prompt_logprobs"][1:])


def test_echoed_prompt_has_figures_too(served: ServedModel) -> None:
    choice = completion(served, echo=True, logprobs=1)["choices"][0]
    assert choice["text"].startswith("Hello")
    assert choice["logprobs"]["tokens"][:5] == list("Hello")
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["prompt_logprobs"][0] is None
