"""The scheduler's gauges and the buckets of SGLang 0.5.23's histograms, as data."""

TTFT_BUCKETS_S = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
E2E_BUCKETS_S = (*TTFT_BUCKETS_S, 600, 1200, 1800, 2400)
ITL_BUCKETS_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060),
    *(0.080, 0.100, 0.200, 0.400, 0.600, 0.800, 1.000, 2.000, 4.000, 6.000, 8.000),
)
QUEUE_BUCKETS_S = (
    *(0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15),
    *range(20, 100, 10),
    *range(100, 1000, 100),
    *(1000, 1200, 1400, 1600, 1800, 2000, 2500, 3000),
)
STAGE_BUCKETS_S = tuple(0.001 * 1.62**i for i in range(30))
TOKEN_BUCKETS = (
    *(100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000),
    *(12500, 15000, 17500, 20000, 22500, 25000, 27500, 30000, 35000, 40000, 60000, 80000),
    *(100000, 200000, 300000, 400000, 600000, 800000, 1000000, 1100000),
)
LOADS_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)

GAUGES = """
num_running_reqs|The number of running requests.
num_queue_reqs|The number of requests in the waiting queue.
num_grammar_queue_reqs|The number of requests in the grammar waiting queue.
gen_throughput|The generation throughput (token/s).
cache_hit_rate|The prefix cache hit rate.
decode_sum_seq_lens|The sum of all sequence lengths in decode.
token_usage|The token usage.
full_token_usage|The token usage for full attention layers.
swa_token_usage|The token usage for SWA layers.
mamba_usage|The token usage for Mamba layers.
num_used_tokens|The number of used tokens.
kv_available_tokens|Number of free token slots in the KV cache pool.
kv_evictable_tokens|Number of evictable (radix-cached) token slots in the KV cache pool.
kv_used_tokens|Number of actively used token slots in the KV cache pool.
swa_available_tokens|Number of free token slots in the SWA pool (hybrid-SWA only).
swa_evictable_tokens|Number of evictable (radix-cached) token slots in the SWA pool.
swa_used_tokens|Number of actively used token slots in the SWA pool.
mamba_available_tokens|Number of free state slots in the mamba SSM pool (hybrid-SSM only).
mamba_evictable_tokens|Number of evictable (radix-cached) state slots in the mamba SSM pool.
mamba_used_tokens|Number of actively used state slots in the mamba SSM pool.
spec_accept_length|Mean acceptance length of speculative decoding (accepted drafts + bonus token \
per forward).
spec_accept_rate|Speculative acceptance rate (`accepted drafts / proposed drafts` in batch).
spec_cap_length|Mean DSpark confidence-scheduled verify window per verify step, incl the bonus \
slot (0 when no cap is scheduled).
spec_block_accept_length|Mean uncapped full-block accept length per verify step (accept + \
cap-trimmed drafts; exact only in DSpark cap-accept mode).
spec_num_steps|Currently active speculative_num_steps.
spec_num_draft_tokens|Currently active speculative_num_draft_tokens (decouples from steps under \
topk>1).
num_prefill_bootstrap_queue_reqs|The number of requests in the prefill bootstrap queue.
num_prefill_inflight_queue_reqs|The number of requests in the prefill inflight queue.
num_decode_prealloc_queue_reqs|The number of requests in the decode prealloc queue.
num_decode_transfer_queue_reqs|The number of requests in the decode transfer queue.
num_decode_host_receive_queue_reqs|Requests in the decode transfer queue receiving into host \
memory or waiting for device admission.
num_decode_deferred_kv_release_reqs|The number of failed decode requests whose KV allocations are \
held pending transfer drain acknowledgement or timeout.
pending_prealloc_token_usage|The token usage for pending preallocated tokens (not preallocated yet).
utilization|The utilization.
fwd_occupancy|Forward pass GPU occupancy percentage.
new_token_ratio|The new token ratio.
is_cuda_graph|Whether the batch is using CUDA graph.
num_unique_running_routing_keys|Number of unique routing keys in running batch.
max_total_num_tokens|Maximum total number of tokens in the KV cache pool.
weight_memory_usage_gb|Memory used by model weights in GB.
kv_cache_memory_usage_gb|Memory used by the KV cache pools in GB.
page_size|KV cache page size in tokens.
num_pages|Number of KV cache pages.
context_len|Maximum context length.
"""
"""Gauges of the scheduler: name and help text."""
