"""Journal files: a head that says which cluster was recorded, then one command a line.

The head is what makes a file replayable on its own: the scenario's cluster section, or the command
line of `vllm serve`, with the seed.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario, resolve_single
from frontier_mock.config.scenario import ScenarioSpec, parse_scenario
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.config.workloads import TraceSearch
from frontier_mock.core.commands import AUTO_WORKER, Command, Submit
from frontier_mock.core.journal import Journal, JournalError, from_lines, to_line
from frontier_mock.simtime import SimTime

MARK = "frontier_mock_journal"
"""Key of the head line; its value is the version of the format."""

VERSION = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """A journal and the cluster it was recorded on."""

    cluster: ResolvedCluster
    journal: Journal


def scenario_head(scenario: ScenarioSpec) -> str:
    """First line of a journal recorded on a scenario's cluster."""
    cluster = json.loads(scenario.cluster_text)
    head = {MARK: VERSION, "name": scenario.name, "seed": scenario.seed, "cluster": cluster}
    return json.dumps(head)


def serve_head(argv: Sequence[str]) -> str:
    """First line of a journal recorded by `vllm serve` with these arguments."""
    return json.dumps({MARK: VERSION, "serve": list(argv)})


def entry_line(cluster: ResolvedCluster, stamp_ns: SimTime, command: Command) -> str:
    """One command as a line, its prompt cut into blocks of the worker it is for."""
    index = 0
    if isinstance(command, Submit) and command.worker != AUTO_WORKER:
        index = command.worker
    return to_line(stamp_ns, command, cluster.spec.workers[index].scheduler.block_size)


def journal_lines(head: str, cluster: ResolvedCluster, journal: Journal) -> Iterator[str]:
    """A whole journal file, line by line, newlines included."""
    entries = (entry_line(cluster, stamp, command) for stamp, command in journal.entries)
    return (line + "\n" for line in chain([head], entries))


def read_recording(name: str) -> Recording:
    """Read a journal file. Raises ConfigError if it cannot be read or is not one."""
    try:
        with Path(name).open(encoding="utf-8") as lines:
            return _read(lines, name)
    except OSError as error:
        raise ConfigError(f"journal {name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"journal {name}: not UTF-8 text") from None


def _read(lines: Iterable[str], name: str) -> Recording:
    numbered = iter(lines)
    first = next(numbered, "")
    try:
        head = json.loads(first)
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get(MARK) != VERSION:
        raise ConfigError(
            f"journal {name}: line 1 is not a journal's head; allowed: a file written by "
            f"--journal or --sim-journal (format {VERSION})"
        )
    cluster = _cluster(head, name)
    try:
        return Recording(cluster, from_lines(numbered))
    except JournalError as error:
        raise ConfigError(f"journal {name}: after its head, {error}") from None


def _cluster(head: dict[str, object], name: str) -> ResolvedCluster:
    serve = head.get("serve")
    if isinstance(serve, list):
        args = parse_serve([str(word) for word in serve], {})
        sim = args.simulator
        return resolve_single(args.vllm, sim.hardware, sim.engine, sim.seed)
    text = json.dumps({key: head.get(key) for key in ("name", "seed", "cluster")})
    scenario = parse_scenario(text, f"{name}, head", TraceSearch(()))
    return resolve_scenario(replace(scenario, workload=None))
