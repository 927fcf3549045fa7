"""What one engine instance is told about scheduling and memory."""

from dataclasses import dataclass

from frontier_mock.serving.speculation import SpeculationSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, OffloadSpec


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
    """Bounds those in flight, running ones included; 0 means unlimited."""
    max_num_queued_tokens: int | None = None
    """Bounds the prompt tokens of those without a first token; None means unlimited."""
    max_num_scheduled_tokens: int = 0
    """Tokens of one step, if that is less than `max_num_batched_tokens`; 0 means the same."""
    max_num_active_seqs: int = 0
    """Running sequences, if that is less than `max_num_seqs`; 0 means the same."""
    long_prefill_token_threshold_adaptive: bool = False
    prefill_schedule_interval: int = 1
    enable_kv_cache_events: bool = False
    """Whether the cache records its changes (`serving.kv_recording`)."""
    encoder_budget_tokens: int = 0
    """Tokens of images that one step encodes; 0 for a model that takes text only."""
    encoder_cache_tokens: int = 0
    """Tokens of encoded images that are kept."""
    speculation: SpeculationSpec | None = None
    offload: OffloadSpec | None = None
    """A tier under the GPU, if there is one."""
    pipeline_stages: int = 1
    """vLLM's pipeline_parallel_size."""


@dataclass(frozen=True, slots=True)
class SglangSchedulerSpec:
    """SGLang's scheduler knobs under their own names (SGLang 0.5.23, `sglang serve`).

    Sizes are in tokens, save `num_pages`. `context_length` bounds prompt plus output, the KV pool
    taken into account (`max_req_len`). `chunked_prefill_size` 0 or less turns chunking off;
    `max_queued_requests` and `prefill_max_requests` 0 mean unlimited.

    `classic` selects the rules of 0.5.5 to 0.5.9 where 0.5.23 differs: a length cap is not
    foreseen (one overshoot step per sequence under overlap), the admission check reserves no page,
    `max_prefill_tokens` also bounds chunked batches, requests of fixed length get the new-token
    ratio too, leaves are not split where the prompt ends, and waiting prefixes are not refreshed.
    """

    max_running_requests: int
    context_length: int
    num_pages: int
    page_size: int = 1
    chunked_prefill_size: int = 8192
    max_prefill_tokens: int = 16384
    prefill_max_requests: int = 0
    schedule_policy: str = "fcfs"
    schedule_conservativeness: float = 1.0
    enable_mixed_chunk: bool = False
    enable_overlap: bool = True
    enable_radix_cache: bool = True
    radix_eviction_policy: str = "lru"
    enable_priority_scheduling: bool = False
    disable_priority_preemption: bool = False
    priority_scheduling_preemption_threshold: int = 10
    schedule_low_priority_values_first: bool = False
    retraction_policy: str = "length"
    max_queued_requests: int = 0
    random_seed: int = 0
    classic: bool = False
    num_reserved_decode_tokens: int = 512
    """Kept free per running request when a prompt from elsewhere gets its pages."""
    host_tier: HostTierSpec | None = None
    """A tier under the GPU, if there is one."""
    enable_kv_cache_events: bool = False
    """Whether the cache records its changes (`serving.kv_recording`)."""
    encoder_cache_tokens: int = 0
    """Tokens of encoded images that are kept; 0 for a model that takes text only."""
    speculation: SpeculationSpec | None = None
    pipeline_stages: int = 1
    """SGLang's pp_size."""
    pp_max_micro_batch_size: int = 0
    """Running requests of one micro-batch; 0 means an equal share of all."""
    pp_async_batch_depth: int = 0
    """Micro-batches beyond one for each stage."""

    @property
    def block_size(self) -> int:
        """The page size, under the name routers and metrics use for any engine."""
        return self.page_size

    @property
    def num_blocks(self) -> int:
        """The pages, likewise."""
        return self.num_pages

    @property
    def max_model_len(self) -> int:
        """The bound on prompt plus output, likewise."""
        return self.context_length

    @property
    def max_num_queued_reqs(self) -> int:
        """The bound on waiting requests, likewise."""
        return self.max_queued_requests

    @property
    def enable_prefix_caching(self) -> bool:
        """Whether there is a radix tree, likewise."""
        return self.enable_radix_cache

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is decided while the one before it executes, likewise."""
        return self.enable_overlap


AnySchedulerSpec = SchedulerSpec | SglangSchedulerSpec
"""The scheduler of any engine; its type says which."""
