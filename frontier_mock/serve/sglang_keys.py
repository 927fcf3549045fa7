"""Who may call what: --api-key and --admin-api-key (SGLang 0.5.23 utils/auth.py)."""

import hmac
from dataclasses import dataclass

_OPEN = ("/health", "/ready", "/metrics")
"""Prefixes that are open whatever the keys."""

ADMIN_OPTIONAL = frozenset(
    (
        *("/flush_cache", "/abort_request", "/set_internal_state", "/freeze_gc", "/slow_down"),
        *("/add_external_corpus", "/remove_external_corpus", "/list_external_corpora"),
        *("/start_profile", "/stop_profile", "/set_trace_level", "/configure_logging"),
        *("/start_expert_distribution_record", "/stop_expert_distribution_record"),
        *("/dump_expert_distribution_record", "/weights_checker", "/pd_role_switch"),
        *("/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_ipc"),
        *("/update_weights_from_distributed", "/update_weight_version", "/get_weights_by_name"),
        *("/init_weights_update_group", "/destroy_weights_update_group", "/begin_weight_update"),
        *("/end_weight_update", "/init_weights_send_group_for_remote_instance"),
        *("/send_weights_to_remote_instance", "/remote_instance_transfer_engine_info"),
        *("/get_remote_instance_transfer_engine_info", "/pause_generation"),
        *("/release_memory_occupation", "/resume_memory_occupation", "/continue_generation"),
        *("/load_lora_adapter", "/load_lora_adapter_from_tensors", "/unload_lora_adapter"),
        *("/open_session", "/close_session", "/hicache/storage-backend/clear"),
        "/hicache/storage-backend",
        *("/get_hicache_l3_cache_layout", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
    )
)
"""Routes for which the admin key counts, where there is one."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The two keys, None where unset."""

    api_key: str | None = None
    admin_api_key: str | None = None

    def refusal(self, method: str, path: str, authorization: str | None) -> int:
        """0 if the caller may, else the status that says why not."""
        if method == "OPTIONS" or path.startswith(_OPEN):
            return 0
        wanted = self.api_key
        if path in ADMIN_OPTIONAL and self.admin_api_key:
            wanted = self.admin_api_key
        if not wanted or _bears(authorization, wanted):
            return 0
        return 401

    def forced_refusal(self, authorization: str | None) -> int:
        """The same for routes that exist for administrators only."""
        if not self.admin_api_key:
            return 403
        return 0 if _bears(authorization, self.admin_api_key) else 401


def _bears(authorization: str | None, wanted: str) -> bool:
    scheme, _, token = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), wanted.encode())
