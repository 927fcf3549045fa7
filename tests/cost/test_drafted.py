"""The price of verifying drafts and making new ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.config.speculative import DraftArgs, draft_of
from frontier_mock.cost.drafted import DraftedStepCost, build_drafted_cost
from frontier_mock.cost.memory import draft_bytes
from frontier_mock.cost.protocol import Chunk, DraftedCost, LockstepCost, RankBatch
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.step import build_step_cost

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
TABLES = load_kernels("h800")


def step_spec(model: str = LLAMA, *, asynchronous: bool = True) -> StepSpec:
    card = load_model(model)
    return StepSpec(
        hardware=load_hardware("h800"),
        model=card,
        parallel=ParallelSpec(),
        precision=PrecisionSpec(card.checkpoint_weights),
        engine=load_engine("vllm-0.33"),
        async_scheduling=asynchronous,
        cudagraph_sizes=(4, 8, 16, 32, 64, 128, 256, 512),
    )


def drafted(method: str, drafts: int = 3, **step: bool) -> DraftedStepCost:
    spec = step_spec(**step)
    args = DraftArgs(method, drafts, "meta-llama/Llama-3.2-1B-Instruct", verified=drafts + 1)
    return build_drafted_cost(replace(spec, draft=draft_of(args, spec.model, "bf16")), TABLES)


EAGLE = drafted("eagle3")


def run_ns(cost: DraftedStepCost, seqs: int, tokens: int, kv: int) -> int:
    return int(cost.drafted_run(np.array([seqs]), np.array([tokens]), np.array([kv]))[0])


def test_it_is_a_cost_of_every_kind() -> None:
    assert isinstance(EAGLE, DraftedCost)
    assert isinstance(EAGLE, LockstepCost)


def test_verifying_costs_more_than_one_token_and_less_than_as_many_steps() -> None:
    plain = build_step_cost(step_spec(), TABLES)
    line = plain.decode(4, 8000)
    one_ns = line.base_ns + line.slope_ns * 8000
    ngram_ns = run_ns(drafted("ngram"), 4, 16, 8012)
    assert one_ns < ngram_ns < 1.5 * one_ns
    # A head of one layer is worth less than a fifth of the model; a draft model costs more.
    eagle_ns = run_ns(EAGLE, 4, 16, 8012)
    assert ngram_ns - 200_000 < eagle_ns < 1.6 * one_ns
    assert run_ns(drafted("draft_model"), 4, 16, 8012) > eagle_ns


def test_at_large_batches_more_tokens_cost_in_proportion() -> None:
    small = run_ns(EAGLE, 4, 16, 8000) / run_ns(EAGLE, 4, 4, 8000)
    large = run_ns(EAGLE, 256, 1024, 300_000) / run_ns(EAGLE, 256, 256, 300_000)
    assert small < 1.2 < large


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.lists(st.integers(0, 500_000), min_size=1, max_size=20))
def test_a_step_costs_the_same_alone_and_in_a_run(seqs: int, contexts: list[int]) -> None:
    kv = np.array(contexts) + 4 * seqs
    shape = np.full(len(kv), seqs)
    run = EAGLE.drafted_run(shape, 4 * shape, kv)
    alone = [EAGLE.drafted(RankBatch(seqs, int(one), (), 3 * seqs)) for one in kv]
    assert run.tolist() == alone
    order = np.argsort(kv)
    assert np.all(np.diff(run[order]) >= 0)
    line = EAGLE.decode(seqs, int(kv[0]))
    assert round(line.base_ns + line.slope_ns * int(kv[0])) == alone[0]


def test_a_step_without_tokens_takes_no_time() -> None:
    assert run_ns(EAGLE, 0, 0, 0) == 0


def test_prompts_pass_through_the_drafter_too() -> None:
    chunks = (Chunk(2000, 0),)
    plain_ns = build_step_cost(step_spec(), TABLES).mixed(0, 0, chunks)
    ngram_ns = drafted("ngram").mixed(0, 0, chunks)
    assert ngram_ns == pytest.approx(plain_ns + 200_000, rel=0.01)
    assert EAGLE.mixed(0, 0, chunks) > plain_ns
    beside_ns = EAGLE.mixed(16, 16_000, chunks)
    assert beside_ns > EAGLE.mixed(0, 0, chunks)


def test_cpu_time_hides_behind_the_gpu_only_when_scheduling_ahead() -> None:
    sync = drafted("eagle3", asynchronous=False)
    engine = sync.spec.engine
    added_ns = (engine.cpu_step_s + 8 * engine.cpu_request_s - engine.async_gap_s) * 1e9
    slower = run_ns(sync, 8, 32, 9000) - run_ns(EAGLE, 8, 32, 9000)
    assert slower == pytest.approx(added_ns, abs=2)


def test_drafters_take_weights_and_cache() -> None:
    spec = step_spec()
    model, one = spec.model, ParallelSpec()
    assert draft_bytes(None, one, spec.precision) == (0, 0)
    ngram = draft_of(DraftArgs("ngram", 3, verified=4), model, "bf16")
    assert draft_bytes(ngram, one, spec.precision) == (0, 0)
    eagle = draft_of(DraftArgs("eagle", 3, "x", verified=4), model, "bf16")
    weights, per_token = draft_bytes(eagle, one, spec.precision)
    # One layer of 32, its vocabulary tables the target's own, and 2 x hidden x hidden in front.
    assert 0.4e9 < weights < 0.6e9
    assert per_token == 2 * 8 * 128 * 2
    llama_1b = draft_of(
        DraftArgs("draft_model", 3, "meta-llama/Llama-3.2-1B-Instruct", verified=4), model, "bf16"
    )
    weights, per_token = draft_bytes(llama_1b, one, spec.precision)
    assert 2.3e9 < weights < 2.8e9
    assert per_token == 16 * 2 * 8 * 64 * 2


def test_an_mtp_layer_is_one_more_layer_with_experts() -> None:
    spec = step_spec("deepseek-ai/DeepSeek-V3")
    draft = draft_of(DraftArgs("mtp", 1, verified=2), spec.model, "fp8_block")
    assert draft.model is not None
    assert (draft.model.num_layers, draft.model.expert_layers) == (1, 1)
    ranks = ParallelSpec(dp=8, ep=8)
    cost = build_drafted_cost(
        replace(spec, parallel=ranks, precision=PrecisionSpec("fp8_block"), draft=draft), TABLES
    )
    idle = [RankBatch(0, 0)] * 7
    busy = RankBatch(16, 32_000, (), 16)
    bare = cost.lockstep([RankBatch(16, 32_000), *idle])
    assert bare < cost.lockstep([busy, *idle]) < 2 * bare
