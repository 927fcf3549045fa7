"""/generate: what its body means, what is refused in which envelope, and what comes back."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.generate import parse_generate
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.native import GenerateStream, render_generate
from frontier_mock.wire.sglang.request import Ended, Live, SglangRequest
from frontier_mock.wire.sglang.sampling import TOP_K_ALL

LIVE = Live(0, 0, "default", 5.0)


def parse(served: ServedModel, **body: Any) -> SglangRequest:
    return parse_generate(json.dumps(body).encode(), {}, served)


def ends(request: SglangRequest, **more: Any) -> list[Ended]:
    return [
        Ended(
            sequence.plan.index,
            sequence.plan.submit.output_tokens,
            sequence.plan.submit.finish_reason,
            arrival_ns=1_000_000_000,
            first_token_ns=1_100_000_000,
            finish_ns=1_500_000_000,
            now_s=7.0,
            **more,
        )
        for sequence in request.sequences
    ]


def whole(request: SglangRequest, **more: Any) -> Any:
    return json.loads(render_generate(request, ends(request, **more), 9))


def events(data: bytes) -> list[Any]:
    frames = data.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def streamed(request: SglangRequest, step: int = 1) -> list[Any]:
    stream = GenerateStream(request, 9)
    data = b""
    endings = ends(request)
    for sequence, ended in zip(request.sequences, endings, strict=True):
        sent = 0
        while sent + step < ended.output_tokens:
            data += stream.delta(sequence.plan.index, sent, sent + step, LIVE)
            sent += step
        data += stream.finish(sequence.plan.index, sent, ended)
    return events(data + stream.tail(endings))


def test_one_prompt_is_an_object_with_every_key_in_order(sglang: ServedModel) -> None:
    body = whole(parse(sglang, text="hello", rid="r1", sampling_params={"max_new_tokens": 3}))
    assert list(body) == ["text", "output_ids", "meta_info"]
    assert len(body["output_ids"]) == 3
    assert body["text"] == bytes(body["output_ids"]).decode()
    assert list(body["meta_info"]) == [
        *("id", "finish_reason", "prompt_tokens", "weight_version", "num_retractions"),
        *("reasoning_tokens", "completion_tokens", "cached_tokens", "cached_tokens_details"),
        *("dp_rank", "e2e_latency", "response_sent_to_client_ts"),
    ]
    assert body["meta_info"]["id"] == "r1"
    assert body["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    assert body["meta_info"]["prompt_tokens"] == 5
    assert body["meta_info"]["e2e_latency"] == 0.5


def test_defaults_are_128_tokens_and_null_is_all_there_is(sglang: ServedModel) -> None:
    (sequence,) = parse(sglang, text="hello").sequences
    assert sequence.cap == 128
    (sequence,) = parse(sglang, text="hello", sampling_params={"max_new_tokens": None}).sequences
    assert sequence.cap == 4095 - 5 - 1
    (sequence,) = parse(sglang, text="hello", sampling_params={"max_new_tokens": 9999}).sequences
    assert sequence.cap == 4089
    assert sequence.plan.submit.max_tokens == 4089


def test_a_cap_of_zero_shows_nothing(sglang: ServedModel) -> None:
    body = whole(parse(sglang, text="hello", sampling_params={"max_new_tokens": 0}))
    assert (body["text"], body["output_ids"]) == ("", [])
    assert body["meta_info"]["completion_tokens"] == 0
    assert body["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_batches_and_parallel_samples_are_arrays(sglang: ServedModel) -> None:
    batch = parse(sglang, text=["a", "b"], rid="r")
    assert [sequence.rid for sequence in batch.sequences] == ["r_0", "r_1"]
    assert [item["meta_info"]["id"] for item in whole(batch)] == ["r_0", "r_1"]
    samples = parse(sglang, input_ids=[1, 2], rid="mine", sampling_params={"n": 3})
    assert len({sequence.rid for sequence in samples.sequences} - {"mine"}) == 3
    assert samples.warms
    assert len(whole(samples)) == 3
    both = parse(sglang, text=["a", "b"], sampling_params={"n": 2, "max_new_tokens": 2})
    assert [s.plan.prompt_index for s in both.sequences] == [0, 0, 1, 1]
    assert [item["index"] for item in streamed(both) if item["meta_info"]["finish_reason"]] == [
        *(0, 1, 2, 3)
    ]


def test_lists_apply_to_their_prompt(sglang: ServedModel) -> None:
    request = parse(
        sglang,
        text=["a", "b"],
        rid=["x", "y"],
        sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 2}],
        return_logprob=[True, False],
        bootstrap_host="10.0.0.1",
        bootstrap_port=[8998, None],
        bootstrap_room=2**63 - 5,
    )
    first, second = request.sequences
    assert (first.cap, second.cap) == (1, 2)
    assert first.logprobs is not None
    assert second.logprobs is None
    assert (first.bootstrap, second.bootstrap) == (
        ("10.0.0.1", 8998, 2**63 - 5, None),
        ("10.0.0.1", None, 2**63 - 4, None),
    )


def test_a_stream_repeats_everything_so_far(sglang: ServedModel) -> None:
    request = parse(sglang, text="hello", stream=True, sampling_params={"max_new_tokens": 5})
    chunks = streamed(request)
    assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3, 4, 5]
    assert [chunk["meta_info"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5]
    for before, after in pairwise(chunks):
        assert after["text"].startswith(before["text"])
    last = whole(request)
    assert {**chunks[-1], "meta_info": None} == {**last, "meta_info": None}
    assert chunks[-1]["meta_info"] == last["meta_info"]
    assert "response_sent_to_client_ts" in chunks[0]["meta_info"]
    assert "response_sent_to_client_ts" not in chunks[1]["meta_info"]


def test_incremental_streams_say_what_is_new(sglang: ServedModel) -> None:
    assert sglang.sglang is not None
    front = replace(sglang.sglang, incremental_streaming_output=True)
    served = replace(sglang, sglang=front)
    request = parse(
        served,
        text="hello",
        stream=True,
        return_logprob=True,
        sampling_params={"max_new_tokens": 5},
    )
    chunks = streamed(request, step=2)
    joined = [token for chunk in chunks for token in chunk["output_ids"]]
    body = whole(request)
    assert joined == body["output_ids"]
    assert "".join(chunk["text"] for chunk in chunks) == body["text"]
    triples = [t for chunk in chunks for t in chunk["meta_info"]["output_token_logprobs"]]
    assert triples == body["meta_info"]["output_token_logprobs"]
    assert chunks[-1]["meta_info"]["output_token_logprobs_length"] == 5


def test_logprobs_are_triples_and_agree_between_input_and_output(sglang: ServedModel) -> None:
    def ask(ids: list[int], tokens: int) -> Any:
        return whole(
            parse(
                sglang,
                input_ids=ids,
                return_logprob=True,
                logprob_start_len=0,
                top_logprobs_num=2,
                token_ids_logprob=[65, 66],
                return_text_in_logprobs=True,
                sampling_params={"max_new_tokens": tokens},
            )
        )

    meta = ask([72, 105], 4)["meta_info"]
    assert meta["input_token_logprobs"][0] == [None, 72, "H"]
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["input_token_logprobs"]) == 2
    assert meta["output_token_logprobs_length"] == len(meta["output_token_logprobs"]) == 4
    assert all(len(row) == 2 for row in meta["output_top_logprobs"])
    assert [row[1] for row in meta["output_token_ids_logprobs"][0]] == [65, 66]
    # What was output is input of a prompt that repeats it, with the same figures.
    grown = [72, 105, *(row[1] for row in meta["output_token_logprobs"])]
    again = ask(grown, 1)["meta_info"]["input_token_logprobs"]
    assert again[2:] == meta["output_token_logprobs"]


def test_logprobs_without_text_and_from_the_middle(sglang: ServedModel) -> None:
    request = parse(
        sglang, text="hello", return_logprob=True, logprob_start_len=3, sampling_params={}
    )
    meta = whole(request)["meta_info"]
    assert [row[0] is None for row in meta["input_token_logprobs"]] == [True, False]
    assert all(row[2] is None for row in meta["output_token_logprobs"])
    assert "output_top_logprobs" not in meta


def test_stop_tokens_are_kept_in_ids_and_trimmed_from_text(sglang: ServedModel) -> None:
    space = ord(" ")
    request = parse(sglang, text="hello", sampling_params={"stop_token_ids": [space]})
    body = whole(request)
    assert body["output_ids"][-1] == space
    assert " " not in body["text"]
    assert body["meta_info"]["finish_reason"] == {"type": "stop", "matched": space}
    kept = whole(
        parse(
            sglang, text="hello", sampling_params={"stop_token_ids": [space], "no_stop_trim": True}
        )
    )
    assert kept["text"] == body["text"] + " "


def test_stop_strings_cut_the_text_and_are_reported(sglang: ServedModel) -> None:
    plain = whole(parse(sglang, text="hello", sampling_params={"max_new_tokens": 60}))["text"]
    stop = plain[20:24]
    cut = whole(parse(sglang, text="hello", sampling_params={"max_new_tokens": 60, "stop": stop}))
    assert cut["text"] == plain[: plain.index(stop)]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    stream = streamed(
        parse(
            sglang, text="hello", stream=True, sampling_params={"max_new_tokens": 60, "stop": stop}
        )
    )
    assert stream[-1]["text"] == cut["text"]
    assert all(cut["text"].startswith(chunk["text"]) for chunk in stream)
    ignored = parse(
        sglang, text="hello", sampling_params={"stop_token_ids": [32], "ignore_eos": True}
    )
    assert whole(ignored)["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1}, "temperature must be a non-negative finite number, got -1."),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0."),
        ({"min_p": 1.5}, "min_p must be in [0, 1], got 1.5."),
        ({"top_k": 0}, "top_k must be -1 (disable) or at least 1, got 0."),
        ({"frequency_penalty": 3}, "frequency_penalty must be in [-2, 2], got 3."),
        (
            {"repetition_penalty": 2.5},
            "repetition_penalty must be in (0, 2] (1.0 = no penalty), got 2.5.",
        ),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "min_new_tokens must be in [0, max_new_tokens(4)], got 5.",
        ),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1."),
        ({"logit_bias": {"999": 1.0}}, "logit_bias must has keys in [0, 258], got 999."),
        (
            {"regex": "a", "ebnf": "b"},
            "Only one of json_schema, regex, ebnf, or structural_tag can be set.",
        ),
        ({"stop": ["x"] * 33}, "at most 32 stop strings are allowed, got 33"),
    ],
)
def test_bad_values_are_late_errors(
    sglang: ServedModel, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(LateError) as raised:
        parse(sglang, text="x", stream=True, sampling_params=params)
    assert raised.value.message == message
    assert raised.value.stream


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Either text, input_ids or input_embeds should be provided."),
        ({"input_ids": []}, "input_ids cannot be empty."),
        ({"text": []}, "text cannot be empty."),
        (
            {"text": ["a", "b"], "sampling_params": {"n": 10**19}},
            "n must be at most 8192, got 10000000000000000000.",
        ),
        (
            {"text": "x" * 5000},
            "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        ),
        (
            {"text": "x" * 4092},
            (
                "Input length (4092 tokens) exceeds the maximum allowed length (4090 tokens). "
                "Use a shorter input or enable --allow-auto-truncate."
            ),
        ),
        (
            {"text": ["a", "b"], "rid": ["z", "z"]},
            "Duplicate request IDs detected within the request: ['z']",
        ),
        (
            {"text": ["a", "b"], "rid": ["z"]},
            "The specified rids length mismatch with the batch_size for batch processing.",
        ),
        ({"text": "x", "routed_dp_rank": 4}, "routed_dp_rank=4 out of range [0, 1)"),
        (
            {"text": "x", "return_logprob": True, "token_ids_logprob": [4096]},
            "token_ids_logprob contains out-of-vocabulary token id 4096; valid range is [0, 259).",
        ),
    ],
)
def test_bad_requests_are_late_errors(
    sglang: ServedModel, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(LateError) as raised:
        parse(sglang, **body)
    assert raised.value.message == message
    assert not raised.value.stream


def test_the_gate_speaks_before_anything_else(sglang: ServedModel) -> None:
    with pytest.raises(SglangError) as raised:
        parse(sglang, sampling_params={"nonsense": 1})
    payload = raised.value.payload
    assert isinstance(payload, dict)
    assert str(payload["error"]).startswith(
        "unknown field `nonsense`, expected one of `max_new_tokens`, `stop`,"
    )
    with pytest.raises(SglangError) as raised:
        parse(sglang, text="x", sampling_params={"temperature": "hot"})
    assert raised.value.payload == {"error": 'invalid type: string "hot", expected f64'}


def test_wrong_types_get_the_validation_envelope(sglang: ServedModel) -> None:
    with pytest.raises(SglangError) as raised:
        parse(sglang, text=5)
    payload = raised.value.payload
    assert isinstance(payload, dict)
    assert (payload["object"], payload["type"], payload["code"]) == ("error", "Bad Request", 400)
    assert list(payload) == ["object", "message", "type", "param", "code"]


def test_a_header_pins_the_rank_and_must_be_a_number(sglang: ServedModel) -> None:
    body = b'{"text":"x","routed_dp_rank":0}'
    with pytest.raises(SglangError) as raised:
        parse_generate(body, {"x-data-parallel-rank": "two"}, sglang)
    assert raised.value.payload == {
        "object": "error",
        "message": "Invalid X-Data-Parallel-Rank header: must be an integer, got 'two'",
        "type": "400",
        "param": None,
        "code": 400,
    }


def test_an_abort_in_the_queue_says_little(sglang: ServedModel) -> None:
    request = parse(sglang, text="hello", return_logprob=True)
    ended = Ended(0, 0, "abort", queued=True, arrival_ns=0, finish_ns=2_000_000_000)
    meta = json.loads(render_generate(request, [ended], 9))["meta_info"]
    assert meta == {
        "id": request.sequences[0].rid,
        "finish_reason": {"type": "abort", "message": "Abort in waiting queue"},
        "weight_version": "default",
        "e2e_latency": 2.0,
        "input_token_logprobs": [],
        "output_token_logprobs": [],
        "output_token_logprobs_length": 0,
        "completion_tokens": 0,
    }
    ended = Ended(0, 7, "abort", arrival_ns=0, finish_ns=2_000_000_000)
    body = json.loads(render_generate(request, [ended], 9))
    assert len(body["output_ids"]) == 7 == body["meta_info"]["output_token_logprobs_length"]
    assert body["meta_info"]["finish_reason"] == {
        "type": "abort",
        "message": "Aborted",
        "status_code": None,
        "err_type": None,
    }


def test_greedy_needs_no_top_k(sglang: ServedModel) -> None:
    parse(sglang, text="x", sampling_params={"temperature": 0.0, "top_k": TOP_K_ALL})
    parse(sglang, text="x", sampling_params={"temperature": 0.0, "top_k": 0})


def test_what_came_from_the_host_is_told_apart(sglang: ServedModel) -> None:
    request = parse(sglang, text="Hello", sampling_params={"max_new_tokens": 2})
    meta = whole(request, cached_tokens=4, host_tokens=3)["meta_info"]
    assert (meta["cached_tokens"], meta["cached_tokens_details"]) == (4, {"device": 1, "host": 3})
