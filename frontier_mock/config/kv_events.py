"""--kv-events-config of both engines: where each engine publishes its KV events, and how.

Keys and defaults are vLLM 0.33's `config/kv_events.py` and SGLang 0.5.23's `KVEventsConfig`. vLLM
publishes if `enable_kv_cache_events` is set, SGLang if `publisher` is "zmq".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.wire.kv_events import DIALECTS
from frontier_mock.wire.kv_hashes import DEFAULT_SEED
from frontier_mock.wire.tokenizer import Json

OPTION: Final = "--kv-events-config"
PUBLISHERS: Final = ("null", "zmq")


@dataclass(frozen=True, slots=True)
class KvEventsConfig:
    """One publisher, under the engines' own names. `bind` and `format` are SGLang's alone."""

    enable_kv_cache_events: bool = False
    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""
    bind: bool | None = None
    format: str = "default"

    @property
    def publishes(self) -> bool:
        """Whether there is a socket at all."""
        return self.enable_kv_cache_events and self.publisher == "zmq"

    @property
    def binds(self) -> bool:
        """Whether the publisher waits for subscribers, or goes to one that waits for publishers."""
        if self.bind is not None:
            return self.bind
        wild = ("*", "::", "0.0.0.0")
        return any(word in self.endpoint for word in wild) or self.endpoint.startswith(
            ("ipc://", "inproc://")
        )


@dataclass(frozen=True, slots=True)
class KvSource:
    """What one engine publishes: its socket, its data-parallel rank, hashes and dialect.

    `hash_algorithm` is vLLM's --prefix-caching-hash-algo, None for SGLang's hashes; `hash_seed` the
    string its chain begins with; `as_bytes` is VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0.
    `load_endpoint` is where an SGLang engine, of so many running requests, publishes its load.
    `also` are further sockets for the same events, with the dialect of each.
    """

    config: KvEventsConfig
    rank: int
    block_tokens: int
    dialect: str
    hash_algorithm: str | None = None
    hash_seed: str = DEFAULT_SEED
    as_bytes: bool = False
    load_endpoint: str | None = None
    max_running_requests: int = 0
    also: tuple[tuple[KvEventsConfig, str], ...] = ()


def read_also(text: str, own_dialect: str) -> tuple[KvEventsConfig, str]:
    """The value of --kv-events-also: another publisher's keys, and its `dialect`.

    Raises ConfigError.
    """
    try:
        given = json.loads(text)
        if not isinstance(given, dict) or "endpoint" not in given:
            raise ValueError
    except (ValueError, RecursionError):
        raise ConfigError(
            f"kv-events-also: {shown(text)} is not a JSON object with an endpoint"
        ) from None
    dialect = given.pop("dialect", own_dialect)
    if dialect not in DIALECTS:
        allowed = ", ".join(DIALECTS)
        raise ConfigError(f"kv-events-also: dialect: {shown(dialect)}; allowed: {allowed}")
    return read_kv_events({**given, "enable_kv_cache_events": True}), dialect


_TEXTS = ("publisher", "endpoint", "replay_endpoint", "topic", "format")
_COUNTS = ("buffer_steps", "hwm", "max_queue_size")
_FLAGS = ("enable_kv_cache_events", "bind")
_SGLANG_ONLY = ("bind", "format")


def read_kv_events(given: object, *, sglang: bool = False) -> KvEventsConfig:
    """The value of --kv-events-config: a JSON object, or its text. Raises ConfigError."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise ConfigError(f"argument {OPTION}: {shown(given)} is not JSON") from None
    if not isinstance(given, Mapping):
        raise ConfigError(f"argument {OPTION}: {shown(given)} is not a JSON object")
    own = ("enable_kv_cache_events",) if sglang else _SGLANG_ONLY
    keys = [key for key in (*_TEXTS, *_COUNTS, *_FLAGS) if key not in own]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in keys:
            raise ConfigError(
                f"argument {OPTION}: unknown key {shown(key)}{nearest(str(key), keys)}; "
                f"allowed: {', '.join(keys)}"
            )
        if value is None and key in ("publisher", "replay_endpoint", "bind"):
            continue
        values[key] = _checked(key, value)
    if sglang:
        values["enable_kv_cache_events"] = values.get("publisher", "null") == "zmq"
    elif "publisher" not in values and values.get("enable_kv_cache_events"):
        values["publisher"] = "zmq"
    return KvEventsConfig(**values)


def _checked(key: str, value: object) -> object:
    if key in _FLAGS and not isinstance(value, bool):
        raise ConfigError(f"argument {OPTION}: {key}: {shown(value)} is not true or false")
    if key in _COUNTS and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ConfigError(f"argument {OPTION}: {key}: {shown(value)} is not a whole number >= 0")
    if key in _TEXTS and not isinstance(value, str):
        raise ConfigError(f"argument {OPTION}: {key}: {shown(value)} is not text")
    if key == "publisher" and value not in PUBLISHERS:
        allowed = ", ".join(PUBLISHERS)
        raise ConfigError(f"argument {OPTION}: publisher: {shown(value)}; allowed: {allowed}")
    if key == "format" and value != "default":
        raise ConfigError(f"argument {OPTION}: format: {shown(value)} is not simulated: default is")
    if key.endswith("endpoint"):
        assert isinstance(value, str)
        _check_endpoint(key, value)
    return value


def _check_endpoint(key: str, endpoint: str) -> None:
    scheme, separator, rest = endpoint.partition("://")
    if separator and scheme in ("ipc", "inproc") and rest:
        return
    port = rest.rpartition(":")[2]
    if scheme != "tcp" or not rest or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"argument {OPTION}: {key}: {shown(endpoint)}; allowed: tcp://HOST:PORT, ipc://PATH"
        )


def placed(config: KvEventsConfig, name: str, model: str, number: int, rank: int) -> KvEventsConfig:
    """The publisher of data-parallel rank `rank` of the server `name`.

    Ranks count up from the given ports, as in both engines. `number` is how many engines of this
    process's scenario come before the server on the same ports: real servers have hosts of their
    own, ours share one. It does not count for a publisher that connects to its consumer. {worker}
    and {model} in the topic stand for the names. Raises ConfigError for a port beyond 65535.
    """
    ports = number + rank if config.binds else rank
    replay = config.replay_endpoint
    return replace(
        config,
        endpoint=_moved(config.endpoint, ports),
        replay_endpoint=None if replay is None else _moved(replay, number + rank),
        topic=config.topic.replace("{worker}", name).replace("{model}", model),
    )


def _moved(endpoint: str, ports: int) -> str:
    if not ports:
        return endpoint
    if endpoint.startswith("inproc://"):
        return f"{endpoint}_dp{ports}"
    if endpoint.startswith("ipc://"):
        return f"{endpoint}-{ports}"
    before, _, port = endpoint.rpartition(":")
    moved = int(port) + ports if int(port) else 0
    if moved > 65535:
        raise ConfigError(f"argument {OPTION}: {endpoint}: port {moved} is beyond 65535")
    return f"{before}:{moved}"


def ports_of_worker(config: KvEventsConfig, ranks: int, *, load: bool) -> int:
    """How many ports one server takes, from its first event port on.

    Replay ports that follow the event ports directly, and SGLang's load ports (which come after
    both), are one range with them: equal workers are placed that far apart.
    """
    port, replay = port_of(config.endpoint), port_of(config.replay_endpoint)
    adjacent = port is not None and replay == port + ranks
    return ranks * (1 + adjacent + load)


def load_endpoint(
    config: KvEventsConfig, given: str | None, number: int, ranks: int, rank: int
) -> str | None:
    """Where rank `rank` publishes its load, for SGLang's --load-publish-endpoint `given`.

    `config` is that of the server's rank 0, already placed. Raises ConfigError for an address that
    cannot be bound.
    """
    if given is None or given.strip().lower() in ("", "off"):
        return None
    if given.strip().lower() == "auto":
        host, port = config.endpoint.rpartition(":")[0], port_of(config.endpoint)
        if port is None or not config.binds:
            raise ConfigError(
                f"argument --load-publish-endpoint: auto needs a {OPTION} endpoint that is bound "
                f"over tcp, which {config.endpoint} is not"
            )
        base = port + ranks if port else 0
        replay = port_of(config.replay_endpoint)
        if base and replay is not None and base < replay + ranks and replay < base + ranks:
            base = replay + ranks
    else:
        _check_endpoint("load-publish-endpoint", given)
        host, base = given.rpartition(":")[0], port_of(given) or 0
        base += number * ranks if base else 0
    port = base + rank if base else 0
    if port > 65535:
        raise ConfigError(f"argument --load-publish-endpoint: port {port} is beyond 65535")
    return f"{host}:{port}"


def port_of(endpoint: str | None) -> int | None:
    """The port of a tcp endpoint, None for any other."""
    if endpoint is None or not endpoint.startswith("tcp://"):
        return None
    return int(endpoint.rpartition(":")[2])


def described(config: KvEventsConfig, block_tokens: int, ranks: int, load: str | None) -> Json:
    """SGLang's /server_info entry `kv_events` for a server whose rank 0 publishes so."""
    port = port_of(config.endpoint)
    if not port:
        return None
    about: dict[str, Json] = {
        "publisher": config.publisher,
        "endpoint_host": config.endpoint.removeprefix("tcp://").rpartition(":")[0],
        "endpoint_port_base": port,
        "topic": config.topic,
        "block_size": block_tokens,
        "dp_size": ranks,
    }
    if load is not None:
        about |= {"load_endpoint_port_base": port_of(load), "load_topic": "load"}
    replay = port_of(config.replay_endpoint)
    if replay:
        about["replay_endpoint_port_base"] = replay
    return about


def check_dialect(dialect: str | None) -> None:
    """Raise ConfigError unless `dialect` is one we write, or None for the engine's own."""
    if dialect is not None and dialect not in DIALECTS:
        allowed = ", ".join(DIALECTS)
        raise ConfigError(f"kv-event-dialect: {shown(dialect)}; allowed: {allowed}")
