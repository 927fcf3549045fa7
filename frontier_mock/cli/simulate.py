"""`frontier-mock simulate`: a scenario offline, no sockets."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from frontier_mock.cli.options import (
    command_parser,
    warn_without_effect,
    whole,
    write_text,
)
from frontier_mock.cli.outcome import add_outcome_options, publish
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_lines
from frontier_mock.config.kv_sources import check_oracle
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.config.traces import load_trace
from frontier_mock.config.workloads import shorten
from frontier_mock.core.journal import Journal
from frontier_mock.cost.vision import image_shape
from frontier_mock.drive.offline import run as run_offline
from frontier_mock.report.perfetto import trace_json
from frontier_mock.report.roles import StationBook
from frontier_mock.report.step_runs import keep_step_logs
from frontier_mock.report.summary import RunReport, report_cluster
from frontier_mock.workload.build import build_source
from frontier_mock.workload.pictures import NoRoomError, Pictured
from frontier_mock.workload.rows import TraceRows
from frontier_mock.workload.source import Source
from frontier_mock.workload.specs import PromptSpec, TraceSpec


def run(argv: Sequence[str]) -> int:
    """Simulate, print the report, write the files asked for. Raises ConfigError."""
    options = _options(argv)
    scenario = load_scenario(options.scenario)
    if options.seed is not None:
        scenario = replace(scenario, seed=options.seed)
    cluster = resolve_scenario(scenario, single_step=options.single_step)
    if options.oracle:
        check_oracle(cluster)
    warn_without_effect([flag for worker in cluster.workers for flag in worker.without_effect])
    blocks = {worker.spec.scheduler.block_size for worker in cluster.workers}
    source, rows = scenario_source(
        scenario, options.requests, options.duration, block_tokens=max(blocks), cluster=cluster
    )
    if source.feeds_back and len(blocks) > 1:
        sizes = ", ".join(map(str, sorted(blocks)))
        raise ConfigError(
            f"{scenario.source}: workload: conversations need one block size, not {sizes}"
        )
    journal = None if options.journal is None else Journal()
    trace = None if options.trace_out is None else Path(options.trace_out)
    report = simulate(scenario, cluster, source, journal, with_oracle=options.oracle, trace=trace)
    publish(report, rows, options)
    if journal is not None:
        lines = journal_lines(cluster, journal)
        write_text(Path(options.journal), "".join(lines))
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("simulate", "Run a scenario offline and report.")
    parser.add_argument("scenario", help="a scenario file, or the name of one in the library")
    parser.add_argument("--seed", type=whole(0), help="in place of the scenario's seed")
    parser.add_argument("--requests", type=whole(1), metavar="N", help="at most so many requests")
    parser.add_argument("--duration", type=float, metavar="S", help="at most so many seconds")
    parser.add_argument("--journal", metavar="FILE", help="write every command with its stamp")
    parser.add_argument(
        "--single-step", action="store_true", help="simulate every step on its own (slow, equal)"
    )
    parser.add_argument("--oracle", action="store_true", help="score routing by what was cached")
    parser.add_argument(
        "--trace-out", metavar="FILE", help="write a trace that ui.perfetto.dev opens"
    )
    add_outcome_options(parser)
    return parser.parse_args(list(argv))


def scenario_source(
    scenario: ScenarioSpec,
    requests: int | None,
    duration_s: float | None,
    *,
    block_tokens: int = 16,
    cluster: ResolvedCluster | None = None,
) -> tuple[Source, TraceRows | None]:
    """The scenario's workload, perhaps shortened, ready to play once, and its trace if it has one.

    `block_tokens` is the block size of the engines that will play it, if they are ours, and
    `cluster` what they are. Raises ConfigError.
    """
    if scenario.workload is None:
        raise ConfigError(f"{scenario.source}: key workload is missing; there is nothing to play")
    if duration_s is not None and not duration_s > 0:
        raise ConfigError(f"duration: {duration_s} is not a number above 0")
    workload = shorten(scenario.workload, requests, duration_s)
    rows = load_trace(workload, scenario.seed)
    try:
        source = build_source(workload, seed=scenario.seed, rows=rows, block_tokens=block_tokens)
        if not isinstance(workload, TraceSpec) and workload.prompts.images is not None:
            source = pictured(source, workload.prompts, cluster)
        return source, rows
    except ValueError as error:
        raise ConfigError(f"{scenario.source}: workload: {error}") from None


def pictured(source: Source, prompts: PromptSpec, cluster: ResolvedCluster | None) -> Source:
    """The source with its images. Raises ValueError where nobody takes them."""
    images = prompts.images
    assert images is not None
    if cluster is None:
        raise ValueError("images: only `simulate`, `sweep`, `pools` and `replay` play them")
    models = {worker.spec.step.model.name: worker.spec.step.model for worker in cluster.workers}
    for model in models.values():
        if model.vision is None:
            raise ValueError(f"images: {model.name} takes none")
    vision = next(iter(models.values())).vision
    assert vision is not None
    return Pictured(source, prompts, image_shape(vision, images.width, images.height))


def simulate(
    scenario: ScenarioSpec,
    resolved: ResolvedCluster,
    source: Source,
    journal: Journal | None,
    *,
    with_oracle: bool = False,
    trace: Path | None = None,
) -> RunReport:
    """Play `source` on the cluster and report; `wall_s` of the report is the loop's own time.

    `trace` is the file for the run as Perfetto shows it. Raises ConfigError if it cannot be.
    """
    cluster = build_cluster(resolved.spec, resolved.costs, with_oracle=with_oracle)
    book = StationBook(cluster, resolved.costs)
    if trace is not None:
        keep_step_logs(cluster)
    started_s = time.perf_counter()
    try:
        done = run_offline(cluster, source, journal)
    except NoRoomError as error:
        raise ConfigError(f"{scenario.source}: workload: {error}") from None
    wall_s = time.perf_counter() - started_s
    if trace is not None:
        write_text(trace, trace_json(cluster, resolved.costs))
    measured = [item.measured for item in done.items]
    return report_cluster(cluster, scenario.name, wall_s, measured, scenario.slo, book)
