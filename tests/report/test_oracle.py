"""The cache oracle: what routing could have hit, and the figures made of that."""

import io

from rich.console import Console

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.observed import ObservedCluster
from frontier_mock.cluster.routing import POLICIES
from frontier_mock.core.commands import Submit
from frontier_mock.drive.offline import run
from frontier_mock.report.html import html_report
from frontier_mock.report.summary import report_cluster
from frontier_mock.report.terminal import print_result
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import FixedTokens, PromptSpec, SessionsSpec
from tests.engine import LinearCost, prompt, toy_cluster

BLOCK = 16
SPEC = SchedulerSpec(
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=1024,
    block_size=BLOCK,
    num_blocks=200,
)


def observed(workers: int, policy: str = "round_robin") -> ObservedCluster:
    plain = toy_cluster(SPEC, workers=workers, policy=policy)
    costs = [LinearCost() for _ in range(workers)]
    cluster = build_cluster(plain.spec, costs, with_oracle=True)
    assert isinstance(cluster, ObservedCluster)
    return cluster


def ask(cluster: ObservedCluster, t_ns: int, content: int, worker: int, tokens: int = 100) -> None:
    submit = Submit(prompt(tokens, content, BLOCK, 2), 2, 2, worker=worker)
    cluster.feed(t_ns, submit)


def test_columns_are_what_was_there_at_arrival() -> None:
    cluster = observed(2)
    second = 10**9
    ask(cluster, 0, content=1, worker=0)
    ask(cluster, second, content=1, worker=1)
    ask(cluster, 2 * second, content=2, worker=1)
    ask(cluster, 3 * second, content=2, worker=0)
    cluster.advance_to(4 * second)
    oracle = cluster.oracle
    assert oracle is not None
    assert oracle.common_tokens == 2 * BLOCK
    assert list(oracle.rids) == [0, 1, 2, 3]
    assert list(oracle.best) == [0, 96, 32, 96]
    assert list(oracle.taken) == [0, 0, 32, 32]
    # Round robin's turns are workers 0, 1, 0, 1.
    assert list(oracle.round_robin) == [0, 0, 32, 96]
    assert list(oracle.unlimited) == [0, 96, 32, 96]


def test_report() -> None:
    cluster = observed(2)
    for i, (content, worker) in enumerate([(1, 0), (1, 1), (2, 1), (2, 0)]):
        ask(cluster, i * 10**9, content, worker)
    cluster.advance_to(10**10)
    report = report_cluster(cluster, "toy", 1.0)
    stats = report.result["cache_oracle"]
    assert stats["requests"] == 4
    assert stats["rates"] == {
        "query_tokens": 400,
        "unlimited": 224 / 400,
        "oracle": 224 / 400,
        "taken": 64 / 400,
        "hit": 64 / 400,
        "round_robin": 128 / 400,
    }
    assert stats["common_prefix_tokens"] == 32
    assert stats["beyond_common_prefix"]["query_tokens"] == 400 - 4 * 32
    assert stats["beyond_common_prefix"]["taken"] == 0.0
    assert stats["regret_vs_oracle_tokens"] == (96 + 64) / 4
    assert stats["regret_vs_round_robin_tokens"] == 64 / 4
    console = Console(width=100, file=io.StringIO(), record=True)
    print_result(report.result, console)
    page = html_report(report)
    for text in ("prompt tokens hit (beyond the first 32)", "16.00% (0.00%)", "+16.0"):
        assert text.lower() in console.export_text(clear=False).lower()
        assert text.lower() in page.lower()
    assert "cache_oracle" not in report_cluster(toy_cluster(SPEC), "toy", 1.0).result


def test_bounds_hold_and_nothing_else_changes() -> None:
    spec = SessionsSpec(
        PromptSpec(FixedTokens(40), FixedTokens(20), shared_prefix_tokens=32),
        num_sessions=12,
        turns=FixedTokens(4),
        rate_per_s=50.0,
        first_input_tokens=FixedTokens(90),
    )
    for policy in POLICIES:
        cluster = observed(3, policy)
        run(cluster, build_source(spec, seed=1, block_tokens=BLOCK))
        plain = toy_cluster(SPEC, workers=3, policy=policy)
        run(plain, build_source(spec, seed=1, block_tokens=BLOCK))
        assert cluster.log.digest() == plain.log.digest()
        oracle = cluster.oracle
        assert oracle is not None
        assert len(oracle.rids) == 48
        for prompts, unlimited, best, taken in zip(
            oracle.prompts, oracle.unlimited, oracle.best, oracle.taken, strict=True
        ):
            assert prompts > unlimited >= best >= taken >= 0
        if policy == "prefix_aware":
            assert sum(oracle.taken) > sum(oracle.round_robin)
