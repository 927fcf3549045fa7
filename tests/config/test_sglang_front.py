"""What an SGLang worker's flags tell its front end."""

import json

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedWorker, resolve_single_sglang
from frontier_mock.config.sglang_flags import parse_sglang_serve
from frontier_mock.config.sglang_front import sglang_front
from frontier_mock.wire.sglang.served import SglangFront

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def resolve(*argv: str) -> ResolvedWorker:
    args = parse_sglang_serve([MODEL, *argv])
    sim = args.simulator
    cluster = resolve_single_sglang(args.sglang, sim.hardware, sim.engine, sim.seed)
    return cluster.workers[0]


def front(*argv: str) -> SglangFront:
    return sglang_front(resolve(*argv), {})


def test_server_args_are_all_fields_with_their_types() -> None:
    shown = front("--page-size", "16", "--enable-metrics", "--stream-interval", "4")
    args = shown.server_args
    assert len(args) > 400
    assert args["model_path"] == args["served_model_name"] == args["tokenizer_path"] == MODEL
    assert (args["page_size"], args["stream_interval"], args["enable_metrics"]) == (16, 4, True)
    assert args["disaggregation_mode"] == "null"
    assert args["disaggregation_bootstrap_port"] == 8998
    assert args["schedule_conservativeness"] == 1.0
    assert args["enable_lora"] is None
    assert args["launch_command"] == (
        f"sglang serve --page-size 16 --enable-metrics --stream-interval 4 --model-path {MODEL}"
    )
    json.dumps(dict(args))


def test_lengths_are_sglangs() -> None:
    shown = front("--context-length", "2048")
    assert (shown.context_len, shown.max_req_len, shown.max_req_input_len) == (2048, 2047, 2042)
    small = front("--max-total-tokens", "1000")
    assert small.context_len == 131072
    assert small.max_req_len < 1000


def test_attention_ranks_are_told_apart_from_replicas() -> None:
    args = parse_sglang_serve(["Qwen/Qwen3-30B-A3B", "--tp", "4", "--attn-dp-size", "4"])
    cluster = resolve_single_sglang(args.sglang, "h800", "sglang-0.5.23", 0)
    shown = sglang_front(cluster.workers[0], {})
    assert shown.num_dp_ranks == 4
    assert shown.server_args["dp_size"] == 1
    assert shown.server_args["attn_dp_size"] == 4
    assert shown.server_args["enable_dp_attention"] is True


def test_json_flags_must_be_objects() -> None:
    shown = front("--preferred-sampling-params", '{"temperature": 0.5}')
    assert shown.preferred_sampling_params == {"temperature": 0.5}
    with pytest.raises(ConfigError, match=r"--extra-metric-labels: .* is not a JSON object"):
        front("--extra-metric-labels", "[1]")


def test_keys_stay_out_of_what_is_given() -> None:
    worker = resolve("--api-key", "secret", "--admin-api-key", "secret too")
    assert worker.sglang is not None
    assert not any("secret" in str(value) for _, value in worker.sglang.given)
    shown = sglang_front(worker, {})
    assert (shown.api_key, shown.admin_api_key) == ("secret", "secret too")


def test_another_engine_does_not_take_these_flags() -> None:
    with pytest.raises(ConfigError, match=r"--sim-engine: 'vllm-0.33' does not take"):
        parse_sglang_serve([MODEL, "--sim-engine", "vllm-0.33"])


def test_variables_say_how_health_finds_out() -> None:
    assert (front().health_generates, front().health_timeout_s) == (True, 20)
    variables = {
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "False",
        "SGLANG_HEALTH_CHECK_TIMEOUT": "3",
    }
    shown = sglang_front(resolve(), variables)
    assert (shown.health_generates, shown.health_timeout_s) == (False, 3)
    for name in variables:
        with pytest.raises(ConfigError, match=f"environment variable {name}: 'soon'; allowed: "):
            sglang_front(resolve(), {name: "soon"})
