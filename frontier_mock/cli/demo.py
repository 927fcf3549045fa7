"""`frontier-mock demo`: a production trace through a real router over 8 simulated H800 workers.

Three processes: `frontier-mock up` serves the workers, `sglang-router` stands in front, and this
one replays the trace through it in warp mode. Whatever ends this process ends the other two.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from frontier_mock.cli.options import command_parser, whole
from frontier_mock.cli.outcome import add_outcome_options, publish
from frontier_mock.cli.replay import progress_bar
from frontier_mock.cli.simulate import scenario_source
from frontier_mock.client.endpoint import EndpointSpec
from frontier_mock.client.replay import ReplayError, ReplaySpec, run_replay
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.workload.specs import TraceSpec
from frontier_mock.workload.synth import CONVERSATION

SCENARIO = "mooncake-conversation"
POLICIES = ("cache_aware", "round_robin", "random", "power_of_two")
"""sglang-router 0.3.2's policies for plain workers."""

START_LIMIT_S = 60.0
"""How long the workers, and then the router, may take to answer; they need 1 to 4 s."""

STOP_LIMIT_S = 10.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal a process gets when its parent dies."""


class DemoError(Exception):
    """A process did not start, or died; the message says which and where its log is."""


def run(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code. Raises ConfigError."""
    options = _options(argv)
    if importlib.util.find_spec("sglang_router") is None:
        raise ConfigError("the demo needs sglang-router: pip install 'frontier-mock[integration]'")
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(options.limit)
    scenario = _scenario()
    say = _sayer()
    try:
        with ExitStack() as stack:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frontier-mock-")))
            return _run(options, scenario, logs, stack, say)
    except (DemoError, ReplayError) as error:
        print(f"frontier-mock: error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.alarm(0)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(
        "demo", "Replay a production trace through sglang-router over 8 simulated H800 workers."
    )
    parser.add_argument("--policy", choices=POLICIES, default="cache_aware", help="the router's")
    parser.add_argument("--requests", type=whole(1), metavar="N", help="at most so many requests")
    parser.add_argument("--duration", type=float, metavar="S", help="at most so many seconds")
    parser.add_argument("--baton", action="store_true", help="the router sees one fixed order")
    parser.add_argument(
        "--limit", type=whole(1), default=900, metavar="S", help="give up after so long [900]"
    )
    add_outcome_options(parser)
    return parser.parse_args(list(argv))


def _scenario() -> ScenarioSpec:
    """The scenario, its trace replaced by a synthetic one if it is not at hand."""
    scenario = load_scenario(SCENARIO, need_trace=False)
    workload = scenario.workload
    assert isinstance(workload, TraceSpec)
    if not Path(workload.path).is_file():
        workload = replace(workload, path=CONVERSATION, format=None)
    return replace(scenario, workload=workload)


def _run(
    options: argparse.Namespace,
    scenario: ScenarioSpec,
    logs: Path,
    stack: ExitStack,
    say: Callable[[str], None],
) -> int:
    assert isinstance(scenario.workload, TraceSpec)
    say(f"trace    {scenario.workload.path}")
    source, rows = scenario_source(scenario, options.requests, options.duration)
    ready = logs / "ready.json"
    up = ["-m", "frontier_mock", "up", SCENARIO, "--clock", "warp", "--host", "127.0.0.1"]
    up += ["--port", "0", "--ready-file", str(ready)]
    server = stack.enter_context(process("frontier-mock up", up, logs / "up.log"))
    wait_until(ready.exists, server, "frontier-mock up", logs / "up.log")
    workers = [worker["url"] for worker in json.loads(ready.read_text())["workers"]]
    group = scenario.groups[0]
    say(
        f"workers  {len(workers)} x {group.args.model}, tp {group.parallel.tp}, "
        f"{group.args.quantization or 'bf16'}, {group.hardware}, {group.engine}"
    )
    port, metrics_port = free_ports(2)
    launch = ["-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    launch += ["--prometheus-port", str(metrics_port), "--policy", options.policy]
    launch += ["--log-level", "warn", "--worker-urls", *workers]
    router = stack.enter_context(process("sglang-router", launch, logs / "router.log"))
    url = f"http://127.0.0.1:{port}"
    wait_until(
        lambda: healthy_workers(url) == len(workers), router, "sglang-router", logs / "router.log"
    )
    say(f"router   sglang-router at {url}, policy {options.policy}")
    say(f"requests {source.num_requests}, in virtual time")
    spec = ReplaySpec(
        scenario=scenario.name,
        endpoint=EndpointSpec(url=url, model=group.args.model),
        clock_url=workers[0],
        one_at_a_time=options.baton,
        slo=scenario.slo,
    )
    with progress_bar(source.num_requests) as watcher:
        report = run_replay(source, spec, watcher)
    publish(report, rows, options)
    return 0


@contextmanager
def process(name: str, argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that lives no longer than the block, nor than this process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_die_with_parent,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_until(
    ready: Callable[[], bool], child: subprocess.Popen[bytes], name: str, log: Path
) -> None:
    """Wait until `ready()`. Raises DemoError if the process ends or takes too long."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while not ready():
        if child.poll() is not None:
            raise DemoError(f"{name} ended with code {child.returncode}: {_last_line(log)}")
        if time.monotonic() > deadline_s:
            raise DemoError(f"{name} did not answer in {START_LIMIT_S:.0f} s: {_last_line(log)}")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def healthy_workers(url: str) -> int:
    """How many workers a router of sglang-router's family has taken in; 0 while it is silent."""
    try:
        with urllib.request.urlopen(f"{url}/readiness", timeout=1.0) as reply:
            return int(json.load(reply)["healthy_workers"])
    except (OSError, ValueError, KeyError):
        return 0


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(number: int, frame: object) -> NoReturn:
    # SystemExit leaves an event loop at once; an ordinary exception would end up in some task.
    raise SystemExit(f"frontier-mock: error: the demo was ended by {signal.Signals(number).name}")


def _sayer() -> Callable[[str], None]:
    started_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started_s:6.2f} s] {text}", file=sys.stderr, flush=True)

    return say
