"""What a server may still do that the version it impersonates has given up, by name."""

REMOVED_ROUTES = "removed-routes"
WEIGHT_SESSIONS = "weight-sessions"
SLIME_ROUTES = "slime-routes"
CACHE_CONFIG_INFO = "cache-config-info"
OLD_METRIC_NAMES = "old-metric-names"

COMPAT = {
    REMOVED_ROUTES: "SGLang: GET /get_load and /get_weight_version, which 0.5.23 has no more",
    WEIGHT_SESSIONS: "SGLang: weights may be updated without /begin_weight_update before",
    SLIME_ROUTES: "SGLang: POST /pull_weights and /post_process_weights, which slime patches in",
    CACHE_CONFIG_INFO: "SGLang: the gauge sglang:cache_config_info, which llm-d looks for",
    OLD_METRIC_NAMES: "vLLM: metrics also under names it gave up, as --sim-old-metric-names",
}
"""Every switch, and what it brings back."""

DEFAULT_COMPAT = (REMOVED_ROUTES, WEIGHT_SESSIONS)
"""What routers and trainers in use call, and nobody misses the refusal of."""
