"""Regexes and grammars in requests of both engines: what is said, how it ends, what is refused."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Generation, SequencePlan
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.chat import parse_chat as parse_sglang_chat
from frontier_mock.wire.sglang.completions import parse_completion as parse_sglang_completion
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.generate import parse_generate
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.served import SglangFront


def complete(served: ServedModel, **more: Any) -> SequencePlan:
    body = {"prompt": "hello", "max_tokens": 400, **more}
    (plan,) = parse_completion(json.dumps(body).encode(), {}, served).sequences
    return plan


def chat(served: ServedModel, **more: Any) -> Generation:
    body = {"messages": [{"role": "user", "content": "hello"}], **more}
    return parse_chat(json.dumps(body).encode(), {}, served)


def said(plan: SequencePlan) -> str:
    return plan.text.piece(0, plan.text.num_tokens, final=True)


def regex(pattern: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": pattern}}


@pytest.fixture
def sglang(served: ServedModel) -> ServedModel:
    return replace(served, sglang=SglangFront(4096, 4095, 4090, 65536))


def test_a_regex_is_matched_and_ends(served: ServedModel) -> None:
    plan = complete(served, **regex(r"\d{3}-\d{4}"))
    assert re.fullmatch(r"\d{3}-\d{4}", said(plan))
    assert plan.submit.finish_reason == "stop"
    assert plan.submit.output_tokens == 9
    assert plan.text.ids(8, 9) == [served.tokenizer.eos_token_id]


@pytest.mark.parametrize("mean", [20, 200])
def test_an_open_sentence_is_as_long_as_the_answer_would_be(
    served: ServedModel, mean: float
) -> None:
    served = replace(served, eos=EosModel(mean, 0.0))
    for wanted in (regex("[a-z ]+"), {"structured_outputs": {"json": {"type": "string"}}}):
        plan = complete(served, **wanted)
        assert abs(plan.submit.output_tokens - mean) <= 0.1 * mean
        assert plan.submit.finish_reason == "stop"


def test_choices_and_seeds_differ_and_repeat(served: ServedModel) -> None:
    body = json.dumps({"prompt": "hello", "max_tokens": 40, "n": 4, **regex("[a-z]{30}")}).encode()
    plans = parse_completion(body, {}, served).sequences
    assert len({said(plan) for plan in plans}) == 4
    assert list(map(said, plans)) == list(map(said, parse_completion(body, {}, served).sequences))
    assert said(complete(served, seed=7, **regex("[a-z]{30}"))) != said(plans[0])


def test_ends_may_be_ignored_and_come_all_the_same(served: ServedModel) -> None:
    plan = complete(served, ignore_eos=True, min_tokens=30, **regex("[a-z]*"))
    assert plan.submit.output_tokens == 400
    assert plan.submit.finish_reason == "stop"


def test_the_cap_cuts_a_sentence_that_needs_more(served: ServedModel) -> None:
    plan = complete(served, max_tokens=10, **regex("[a-z]{12}"))
    assert re.fullmatch("[a-z]{10}", said(plan))
    assert plan.submit.finish_reason == "length"


@pytest.mark.parametrize("pattern", ["é{4}[à-ü]{3}", "\\u{1F600}{3}x"])
def test_every_prefix_of_a_stream_is_a_prefix_of_the_text(
    served: ServedModel, pattern: str
) -> None:
    plan = complete(served, **regex(pattern))
    whole, last = said(plan), plan.text.num_tokens
    pieces = [plan.text.piece(i, i + 1) for i in range(last)]
    assert "".join(pieces) == whole
    assert sum(1 for piece in pieces if piece) == len(whole)
    ids = plan.text.ids(0, last - 1)
    assert served.tokenizer.decode(ids) == whole


@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_ends_it_first(served: ServedModel, include: bool) -> None:
    pattern = r"[a-z]{3}\n[a-z]{3}"
    wishes = {"stop": ["\n"], "include_stop_str_in_output": include}
    plan = complete(served, **wishes, **regex(pattern))
    assert re.fullmatch(r"[a-z]{3}\n" if include else "[a-z]{3}", said(plan))
    assert (plan.submit.output_tokens, plan.stop_reason) == (4, "\n")
    pieces = [plan.text.piece(i, i + 1) for i in range(plan.text.num_tokens)]
    assert "".join(pieces) == said(plan)


def test_a_stop_token_ends_it_first(served: ServedModel) -> None:
    plan = complete(served, stop_token_ids=[ord("-")], **regex(r"\d{3}-\d{4}"))
    assert re.fullmatch(r"\d{3}", said(plan))
    assert (plan.submit.output_tokens, plan.stop_reason) == (4, ord("-"))


@pytest.mark.parametrize("stream", [True, False])
def test_vllm_refuses_a_bad_regex_late(served: ServedModel, stream: bool) -> None:
    with pytest.raises(ApiError) as caught:
        chat(served, stream=stream, **regex("[.*"))
    assert caught.value.status == 400
    assert caught.value.late
    assert caught.value.stream_kind == ("chat" if stream else "")
    error = json.loads(caught.value.body())["error"]
    assert error["type"] == "BadRequestError"
    assert error["message"].startswith('Grammar error: at 1(8): invalid regex "[.*" (in regex): ')


def test_vllm_refuses_nul(served: ServedModel) -> None:
    with pytest.raises(ApiError, match="must not contain a NUL character"):
        chat(served, **regex("a\0"))


def generate(sglang: ServedModel, **params: Any) -> SequencePlan:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 64, **params}}
    (sequence,) = parse_generate(json.dumps(body).encode(), {}, sglang).sequences
    return sequence.plan


def test_sglang_keeps_to_a_regex(sglang: ServedModel) -> None:
    plan = generate(sglang, regex="(yes|no), [a-z]+!")
    assert re.fullmatch("(yes|no), [a-z]+!", said(plan))
    assert plan.submit.finish_reason == "stop"
    assert abs(plan.submit.output_tokens - 64) <= 6
    body = {"messages": [{"role": "user", "content": "hello"}], "regex": r"\d{5}"}
    (sequence,) = parse_sglang_chat(json.dumps(body).encode(), {}, sglang).sequences
    assert re.fullmatch(r"\d{5}", said(sequence.plan))


def test_sglang_refuses_a_bad_regex(sglang: ServedModel) -> None:
    words = "Failed to compile regex grammar: [00:00:00] /project/cpp/regex_converter.cc:83: "
    message = f"{words}Regex parsing error at position 5: Unclosed '['\n"
    with pytest.raises(LateError) as caught:
        generate(sglang, regex="[a-z")
    assert caught.value.message == message
    body = {"messages": [{"role": "user", "content": "hello"}], "regex": "[a-z"}
    with pytest.raises(SglangError) as refused:
        parse_sglang_chat(json.dumps(body).encode(), {}, sglang)
    assert refused.value.status == 400
    assert json.loads(refused.value.body())["message"] == message
    for parse, asked in ((parse_sglang_chat, body), (parse_sglang_completion, {"prompt": "x"})):
        streamed = json.dumps({**asked, "regex": "[a-z", "stream": True}).encode()
        with pytest.raises(LateError) as late:
            parse(streamed, {}, sglang)
        assert late.value.frames is not None
        first, done, _ = late.value.frames(0).decode().split("\n\n")
        error = json.loads(first.removeprefix("data: "))["error"]
        assert (error["message"], error["type"], error["code"]) == (message, "BAD_REQUEST", 400)
        assert done == "data: [DONE]"


EBNF = 'root ::= "SELECT " column (", " column)* " FROM t"\ncolumn ::= [a-z]+'
TAG = {
    "begin": "<call>",
    "content": {"type": "json_schema", "json_schema": {"type": "object", "required": ["city"]}},
    "end": "</call>",
}
TAGS = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [TAG], "at_least_one": True}


def test_vllm_keeps_to_grammars_and_tags(served: ServedModel) -> None:
    plan = complete(served, structured_outputs={"grammar": EBNF})
    assert re.fullmatch(r"SELECT [a-z]+(, [a-z]+)* FROM t", said(plan))
    assert abs(plan.submit.output_tokens - 400) < 40
    tags = {"type": "structural_tag", "format": TAGS}
    asked = {"structured_outputs": {"structural_tag": json.dumps(tags)}}, {"response_format": tags}
    for wanted in asked:
        (plan,) = chat(served, max_completion_tokens=300, **wanted).sequences
        found = re.match(r"<call>(.*?)</call>", said(plan))
        assert found is not None
        assert "city" in json.loads(found.group(1))
        assert plan.submit.finish_reason == "stop"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"grammar": "root ::= select_statementinvalidsyntax"},
            "Invalid grammar specification: Failed to convert the grammar from GBNF to Lark: Rule",
        ),
        (
            {"grammar": "invalid grammar"},
            "Invalid grammar specification: Failed to convert the grammar from GBNF to Lark: Expe",
        ),
        ({"grammar": 'start: "a" b'}, "Grammar error: "),
        ({"grammar": " "}, "structured_outputs.grammar cannot be an empty string"),
        ({"json": " "}, "structured_outputs.json cannot be an empty string"),
        ({"json": "{"}, "Invalid JSON grammar specification."),
        ({"json": {"type": "strin"}}, "Grammar error: Invalid type: strin"),
        (
            {"json": {"properties": {"foo": "bar"}}},
            "Grammar error: schema must be an object or boolean",
        ),
        ({"json": {"$ref": "#/$defs/X"}}, "Grammar error: Pointer '/$defs/X' does not exist"),
        ({"json_object": False}, "structured_outputs.json_object must be True if set; omit "),
        ({"choice": []}, "Choice '[]' cannot be an empty list"),
        ({"structural_tag": "{}"}, "Invalid grammar specification: 'triggers'"),
        ({"structural_tag": "{"}, "Invalid grammar specification: Expecting property name"),
        ({"structural_tag": " "}, "structured_outputs.structural_tag cannot be an empty string"),
        ({"json": json.loads("[" * 70 + "]" * 70)}, "The JSON schema is nested too deeply: "),
    ],
)
def test_vllm_refuses(served: ServedModel, wanted: Any, message: str) -> None:
    if isinstance(wanted.get("json"), list):
        wanted = {"json": {"enum": wanted["json"]}}
    with pytest.raises(ApiError) as caught:
        complete(served, structured_outputs=wanted)
    assert (caught.value.status, caught.value.late) == (400, True)
    assert caught.value.message.startswith(message)


def test_vllm_keeps_to_lark(served: ServedModel) -> None:
    lark = 'start: WORD ("," WORD)* "."\nWORD: /[a-z]+/'
    assert re.fullmatch(
        r"[a-z]+(,[a-z]+)*\.", said(complete(served, structured_outputs={"grammar": lark}))
    )


def test_removed_guided_fields_are_ignored(served: ServedModel) -> None:
    # vLLM 0.33 takes them for unknown fields.
    assert said(complete(served, guided_regex="[0-9]+")) == said(complete(served))


def test_sglang_keeps_to_grammars_and_tags(sglang: ServedModel) -> None:
    assert re.fullmatch(r"SELECT [a-z]+(, [a-z]+)* FROM t", said(generate(sglang, ebnf=EBNF)))
    tags = {"type": "structural_tag", "format": TAGS}
    plan = generate(sglang, structural_tag=json.dumps(tags), max_new_tokens=200)
    assert said(plan).startswith("<call>{")
    older = {"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f"]}
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "response_format": {"type": "structural_tag", **older},
        "max_tokens": 200,
    }
    (sequence,) = parse_sglang_chat(json.dumps(body).encode(), {}, sglang).sequences
    assert re.search("<f>.*</f>", said(sequence.plan))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"ebnf": 'roo ::= "a"'},
            "ebnf grammar: [00:00:00] /project/cpp/grammar_parser.cc:820: EBNF parser error",
        ),
        (
            {"json_schema": '{"type": "strin"}'},
            "json grammar: [00:00:00] /project/cpp/json_schema_converter.cc:4944: Unsupported type",
        ),
        (
            {"structural_tag": "{}"},
            "structural_tag grammar: Invalid structural tag error: Structural tag must have a for",
        ),
    ],
)
def test_sglang_refuses(sglang: ServedModel, wanted: dict[str, str], message: str) -> None:
    with pytest.raises(LateError) as caught:
        generate(sglang, **wanted)
    assert caught.value.message.startswith(f"Failed to compile {message}")


def test_sglang_without_a_grammar_backend_refuses_them_all(sglang: ServedModel) -> None:
    assert sglang.sglang is not None
    front = replace(sglang.sglang, server_args={"grammar_backend": "none"})
    with pytest.raises(LateError, match="launched with --grammar-backend none"):
        generate(replace(sglang, sglang=front), regex="a")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"regex": "[a-z"},
            "Failed to transform regex into a grammar: [00:00:00] <path>:83: Regex",
        ),
        ({"grammar": "root ::= x"}, "Invalid grammar specification."),
        ({"grammar": 'start: "a" b'}, "Invalid grammar specification."),
        ({"structural_tag": "{}"}, "Invalid structural tag specification."),
        ({"json": {"type": "strin"}}, "Failed to transform json schema into a grammar: [00:00:00]"),
    ],
)
def test_vllm_with_xgrammar_alone_refuses_in_its_words(
    served: ServedModel, wanted: Any, message: str
) -> None:
    alone = replace(served, structured_backend="xgrammar")
    with pytest.raises(ApiError) as caught:
        complete(alone, structured_outputs=wanted)
    assert caught.value.message.startswith(message)


def test_vllm_with_guidance_alone(served: ServedModel) -> None:
    alone = replace(served, structured_backend="guidance")
    assert said(complete(alone, structured_outputs={"regex": "(?i)abc"})) == "abc"
    tags = json.dumps({"type": "structural_tag", "format": TAGS})
    with pytest.raises(ApiError, match="Invalid grammar specification: 'triggers'"):
        complete(alone, structured_outputs={"structural_tag": tags})
