"""How much KV cache a worker gets: vLLM's start-up profiling, as arithmetic. PURE.

vLLM takes `gpu_memory_utilization` of the device, subtracts weights, the peak of one dummy forward
pass, what CUDA and NCCL hold outside torch, and the CUDA graphs, and cuts the rest into blocks
(vllm.md section 8.7). The peak is the larger of two: an MLP over `max_num_batched_tokens`, or the
sampler over `max_num_seqs` rows of logits. Constants are from profiling logs of vLLM on H100 in
llm-d/llm-d-benchmark (config_explorer/empirical-vllm-memory-results.md), see SOURCES.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from frontier_mock.cost.gemm import WEIGHT_BYTES
from frontier_mock.cost.layers import ACTIVATION_BYTES, Shard, linear_weights, shard_model
from frontier_mock.cost.lora import adapter_bytes
from frontier_mock.cost.specs import (
    DraftSpec,
    HardwareSpec,
    LoraSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
)
from frontier_mock.cost.stages import stage_models
from frontier_mock.cost.vision import vision_weights

_GIB: Final = 1 << 30

_SAMPLER_COPIES: Final = 9.5
"""fp32 copies of the logits alive at the sampler's peak: five logged models agree within 1 %."""

_HIDDEN_COPIES: Final = 1.25
"""Hidden states of the dummy batch alive beside the sampler, same logs."""

_ACTIVATION_FLOOR_BYTES: Final = 36 << 20

_CONTEXT_BYTES: Final = 140 << 20
"""CUDA's own memory on one GPU: 0.13 to 0.14 GiB in the same logs."""

_COLLECTIVE_BYTES: Final = 430 << 20
"""NCCL and custom all-reduce buffers with more than one rank: 0.42 GiB more in the same logs."""

_EXPERT_CHUNK_TOKENS: Final = 32768
"""VLLM_FUSED_MOE_CHUNK_SIZE of vLLM before 0.24; larger batches went through in pieces."""

_DEEPEP_NORMAL_BYTES: Final = 1 << 30
"""VLLM_DEEPEP_BUFFER_SIZE_MB is 1024."""

_LOW_LATENCY_TOKENS: Final = 256
"""VLLM_MOE_DP_CHUNK_SIZE: tokens a rank may send; DeepEP keeps two bf16 halves of a receive buffer
for each expert and so many tokens."""

_GRAPH_BYTES_PER_LAYER: Final = 256 << 10
"""Memory of one captured batch size per layer; logs show 0.4 to 1 GiB for 67 sizes (inference)."""


class OutOfMemory(ValueError):
    """The configuration leaves no room, or not enough, for the KV cache."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per GPU by use. `num_blocks` is vLLM's num_gpu_blocks, its one null block included."""

    num_blocks: int
    weights_bytes: int
    activation_bytes: int
    cudagraph_bytes: int
    non_torch_bytes: int
    kv_bytes: int
    bytes_per_block: int


def plan_kv_cache(
    hardware: HardwareSpec,
    model: ModelSpec,
    parallel: ParallelSpec,
    precision: PrecisionSpec,
    *,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    block_size: int,
    max_model_len: int,
    cudagraph_sizes: Sequence[int],
    kv_cache_memory_bytes: int | None = None,
    num_gpu_blocks_override: int | None = None,
    count_cudagraphs: bool = True,
    redundant_experts: int = 0,
    lora: LoraSpec | None = None,
    draft: DraftSpec | None = None,
) -> MemoryPlan:
    """Size the KV cache of one worker. A block of `block_size` tokens a rank holds as many times
    more of them as ranks share the context. Of pipeline stages the one with fewest blocks decides,
    and the plan is that of its GPUs.

    `count_cudagraphs` is False for engines before vLLM 0.21, whose profiling left graphs out.
    Raises OutOfMemory when nothing is left, or when the cache cannot hold one sequence of
    `max_model_len` tokens; ValueError when the parallelism does not divide the model.
    """
    shard = shard_model(model, parallel, precision)
    non_torch = _CONTEXT_BYTES + _buffer_bytes(model, parallel, max_num_batched_tokens)
    plans = []
    stages = stage_models(model, parallel)
    for number, stage in enumerate(stages):
        ends = (number == 0, number == len(stages) - 1)
        weights = weight_bytes(stage, precision, shard, ends)
        weights += _extra_weight_bytes(stage, parallel, precision, shard, redundant_experts, lora)
        drafter, draft_token = draft_bytes(draft, parallel, precision)
        weights += drafter
        sampled = max_num_seqs if ends[1] else 0
        activation = _activation_bytes(model, shard, max_num_batched_tokens, sampled)
        graphs = len(cudagraph_sizes) * stage.num_layers * _GRAPH_BYTES_PER_LAYER
        per_token = shard.heads.bytes_per_token * cached_layers(stage) + draft_token
        per_block = block_size * per_token
        if kv_cache_memory_bytes is not None:
            available = kv_cache_memory_bytes
        else:
            available = int(hardware.hbm_bytes * gpu_memory_utilization)
            available -= weights + activation + non_torch + (graphs if count_cudagraphs else 0)
        num_blocks = num_gpu_blocks_override
        if num_blocks is None:
            num_blocks = max(available, 0) // per_block
            if available <= 0:
                shortage = _nothing_left(hardware, gpu_memory_utilization, weights, available)
                raise OutOfMemory(shortage)
        kv_bytes = num_blocks * per_block
        plans.append(
            MemoryPlan(num_blocks, weights, activation, graphs, non_torch, kv_bytes, per_block)
        )
    plan = min(plans, key=lambda one: one.num_blocks)
    _check_longest(plan.num_blocks, plan.bytes_per_block, block_size * parallel.dcp, max_model_len)
    return plan


def draft_bytes(
    draft: DraftSpec | None, parallel: ParallelSpec, precision: PrecisionSpec
) -> tuple[int, int]:
    """What a drafter takes on one rank: its own weights, and its cache for one token of context."""
    if draft is None or draft.model is None:
        return 0, 0
    model = draft.model
    cut = replace(parallel, pp=1, stage_layers=())
    if model.experts is None:
        cut = replace(cut, dp=1, ep=1)
    own = replace(precision, weights=draft.weights)
    shard = shard_model(model, cut, own)
    has_tables = (draft.shared_tables < 1, draft.shared_tables < 2)
    weights = weight_bytes(model, own, shard, has_tables)
    if draft.inputs > 1:
        weights += draft.inputs * model.hidden_size**2 * ACTIVATION_BYTES
    return weights, shard.heads.bytes_per_token * cached_layers(model)


def _extra_weight_bytes(
    model: ModelSpec,
    parallel: ParallelSpec,
    precision: PrecisionSpec,
    shard: Shard,
    redundant_experts: int,
    lora: LoraSpec | None,
) -> int:
    """Replicas of experts, and room for adapters, on one rank."""
    extra = 0
    if redundant_experts and model.experts is not None:
        each = 3 * model.hidden_size * shard.expert_columns * WEIGHT_BYTES[precision.weights]
        extra += int(model.expert_layers * each * redundant_experts / parallel.ep)
    if lora is not None:
        dense = model.experts is None
        extra += adapter_bytes(shard, model.hidden_size, model.num_layers, dense, lora)
    return extra


def cached_layers(model: ModelSpec) -> int:
    """Layers whose keys and values grow with the context.

    Layers with a sliding window share the blocks of the others in groups of equal size and give
    them back behind the window (vllm.md section 8.7): they hold a few blocks a sequence, not a
    share of every token.
    """
    return max(model.num_layers - model.sliding_layers, model.sliding_layers)


def weight_bytes(
    model: ModelSpec,
    precision: PrecisionSpec,
    shard: Shard,
    ends: tuple[bool, bool] = (True, True),
) -> int:
    """Bytes of weights on one rank, rope table included; embeddings and norms stay in bf16.

    `ends` says whether the embedding is among them, and whether the LM head is.
    """
    hidden = model.hidden_size
    linear = WEIGHT_BYTES[linear_weights(model, precision)]
    attention = sum(n * k for n, k in shard.projections)
    per_layer = 2 * hidden * ACTIVATION_BYTES
    if model.qkv_bias:
        per_layer += shard.qkv_columns * ACTIVATION_BYTES
    dense = attention + hidden * (shard.gate_up_columns + shard.mlp_columns)
    sparse = attention + 3 * hidden * shard.shared_columns
    layers = model.num_layers * per_layer
    layers += int((model.num_layers - model.expert_layers) * dense * linear)
    layers += int(model.expert_layers * sparse * linear)
    if model.experts is not None:
        routed = 3 * hidden * shard.expert_columns * shard.local_experts
        routed_bytes = int(routed * WEIGHT_BYTES[precision.weights])
        router = hidden * model.experts.num_experts * ACTIVATION_BYTES
        layers += model.expert_layers * (routed_bytes + router)
    tables = 1 if model.tie_word_embeddings and all(ends) else sum(ends)
    embedding = tables * shard.vocab_columns * hidden * ACTIVATION_BYTES
    rope_size = model.head_dim if model.latent is None else model.latent.rope_size
    rope = model.max_position_embeddings * rope_size * ACTIVATION_BYTES
    encoder = 0
    if model.vision is not None and ends[0]:
        ranks = model.num_heads // shard.heads.query
        cut = ranks if model.vision.num_heads % ranks == 0 else 1
        encoder = vision_weights(model.vision) * ACTIVATION_BYTES // cut
    return layers + embedding + hidden * ACTIVATION_BYTES + rope + encoder


def _buffer_bytes(model: ModelSpec, parallel: ParallelSpec, tokens: int) -> int:
    """NCCL's buffers, and DeepEP's where it moves the tokens."""
    ranks = parallel.tp * parallel.dp
    buffers = _COLLECTIVE_BYTES if ranks * parallel.pp > 1 else 0
    if parallel.dp > 1 and parallel.dispatch == "deepep_normal":
        buffers += _DEEPEP_NORMAL_BYTES
    elif parallel.dp > 1 and parallel.dispatch == "deepep_low_latency":
        assert model.experts is not None
        rows = _LOW_LATENCY_TOKENS * model.experts.num_experts
        buffers += 4 * rows * model.hidden_size
    return buffers


def _activation_bytes(model: ModelSpec, shard: Shard, tokens: int, max_num_seqs: int) -> int:
    """Peak of the dummy forward pass: in the MLP, in the experts, or in the sampler.

    Experts keep the rows of all their tokens, once per choice, before and after each GEMM; the
    fused kernel works through at most so many tokens at a time.
    """
    hidden = tokens * model.hidden_size * ACTIVATION_BYTES
    mlp = tokens * (shard.gate_up_columns + shard.mlp_columns) * ACTIVATION_BYTES
    if model.experts is not None:
        chunk = min(tokens, _EXPERT_CHUNK_TOKENS) * model.experts.top_k
        wide = max(3 * shard.expert_columns, model.hidden_size + shard.expert_columns)
        mlp = max(mlp, chunk * wide * ACTIVATION_BYTES)
    rows = min(max_num_seqs, tokens)
    sampler = int(_SAMPLER_COPIES * rows * model.vocab_size * 4 + _HIDDEN_COPIES * hidden)
    return max(mlp + 2 * hidden, sampler) + _ACTIVATION_FLOOR_BYTES


def _check_longest(num_blocks: int, per_block: int, block_size: int, max_model_len: int) -> None:
    """vLLM refuses to start unless one sequence of `max_model_len` fits beside the null block."""
    usable = num_blocks - 1
    needed = -(-max_model_len // block_size)
    if needed <= usable:
        return
    longest = max(usable, 0) * block_size
    estimate = (
        f"Based on the available memory, the estimated maximum model length is {longest}. "
        if longest
        else ""
    )
    raise OutOfMemory(
        f"To serve at least one request with the model's max seq len ({max_model_len}), "
        f"({_gib(needed * per_block)} GiB KV cache is needed, which is larger than the available "
        f"KV cache memory ({_gib(max(usable, 0) * per_block)} GiB). {estimate}"
        f"Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when "
        f"initializing the engine."
    )


def _nothing_left(hardware: HardwareSpec, utilization: float, weights: int, available: int) -> str:
    return (
        f"No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        f"initializing the engine. ({hardware.name}: {_gib(hardware.hbm_bytes)} GiB x "
        f"{utilization:g}, weights {_gib(weights)} GiB, left for KV cache {_gib(available)} GiB)"
    )


def _gib(size_bytes: int) -> str:
    return f"{round(size_bytes / _GIB, 2)}"
