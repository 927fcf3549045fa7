"""Which engines of a resolved cluster publish KV events, and where."""

from collections.abc import Mapping
from dataclasses import replace

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.kv_events import (
    KvSource,
    check_dialect,
    load_endpoint,
    placed,
    ports_of_worker,
    read_also,
    read_kv_events,
)
from frontier_mock.config.resolve import ResolvedCluster, ResolvedWorker
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.wire.kv_hashes import DEFAULT_SEED


def kv_sources(
    cluster: ResolvedCluster,
    environment: Mapping[str, str],
    dialect: str | None = None,
    also: str | None = None,
) -> dict[int, KvSource]:
    """The publisher of every engine that has one, by engine number.

    `dialect` replaces the engine's own; `also` is --kv-events-also. Of `environment`,
    PYTHONHASHSEED and VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES count, as for vLLM. Raises ConfigError.
    """
    check_dialect(dialect)
    sources: dict[int, KvSource] = {}
    engine = 0
    for worker in cluster.workers:
        for rank in range(worker.spec.dp_size):
            source = _source(worker, rank, environment, dialect)
            if source is not None and also is not None:
                second, form = read_also(also, source.dialect)
                number = worker.place * ports_of_worker(second, worker.spec.dp_size, load=False)
                name, model = worker.spec.name, worker.spec.served_model_name
                beside = (placed(second, name, model, number, rank), form)
                source = replace(source, also=(beside,))
            if source is not None:
                sources[engine] = source
            engine += 1
    return sources


def check_oracle(cluster: ResolvedCluster) -> None:
    """Raise ConfigError unless one prompt can be looked up on every worker."""
    sizes = {worker.spec.scheduler.block_size: worker.spec.name for worker in cluster.workers}
    if len(sizes) > 1:
        words = ", ".join(f"{name} {size}" for size, name in sizes.items())
        raise ConfigError(f"oracle: workers differ in block size ({words}); allowed: one for all")


def _source(
    worker: ResolvedWorker, rank: int, environment: Mapping[str, str], dialect: str | None
) -> KvSource | None:
    spec = worker.spec
    if not spec.scheduler.enable_kv_cache_events:
        return None
    if worker.sglang is not None:
        return _sglang_source(worker, worker.sglang, rank, dialect)
    given = read_kv_events(worker.args.kv_events_config)
    number = worker.place * ports_of_worker(given, spec.dp_size, load=False)
    config = placed(given, spec.name, spec.served_model_name, number, rank)
    size = spec.scheduler.block_size
    algorithm = worker.args.prefix_caching_hash_algo
    seed = environment.get("PYTHONHASHSEED")
    if seed is None:
        # vLLM draws one per process where hashes could be forged; ours differ by worker and repeat.
        seed = DEFAULT_SEED if algorithm.startswith("sha256") else f"{worker.args.seed}/{spec.name}"
    whole = environment.get("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "1")
    if whole not in ("0", "1"):
        raise ConfigError(
            f"environment variable VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES: {shown(whole)}; "
            "allowed: 0, 1"
        )
    return KvSource(config, rank, size, dialect or "vllm-map", algorithm, seed, whole == "0")


def _sglang_source(
    worker: ResolvedWorker, args: SglangArgs, rank: int, dialect: str | None
) -> KvSource:
    spec, flags = worker.spec, dict(args.given)
    assert isinstance(spec.scheduler, SglangSchedulerSpec)
    given = read_kv_events(flags["kv_events_config"], sglang=True)
    asked = flags.get("load_publish_endpoint")
    load = None if asked is None else str(asked)
    ranks = spec.dp_size
    auto = load is not None and load.strip().lower() == "auto"
    number = worker.place * ports_of_worker(given, ranks, load=auto)
    first = placed(given, spec.name, spec.served_model_name, number, 0)
    return KvSource(
        placed(given, spec.name, spec.served_model_name, number, rank),
        rank,
        spec.scheduler.page_size,
        dialect or "sglang-map",
        load_endpoint=load_endpoint(first, load, worker.place, ranks, rank),
        max_running_requests=spec.scheduler.max_running_requests,
    )
