"""vLLM's defaults and refusals, and profiles found by name."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import (
    ResolvedCluster,
    ResolvedWorker,
    resolve_scenario,
    resolve_single,
    resolve_worker,
)
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.config.workloads import TraceSearch

LLAMA8 = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA70 = "meta-llama/Llama-3.1-70B-Instruct"


def worker(*argv: str, hardware: str = "h800", engine: str = "vllm-0.33") -> ResolvedWorker:
    return resolve_worker(parse_serve(argv, {}).vllm, hardware, engine, "w0", 8000)


def cluster(workers: str) -> ResolvedCluster:
    text = f"name: x\ncluster: {{workers: {workers}}}"
    return resolve_scenario(parse_scenario(text, "s.yaml", TraceSearch((Path(),))))


def test_defaults_of_an_80_gb_gpu() -> None:
    spec = worker(LLAMA8).spec
    scheduler = spec.scheduler
    assert (scheduler.max_num_batched_tokens, scheduler.max_num_seqs) == (8192, 1024)
    assert (scheduler.max_model_len, scheduler.block_size) == (131072, 16)
    assert scheduler.async_scheduling
    assert scheduler.enable_prefix_caching
    assert scheduler.enable_chunked_prefill
    assert spec.step.cudagraph_sizes[-1] == 512
    assert spec.step.precision.weights == "bf16"
    assert spec.served_model_name == LLAMA8


def test_older_presets_bring_their_own_defaults() -> None:
    old = worker(LLAMA8, engine="vllm-0.11.2")
    assert old.spec.step.engine.version == "0.11.0"
    assert not old.spec.scheduler.async_scheduling
    assert old.memory.num_blocks != worker(LLAMA8).memory.num_blocks


def test_flags_win_over_defaults() -> None:
    made = worker(
        LLAMA70,
        *("-tp", "4", "-q", "fp8", "--kv-cache-dtype", "fp8", "--max-model-len", "32K"),
        *("--max-num-seqs", "64", "--num-gpu-blocks-override", "9000", "--no-async-scheduling"),
        *("--served-model-name", "llama", "alias", "--scheduling-policy", "priority"),
    ).spec
    assert (made.step.parallel.tp, made.step.precision.weights) == (4, "fp8")
    assert made.step.precision.kv == "fp8"
    assert made.served_model_name == "llama"
    assert made.scheduler.num_blocks == 8999
    assert made.scheduler.max_model_len == 32768
    assert made.scheduler.policy == "priority"
    assert not made.scheduler.async_scheduling
    assert made.step.cudagraph_sizes[-1] == 128


def test_cuda_graph_sizes() -> None:
    assert worker(LLAMA8, "--enforce-eager").spec.step.cudagraph_sizes == ()
    assert worker(LLAMA8, "-O0").spec.step.cudagraph_sizes == ()
    sizes = worker(LLAMA8, "--cudagraph-capture-sizes", "8", "1", "9000").spec.step.cudagraph_sizes
    assert sizes == (1, 8)
    capped = worker(LLAMA8, "--max-cudagraph-capture-size", "20").spec.step.cudagraph_sizes
    assert capped == (1, 2, 4, 8, 16)


def test_batch_limits_follow_vllm() -> None:
    doubled = worker(LLAMA8, "--performance-mode", "throughput").spec.scheduler
    assert (doubled.max_num_batched_tokens, doubled.max_num_seqs) == (16384, 2048)
    few = worker(LLAMA8, "--max-num-batched-tokens", "100").spec.scheduler
    assert (few.max_num_batched_tokens, few.max_num_seqs) == (100, 100)
    short = worker(LLAMA8, "--max-model-len", "16", "--max-num-seqs", "4").spec.scheduler
    assert short.max_num_batched_tokens == 64
    whole = worker(LLAMA8, "--no-enable-chunked-prefill").spec.scheduler
    assert whole.max_num_batched_tokens == 131072


def test_auto_length_shrinks_to_what_memory_holds() -> None:
    made = worker(LLAMA70, "-tp", "2", "--max-model-len", "auto").spec.scheduler
    assert 0 < made.max_model_len < 131072
    assert made.max_model_len == made.num_blocks * 16


def test_overrides_change_the_shape() -> None:
    made = worker(LLAMA8, "--hf-overrides", '{"num_hidden_layers": 2, "rope_theta": 1}')
    assert made.spec.step.model.num_layers == 2
    assert made.memory.num_blocks > 10 * worker(LLAMA8).memory.num_blocks
    argv = [LLAMA8, "--hf-overrides.num_hidden_layers", "2", "--hf-overrides.rope_theta", "1"]
    assert parse_serve(argv, {}).without_effect == ("--hf-overrides.rope_theta",)


VALUES: dict[str, list[str]] = {
    "-tp": ["1", "2", "3", "8", "64"],
    "--block-size": ["1", "16", "17", "4096"],
    "--gpu-memory-utilization": ["0.01", "0.5", "1"],
    "--kv-cache-memory-bytes": ["1", "1G", "1000T"],
    "--num-gpu-blocks-override": ["2", "100", "99999999"],
    "--max-num-batched-tokens": ["1", "15", "1M"],
    "--max-num-seqs": ["1", "3", "1000000"],
    "--max-model-len": ["1", "17", "8k", "auto"],
    "--cudagraph-capture-sizes": ["7", "99999999"],
    "--max-cudagraph-capture-size": ["1", "1000000"],
    "--watermark": ["0.999"],
    "--performance-mode": ["throughput"],
    "--hf-overrides.num_hidden_layers": ["1", "1000"],
    "--hf-overrides.num_key_value_heads": ["1", "7"],
    "-q": ["fp8"],
    "--kv-cache-dtype": ["fp8"],
}


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([LLAMA8, LLAMA70, "Qwen/Qwen3-0.6B"]),
    st.sampled_from(["h800", "h200", "a100", "l20"]),
    st.lists(
        st.sampled_from(sorted(VALUES)).flatmap(
            lambda flag: st.tuples(st.just(flag), st.sampled_from(VALUES[flag]))
        ),
        max_size=6,
    ),
)
def test_any_worker_can_be_built_or_is_refused_in_one_line(
    model: str, hardware: str, flags: list[tuple[str, str]]
) -> None:
    argv = [model, *(word for flag in flags for word in flag)]
    assert "\n" not in outcome(argv, hardware)


def outcome(argv: list[str], hardware: str) -> str:
    try:
        made = resolve_single(parse_serve(argv, {}).vllm, hardware, "vllm-0.33", 0)
    except ConfigError as error:
        return str(error)
    return str(build_cluster(made.spec, made.costs).now_ns)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([LLAMA70], "No available memory for the cache blocks"),
        ([LLAMA70, "-tp", "2"], "estimated maximum model length is"),
        ([LLAMA8, "-tp", "3"], "meta-llama/Llama-3.1-8B-Instruct"),
        (["no/such-model"], "model: no profile for 'no/such-model'"),
        ([LLAMA8, "--max-model-len", "200k"], "200000 is more than the 131072 positions"),
        ([LLAMA8, "--max-model-len", "0"], "max-model-len: 0 is not positive"),
        (
            [LLAMA8, "--max-num-seqs", "200", "--max-num-batched-tokens", "100"],
            "100 is smaller than max-num-seqs (200)",
        ),
        (
            [LLAMA8, "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"],
            "8192 is smaller than max-model-len (131072)",
        ),
        (
            [LLAMA8, "--long-prefill-token-threshold", "200000"],
            "long-prefill-token-threshold: 200000 is more than",
        ),
        (
            [LLAMA8, "--max-num-seqs", "200", "--max-num-active-seqs", "201"],
            "max-num-active-seqs: 201 is more than max-num-seqs (200)",
        ),
        (
            [LLAMA8, "--no-enable-chunked-prefill", "--max-num-scheduled-tokens", "8192"],
            "max-num-scheduled-tokens: 8192 is smaller than max-model-len (131072)",
        ),
        ([LLAMA8, "--hf-config-path", "/absent"], "/absent"),
    ],
)
def test_impossible_workers_are_refused_in_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        worker(*argv)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_profiles_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean h800"):
        worker(LLAMA8, hardware="h80")
    with pytest.raises(ConfigError, match="engine"):
        worker(LLAMA8, engine="tensorrt-1.0")


def test_count_expands_to_names_and_ports() -> None:
    made = cluster(f"[{{model: {LLAMA8}, count: 3, port: 9000}}, {{name: x, model: {LLAMA8}}}]")
    assert [(one.name, one.port) for one in made.spec.workers] == [
        ("w0", 9000),
        ("w1", 9001),
        ("w2", 9002),
        ("x", 9003),
    ]
    assert len({id(cost) for cost in made.costs}) == 1


def test_port_zero_stays_zero() -> None:
    made = cluster(f"[{{model: {LLAMA8}, count: 2, port: 0}}]")
    assert [one.port for one in made.spec.workers] == [0, 0]


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (f"[{{model: {LLAMA8}}}, {{model: {LLAMA8}}}]", "two workers are named w"),
        (
            f"[{{name: a, model: {LLAMA8}, port: 1}}, {{name: b, model: {LLAMA8}, port: 1}}]",
            "a and b both use port 1",
        ),
        (f"[{{model: {LLAMA8}, count: 2, port: 65535}}]", "port: 65536 is beyond 65535"),
        ("[{model: m}]", "s.yaml:2: cluster.workers[0]: model: no profile for 'm'"),
    ],
)
def test_clusters_that_cannot_be(workers: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster(workers)
    assert said in str(caught.value)


def test_a_scenario_without_a_cluster_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="key cluster is missing"):
        resolve_scenario(parse_scenario("name: x", "s.yaml", TraceSearch(())))


def test_vllm_serve_is_a_cluster_of_one() -> None:
    made = resolve_single(parse_serve([LLAMA8, "--port", "0"], {}).vllm, "h100", "vllm", 3)
    (one,) = made.spec.workers
    assert (one.name, one.port, made.spec.seed) == ("w0", 0, 3)
    assert made.costs[0].decode(1, 100).base_ns > 0
