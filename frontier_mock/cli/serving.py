"""What `vllm serve` and `up` share: from a resolved cluster to a running server."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import fields

from frontier_mock.cli.options import warn_without_effect
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster
from frontier_mock.config.served import served_models
from frontier_mock.config.vllm_flags import SimulatorArgs, VllmArgs
from frontier_mock.drive.pace import ClockSpec, parse_clock
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ServeSpec, run_cluster
from frontier_mock.wire.eos import EosModel


def serve(cluster: ResolvedCluster, sim: SimulatorArgs, *, scenario: str, journal_head: str) -> int:
    """Serve until told to stop; returns the exit code. Raises ConfigError."""
    warn_without_effect([flag for worker in cluster.workers for flag in worker.without_effect])
    args = cluster.workers[0].args
    spec = ServeSpec(
        cluster=cluster.spec,
        costs=cluster.costs,
        served=served_models(cluster, eos_model(sim), os.environ),
        clock=clock_spec(sim),
        http=http_settings(args, cluster.spec.workers[0].step.engine.version, os.environ),
        scenario=scenario,
        host=args.host,
        ready_file=sim.ready_file,
        journal_path=sim.journal,
        journal_head=journal_head,
    )
    return run_cluster(spec)


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
    )


def eos_model(sim: SimulatorArgs) -> EosModel | None:
    """How long answers are that may stop by themselves; None: they never do."""
    if not sim.eos:
        return None
    try:
        return EosModel(sim.eos_mean_tokens, sim.eos_sigma)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def http_settings(args: VllmArgs, version: str, environment: Mapping[str, str]) -> HttpSettings:
    """vLLM's front-end flags, and VLLM_SERVER_DEV_MODE."""
    return HttpSettings(
        api_key=args.api_key,
        root_path=args.root_path,
        enable_request_id_headers=args.enable_request_id_headers,
        enable_server_load_tracking=args.enable_server_load_tracking,
        dev_mode=environment.get("VLLM_SERVER_DEV_MODE", "0") == "1",
        shutdown_timeout_s=float(args.shutdown_timeout),
        version=version,
    )


def simulator_args(options: argparse.Namespace) -> SimulatorArgs:
    """The simulator's settings among parsed options, whose names are those of SimulatorArgs."""
    names = {field.name for field in fields(SimulatorArgs)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return SimulatorArgs(**{name: value for name, value in given.items() if value is not None})
