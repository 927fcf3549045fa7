"""Bodies with odd values in their fields: an answer or a refusal, never anything else."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.anthropic import count_tokens_body, parse_messages
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.completions import parse_completion
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.generate import FIELDS, parse_generate
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS
from frontier_mock.wire.sglang.request import SglangRequest
from frontier_mock.wire.sglang.responses import parse_responses
from frontier_mock.wire.sglang.score import parse_score

BODIES = 1500
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 100, 10**6, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e308),
    *("", "a", "hi there", "\ud800", "é日本", "json_schema", "mock:adapter", "auto", "none"),
    *([], {}, [1, 2], [[1], [2, 3]], ["ab", "cd"], [[]], [None], [{}], [-1], [10**30], [True]),
    *({"type": "text"}, {"type": "tool", "name": "n"}, {"65": 1}, {"include_usage": 1}, {"n": []}),
    [{"role": "user", "content": [{"type": "text", "text": 1}]}],
    [{"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n"}]}],
)
TURNS = [{"role": "user", "content": "hi"}]
SAMPLING = (
    *("max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k"),
    *("min_p", "frequency_penalty", "min_new_tokens", "n", "json_schema", "regex", "logit_bias"),
    *("ignore_eos", "sampling_seed", "stream_interval", "custom_params", "beam_width", "choice"),
)
MESSAGES = (
    "model",
    "messages",
    "max_tokens",
    "system",
    "thinking",
    "tools",
    "tool_choice",
    "stream",
)
RESPONSES = ("model", "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text")
SCORE = ("query", "items", "label_token_ids", "apply_softmax", "temperature", "item_first")

Parse = Callable[[bytes, Mapping[str, str], ServedModel], SglangRequest]
ROUTES: tuple[tuple[Parse, dict[str, Any], tuple[str, ...]], ...] = (
    (parse_generate, {"text": "hello", "sampling_params": {"max_new_tokens": 3}}, tuple(FIELDS)),
    (parse_chat, {"messages": TURNS, "max_tokens": 3}, tuple(CHAT_FIELDS)),
    (parse_completion, {"prompt": "ab", "max_tokens": 3}, tuple(COMPLETION_FIELDS)),
    (parse_messages, {"model": "m", "messages": TURNS, "max_tokens": 3}, MESSAGES),
    (parse_responses, {"model": "mock", "input": "hi", "max_output_tokens": 5}, RESPONSES),
    (parse_score, {"query": "q", "items": ["a"], "label_token_ids": [1]}, SCORE),
)


@pytest.mark.parametrize("seed", range(len(ROUTES)))
def test_odd_values_are_answered_or_refused(sglang: ServedModel, seed: int) -> None:
    parse, good, names = ROUTES[seed]
    rng = random.Random(seed)
    accepted = 0
    refused: list[SglangError | LateError] = []
    for _ in range(BODIES):
        body = dict(good)
        for name in rng.sample(names, rng.randrange(1, 4)):
            body[name] = rng.choice(VALUES)
        if parse is parse_generate and rng.random() < 0.5:
            body["sampling_params"] = {rng.choice(SAMPLING): rng.choice(VALUES) for _ in range(2)}
        data = json.dumps(body).encode()
        try:
            if parse is parse_messages:
                count_tokens_body(data, sglang)
            request = parse(data, {}, sglang)
        except (SglangError, LateError) as error:
            refused.append(error)
        else:
            accepted += 1
            assert request.sequences
    assert accepted > 0
    assert refused
    for refusal in refused:
        assert refusal.message
        if isinstance(refusal, SglangError):
            assert refusal.status in (400, 404)
            assert json.loads(refusal.body())
