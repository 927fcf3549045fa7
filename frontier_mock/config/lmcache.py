"""LMCache between a prefill and a decode engine: `lmcache.pd_*` of a connector's extra config.

LMCache has these in a file of its own or in its environment, and takes them under these names from
`kv_connector_extra_config` as well, the only place read here: workers of one process share the
environment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.kv_offload import LMCACHE
from frontier_mock.config.resolve import ResolvedWorker
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.lmcache import Sender

_FLAG: Final = "argument --kv-transfer-config: kv_connector_extra_config"
_INIT_PORT: Final = 7300
"""pd_peer_init_port of LMCache's example (disagg_prefill/configs/lmcache-decoder-config.yaml)."""


def with_receivers(
    ports: Sequence[KvPort | None], workers: Sequence[ResolvedWorker]
) -> list[KvPort | None]:
    """The same ports, LMCache's senders told where each receiver of this process listens.

    Raises ConfigError for ports that are none or taken twice, and engines that cannot share KV.
    """
    receivers: dict[int, int] = {}
    blocks: set[int] = set()
    first = 0
    for worker in workers:
        role = _role(worker)
        if role:
            blocks.add(worker.spec.scheduler.block_size)
        if role == "kv_consumer":
            if worker.spec.dp_size > 1:
                raise ConfigError(
                    f"{LMCACHE[0]}: a kv_consumer with data parallel size {worker.spec.dp_size} "
                    "is not simulated; allowed: 1"
                )
            tp = worker.spec.step.parallel.tp
            port = _init_port(_extra(worker)) + worker.place * tp
            if port in receivers:
                raise ConfigError(f"{_FLAG}: lmcache.pd_peer_init_port: {port} is taken twice")
            receivers[port] = first
        first += worker.spec.dp_size
    if len(blocks) > 1:
        raise ConfigError(f"{LMCACHE[0]}: block sizes {sorted(blocks)} differ; allowed: one")
    return [
        replace(port, lmcache=Sender(receivers, _proxy(_extra(worker))))
        if port is not None and _role(worker) == "kv_producer"
        else port
        for port, worker in zip(ports, workers, strict=True)
    ]


def _role(worker: ResolvedWorker) -> str:
    """The role in LMCache's transfers; "" if it has no part in them."""
    args = worker.args.kv_transfer_config
    if args is None or args.connector != LMCACHE[0] or args.role == "kv_both":
        return ""
    return args.role


def _extra(worker: ResolvedWorker) -> Mapping[str, Any]:
    args = worker.args.kv_transfer_config
    return {} if args is None else args.extra


def _init_port(extra: Mapping[str, Any]) -> int:
    """The first rank's; LMCache takes a list, a number or a list in a string."""
    given = extra.get("lmcache.pd_peer_init_port", _INIT_PORT)
    first = given[0] if isinstance(given, list) and given else given
    if isinstance(first, str):
        first = first.split(",")[0].strip()
    return _port("lmcache.pd_peer_init_port", given, first)


def _proxy(extra: Mapping[str, Any]) -> str:
    """Where the proxy wants to hear what has been sent; "" if nowhere."""
    given = extra.get("lmcache.pd_proxy_port")
    if given is None:
        return ""
    host = extra.get("lmcache.pd_proxy_host", "localhost")
    return f"{host}:{_port('lmcache.pd_proxy_port', given, given)}"


def _port(key: str, given: object, first: object) -> int:
    text = str(first)
    if isinstance(first, bool) or not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"{_FLAG}: {key}: {shown(given)}; allowed: a port")
    return int(text)
