"""vLLM's routes that are other routes in disguise: SageMaker's dispatcher, and a batch of chats.

/invocations tries one schema after the other (vLLM 0.33 `serve/sagemaker/api_router.py`);
/v1/chat/completions/batch is one choice per conversation (`chat_completion/batch_serving.py`).
"""

from dataclasses import replace

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import ApiError, Problem, invalid, schema_error
from frontier_mock.wire.fields import load_json, load_object
from frontier_mock.wire.generation import Generation
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

_NO_HANDLER = (
    "Cannot find suitable handler for request. "
    "Expected one of: ['ChatCompletionRequest', 'CompletionRequest']"
)
_SCHEMA = "Bad Request"
"""The type of errors that a request's schema finds, which send the dispatcher on."""


def parse_invocation(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation that the first schema to fit `body` asks for. Raises ApiError."""
    value = load_json(body)
    raw = value if isinstance(value, dict) else {}
    if "messages" in raw:
        try:
            return parse_chat(body, headers, served)
        except ApiError as error:
            if error.kind != _SCHEMA:
                raise
    if "prompt" in raw or "prompt_embeds" in raw:
        try:
            return parse_completion(body, headers, served)
        except ApiError as error:
            if error.kind != _SCHEMA:
                raise
    raise ApiError(400, _NO_HANDLER)


def parse_chat_batch(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation of one choice for each conversation. Raises ApiError."""
    raw = load_object(body)
    _check(raw)
    conversations = raw["messages"]
    assert isinstance(conversations, list)
    base = {name: value for name, value in raw.items() if name not in ("messages", "n", "stream")}
    base |= {"tools": None, "tool_choice": "none", "stream": False}
    parts = [
        parse_chat(_bytes({**base, "messages": messages}), headers, served)
        for messages in conversations
    ]
    first = parts[0]
    return first._replace(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        prompts=tuple(part.prompts[0] for part in parts),
        sequences=tuple(
            replace(part.sequences[0], index=i, prompt_index=i) for i, part in enumerate(parts)
        ),
    )


def _bytes(value: dict[str, Json]) -> bytes:
    return dumps(value).encode("utf-8", "surrogatepass")


def _check(raw: dict[str, Json]) -> None:
    if raw.get("use_beam_search"):
        raise invalid(
            "Batch chat completions do not support beam search. "
            "Please set `use_beam_search` to False.",
            "use_beam_search",
        )
    n = raw.get("n", 1)
    if n is not None and n != 1:
        raise invalid("Batch chat completions do not support `n > 1`. Please set `n` to 1.", "n", n)
    conversations = raw.get("messages")
    if "messages" not in raw:
        raise schema_error([Problem("missing", ("body", "messages"), "Field required", raw)])
    if not isinstance(conversations, list):
        raise schema_error(
            [Problem("list_type", ("body", "messages"), "Input should be a valid list", raw)]
        )
    problems = [] if conversations else [_too_short(("body", "messages"), conversations)]
    for i, one in enumerate(conversations):
        where = ("body", "messages", i)
        if not isinstance(one, list):
            problems.append(Problem("list_type", where, "Input should be a valid list", one))
        elif not one:
            problems.append(_too_short(where, one))
    if problems:
        raise schema_error(problems)


def _too_short(where: tuple[str | int, ...], value: Json) -> Problem:
    message = "List should have at least 1 item after validation, not 0"
    return Problem("too_short", where, message, value)
