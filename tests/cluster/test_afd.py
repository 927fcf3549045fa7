"""Instances with attention and FFN apart, from a scenario to answers over the wire."""

from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, parse_scenario
from frontier_mock.config.workloads import trace_search
from frontier_mock.core.events import Finished
from frontier_mock.drive.offline import run
from frontier_mock.report.roles import role_stats
from frontier_mock.testing.cluster import MockSpec, open_cluster, run_virtual
from frontier_mock.workload.build import build_source

SCENARIO = """
name: afd
cluster:
  workers:
    - name: a
      model: stepfun-ai/step3-fp8
      parallel: {{tp: {tp}}}
      afd: {{ffn: {{instances: 2, hardware: h20}}, micro_batches: {batches}}}
      engine_args: {{max-num-seqs: 24, max-model-len: 4096, max-num-batched-tokens: 2048}}
workload:
  kind: poisson
  rate_per_s: 40
  num_requests: 120
  input_tokens: {{uniform: [10, 1500]}}
  output_tokens: {{uniform: [1, 300]}}
"""


PAIRED = """
name: prefill elsewhere
cluster:
  workers:
    - {{name: p, count: 2, role: prefill, model: stepfun-ai/step3-fp8, hardware: h800,
       parallel: {{tp: 8}}, engine: {engine}, engine_args: {{{length}: 4096}}}}
    - {{name: d, role: decode, model: stepfun-ai/step3-fp8, hardware: h20, parallel: {{tp: 2}},
       afd: {{ffn: {{instances: 2, hardware: h800}}}},
       engine: {engine}, engine_args: {{{length}: 4096}}}}
workload:
  kind: poisson
  rate_per_s: 10
  num_requests: 60
  input_tokens: {{uniform: [10, 1500]}}
  output_tokens: {{uniform: [2, 200]}}
"""


def scenario(tp: int = 2, batches: int = 3) -> ScenarioSpec:
    text = SCENARIO.format(tp=tp, batches=batches)
    return parse_scenario(text, "afd.yaml", trace_search(None, {}, False))


def play(spec: ScenarioSpec, resolved: ResolvedCluster, single_step: bool) -> Cluster:
    assert spec.workload is not None
    cluster = build_cluster(replace(resolved.spec, single_step=single_step), resolved.costs)
    run(cluster, build_source(spec.workload, seed=3))
    return cluster


@pytest.mark.parametrize(("tp", "batches"), [(2, 3), (8, 2), (8, 1)])
def test_macro_steps_and_single_steps_give_the_same_log(tp: int, batches: int) -> None:
    spec = scenario(tp, batches)
    resolved = resolve_scenario(spec)
    macro, single = (play(spec, resolved, slow) for slow in (False, True))
    assert len(macro.workers) == 8 // tp
    assert macro.log.digest() == single.log.digest()
    ended = [event for event in macro.log.events if isinstance(event, Finished)]
    assert len(ended) == 120
    for event in ended:
        times = macro.workers[event.worker].timeline.token_times_ns(event.spans)
        other = single.workers[event.worker].timeline.token_times_ns(event.spans)
        assert np.array_equal(times, other)


@pytest.mark.parametrize(
    ("engine", "length"), [("vllm-0.33", "max-model-len"), ("sglang-0.5.23", "context-length")]
)
def test_prompts_may_be_computed_elsewhere(engine: str, length: str) -> None:
    """xPyAzF: prefill workers, attention that decodes what they send, and FFN."""
    text = PAIRED.format(engine=engine, length=length)
    spec = parse_scenario(text, "paired.yaml", trace_search(None, {}, False))
    resolved = resolve_scenario(spec)
    macro, single = (play(spec, resolved, slow) for slow in (False, True))
    assert macro.log.digest() == single.log.digest()
    roles = [worker.role for worker in macro.spec.workers]
    assert roles == ["prefill"] * 2 + ["decode"] * 4
    ended = [event for event in macro.log.events if isinstance(event, Finished)]
    by_decode = [event for event in ended if roles[event.worker] == "decode"]
    assert len(by_decode) == 60
    for worker in macro.workers:
        worker.kv.check()
        assert not worker.scheduler.num_live
    rows = role_stats(macro)
    assert [row["role"] for row in rows] == ["prefill", "attention", "ffn"]


def test_clients_see_one_port_of_attention(tmp_path: Path) -> None:
    path = tmp_path / "afd.yaml"
    path.write_text(SCENARIO.format(tp=2, batches=3), encoding="utf-8")

    async def main() -> tuple[str, int, str]:
        async with open_cluster(MockSpec(scenario=str(path))) as cluster:
            client = cluster.openai()
            for _ in range(4):
                reply = await client.chat.completions.create(
                    model=cluster.model,
                    messages=[{"role": "user", "content": "hello"}],
                    max_tokens=20,
                )
            async with cluster.httpx(httpx) as web:
                metrics = (await web.get(cluster.url + "/metrics")).text
            used = len({event.worker for event in cluster.events if isinstance(event, Finished)})
            return str(reply.model), used, metrics

    model, used, metrics = run_virtual(main())
    assert model == "stepfun-ai/step3-fp8"
    assert used == 4
    assert 'engine="3"' in metrics
    assert 'engine="4"' not in metrics
