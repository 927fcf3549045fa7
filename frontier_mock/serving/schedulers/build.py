"""Which scheduler and cache a worker gets: the type of its spec says."""

from frontier_mock.core.events import EventLog
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.kv_recording import RecordingKvCache, RecordingRadixCache
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.schedulers.protocol import Cache, Scheduler
from frontier_mock.serving.schedulers.sglang import SglangScheduler
from frontier_mock.serving.schedulers.sglang_lanes import LanedSglangScheduler
from frontier_mock.serving.schedulers.vllm import VllmScheduler
from frontier_mock.serving.schedulers.vllm_lanes import LanedVllmScheduler
from frontier_mock.serving.specs import AnySchedulerSpec, SglangSchedulerSpec
from frontier_mock.serving.tiers.host_radix import HostRadixCache
from frontier_mock.serving.tiers.stored_radix import StoredRadixCache


def build_scheduler(spec: AnySchedulerSpec, log: EventLog, worker: int) -> tuple[Scheduler, Cache]:
    """The scheduler `spec` describes, and its cache.

    Raises ValueError for one that could never run a sequence of its own maximum length.
    """
    longest = spec.max_model_len
    if isinstance(spec, SglangSchedulerSpec):
        radix = _radix(spec)
        # Admission wants room beyond the sequence itself, see SglangScheduler.enqueue.
        reserve = 0 if spec.speculation is None else spec.speculation.reserve
        if (spec.num_pages - 4) * spec.page_size - reserve < longest:
            raise ValueError(
                f"num_pages={spec.num_pages} of {spec.page_size} tokens cannot hold one sequence "
                f"of context_length={longest} and four pages"
            )
        one = SglangScheduler if spec.pipeline_stages == 1 else LanedSglangScheduler
        return one(spec, radix, log, worker), radix
    if spec.num_blocks * spec.block_size < longest:
        raise ValueError(
            f"num_blocks={spec.num_blocks} of {spec.block_size} tokens cannot hold "
            f"one sequence of max_model_len={longest}"
        )
    if not spec.enable_chunked_prefill and spec.max_num_batched_tokens < longest:
        raise ValueError(
            f"max_num_batched_tokens={spec.max_num_batched_tokens} must be at least "
            f"max_model_len={longest} without chunked prefill"
        )
    kv_class = RecordingKvCache if spec.enable_kv_cache_events else KvCache
    kv = kv_class(spec.num_blocks, spec.block_size, spec.enable_prefix_caching)
    kind = VllmScheduler if spec.pipeline_stages == 1 else LanedVllmScheduler
    return kind(spec, kv, log, worker), kv


def _radix(spec: SglangSchedulerSpec) -> RadixCache:
    """The tree of an SGLang engine."""
    if spec.host_tier is not None:
        if spec.enable_kv_cache_events or not spec.enable_radix_cache:
            raise ValueError("a host tier needs a radix cache, one without KV events")
        policy = spec.radix_eviction_policy
        kind = HostRadixCache if spec.host_tier.storage is None else StoredRadixCache
        return kind(spec.num_pages, spec.page_size, policy, spec.host_tier)
    radix_class = RecordingRadixCache if spec.enable_kv_cache_events else RadixCache
    return radix_class(
        spec.num_pages, spec.page_size, spec.enable_radix_cache, spec.radix_eviction_policy
    )
