"""What SGLang says about storage behind its host tier: `/hicache/storage-backend`.

Source: SGLang 0.5.23, entrypoints/http_server.py, managers/scheduler.py and
mem_cache/unified_cache/storage_attachment.py.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from frontier_mock.serving.tiers.specs import PREFETCH_POLICIES
from frontier_mock.wire.fields import Check, string, text_field
from frontier_mock.wire.sglang.control import read_fields

CLEARED: Final = "Hierarchical cache storage backend cleared.\n"
NO_ADMIN_KEY: Final = (
    "This endpoint requires admin API key, but this server was started without one "
    "(admin-api-key). Restart with --admin-api-key to enable."
)
NO_HOST_TIER: Final = "Hierarchical cache is not enabled."
ATTACHED: Final = "Attached HiCache storage backend successfully."
DETACHED: Final = "Detached HiCache storage backend successfully."
UPDATED: Final = "HiCache storage backend already enabled with same backend; policies updated."

SHOWN: Final = (
    "hicache_storage_backend",
    "hicache_storage_backend_extra_config",
    "hicache_storage_prefetch_policy",
    "hicache_write_policy",
)
"""What GET tells of the server's arguments."""

_WRITE_POLICIES: Final = ("write_back", "write_through", "write_through_selective")

_ATTACH: Mapping[str, Check] = {
    "hicache_storage_backend": string,
    "hicache_storage_backend_extra_config_json": string,
    "hicache_storage_prefetch_policy": string,
    "hicache_write_policy": string,
}


class Attachment(NamedTuple):
    """A body of PUT; empty where nothing is said."""

    backend: str
    extra_config: str
    prefetch_policy: str
    write_policy: str


def read_attachment(body: bytes) -> Attachment:
    """The body of PUT. Raises SglangError."""
    fields = read_fields(body, _ATTACH, "hicache_storage_backend")
    return Attachment(*[text_field(fields, name) or "" for name in _ATTACH])


def invalid(asked: Attachment) -> str:
    """Why its policies are none of SGLang's, if so."""
    for name, value, allowed in (
        ("hicache_storage_prefetch_policy", asked.prefetch_policy, PREFETCH_POLICIES),
        ("hicache_write_policy", asked.write_policy, _WRITE_POLICIES),
    ):
        if value and value not in allowed:
            return f"Invalid {name}: {value!r}. Expected one of {list(allowed)}."
    return ""


def busy(verb: str, waiting: int, running: int) -> str:
    """Why nothing is attached or detached now."""
    return f"Reject {verb}: scheduler is not idle. #queue-req={waiting} #running-req={running}"


def other_backend(current: str, asked: str) -> str:
    """Why another kind of storage is not attached."""
    return (
        f"HiCache storage backend is already enabled with backend '{current}'. Cannot attach "
        f"different backend '{asked}'. Detach first."
    )


def not_simulated(backend: str) -> str:
    """Why what the server was not started with is not attached; ours, not SGLang's."""
    return (
        f"Failed to attach storage backend '{backend}': not simulated; start with "
        f"--hicache-storage-backend {backend}"
    )


def outcome(done: bool, verb: str, message: str) -> str:
    """The whole answer: `verb` is "attach" or "detach"."""
    word = "HiCache storage backend"
    first = f"{word} {verb}ed.\n" if done else f"Failed to {verb} {word}.\n"
    return first + (f"{message}\n" if message else "")
