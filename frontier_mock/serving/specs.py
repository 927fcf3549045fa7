"""What one engine instance is told about scheduling and memory."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """vLLM's scheduler knobs under their own names (vLLM 0.33, `vllm serve`)."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int = 16
    num_blocks: int = 0
    """Usable KV blocks: vLLM's num_gpu_blocks less its one null block."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    async_scheduling: bool = True
    watermark: float = 0.0
    reserve_full_isl: bool = True
    max_num_queued_reqs: int = 0
    """0 means unlimited."""
