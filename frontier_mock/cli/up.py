"""`frontier-mock up SCENARIO`: every worker on its own port, one process, one clock."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.cli.options import command_parser, whole
from frontier_mock.cli.serving import serve, simulator_args
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.resolve import ResolvedCluster, cluster_of, resolve_scenario
from frontier_mock.config.scenario import load_scenario


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    options = _options(argv)
    scenario = load_scenario(options.scenario, need_trace=False)
    if options.seed is not None:
        scenario = replace(scenario, seed=options.seed)
    cluster = resolve_scenario(
        scenario, single_step=options.single_step, base_port=options.port, host=options.host
    )
    if options.workers is not None:
        cluster = chosen_workers(cluster, options.workers)
    sim = simulator_args(options)
    if options.clock_server is not None and options.clock is None:
        sim = replace(sim, clock="warp")
    return serve(cluster, sim, scenario.name)


def chosen_workers(cluster: ResolvedCluster, text: str) -> ResolvedCluster:
    """The workers that `--workers` names: `w0,w3`, or `w0..w3` for all from one to the other.

    Raises ConfigError for a name that no worker has.
    """
    names = [worker.spec.name for worker in cluster.workers]
    chosen: list[int] = []
    for word in text.split(","):
        first, dots, last = word.strip().partition("..")
        for name in (first, last) if dots else (first,):
            if name not in names:
                raise ConfigError(
                    f"workers: {shown(name)} is none{nearest(name, names)}; "
                    f"allowed: {', '.join(names)}, or A..B"
                )
        low, high = names.index(first), names.index(last if dots else first)
        chosen += range(low, high + 1)
    if len(set(chosen)) != len(chosen) or not chosen:
        raise ConfigError(f"workers: {shown(text)} names a worker twice, or none")
    return cluster_of([cluster.workers[i] for i in chosen], cluster.spec)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("up", "Serve every worker of a scenario's cluster on its own port.")
    parser.add_argument("scenario", help="a scenario file, or the name of one in the library")
    parser.add_argument("--clock", help="real (the default), scaled:N or warp")
    parser.add_argument(
        "--clock-server", metavar="URL", help="share the clock of `frontier-mock clock` (warp)"
    )
    parser.add_argument(
        "--clock-grpc-port", type=whole(0), metavar="P", help="serve the clock over gRPC; 0: any"
    )
    parser.add_argument("--workers", metavar="A..B", help="serve these of the scenario's workers")
    parser.add_argument("--host", help="address to bind; all interfaces when absent")
    parser.add_argument(
        "--port", type=whole(0), metavar="P", help="first port in place of the scenario's; 0: any"
    )
    parser.add_argument("--ready-file", metavar="F", help="gets the URLs once every port answers")
    parser.add_argument("--journal", metavar="F", help="write every command with its stamp")
    parser.add_argument("--oracle", action="store_true", help="score routing, see /sim/report")
    parser.add_argument(
        "--old-metric-names", action="store_true", help="vLLM: also gpu_cache_* and its like"
    )
    parser.add_argument(
        "--compat", metavar="NAMES", help="what versions gave up and is served, for every worker"
    )
    parser.add_argument(
        "--engine-logs", action="store_true", help="log batches and accesses as the engines do"
    )
    parser.add_argument("--image-size", metavar="WxH", help="pixels of linked images [1024x1024]")
    parser.add_argument("--kv-event-dialect", help="vllm-map, sglang-map or array")
    parser.add_argument(
        "--kv-events-also",
        metavar="JSON",
        help="a second socket: endpoint, topic, dialect",
    )
    parser.add_argument(
        "--kv-event-settle-ms", type=float, metavar="MS", help="warp: before a response ends"
    )
    parser.add_argument(
        "--keep-events", type=whole(0), metavar="N", help="for /sim/report, 300 bytes each [500000]"
    )
    parser.add_argument("--seed", type=whole(0), help="in place of the scenario's seed")
    parser.add_argument("--single-step", action="store_true", help="simulate every step (slow)")
    parser.add_argument("--on-late", choices=["report", "abort"], help="real, scaled clocks")
    parser.add_argument("--late-ms", type=float, help="real, scaled: count what is later")
    parser.add_argument("--late-ms-max", type=float, help="real, scaled: abort beyond this")
    parser.add_argument("--precise", action="store_true", help="real, scaled: finer timer (Linux)")
    parser.add_argument("--grace-ms", type=float, help="warp: silence before time moves on")
    parser.add_argument("--patience-s", type=float, help="warp: until held leases have stalled")
    parser.add_argument("--strict", action="store_true", help="warp: a stall ends the run")
    parser.add_argument("--baton", action="store_true", help="warp: one actor at a time")
    return parser.parse_args(list(argv))
