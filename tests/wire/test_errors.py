"""Error bodies: every row of vllm.md §3.2 that a request can provoke, literally."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from frontier_mock.wire import errors
from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import error_frames

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def refusal(parse: Callable[..., object], body: object, served: ServedModel) -> ApiError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse(data, {}, served)
    return caught.value


def facts(error: ApiError) -> tuple[int, str, str | None, str]:
    payload = json.loads(error.body())["error"]
    assert list(payload) == ["message", "type", "param", "code"]
    assert payload["code"] == error.status
    return error.status, payload["type"], payload["param"], payload["message"]


BAD_CHAT: list[tuple[dict[str, object], str | None, str]] = [
    (
        {"temperature": 3},
        "temperature",
        "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)",
    ),
    (
        {"temperature": -1},
        "temperature",
        "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
    ),
    ({"top_p": 0}, "top_p", "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)"),
    ({"top_k": -2}, None, "top_k must be 0 (disable), or at least 1, got -2."),
    ({"min_p": 2}, None, "min_p must be in [0, 1], got 2.0."),
    ({"presence_penalty": 3}, None, "presence_penalty must be in [-2, 2], got 3.0."),
    ({"frequency_penalty": -3}, None, "frequency_penalty must be in [-2, 2], got -3.0."),
    ({"repetition_penalty": 0}, None, "repetition_penalty must be greater than zero, got 0.0."),
    ({"n": 0}, None, "n must be at least 1, got 0."),
    ({"n": 2, "temperature": 0}, None, "n must be 1 when using greedy sampling, got 2."),
    (
        {"n": 20000},
        None,
        (
            "n must be at most 16384, got 20000. To increase this limit, set the "
            "VLLM_MAX_N_SEQUENCES environment variable."
        ),
    ),
    (
        {"max_tokens": 0},
        "max_tokens",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    ),
    (
        {"max_completion_tokens": 5000},
        "max_completion_tokens",
        (
            "max_completion_tokens=5000 cannot be greater than max_model_len=4096. Please request "
            "fewer output tokens. (parameter=max_completion_tokens, value=5000)"
        ),
    ),
    (
        {"max_tokens": 5, "min_tokens": 9},
        None,
        "min_tokens must be less than or equal to max_tokens=5, got 9.",
    ),
    ({"min_tokens": -1}, None, "min_tokens must be greater than or equal to 0, got -1."),
    ({"stop": ["a", ""]}, None, "stop cannot contain an empty string."),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
    ),
    (
        {"tools": []},
        "tools",
        (
            "`tools` must not be an empty array. Either provide at least one tool or omit the "
            "field entirely. (parameter=tools)"
        ),
    ),
    (
        {"tool_choice": "auto"},
        "tool_choice",
        "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        (
            "The tool specified in `tool_choice` does not match any of the specified `tools` "
            "(parameter=tool_choice)"
        ),
    ),
    (
        {"tools": [TOOL]},
        None,
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ),
    (
        {"tools": [TOOL], "tool_choice": "required"},
        None,
        'tool_choice="required" requires --tool-call-parser to be set',
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        None,
        'tool_choice=function "f" requires --tool-call-parser to be set',
    ),
    (
        {"top_logprobs": 2},
        "top_logprobs",
        "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)",
    ),
    (
        {"top_logprobs": "2"},
        "top_logprobs",
        "`top_logprobs` must be an integer. (parameter=top_logprobs, value=2)",
    ),
    (
        {"logprobs": True, "top_logprobs": 21},
        "logprobs",
        (
            "Requested sample logprobs of 21, which is greater than max allowed: 20 "
            "(parameter=logprobs, value=21)"
        ),
    ),
    (
        {"prompt_logprobs": -2},
        "prompt_logprobs",
        "`prompt_logprobs` must be a positive value or -1. (parameter=prompt_logprobs, value=-2)",
    ),
    (
        {"stop_token_ids": [5000]},
        "stop_token_ids",
        (
            "token_id(s) [5000] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: "
            "259 (parameter=stop_token_ids, value=[5000])"
        ),
    ),
    (
        {"logit_bias": {"x": 1}},
        "logit_bias",
        (
            "logit_bias contains key(s) that cannot be converted to integer token IDs: ['x'] "
            "(parameter=logit_bias, value=['x'])"
        ),
    ),
    (
        {"allowed_token_ids": []},
        "allowed_token_ids",
        "allowed_token_ids is not None and empty! (parameter=allowed_token_ids, value=[])",
    ),
    (
        {"cache_salt": "a/b"},
        "cache_salt",
        (
            "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', "
            "'\\\\', or NUL. (parameter=cache_salt)"
        ),
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format",
        (
            "When response_format type is 'json_schema', the 'json_schema' field must be provided. "
            "(parameter=response_format)"
        ),
    ),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        None,
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
    ),
    (
        {"continue_final_message": True},
        None,
        (
            "continue_final_message and add_generation_prompt are not compatible. Use "
            "continue_final_message when you want the model to continue the final message, and "
            "add_generation_prompt when you want to add a header that will prompt it to start a "
            "new assistant message instead."
        ),
    ),
    (
        {"chat_template": "{{ x }}"},
        None,
        (
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template."
        ),
    ),
    (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        None,
        (
            "You can only use one kind of constraints for structured outputs "
            "('json', 'regex' or 'choice')."
        ),
    ),
    (
        {"truncate_prompt_tokens": 5000},
        "truncate_prompt_tokens",
        (
            "truncate_prompt_tokens=5000 cannot be greater than max_model_len = 4096. Please "
            "request a smaller truncation size. (parameter=truncate_prompt_tokens, value=5000)"
        ),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        None,
        "At most 0 image(s) may be provided in one prompt.",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_CHAT)
def test_bad_chat_requests(
    served: ServedModel, fields: dict[str, object], param: str | None, message: str
) -> None:
    error = refusal(parse_chat, {"messages": HELLO, **fields}, served)
    assert facts(error) == (400, "BadRequestError", param, message)


BAD_COMPLETIONS: list[tuple[dict[str, object], str | None, str]] = [
    (
        {"prompt": None},
        "prompt",
        "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
    ),
    ({"prompt": [[]]}, None, "The decoder prompt cannot be empty"),
    ({"prompt": [5, 259]}, None, "Token id 259 is out of vocabulary"),
    ({"prompt": [5, 2**40]}, None, f"Token id {2**40} is out of vocabulary"),
    (
        {"prompt_embeds": "AAAA"},
        "prompt_embeds",
        "You must set `--enable-prompt-embeds` to input `prompt_embeds`. (parameter=prompt_embeds)",
    ),
    (
        {"prompt": ["a"] * 1025},
        "prompt",
        (
            "prompt list length 1025 exceeds the maximum allowed count of 1024. To increase this "
            "limit, set the VLLM_MAX_COMPLETION_PROMPTS environment variable. (parameter=prompt)"
        ),
    ),
    (
        {"suffix": "b"},
        "suffix",
        "suffix is only supported for models with FIM completion rendering",
    ),
    (
        {"use_beam_search": True, "stream": True},
        None,
        "Streaming is not currently supported with beam search",
    ),
    (
        {"logprobs": -2},
        "logprobs",
        "`logprobs` must be a positive value or -1. (parameter=logprobs, value=-2)",
    ),
    (
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)",
    ),
    (
        {"logprob_token_ids": [1]},
        "logprob_token_ids",
        "when using `logprob_token_ids`, `logprobs` must be set. (parameter=logprob_token_ids)",
    ),
    (
        {"max_tokens": -1},
        "max_tokens",
        "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
    ),
    (
        {"prompt": "x" * 4097},
        "input_tokens",
        (
            "This model's maximum context length is 4096 tokens. However, your prompt contains at "
            "least 4097 input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt. (parameter=input_tokens, value=4097)"
        ),
    ),
    (
        {"prompt": [1] * 5000},
        "input_tokens",
        (
            "This model's maximum context length is 4096 tokens. However, your prompt contains "
            "5000 input tokens, which exceeds this limit even without any output tokens. Please "
            "reduce the length of the input prompt. (parameter=input_tokens, value=5000)"
        ),
    ),
    (
        {"prompt": "x" * 60_000},
        "input_text",
        (
            "This model's maximum context length is 4096 tokens. However, your prompt contains "
            "60000 characters (more than 53248 characters, which is the upper bound for 4096 input "
            "tokens). Please reduce the length of the input prompt. (parameter=input_text, "
            "value=60000)"
        ),
    ),
    (
        {"prompt": "x" * 4096},
        "max_tokens",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    ),
    (
        {"prompt": "\ud800"},
        None,
        "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_COMPLETIONS)
def test_bad_completion_requests(
    served: ServedModel, fields: dict[str, object], param: str | None, message: str
) -> None:
    error = refusal(parse_completion, {"prompt": "Hello", **fields}, served)
    assert facts(error) == (400, "BadRequestError", param, message)


def entry(kind: str, loc: str, message: str, value: str, context: object = None) -> str:
    shown = {"type": kind, "loc": loc, "msg": message, "input": value}
    return str(shown if context is None else {**shown, "ctx": context})


BAD_TYPES: list[tuple[dict[str, object], list[str]]] = [
    (
        {"n": "two"},
        [
            entry(
                "int_parsing",
                "body.n",
                "Input should be a valid integer, unable to parse string as an integer",
                "two",
            )
        ],
    ),
    (
        {"n": 1.5},
        [
            entry(
                "int_from_float",
                "body.n",
                "Input should be a valid integer, got a number with a fractional part",
                "1.5",
            )
        ],
    ),
    (
        {"n": []},
        [entry("int_type", "body.n", "Input should be a valid integer", "<list of 0 items>")],
    ),
    (
        {"temperature": "hot"},
        [
            entry(
                "float_parsing",
                "body.temperature",
                "Input should be a valid number, unable to parse string as a number",
                "hot",
            )
        ],
    ),
    (
        {"temperature": {}},
        [
            entry(
                "float_type",
                "body.temperature",
                "Input should be a valid number",
                "<dict of 0 items>",
            )
        ],
    ),
    (
        {"stream": "maybe"},
        [
            entry(
                "bool_parsing",
                "body.stream",
                "Input should be a valid boolean, unable to interpret input",
                "maybe",
            )
        ],
    ),
    (
        {"ignore_eos": None},
        [entry("bool_type", "body.ignore_eos", "Input should be a valid boolean", "None")],
    ),
    (
        {"seed": 2**63},
        [
            entry(
                "less_than_equal",
                "body.seed",
                f"Input should be less than or equal to {2**63 - 1}",
                str(2**63),
                {"le": 2**63 - 1},
            )
        ],
    ),
    (
        {"stream_interval": 0},
        [
            entry(
                "greater_than_equal",
                "body.stream_interval",
                "Input should be greater than or equal to 1",
                "0",
                {"ge": 1},
            )
        ],
    ),
    (
        {"truncation_side": "top"},
        [
            entry(
                "literal_error",
                "body.truncation_side",
                "Input should be 'left' or 'right'",
                "top",
                {"expected": "'left' or 'right'"},
            )
        ],
    ),
    (
        {"stop": 5},
        [
            entry("string_type", "body.stop", "Input should be a valid string", "5"),
            entry("list_type", "body.stop", "Input should be a valid list", "5"),
        ],
    ),
    (
        {"stop": list("abcde")},
        [
            entry(
                "string_type", "body.stop", "Input should be a valid string", "<list of 5 items>"
            ),
            entry(
                "too_long",
                "body.stop",
                "List should have at most 4 items after validation, not 5",
                "<list of 5 items>",
                {"field_type": "List", "max_length": 4, "actual_length": 5},
            ),
        ],
    ),
    (
        {"messages": "hi"},
        [entry("list_type", "body.messages", "Input should be a valid list", "hi")],
    ),
    (
        {"user": 5, "n": []},
        [
            entry("int_type", "body.n", "Input should be a valid integer", "<list of 0 items>"),
            entry("string_type", "body.user", "Input should be a valid string", "5"),
        ],
    ),
]


@pytest.mark.parametrize(("fields", "entries"), BAD_TYPES)
def test_schema_violations(
    served: ServedModel, fields: dict[str, object], entries: list[str]
) -> None:
    error = refusal(parse_chat, {"messages": HELLO, **fields}, served)
    label = "error" if len(entries) == 1 else "errors"
    message = "\n".join([f"{len(entries)} validation {label}:", *(f"  {e}" for e in entries)])
    param = entries[0].split("'loc': '")[1].split("'")[0]
    assert facts(error) == (400, "Bad Request", param, message)


def test_missing_messages(served: ServedModel) -> None:
    error = refusal(parse_chat, {"model": "mock"}, served)
    shown = entry("missing", "body.messages", "Field required", "<dict of 1 items>")
    assert error.message == f"1 validation error:\n  {shown}"


def test_malformed_json(served: ServedModel) -> None:
    error = refusal(parse_chat, b'{"messages": [', served)
    context = {"error": "Expecting value"}
    shown = entry("json_invalid", "body.14", "JSON decode error", "<dict of 0 items>", context)
    assert facts(error) == (400, "Bad Request", "body.14", f"1 validation error:\n  {shown}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "1 validation error:\n  " + entry("missing", "body", "Field required", "None")),
        (
            b"[1]",
            "1 validation error:\n  "
            + entry(
                "model_attributes_type",
                "body",
                "Input should be a valid dictionary or object to extract fields from",
                "<list of 1 items>",
            ),
        ),
        (b'"\xff"', "There was an error parsing the body"),
        (b"[" * 100_000, "There was an error parsing the body"),
    ],
)
def test_bodies_that_are_no_object(served: ServedModel, body: bytes, message: str) -> None:
    for parse in (parse_chat, parse_completion):
        error = refusal(parse, body, served)
        assert (error.status, error.kind, error.message) == (400, "Bad Request", message)


def test_prompt_of_mixed_types_names_every_alternative(served: ServedModel) -> None:
    error = refusal(parse_completion, {"prompt": ["a", 5]}, served)
    assert error.message.startswith("5 validation errors:\n")
    assert error.param == "body.prompt.0"


def test_at_most_ten_problems_are_listed(served: ServedModel) -> None:
    error = refusal(parse_chat, {"messages": [5] * 25}, served)
    assert error.message.count("'input': '5'") == 10
    assert error.message.startswith("200 validation errors:\n")
    assert error.message.endswith("...and 190 more errors")


def test_a_message_without_role_is_none_of_the_eight_kinds(served: ServedModel) -> None:
    error = refusal(parse_chat, {"messages": [{"content": "x"}]}, served)
    assert error.message.startswith("11 validation errors:\n")
    assert error.param == "body.messages.0.ChatCompletionDeveloperMessageParam.role"
    listed = [
        line.split("'loc': 'body.messages.0.")[1].split("'")[0]
        for line in error.message.splitlines()[1:-1]
    ]
    assert listed[-3:] == [
        "ChatCompletionFunctionMessageParam.role",
        "CustomChatCompletionMessageParam.role",
        "Message.author",
    ]


@pytest.mark.parametrize(
    ("messages", "text"),
    [(None, "'NoneType' object is not iterable"), (5, "'int' object is not iterable")],
)
def test_messages_that_are_no_sequence(served: ServedModel, messages: object, text: str) -> None:
    error = refusal(parse_chat, {"messages": messages}, served)
    assert facts(error) == (400, "BadRequestError", None, text)


def test_structured_outputs_that_are_no_object_break_the_server(served: ServedModel) -> None:
    for parse in (parse_chat, parse_completion):
        body = {"messages": HELLO, "prompt": "x", "structured_outputs": "x"}
        assert facts(refusal(parse, body, served)) == (
            500,
            "InternalServerError",
            None,
            "'str' object has no attribute 'get'",
        )


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"thinking_token_budget": 1.0}, "or -1 for unlimited. (parameter=thinking_token_budget"),
        ({"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}, "min_count must be"),
        ({"repetition_detection": {"max_pattern_size": -1}}, "must be >=0"),
        ({"structured_outputs": {}}, "but none are specified: {'json': None, 'regex': None"),
        ({"structured_outputs": {"json": "x", "grammar": "y"}}, "but multiple are specified"),
        ({"response_format": {"type": "bad"}}, "6 validation errors"),
    ],
)
def test_constraints_that_contradict_themselves(
    served: ServedModel, fields: dict[str, object], part: str
) -> None:
    assert part in refusal(parse_chat, {"messages": HELLO, **fields}, served).message


def test_unknown_model_is_404_whatever_else_is_wrong_later(served: ServedModel) -> None:
    for parse in (parse_chat, parse_completion):
        body = {"model": "gpt-9", "messages": HELLO, "prompt": "x", "temperature": 9}
        assert facts(refusal(parse, body, served)) == (
            404,
            "NotFoundError",
            "model",
            "The model `gpt-9` does not exist. Valid aliases: mock, alias.",
        )


def test_late_errors_of_streams_become_frames(served: ServedModel) -> None:
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 21, "stream": True}
    error = refusal(parse_chat, body, served)
    assert (error.late, error.stream_kind) == (True, "chat")
    frames = error_frames(error, error.stream_kind).decode()
    assert frames == f"data: {error.body().decode()}\n\ndata: [DONE]\n\n"
    text = refusal(parse_completion, {"prompt": [999], "stream": True}, served)
    assert error_frames(text, text.stream_kind).startswith(b'data: {"error": {"message": "Token')
    assert refusal(parse_chat, {**body, "stream": False}, served).stream_kind == ""
    assert refusal(parse_chat, {**body, "top_logprobs": 1, "n": 0}, served).stream_kind == ""


def test_data_parallel_rank_is_bounded(served: ServedModel) -> None:
    two = replace(served, data_parallel_size=2)
    body = json.dumps({"prompt": "x"}).encode()
    assert parse_completion(body, {"x-data-parallel-rank": "1"}, two).data_parallel_rank == 1
    assert parse_completion(body, {"x-data-parallel-rank": "one"}, two).data_parallel_rank == -1
    with pytest.raises(ApiError, match=r"data_parallel_rank 2 is out of range \[0, 2\)\."):
        parse_completion(body, {"x-data-parallel-rank": "2"}, two)


def test_what_the_mock_cannot_do_is_501(served: ServedModel) -> None:
    capable = replace(served, tool_call_parser="hermes", enable_auto_tool_choice=True)
    beam = {"messages": HELLO, "use_beam_search": True}
    assert refusal(parse_chat, beam, served).kind == "NotImplementedError"
    assert parse_chat(json.dumps({"messages": HELLO, "tools": [TOOL]}).encode(), {}, capable)


def test_paths_are_hidden() -> None:
    error = ApiError(400, "cannot open /home/user/models/x.json or /etc/vllm/conf.yaml")
    assert error.message == "cannot open <path> or <path>"


def test_fixed_answers() -> None:
    assert facts(errors.queue_full())[:2] == (503, "Service Unavailable")
    assert facts(errors.paused())[:2] == (503, "ServiceUnavailableError")
    assert facts(errors.engine_dead())[:2] == (500, "InternalServerError")
    assert facts(errors.internal_error())[3] == "Internal server error"
    assert "Unsupported Media Type" in errors.wrong_content_type().message
    assert errors.unauthorized_body() == b'{"error":"Unauthorized"}'
