"""`frontier-mock replay SCENARIO --url URL`: drive a real endpoint or router with a workload."""

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from urllib.error import HTTPError, URLError

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from frontier_mock.cli.options import command_parser, whole
from frontier_mock.cli.outcome import add_outcome_options, publish
from frontier_mock.cli.simulate import scenario_source
from frontier_mock.client.endpoint import EndpointSpec
from frontier_mock.client.loadgen import Progress as Watcher
from frontier_mock.client.replay import ReplayError, ReplaySpec, run_replay
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.drive.pace import parse_clock
from frontier_mock.simtime import SimTime, to_seconds
from frontier_mock.workload.pictures import NoRoomError
from frontier_mock.workload.specs import ImagesSpec, TraceSpec

CLOCK_LIMIT_S = 10.0
"""How long a worker may take to say what clock it runs on."""

_ASK_EVERY_S = 0.1


def run(argv: Sequence[str]) -> int:
    """Replay, print the report, write the files asked for; 1 if nothing was completed.

    Raises ConfigError.
    """
    options = _options(argv)
    scenario = load_scenario(options.scenario)
    if options.seed is not None:
        scenario = replace(scenario, seed=options.seed)
    images = _images(scenario, options)
    cluster = None if images is None else resolve_scenario(scenario)
    source, rows = scenario_source(scenario, options.requests, options.duration, cluster=cluster)
    spec = ReplaySpec(
        scenario=scenario.name,
        endpoint=EndpointSpec(
            url=options.url,
            model=_model(scenario, options.model),
            api=options.api,
            stream=options.stream,
            prompt_ids=options.prompt_ids,
            api_key=options.api_key,
            legs=options.legs,
            picture=(1024, 1024) if images is None else (images.width, images.height),
        ),
        clock_url=options.clock_url,
        one_at_a_time=options.baton,
        slo=scenario.slo,
    )
    for url in (options.clock_url, options.url):
        if url is not None:
            wait_until_up(url, options.wait_s)
    if options.clock is not None:
        check_clock(options.clock, options.clock_url or options.url)
    if options.oracle:
        check_oracle(options.clock_url or options.url)
    try:
        with progress_bar(source.num_requests) as watcher:
            report = run_replay(source, spec, watcher)
    except NoRoomError as error:
        raise ConfigError(f"{scenario.source}: workload: {error}") from None
    except ReplayError as error:
        print(f"frontier-mock: error: {error}", file=sys.stderr)
        return 1
    publish(report, rows, options)
    if not report.result["requests"]["completed"]:
        print("frontier-mock: error: no request was completed", file=sys.stderr)
        return 1
    return 0


def _images(scenario: ScenarioSpec, options: argparse.Namespace) -> ImagesSpec | None:
    """The images of the workload's prompts, if any. Raises ConfigError if they cannot be sent."""
    workload = scenario.workload
    if workload is None or isinstance(workload, TraceSpec) or workload.prompts.images is None:
        return None
    if options.api != "chat" or options.prompt_ids:
        raise ConfigError(
            f"{scenario.source}: workload: images: only --api chat sends them, as text"
        )
    return workload.prompts.images


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("replay", "Drive a server or router with a scenario's workload.")
    parser.add_argument("scenario", help="a scenario file, or the name of one in the library")
    parser.add_argument("--url", required=True, help="server or router, http://HOST:PORT")
    parser.add_argument("--clock-url", metavar="URL", help="a mock worker behind the router")
    parser.add_argument("--clock", help="refuse to run on any other: real, scaled:N or warp")
    parser.add_argument(
        "--oracle", action="store_true", help="refuse to run without the cache oracle of `up`"
    )
    parser.add_argument("--model", help="model to ask for; the scenario's own if absent")
    parser.add_argument("--api", choices=["completions", "chat"], default="completions")
    parser.add_argument("--stream", action="store_true", help="ask for streams")
    parser.add_argument("--prompt-ids", action="store_true", help="send token ids, not text")
    parser.add_argument("--api-key", help="sent as a bearer token")
    parser.add_argument(
        "--baton", action="store_true", help="warp: one request at a time reaches the router"
    )
    parser.add_argument(
        "--legs", type=whole(1), default=1, help="requests the router makes of each, at once"
    )
    parser.add_argument(
        "--wait-s",
        type=whole(0),
        metavar="S",
        default=10,
        help="real seconds that servers and router may take to start (10)",
    )
    parser.add_argument("--seed", type=whole(0), help="in place of the scenario's seed")
    parser.add_argument("--requests", type=whole(1), metavar="N", help="at most so many requests")
    parser.add_argument("--duration", type=float, metavar="S", help="at most so many seconds")
    add_outcome_options(parser)
    return parser.parse_args(list(argv))


def _model(scenario: ScenarioSpec, asked: str | None) -> str:
    if asked is not None:
        return asked
    if not scenario.groups:
        raise ConfigError(f"{scenario.source}: key cluster is missing; name the model with --model")
    args = scenario.groups[0].args
    return args.served_model_name[0] if args.served_model_name else args.model


def wait_until_up(url: str, limit_s: float) -> None:
    """Wait while nobody listens at `url`, or says there that it is not ready (503).

    Whoever still does not answer then is told of by what comes next.
    """
    give_up_s = time.monotonic() + limit_s
    # Routers are healthy before they have workers, and ready after; others do not know the word.
    for path in ("/health", "/readiness"):
        where = url.rstrip("/") + path
        while url.startswith("http") and _is_starting(where, limit_s):
            if time.monotonic() > give_up_s:
                return
            time.sleep(_ASK_EVERY_S)


def _is_starting(where: str, limit_s: float) -> bool:
    try:
        with urllib.request.urlopen(where, timeout=limit_s or CLOCK_LIMIT_S):
            return False
    except HTTPError as error:
        error.close()
        return error.code == 503
    except URLError as error:
        return isinstance(error.reason, ConnectionError)
    except (OSError, ValueError, HTTPException):
        return False


def check_clock(asked: str, url: str) -> None:
    """Make sure that the mock at `url` runs on the clock asked for. Raises ConfigError."""
    mode, scale = parse_clock(asked)
    where = url.rstrip("/") + "/sim/clock"
    try:
        with urllib.request.urlopen(where, timeout=CLOCK_LIMIT_S) as reply:
            state = json.load(reply)
        found = str(state["mode"]), float(state.get("scale") or 1.0)
    except (OSError, ValueError, KeyError, TypeError, HTTPException):
        raise ConfigError(f"clock: {where} does not answer; --clock-url names a worker") from None
    if found != (mode, scale):
        runs = f"scaled:{found[1]:g}" if found[0] == "scaled" else found[0]
        raise ConfigError(f"clock: {shown(asked)} was asked for, but {url} runs on {runs}")


def check_oracle(url: str) -> None:
    """Make sure that the mock at `url` scores routing. Raises ConfigError."""
    where = url.rstrip("/") + "/sim/report"
    try:
        with urllib.request.urlopen(where, timeout=CLOCK_LIMIT_S) as reply:
            found = "cache_oracle" in json.load(reply)
    except (OSError, ValueError, TypeError, HTTPException):
        raise ConfigError(f"oracle: {where} does not answer; --clock-url names a worker") from None
    if not found:
        raise ConfigError(f"oracle: {url} has none; start it with frontier-mock up --oracle")


@contextmanager
def progress_bar(total: int) -> Iterator[Watcher]:
    """A bar on stderr while requests are answered; silent if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[clock]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("requests", total=total, clock="")

        def watch(done: int, in_all: int, now_ns: SimTime) -> None:
            clock = f"t = {to_seconds(now_ns):,.1f} s"
            progress.update(task, completed=done, total=in_all, clock=clock)

        yield watch
