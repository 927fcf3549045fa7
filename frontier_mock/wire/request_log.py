"""What vLLM logs of a request under --enable-log-requests: its ids and its sampling parameters.

The line is `Received request ID: params: SamplingParams(...), lora_request: None.` (vLLM 0.33
entrypoints/serve/utils/request_logger.py, `SamplingParams.__repr__`), one for each prompt.
"""

import json
from collections.abc import Iterator

from frontier_mock.wire.generation import CHAT, COMPLETION, Generation
from frontier_mock.wire.tokenizer import Json

_DEFAULTS: dict[str, Json] = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "watermarking": None,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "thinking_token_budget": None,
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "max_tokens": None,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "structured_outputs": None,
    "extra_args": None,
}
"""Sampling parameters in the order of their text, and what they are where a request is silent."""


def received_lines(generation: Generation, body: bytes) -> Iterator[str]:
    """A line for each prompt of a request with this body."""
    raw = json.loads(body)
    asked = raw.get("sampling_params") if isinstance(raw.get("sampling_params"), dict) else raw
    given = {name: asked[name] for name in _DEFAULTS if asked.get(name) is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if generation.kind == CHAT:
        wanted = given.pop("logprobs", False) is True
        given["logprobs"] = asked.get("top_logprobs") or 0 if wanted else None
    seen: set[int] = set()
    for plan in generation.sequences:
        if plan.prompt_index not in seen:
            seen.add(plan.prompt_index)
            params = {**_DEFAULTS, **given, "max_tokens": plan.submit.max_tokens}
            shown = ", ".join(f"{name}={value!r}" for name, value in params.items())
            many = generation.kind == COMPLETION
            name = f"{generation.id}-{plan.prompt_index}" if many else generation.id
            yield f"Received request {name}: params: SamplingParams({shown}), lora_request: None."
