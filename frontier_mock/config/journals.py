"""Journal files: a head that says which cluster was recorded, then one command a line.

The head is what makes a file replayable on its own: the engine arguments of every worker after
scenarios, command lines and config files have been read. Keys that clients must present stay out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.config.afd import AfdArgs
from frontier_mock.config.ec_transfer import ec_transfer_of
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_offload import OffloadArgs
from frontier_mock.config.kv_transfer import KvTransferArgs
from frontier_mock.config.resolve import (
    ResolvedCluster,
    ResolvedWorker,
    cluster_of,
    resolve_sglang,
    resolve_worker,
)
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.speculative import drafts_of
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.core.commands import AUTO_WORKER, Change, Command, Submit
from frontier_mock.core.journal import Journal, JournalError, from_lines, to_line
from frontier_mock.simtime import SimTime

MARK = "frontier_mock_journal"
"""Key of the head line; its value is the version of the format."""

VERSION = 1


class Recording(NamedTuple):
    """A journal and the cluster it was recorded on."""

    cluster: ResolvedCluster
    journal: Journal


def journal_head(cluster: ResolvedCluster) -> str:
    """First line of a journal recorded on `cluster`, without a newline."""
    workers = [
        {
            "name": worker.spec.name,
            "hardware": worker.spec.step.hardware.name,
            "engine": worker.spec.step.engine.name,
            "args": _recorded_args(worker),
            "role": worker.spec.role,
        }
        for worker in cluster.workers
    ]
    router, seed = cluster.spec.router_policy, cluster.spec.seed
    head = {MARK: VERSION, "seed": seed, "router": router, "workers": workers}
    head["decode_router"] = cluster.spec.decode_policy
    head["fabric"] = asdict(cluster.spec.fabric)
    head["timeline"] = [[t_ns, *astuple(change)] for t_ns, change in cluster.spec.timeline]
    return json.dumps(head)


def _recorded_args(worker: ResolvedWorker) -> dict[str, Any]:
    if worker.sglang is not None:
        return asdict(replace(worker.sglang, api_key=None, admin_api_key=None))
    return asdict(replace(worker.args, api_key=()))


def entry_line(cluster: ClusterSpec, stamp_ns: SimTime, command: Command) -> str:
    """One command as a line, its prompt cut into blocks of the worker it is for, or of any."""
    workers = cluster.workers
    if isinstance(command, Submit) and command.worker != AUTO_WORKER:
        return to_line(stamp_ns, command, workers[command.worker].scheduler.block_size)
    sizes = dict.fromkeys(worker.scheduler.block_size for worker in workers)
    return to_line(stamp_ns, command, *sizes)


def journal_lines(cluster: ResolvedCluster, journal: Journal) -> Iterator[str]:
    """A whole journal file, line by line, newlines included."""
    entries = (entry_line(cluster.spec, stamp, command) for stamp, command in journal.entries)
    return (line + "\n" for line in chain([journal_head(cluster)], entries))


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
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get(MARK) != VERSION:
        raise ConfigError(
            f"journal {name}: line 1 is not a journal's head; allowed: a file written by "
            f"--journal or --sim-journal (format {VERSION})"
        )
    try:
        cluster = _cluster(head)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"journal {name}: line 1: a head we did not write: {error}") from None
    try:
        return Recording(cluster, from_lines(numbered))
    except JournalError as error:
        raise ConfigError(f"journal {name}: after its head, {error}") from None


def _cluster(head: dict[str, Any]) -> ResolvedCluster:
    workers = tuple(_worker(one) for one in head["workers"])
    if not workers:
        raise ValueError("it names no workers")
    like = ClusterSpec(
        (),
        str(head["router"]),
        int(head["seed"]),
        decode_policy=str(head.get("decode_router", "round_robin")),
        fabric=FabricSpec(**head.get("fabric", {})),
        timeline=tuple(
            # Journals from before had a factor of 1 for every change.
            (t_ns, Change(worker, what, factor if what == "link" else None))
            for t_ns, worker, what, factor in head.get("timeline", [])
        ),
    )
    return cluster_of(workers, like)


def _worker(one: dict[str, Any]) -> ResolvedWorker:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in one["args"].items()
    }
    if values.get("afd") is not None:
        values["afd"] = AfdArgs(**values["afd"])
    if values.get("kv_transfer_config") is not None:
        values["kv_transfer_config"] = KvTransferArgs(**values["kv_transfer_config"])
    if values.get("ec_transfer_config") is not None:
        values["ec_transfer_config"] = ec_transfer_of(values["ec_transfer_config"])
    for key in ("speculative_config", "drafts"):
        if values.get(key) is not None:
            values[key] = drafts_of(values[key])
    if values.get("kv_offload") is not None:
        values["kv_offload"] = OffloadArgs(**values["kv_offload"])
    hardware, engine, name = one["hardware"], one["engine"], str(one["name"])
    if engine.startswith("sglang"):
        worker = resolve_sglang(SglangArgs(**values), hardware, engine, name, 0)
    else:
        worker = resolve_worker(VllmArgs(**values), hardware, engine, name, 0)
    return replace(worker, spec=replace(worker.spec, role=one.get("role", worker.spec.role)))
