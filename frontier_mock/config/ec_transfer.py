"""`--ec-transfer-config`: vLLM servers that share embeddings of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.wire.embeddings import EmbeddingPort, EmbeddingStore, SharedMemory

_FLAG: Final = "argument --ec-transfer-config"
CONNECTOR: Final = "ECExampleConnector"
_OTHERS: Final = ("ECMooncakeConnector", "ECCPUConnector")
ROLES: Final = ("ec_producer", "ec_consumer", "ec_both")
_KEYS: Final = (
    "ec_connector",
    "engine_id",
    "ec_buffer_device",
    "ec_buffer_size",
    "ec_role",
    "ec_ip",
    "ec_port",
    "ec_connector_extra_config",
    "ec_connector_module_path",
)
_FILE: Final = "encoder_cache.safetensors"
_EMPTY: Final = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without a tensor: what matters of an embedding is that it is there."""


@dataclass(frozen=True, slots=True)
class EcTransferArgs:
    """`--ec-transfer-config`, checked. `path` "" is a store of this process alone."""

    role: str
    path: str = ""

    @property
    def encodes_only(self) -> bool:
        """Whether the server has no language model to run."""
        return self.role == "ec_producer"


class SharedFiles:
    """A store of files that any process finds, where vLLM's connector has its own."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def has(self, name: str) -> bool:
        """See `EmbeddingStore`."""
        return (self._path / name / _FILE).is_file()

    def keep(self, name: str) -> None:
        """See `EmbeddingStore`. Raises OSError."""
        folder = self._path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_bytes(_EMPTY)


def read_ec_transfer(config: object) -> EcTransferArgs | None:
    """What `--ec-transfer-config` says; None without it. Raises ConfigError."""
    if config is None:
        return None
    if not isinstance(config, dict):
        raise ConfigError(f"{_FLAG}: {shown(config)} is not a JSON object")
    for key in config:
        if key not in _KEYS:
            raise ConfigError(f"{_FLAG}: unknown key {shown(key)}{nearest(str(key), _KEYS)}")
    role, connector = config.get("ec_role"), config.get("ec_connector")
    if role not in (*ROLES, None) or (role is None and connector is not None):
        raise ConfigError(f"{_FLAG}: ec_role: {shown(role)}; allowed: {', '.join(ROLES)}")
    if connector is None:
        return None
    if connector != CONNECTOR:
        hint = " is not simulated" if connector in _OTHERS else ""
        raise ConfigError(f"{_FLAG}: ec_connector: {shown(connector)}{hint}; allowed: {CONNECTOR}")
    extra = config.get("ec_connector_extra_config") or {}
    path = extra.get("shared_storage_path", "") if isinstance(extra, dict) else None
    if not isinstance(path, str):
        raise ConfigError(f"{_FLAG}: shared_storage_path: {shown(path)} is not a path")
    return EcTransferArgs(str(role), path)


def embedding_port(
    args: EcTransferArgs | None, stores: dict[str, EmbeddingStore]
) -> EmbeddingPort | None:
    """A server's part in the sharing; `stores` are those of the other servers, by path."""
    if args is None:
        return None
    if args.path not in stores:
        stores[args.path] = SharedFiles(args.path) if args.path else SharedMemory()
    role = args.role
    return EmbeddingPort(stores[args.path], role != "ec_consumer", role != "ec_producer")


def ec_transfer_of(value: Mapping[str, Any]) -> EcTransferArgs:
    """The arguments out of a journal."""
    return EcTransferArgs(**value)
