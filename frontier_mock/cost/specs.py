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
class ModelSpec:
    """Shape of a dense decoder with grouped-query attention, as in its config.json.

    `qk_norm` is a norm on queries and keys per head (Qwen3), `qkv_bias` a bias on that projection
    (Qwen2). `checkpoint_weights` is what the checkpoint of this name holds: "bf16" or "fp8".
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
    qkv_bias: bool = False
    checkpoint_weights: str = "bf16"


@dataclass(frozen=True, slots=True)
class ParallelSpec:
    """Ranks per worker along each axis."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1


@dataclass(frozen=True, slots=True)
class PrecisionSpec:
    """Bytes and kernels: `weights` is "bf16" or "fp8", `kv` is "bf16" or "fp8"."""

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


@dataclass(frozen=True, slots=True)
class StepSpec:
    """Everything the price of a step depends on, apart from the batch itself.

    `cudagraph_sizes` are the captured batch sizes in ascending order, empty for eager mode.
    """

    hardware: HardwareSpec
    model: ModelSpec
    parallel: ParallelSpec
    precision: PrecisionSpec
    engine: EnginePreset
    async_scheduling: bool
    cudagraph_sizes: tuple[int, ...]
