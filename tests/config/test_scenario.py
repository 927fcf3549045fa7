"""Scenario files: the schema of design.md section 11, and one clear line for anything else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, load_scenario, parse_scenario
from frontier_mock.config.scenario_files import library_names
from frontier_mock.config.traces import load_trace
from frontier_mock.config.workloads import TraceSearch, trace_search
from frontier_mock.cost.specs import ParallelSpec
from frontier_mock.report.specs import SloSpec
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    ExponentialDelay,
    FixedDelay,
    FixedTokens,
    HistogramTokens,
    LognormalTokens,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    TraceSpec,
    UniformTokens,
)

EXAMPLE = """
name: llama70b-8xh800
seed: 0
cluster:
  workers:
    - name: w
      count: 8
      engine: vllm-0.33
      model: meta-llama/Llama-3.1-70B-Instruct
      hardware: h800
      role: colocated
      parallel: {tp: 4, pp: 1, dp: 1, ep: 1}
      quantization: fp8
      engine_args: {max-num-batched-tokens: 8192, kv-cache-dtype: auto}
      port: 8000
  router: {policy: round_robin}
workload:
  kind: closed_loop
  concurrency: 64
  num_requests: 640
  warmup_requests: 128
  think_time_s: 0
  input_tokens: {uniform: [819, 1024]}
  output_tokens: {uniform: [819, 1024]}
  shared_prefix_tokens: 0
  distinct_prompts: null
slo: {ttft_ms: 2000, tpot_ms: 50}
"""


def parsed(text: str) -> ScenarioSpec:
    return parse_scenario(text, "s.yaml", TraceSearch((Path(),)))


def workload(text: str) -> object:
    return parsed(f"name: x\nworkload: {text}\n").workload


def test_the_example_of_the_design_parses_whole() -> None:
    spec = parsed(EXAMPLE)
    assert (spec.name, spec.seed, spec.router_policy) == ("llama70b-8xh800", 0, "round_robin")
    assert spec.slo == SloSpec(ttft_ms=2000, tpot_ms=50)
    lengths = UniformTokens(819, 1024)
    assert spec.workload == ClosedLoopSpec(PromptSpec(lengths, lengths), 64, 640, 128, FixedDelay())
    (group,) = spec.groups
    assert (group.name, group.count, group.port, group.hardware) == ("w", 8, 8000, "h800")
    assert group.parallel == ParallelSpec(tp=4)
    assert group.args.model == "meta-llama/Llama-3.1-70B-Instruct"
    assert group.args.max_num_batched_tokens == 8192
    assert group.args.quantization == "fp8"
    assert group.args.tensor_parallel_size == 4


PROMPTS = "input_tokens: 10, output_tokens: {fixed: 20}"
PROMPTS_SPEC = PromptSpec(FixedTokens(10), FixedTokens(20))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (
            f"{{kind: poisson, rate_per_s: 5, num_requests: 7, {PROMPTS}}}",
            OpenLoopSpec(PROMPTS_SPEC, "poisson", 5.0, 7),
        ),
        (
            f"{{kind: constant, rate_per_s: 0.5, duration_s: 60, warmup_requests: 3, {PROMPTS}}}",
            OpenLoopSpec(PROMPTS_SPEC, "constant", 0.5, None, 60.0, 3),
        ),
        (f"{{kind: burst, num_requests: 9, {PROMPTS}}}", BurstSpec(PROMPTS_SPEC, 9)),
        (
            (
                "{kind: burst, num_requests: 1, shared_prefix_tokens: 5, distinct_prompts: 2, "
                "input_tokens: {lognormal: {median: 100, sigma: 1, max: 500}}, "
                "output_tokens: {histogram: [[1, 2, 0.5], [3, 3, 1]]}}"
            ),
            BurstSpec(
                PromptSpec(
                    LognormalTokens(100.0, 1.0, 1, 500),
                    HistogramTokens(((1, 2, 0.5), (3, 3, 1.0))),
                    5,
                    2,
                ),
                1,
            ),
        ),
        (
            (
                f"{{kind: sessions, num_sessions: 4, turns: 3, concurrency: 2, tool_fraction: 0.5, "
                f"think_time_s: {{exponential: 2.5}}, tool_time_s: 1, {PROMPTS}}}"
            ),
            SessionsSpec(
                PROMPTS_SPEC,
                4,
                FixedTokens(3),
                concurrency=2,
                think_time=ExponentialDelay(2.5),
                tool_time=FixedDelay(1.0),
                tool_fraction=0.5,
            ),
        ),
        (
            "{kind: trace, trace: 'synthetic:conversation', max_requests: 5, pacing: sequential}",
            TraceSpec("synthetic:conversation", concurrency=1, max_requests=5),
        ),
        (
            "{kind: trace, trace: 'synthetic:conversation', pacing: {concurrency: 8}, start_s: 2}",
            TraceSpec("synthetic:conversation", concurrency=8, start_s=2.0),
        ),
    ],
)
def test_every_kind_of_workload(text: str, spec: object) -> None:
    assert workload(text) == spec


BAD = [
    ("nmae: x", "s.yaml:1: document: unknown key 'nmae' (did you mean name?)"),
    ("seed: 1", "key name is missing (text)"),
    ("name: x\nseed: -1", "s.yaml:2: seed: got -1; allowed: a whole number"),
    ("name: x\nseed: true", "seed: got True"),
    ("name: x\nseed: '1'", "seed: got '1'"),
    ("name: [x]", "name: got a list; allowed: text"),
    ("- name", "expected a mapping, got a list"),
    ("", "s.yaml: the file is empty"),
    ("name: x\ncluster: 3", "cluster: got 3; allowed: a mapping"),
    ("name: x\ncluster: {}", "cluster: key workers is missing"),
    ("name: x\ncluster: {workers: []}", "cluster.workers: got a list"),
    ("name: x\ncluster: {workers: [{}]}", "cluster.workers[0]: key model is missing"),
    (
        "name: x\ncluster:\n  workers:\n    - {model: m, paralel: {tp: 2}}",
        "s.yaml:4: cluster.workers[0]: unknown key 'paralel' (did you mean parallel?)",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, parallel: {tp: 0}}]}",
        "cluster.workers[0].parallel.tp: got 0; allowed: a whole number 1..64",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine: sglang-1, engine_args: {tp-size: 4}}]}",
        "cluster.workers[0].engine_args: tp-size is set by the worker's key parallel.tp",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, parallel: {dp: 2}, engine_args: {dp: 4}}]}",
        "cluster.workers[0].engine_args: dp is set by the worker's key parallel.dp",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, parallel: {dp: 2}, afd: {}}]}",
        "cluster.workers[0].parallel.dp: the worker's key afd says how many ranks",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, parallel: {pp: 2}, afd: {}}]}",
        "cluster.workers[0].parallel.pp: the worker's key afd says how many ranks",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine_args: {pipeline-parallel-size: 2}}]}",
        "pipeline-parallel-size is set by the worker's key parallel.pp",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, role: prefill}]}",
        "cluster.workers: prefill workers, but no decode workers",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, role: ffn}]}",
        "role: ffn workers are one worker with key afd; allowed: colocated, prefill, decode",
    ),
    (
        (
            "name: x\ncluster: {workers: [{model: m, name: a, role: prefill},"
            " {model: m, role: decode, engine: sglang-0.5.23}]}"
        ),
        "prefill and decode workers of different engines cannot exchange KV",
    ),
    (
        "name: x\ncluster: {workers: [{model: m}], fabric: {nic_gb_per_s: 0}}",
        "cluster.fabric.nic_gb_per_s: got 0; allowed: a number > 0",
    ),
    (
        (
            "name: x\ncluster: {workers: [{model: m, engine_args: {kv-transfer-config:"
            " {kv_connector: Nixl, kv_role: kv_both}}}]}"
        ),
        "--kv-transfer-config: kv_connector: 'Nixl'; allowed: NixlConnector, ",
    ),
    (
        "name: x\ncluster: {workers: [{model: Qwen/Qwen2.5-VL-7B-Instruct, role: encoder}]}",
        "encoder workers, but nobody to encode for",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, role: colocate}]}",
        "got 'colocate' (did you mean colocated?)",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, quantization: int3}]}",
        "quantization: got 'int3' (did you mean int4?); allowed: one of none, fp8, fp8_block, ",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine: sglang-0.5, quantization: fp8_block}]}",
        "quantization: the engine cannot quantize to fp8_block; allowed: none, fp8, int4, mxfp4",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, parallel: {tp: 2, dp: 2, ep: 2}}]}",
        "cluster.workers[0].parallel: ep: 2; allowed: 1 or tp x dp, 4",
    ),
    (
        (
            "name: x\ncluster: {workers: [{model: m, parallel: {tp: 2, ep: 2},"
            " engine_args: {enable-expert-parallel: true}}]}"
        ),
        "enable-expert-parallel is set by the worker's key parallel.ep",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine_args: {max-num-batchd-tokens: 1}}]}",
        "unknown flag 'max-num-batchd-tokens' (did you mean max-num-batched-tokens?)",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine_args: {block-size: many}}]}",
        "cluster.workers[0].engine_args: argument --block-size: invalid int value: 'many'",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, engine_args: {tensor_parallel_size: 2}}]}",
        "tensor_parallel_size is set by the worker's key parallel.tp",
    ),
    (
        "name: x\ncluster: {workers: [{model: m, count: 5000}]}",
        "cluster.workers[0].count: got 5000",
    ),
    (
        "name: x\ncluster: {workers: [{model: m}], router: {policy: fastest}}",
        "cluster.router.policy: got 'fastest'; allowed: one of round_robin",
    ),
    ("name: x\nworkload: {}", "workload: key kind is missing"),
    (
        "name: x\nworkload: {kind: closed}",
        "workload.kind: got 'closed' (did you mean closed_loop?)",
    ),
    ("name: x\nworkload: {kind: rollout}", "workload.kind: got 'rollout'; allowed: one of trace"),
    (
        "name: x\nworkload: {kind: burst, num_requests: 1, rate_per_s: 2}",
        "workload: unknown key 'rate_per_s'",
    ),
    (
        "name: x\nworkload: {kind: burst, num_requests: 1, output_tokens: 1}",
        "workload: key input_tokens is missing",
    ),
    (
        "name: x\nworkload: {kind: burst, num_requests: 1, output_tokens: 1, input_tokens: 0}",
        "workload.input_tokens: got 0; allowed: a whole number, {fixed: n}",
    ),
    (
        (
            "name: x\nworkload: {kind: burst, num_requests: 1, output_tokens: 1, "
            "input_tokens: {uniform: [5, 2]}}"
        ),
        "workload.input_tokens.uniform: uniform: needs 1 <= low <= high, not [5, 2]",
    ),
    (
        (
            "name: x\nworkload: {kind: burst, num_requests: 1, output_tokens: 1, "
            "input_tokens: {normal: [5, 2]}}"
        ),
        "unknown distribution 'normal'",
    ),
    (
        (
            "name: x\nworkload: {kind: poisson, rate_per_s: .inf, num_requests: 1, "
            "input_tokens: 1, output_tokens: 1}"
        ),
        "workload.rate_per_s: got inf; allowed: a number > 0",
    ),
    (
        "name: x\nworkload: {kind: poisson, rate_per_s: 1, input_tokens: 1, output_tokens: 1}",
        "workload: num_requests, duration_s: give exactly one of them",
    ),
    (
        "name: x\nworkload: {kind: trace, trace: absent.jsonl}",
        "workload.trace: trace 'absent.jsonl' not found; looked for absent.jsonl",
    ),
    ("name: x\nworkload: {kind: trace, trace: 'a\\0b'}", "workload.trace"),
    (
        "name: x\nworkload: {kind: trace, trace: 'synthetic:code'}",
        "workload.trace: got 'synthetic:code'; allowed: a file, or synthetic:conversation",
    ),
    (
        "name: x\nworkload: {kind: trace, trace: 'synthetic:conversation', pacing: fast}",
        "workload.pacing: got 'fast'; allowed: timestamps, sequential or {concurrency: N}",
    ),
    ("name: x\nslo: {ttft: 3}", "slo: unknown key 'ttft' (did you mean ttft_ms?)"),
    ("name: x\nslo: {ttft_ms: 0}", "slo.ttft_ms: got 0; allowed: a number > 0"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_each_mistake_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_is_found_beside_the_scenario_then_in_the_data_directory(tmp_path: Path) -> None:
    beside, data = tmp_path / "scenarios", tmp_path / "data"
    beside.mkdir()
    data.mkdir()
    (data / "t.jsonl").write_text("")
    text = "name: x\nworkload: {kind: trace, trace: t.jsonl}"
    search = trace_search(beside, {"FRONTIER_MOCK_DATA": str(data)})
    found = parse_scenario(text, "s.yaml", search).workload
    assert isinstance(found, TraceSpec)
    assert found.path == str(data / "t.jsonl")
    (beside / "t.jsonl").write_text("")
    found = parse_scenario(text, "s.yaml", search).workload
    assert isinstance(found, TraceSpec)
    assert found.path == str(beside / "t.jsonl")


def test_a_scenario_is_a_file_or_a_name_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine")
    assert load_scenario(str(path), {}).name == "mine"
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_scenario(str(tmp_path / "absent.yaml"), {})
    with pytest.raises(ConfigError, match="neither a file nor in the library"):
        load_scenario("no-such-scenario", {})
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text at byte 6"):
        load_scenario(str(path), {})
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_scenario(str(tmp_path / "folder.yaml"), {})


@pytest.mark.parametrize("name", library_names())
def test_the_library_parses_and_resolves(name: str) -> None:
    spec = load_scenario(name, {}, need_trace=False)
    assert spec.name == name
    assert spec.workload is not None
    assert resolve_scenario(spec).workers


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
@pytest.mark.parametrize("said", ["parallel: {dp: 3}", "engine_args: {dp: 3}"])
def test_engines_behind_one_port_may_be_said_by_key_or_flag(engine: str, said: str) -> None:
    worker = f"{{name: w, model: Qwen/Qwen3-8B, engine: {engine}, {said}}}"
    spec = parsed(f"name: x\ncluster: {{workers: [{worker}]}}")
    cluster = resolve_scenario(spec)
    assert [worker.spec.dp_size for worker in cluster.workers] == [3]
    assert len(cluster.spec.workers) == 3


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=12),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=2),
)


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))
    for key, child in children:
        found += _places(child, (*path, key))
    return found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_mutation_parses_or_is_told_in_one_line(data: st.DataObject) -> None:
    document = copy.deepcopy(yaml.safe_load(EXAMPLE))
    for _ in range(data.draw(st.integers(1, 3))):
        places = _places(document)[1:]
        if not places:
            break
        *path, last = data.draw(st.sampled_from(places))
        holder = document
        for step in path:
            holder = holder[step]
        action = data.draw(st.sampled_from(("replace", "rename", "drop")))
        if action == "replace" or isinstance(holder, list):
            holder[last] = data.draw(ODD)
        elif action == "rename":
            holder[data.draw(st.text(max_size=8))] = holder.pop(last)
        else:
            del holder[last]
    text = yaml.safe_dump(document, allow_unicode=True)
    assert "\n" not in outcome(text)


def outcome(text: str) -> str:
    try:
        return type(parsed(text)).__name__
    except ConfigError as error:
        return str(error)


def test_bytes_that_are_no_text_spoil_one_trace_line_only(tmp_path: Path) -> None:
    row = b'{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [0]}\n'
    path = tmp_path / "trace.jsonl"
    path.write_bytes(row + b"\xff\xfe\n" + row)
    rows = load_trace(TraceSpec(str(path)), seed=0)
    assert rows is not None
    assert len(rows.rows) == 2
    assert [skipped.line for skipped in rows.census.skipped] == [2]
