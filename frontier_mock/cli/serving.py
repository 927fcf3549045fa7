"""What `vllm serve` and `up` share: from a resolved cluster to a running server."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from frontier_mock.cli.engine_logs import log_settings
from frontier_mock.cli.options import warn_without_effect
from frontier_mock.config.compat import read_compat
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.journals import journal_head
from frontier_mock.config.kv_sources import check_oracle, kv_sources
from frontier_mock.config.resolve import ResolvedCluster, ResolvedWorker, cluster_of
from frontier_mock.config.served import served_models, sized, tokenizer_source
from frontier_mock.config.vllm_flags import SimulatorArgs, VllmArgs
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.specs import StepSpec
from frontier_mock.drive.pace import ClockSpec, parse_clock
from frontier_mock.serve.grpc_settings import (
    SGLANG_SCHEDULER,
    VLLM_CONTROL,
    VLLM_ENGINE,
    VLLM_INFERENCE,
    GrpcSpec,
)
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ServeSpec, run_cluster
from frontier_mock.serving.specs import AnySchedulerSpec
from frontier_mock.wire.compat import OLD_METRIC_NAMES
from frontier_mock.wire.eos import EosModel


def serve(cluster: ResolvedCluster, sim: SimulatorArgs, scenario: str) -> int:
    """Serve until told to stop; returns the exit code. Raises ConfigError."""
    clock_server = sim.clock_server
    if clock_server is not None and parse_clock(sim.clock)[0] != "warp":
        raise ConfigError(f"clock: {shown(sim.clock)} cannot be shared; with clock-server: warp")
    warn_without_effect([flag for worker in cluster.workers for flag in worker.without_effect])
    if sim.oracle:
        check_oracle(cluster)
    cluster = with_compat(cluster, sim)
    http, host = front_end(cluster, os.environ)
    for line in capacity_lines(cluster):
        print(line, file=sys.stderr)
    models = sized(served_models(cluster, eos_model(sim), os.environ), sim.image_size)
    spec = ServeSpec(
        cluster=cluster.spec,
        costs=cluster.costs,
        served=models,
        clock=clock_spec(sim),
        http=http,
        scenario=scenario,
        host=host,
        ready_file=sim.ready_file,
        journal_path=sim.journal,
        journal_head=journal_head(cluster),
        clock_server=clock_server,
        clock_grpc_port=sim.clock_grpc_port,
        kv_sources=kv_sources(cluster, os.environ, sim.kv_event_dialect, sim.kv_events_also),
        kv_settle_s=sim.kv_event_settle_ms / 1000 if parse_clock(sim.clock)[0] == "warp" else 0.0,
        oracle=sim.oracle,
        keep_events=sim.keep_events,
        grpc=[grpc_spec(worker) for worker in cluster.workers],
        logs=[log_settings(worker, os.environ) for worker in cluster.workers if sim.engine_logs],
    )
    return run_cluster(spec)


def with_compat(cluster: ResolvedCluster, sim: SimulatorArgs) -> ResolvedCluster:
    """The cluster with the switches that the command line names. Raises ConfigError."""
    chosen = None if sim.compat is None else read_compat(sim.compat, "compat")
    more = (OLD_METRIC_NAMES,) if sim.old_metric_names else ()
    workers = [
        replace(worker, compat=(*(worker.compat if chosen is None else chosen), *more))
        for worker in cluster.workers
    ]
    return replace(cluster, workers=tuple(workers))


def single(
    cluster: ResolvedCluster, sim: SimulatorArgs, argv: Sequence[str]
) -> tuple[ResolvedCluster, SimulatorArgs]:
    """A cluster of one worker, under the name asked for; a shared clock is warp unless said."""
    (worker,) = cluster.workers
    names = [replace(worker, spec=replace(worker.spec, name=sim.name))]
    told = any(word.partition("=")[0] == "--sim-clock" for word in argv)
    if sim.clock_server is not None and not told:
        sim = replace(sim, clock="warp")
    return cluster_of(names, cluster.spec), sim


def grpc_spec(worker: ResolvedWorker) -> GrpcSpec | None:
    """The gRPC port of a worker, None if it has none, with the services its flags stand for."""
    port = worker.grpc_port
    if port is None:
        return None
    services: tuple[str, ...]
    if worker.sglang is not None:
        services = (SGLANG_SCHEDULER,)
    elif worker.args.grpc:
        services = (VLLM_ENGINE,)
    elif worker.args.grpc_port is not None:
        services = (VLLM_INFERENCE, VLLM_CONTROL)
    else:
        services = (VLLM_ENGINE, VLLM_INFERENCE, VLLM_CONTROL)
    return GrpcSpec(port, services, tokenizer_source(worker.args))


_GIB = 1 << 30


def capacity_lines(cluster: ResolvedCluster) -> list[str]:
    """What each group of equal workers is, and its KV cache in the words of vLLM's own log."""
    groups: dict[tuple[StepSpec, AnySchedulerSpec, AfdSpec | None], list[ResolvedWorker]] = {}
    for worker in cluster.workers:
        key = (worker.spec.step, worker.spec.scheduler, worker.spec.afd)
        groups.setdefault(key, []).append(worker)
    lines = []
    for (step, scheduler, afd), workers in groups.items():
        names = " to ".join(dict.fromkeys((workers[0].spec.name, workers[-1].spec.name)))
        tokens = workers[0].memory.num_blocks * scheduler.block_size
        longest = scheduler.max_model_len
        stages = step.parallel.pp
        ranks = f"tp {step.parallel.tp}" + (f", pp {stages}" if stages > 1 else "")
        lines.append(
            f"frontier-mock: {names}: {step.model.name}, {step.precision.weights}, "
            f"{ranks} on {step.hardware.name}, {step.engine.name}. "
            f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {longest:,} tokens "
            f"per request: {tokens / longest:.2f}x"
        )
        memory = workers[0].ffn_memory
        if afd is not None and memory is not None:
            held = memory.weights_bytes + memory.activation_bytes + memory.outside_bytes
            lines.append(
                f"frontier-mock: {names}: attention and FFN apart, {afd.name}: {step.parallel.dp} "
                f"ranks of attention, {afd.ffn_gpus} FFN GPUs on {afd.ffn_hardware.name}, "
                f"{afd.ffn_weights}, {afd.micro_batches} micro-batches, {afd.connector}. "
                f"An FFN GPU holds {held / _GIB:.1f} of {memory.usable_bytes / _GIB:.1f} GiB"
            )
    return lines


def clock_spec(sim: SimulatorArgs) -> ClockSpec:
    """The clock asked for. Raises ConfigError."""
    mode, scale = parse_clock(sim.clock)
    return ClockSpec(
        mode=mode,
        scale=scale,
        grace_ms=sim.grace_ms,
        patience_s=sim.patience_s,
        strict=sim.strict,
        baton=sim.baton,
        on_late=sim.on_late,
        late_ms=sim.late_ms,
        late_ms_max=sim.late_ms_max,
        precise=sim.precise,
    )


def eos_model(sim: SimulatorArgs) -> EosModel | None:
    """How long answers are that may stop by themselves; None: they never do."""
    if not sim.eos:
        return None
    try:
        return EosModel(sim.eos_mean_tokens, sim.eos_sigma)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def front_end(
    cluster: ResolvedCluster, environment: Mapping[str, str]
) -> tuple[HttpSettings, str | None]:
    """The settings of the HTTP layer and the host, which one process has once for all workers.

    Raises ConfigError if two workers ask for different ones.
    """
    hosts = [worker.args.host for worker in cluster.workers]
    servers = [worker for worker in cluster.workers if worker.sglang is None]
    if not servers:
        # SGLang's front ends have their settings with them; what is left is where they listen.
        servers = [cluster.workers[0]]
    asked = [
        (
            http_settings(worker.args, worker.spec.step.engine.version, environment),
            worker.args.host,
        )
        for worker in servers
    ]
    if len(set(hosts)) > 1 and len(set(asked)) == 1:
        raise ConfigError(
            f"cluster.workers: hosts {', '.join(sorted(map(str, set(hosts))))} differ; "
            "allowed: one value for all workers served together"
        )
    for worker, (http, host) in zip(servers, asked, strict=True):
        if (http, host) != asked[0]:
            names = [*(field.name for field in fields(HttpSettings)), "host"]
            mine = [*(getattr(http, name) for name in names[:-1]), host]
            first = [*(getattr(asked[0][0], name) for name in names[:-1]), asked[0][1]]
            differ = [n for n, a, b in zip(names, first, mine, strict=True) if a != b]
            raise ConfigError(
                f"cluster.workers: {servers[0].spec.name} and {worker.spec.name} differ in "
                f"{', '.join(differ)}; allowed: one value for all workers served together"
            )
    return asked[0]


def http_settings(args: VllmArgs, version: str, environment: Mapping[str, str]) -> HttpSettings:
    """vLLM's front-end flags, and VLLM_SERVER_DEV_MODE."""
    return HttpSettings(
        api_key=args.api_key,
        root_path=args.root_path,
        enable_request_id_headers=args.enable_request_id_headers,
        enable_server_load_tracking=args.enable_server_load_tracking,
        sse_keep_alive_interval_s=float(args.sse_keep_alive_interval),
        allowed_origins=args.allowed_origins,
        allowed_methods=args.allowed_methods,
        allowed_headers=args.allowed_headers,
        allow_credentials=args.allow_credentials,
        uds=args.uds,
        dev_mode=environment.get("VLLM_SERVER_DEV_MODE", "0") == "1",
        scale_out=args.enable_scale_out or args.tokens_only,
        tokens_only=args.tokens_only,
        lora_updating=environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower()
        in ("1", "true"),
        enable_log_requests=args.enable_log_requests,
        response_store=_switched_on(environment, "VLLM_ENABLE_RESPONSES_API_STORE"),
        shutdown_timeout_s=float(args.shutdown_timeout),
        version=version,
    )


def _switched_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a variable that vLLM reads as a number is not 0. Raises ConfigError."""
    text = environment.get(name, "0")
    try:
        return int(text) != 0
    except ValueError:
        raise ConfigError(f"environment variable {name}: {text!r}; allowed: 0, 1") from None


def simulator_args(options: argparse.Namespace) -> SimulatorArgs:
    """The simulator's settings among parsed options, whose names are those of SimulatorArgs."""
    names = {field.name for field in fields(SimulatorArgs)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return SimulatorArgs(**{name: value for name, value in given.items() if value is not None})
