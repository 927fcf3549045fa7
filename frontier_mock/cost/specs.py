"""What the cost model is told: hardware, model, parallelism, quantisation, engine constants.

Data only. Each comes from a profile under `profiles/`, which names its source.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """One GPU type and its links. `kernels` names the table set under profiles/kernels/."""

    name: str
    kernels: str
    sm_count: int
    peak_bf16_flops: float
    peak_fp8_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    nic_bytes_per_s: float
    pcie_bytes_per_s: float
    usd_per_hour: float
    source: str


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Routed experts of every layer after the first `dense_layers`.

    `shared_size` is the intermediate size of all shared experts together, 0 without any.
    `fp32_router`: engines multiply by the router's weights in fp32. `token_groups` bounds the
    groups of experts, and so the nodes, that a token may reach (DeepSeek-V3: 4), 0 without a bound.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_size: int = 0
    dense_layers: int = 0
    fp32_router: bool = False
    token_groups: int = 0


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention: one cached row of `kv_rank + rope_size` for all heads.

    `nope_size` and `value_size` are per head. With `index_top_k` a lightning indexer of
    `index_heads` heads of `index_size` picks so many tokens, and attention reads only those
    (DeepSeek sparse attention).
    """

    kv_rank: int
    rope_size: int
    nope_size: int
    value_size: int
    index_top_k: int = 0
    index_heads: int = 0
    index_size: int = 0


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """An image encoder, as in `vision_config` and the processor's settings.

    Patches are `patch_size` pixels wide, and `merge` x `merge` of them one token of width
    `out_size`. `gated` MLPs have three matrices, others two. All but `full_layers` see windows of
    `window` patches only, if that is not 0. There are `mergers` mergers (more than one: deepstack).
    Images are resized to between `min_pixels` and `max_pixels`, or all to a square of `image_size`
    pixels if that is not 0. In prompts `token_id` stands for each token of an image, between
    `start_id` and `end_id`.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    out_size: int
    merge: int = 2
    gated: bool = False
    full_layers: int = 0
    window: int = 0
    mergers: int = 1
    min_pixels: int = 0
    max_pixels: int = 0
    image_size: int = 0
    token_id: int = 0
    start_id: int = 0
    end_id: int = 0

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest image."""
        pixels = self.image_size**2 or self.max_pixels
        return pixels // (self.patch_size * self.merge) ** 2


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder, as in its config.json.

    `qk_norm` is a norm on queries and keys (Qwen3), with `qk_norm_wide` over all heads together
    (MiniMax-M2) and not one by one, `qkv_bias` a bias on that projection
    (Qwen2). `checkpoint_weights` is what the checkpoint of this name holds: "bf16", "fp8" (one
    scale a tensor), "fp8_block", "int4" or "mxfp4". `experts` is None for dense models, `latent`
    for grouped-query attention. `q_rank` is the width through which queries are projected (MLA,
    MFA), 0 if directly. `sliding_layers` of the layers see the last `sliding_window` tokens only.
    `vision` is the image encoder of a model that has one.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_id: int
    source: str
    qk_norm: bool = False
    qk_norm_wide: bool = False
    qkv_bias: bool = False
    checkpoint_weights: str = "bf16"
    experts: ExpertsSpec | None = None
    latent: LatentSpec | None = None
    q_rank: int = 0
    sliding_window: int = 0
    sliding_layers: int = 0
    vision: VisionSpec | None = None

    @property
    def expert_layers(self) -> int:
        """Layers with routed experts."""
        return 0 if self.experts is None else self.num_layers - self.experts.dense_layers


@dataclass(frozen=True, slots=True)
class ParallelSpec:
    """Ranks per worker along each axis.

    A worker is `dp` ranks of attention of `tp` GPUs each, times `pp` stages. `ep` is 1 (experts cut
    like the other layers) or `tp * dp` (whole experts on each GPU). `dispatch` is how tokens reach
    the GPUs of their experts when `dp` is above 1: "allgather" (all-gather and reduce-scatter),
    "alltoall", "deepep_normal" or "deepep_low_latency". `overlap` splits batches in two so that one
    half's communication runs under the other's computation (DBO, TBO). `dcp` of the `tp` ranks
    share the context of each sequence (decode context parallelism). `stage_layers` are the layers
    of each pipeline stage, empty for as many as vLLM gives them.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    dispatch: str = "allgather"
    overlap: bool = False
    dcp: int = 1
    stage_layers: tuple[int, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How popular experts are.

    `kind` is "model" (what is assumed of every trained router), "uniform" or "zipf" with
    `exponent`. Which expert has which rank is drawn once per layer from `seed`. `redundant_experts`
    replicas of the most popular ones are spread by load (EPLB). `drift` is the share of popularity
    that has moved to other experts since they were last placed by load, 0 to 1.
    """

    kind: str = "model"
    exponent: float = 0.0
    seed: int = 0
    redundant_experts: int = 0
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Adapters that may be loaded at once, and their rank."""

    rank: int
    max_loras: int


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """Shares of the requests, 0 to 1, that sample with top-p or top-k, with penalties, and under
    a grammar."""

    top_p: float = 0.0
    penalties: float = 0.0
    grammar: float = 0.0


@dataclass(frozen=True, slots=True)
class PrecisionSpec:
    """Bytes and kernels: `weights` as `ModelSpec.checkpoint_weights`, `kv` is "bf16" or "fp8".

    int4 and mxfp4 checkpoints of models with experts hold only the experts in that format.
    """

    weights: str = "bf16"
    kv: str = "bf16"


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """Constants of one engine version; data in profiles/engines/, no per-model factor.

    CPU overhead per step is `cpu_step_s + cpu_request_s * running`: added to the GPU time when
    scheduling is synchronous, hidden behind it when asynchronous (then `async_gap_s` is added).
    The front end (HTTP, tokeniser, IPC) delays a request's arrival at the scheduler by
    `frontend_s + frontend_token_s * prompt_tokens`. `counts_cudagraph_memory` says whether the
    memory profile makes room for CUDA graphs (vLLM since 0.21). `fp8_decode_as_bf16`: decoding over
    an fp8 cache took as long as over a bf16 one (FlashAttention 3 in vLLM before 0.12).
    `async_pipeline`: with pipeline stages, too, steps are scheduled ahead (vLLM's second model
    runner). `expert_kernels` names the collection whose kernels run the experts,
    `block_expert_kernels` that of block-fp8 ones if it is another ("deepgemm": the contiguous
    grouped GEMM, whatever the batch), `mxfp4_expert_kernels` that of mxfp4 ones.
    """

    name: str
    family: str
    version: str
    async_scheduling: bool
    cpu_step_s: float
    cpu_request_s: float
    async_gap_s: float
    frontend_s: float
    frontend_token_s: float
    gpu_memory_utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int
    source: str
    counts_cudagraph_memory: bool = True
    fp8_decode_as_bf16: bool = False
    async_pipeline: bool = False
    expert_kernels: str = "vllm-0.24"
    block_expert_kernels: str = ""
    mxfp4_expert_kernels: str = ""


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """How drafts are made for a step to verify.

    `method` is the engine's own word for it. A verification computes `verified` tokens of each
    sequence. The drafter passes `passes` times, over the tokens that were verified and then over
    one token of each of `branches` branches; `model` is what it is, None for a look-up, which takes
    `lookup_s` of CPU time a step. `weights` are its own, as `PrecisionSpec.weights`. A linear layer
    makes its input of `inputs` vectors, if more than one. `shared_tables` of its vocabulary tables
    (embedding and LM head) are the target's own. `graph_sizes` are captured for its passes over
    single tokens, None if they are those of the target.
    """

    method: str
    verified: int
    passes: int = 0
    branches: int = 1
    model: ModelSpec | None = None
    weights: str = "bf16"
    inputs: int = 1
    shared_tables: int = 0
    lookup_s: float = 0.0
    graph_sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepSpec:
    """Everything the price of a step depends on, apart from the batch itself.

    `cudagraph_sizes` are the captured batch sizes in ascending order, empty for eager mode.
    `prompt_graph_sizes` are those of steps with prompt chunks in them where these have graphs of
    their own (SGLang), None where one set serves both (vLLM). With `encodes_only` the engine runs
    the image encoder and no language model.
    """

    hardware: HardwareSpec
    model: ModelSpec
    parallel: ParallelSpec
    precision: PrecisionSpec
    engine: EnginePreset
    async_scheduling: bool
    cudagraph_sizes: tuple[int, ...]
    routing: RoutingSpec = RoutingSpec()
    lora: LoraSpec | None = None
    sampling: SamplingSpec = SamplingSpec()
    prompt_graph_sizes: tuple[int, ...] | None = None
    draft: DraftSpec | None = None
    encodes_only: bool = False
