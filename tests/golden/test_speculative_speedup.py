"""What drafts are worth, against a published measurement."""

import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.workloads import trace_search
from frontier_mock.drive.offline import run
from frontier_mock.report.summary import report_cluster
from frontier_mock.workload.build import build_source

SCENARIO = """
name: mtp
cluster:
  workers:
    - engine: sglang-0.5.23
      model: deepseek-ai/DeepSeek-R1
      hardware: h200
      parallel: {{tp: 16}}
      engine_args: {{attn-dp-size: 16, ep-size: 16, moe-a2a-backend: deepep{flags}}}
{speculation}
workload:
  kind: closed_loop
  concurrency: 32
  num_requests: 32
  input_tokens: 65536
  output_tokens: 2048
"""
FLAGS = (
    ", speculative-algorithm: NEXTN, speculative-num-steps: 2, speculative-eagle-topk: 1, "
    "speculative-num-draft-tokens: 3"
)
LENGTH = "      speculation: {acceptance_length: 2.18}"


def tokens_per_s(flags: str, speculation: str) -> float:
    """Output of one rank with two requests once all prompts are computed."""
    text = SCENARIO.format(flags=flags, speculation=speculation)
    scenario = parse_scenario(text, "x.yaml", trace_search(None, {}, False))
    assert scenario.workload is not None
    resolved = resolve_scenario(scenario)
    cluster = build_cluster(resolved.spec, resolved.costs)
    run(cluster, build_source(scenario.workload, seed=0))
    result = report_cluster(cluster, scenario.name, 0.0).result
    length = result["speculation"]["acceptance_length"] if speculation else 1.0
    return 2 * length * 1e3 / result["itl_ms"]["p50"]


@pytest.mark.golden
def test_mtp_on_deepseek_r1_speeds_decoding_up_as_measured() -> None:
    # LMSYS on SGLang's MTP (cost_model.md row A71): 16 H200, 2 requests a rank, 65536 tokens in,
    # acceptance length 2.18 with three tokens: 60.4 to 81.5 tokens/s a rank, with overlap.
    faster = tokens_per_s(FLAGS, LENGTH) / tokens_per_s("", "")
    assert faster == pytest.approx(81.5 / 60.4, rel=0.05)
