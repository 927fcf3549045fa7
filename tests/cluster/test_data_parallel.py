"""Servers with data-parallel ranks, from flags to answers."""

import json

import httpx
import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import (
    ResolvedCluster,
    resolve_single,
    resolve_single_sglang,
)
from frontier_mock.config.sglang_flags import parse_sglang_args
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.core.events import Submitted
from frontier_mock.cost.protocol import Chunk
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.testing.cluster import MockSpec, open_cluster, run_virtual

DENSE = ("Qwen/Qwen3-8B", "--data-parallel-size", "2")
EXPERTS = ("Qwen/Qwen3-30B-A3B", "-dp", "4", "--enable-expert-parallel")


def resolved(*argv: str) -> ResolvedCluster:
    return resolve_single(parse_serve(argv, {}).vllm, "h800", "vllm-0.33", 0)


def test_dense_ranks_are_replicas_and_experts_span_all_of_them() -> None:
    dense, experts = resolved(*DENSE), resolved(*EXPERTS)
    assert [w.name for w in dense.spec.workers] == ["w0.dp0", "w0.dp1"]
    assert [w.server for w in dense.spec.workers] == ["w0", "w0"]
    assert dense.spec.workers[0].step.parallel.dp == 1
    assert experts.spec.workers[0].step.parallel.ep == 4
    assert [w.gpus for w in experts.spec.workers] == [1, 1, 1, 1]
    assert len(dense.workers) == len(experts.workers) == 1


def test_whole_experts_on_few_gpus_leave_less_room_than_on_many() -> None:
    few = resolved("Qwen/Qwen3-30B-A3B", "-ep", "-dp", "2").spec.workers[0].scheduler.num_blocks
    many = resolved("Qwen/Qwen3-30B-A3B", "-ep", "-dp", "8").spec.workers[0].scheduler.num_blocks
    assert few < many


@pytest.mark.parametrize("backend", ["pplx", "moonep"])
def test_an_unknown_way_to_move_tokens_is_refused_by_name(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"--all2all-backend: '?{backend}"):
        resolved("Qwen/Qwen3-30B-A3B", "--all2all-backend", backend)


@pytest.mark.parametrize("argv", [DENSE, EXPERTS])
def test_one_port_pins_balances_and_shows_every_rank(argv: tuple[str, ...]) -> None:
    spec = MockSpec(model=argv[0], flags=argv[1:])
    ranks = 2 if argv is DENSE else 4

    async def main() -> None:
        async with open_cluster(spec) as cluster:
            client = cluster.openai()
            ask = {"model": spec.model, "prompt": "Hello", "max_tokens": 3}
            for _ in range(ranks):
                await client.completions.create(**ask)
            await client.completions.create(
                **ask, extra_headers={"X-data-parallel-rank": str(ranks - 1)}
            )
            arrivals = [e.worker for e in cluster.events if isinstance(e, Submitted)]
            assert arrivals == [*range(ranks), ranks - 1]
            async with cluster.httpx(httpx) as http:
                text = (await http.get("/metrics")).text
                beyond = await http.post(
                    "/v1/completions", json=ask, headers={"X-data-parallel-rank": str(ranks)}
                )
            assert text.count("# TYPE vllm:num_requests_running gauge") == 1
            for rank in range(ranks):
                assert f'vllm:request_success_total{{engine="{rank}"' in text
            assert beyond.status_code == 400
            message = json.loads(beyond.content)["error"]["message"]
            assert message == f"data_parallel_rank {ranks} is out of range [0, {ranks})."

    run_virtual(main())


def sglang(*argv: str) -> ResolvedCluster:
    args, _ = parse_sglang_args(argv)
    return resolve_single_sglang(args, "h800", "sglang-0.5.23", 0)


def test_sglang_attention_ranks_share_its_gpus_and_divide_its_limits() -> None:
    model = ("--model-path", "Qwen/Qwen3-30B-A3B", "--tp-size", "4")
    whole = sglang(*model).spec.workers
    ranks = sglang(*model, "--attn-dp-size", "4", "--ep-size", "4").spec.workers
    old_name = sglang(*model, "--dp-size", "4", "--enable-dp-attention", "--ep-size", "4")
    assert (len(whole), len(ranks)) == (1, 4)
    assert ranks == old_name.spec.workers
    first, alone = ranks[0].scheduler, whole[0].scheduler
    assert isinstance(first, SglangSchedulerSpec)
    assert isinstance(alone, SglangSchedulerSpec)
    assert first.chunked_prefill_size == alone.chunked_prefill_size // 4
    assert first.schedule_conservativeness == pytest.approx(0.3)
    assert [w.gpus for w in ranks] == [1, 1, 1, 1]
    assert ranks[0].rank_policy == "round_robin"


def test_deepep_spreads_experts_and_halves_overlap() -> None:
    model = ("--model-path", "Qwen/Qwen3-30B-A3B", "--tp-size", "4", "--attn-dp-size", "4")
    plain = sglang(*model)
    deepep = sglang(*model, "--moe-a2a-backend", "deepep", "--deepep-mode", "normal")
    halves = sglang(
        *model,
        "--moe-a2a-backend",
        "deepep",
        "--deepep-mode",
        "normal",
        "--enable-two-batch-overlap",
    )
    assert [one.spec.workers[0].step.parallel.ep for one in (plain, deepep, halves)] == [1, 4, 4]
    chunks = (Chunk(8192, 0),)
    whole_ns, overlapped_ns = (one.costs[0].mixed(0, 0, chunks) for one in (deepep, halves))
    assert overlapped_ns < whole_ns


def test_sglang_replicas_are_engines_of_their_own() -> None:
    replicas = sglang("--model-path", "Qwen/Qwen3-8B", "--dp-size", "2").spec.workers
    assert [(w.name, w.step.parallel.dp, w.gpus) for w in replicas] == [
        ("w0.dp0", 1, 1),
        ("w0.dp1", 1, 1),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tp-size", "4", "--attn-dp-size", "3"), "attn-dp-size: 3 does not divide"),
        (("--tp-size", "4", "--ep-size", "2"), "ep-size: 2 is not simulated; allowed: 1 or 4"),
        (("--tp-size", "2", "--attn-dp-size", "2", "--dp-size", "2"), "dp-size: 2 replicas of 2"),
        (("--tp-size", "2", "--enable-two-batch-overlap"), "attention DP .* is required"),
    ],
)
def test_what_sglang_could_split_and_we_do_not_is_refused(
    flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sglang("--model-path", "Qwen/Qwen3-30B-A3B", *flags)
