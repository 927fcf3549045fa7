"""`frontier-mock doctor`: what this machine has of what the program can use."""

import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from frontier_mock.cli.options import command_parser
from frontier_mock.config.scenario_files import library_names
from frontier_mock.config.workloads import DATA_VARIABLE

OPTIONAL_PACKAGES = (
    ("tokenizers", "real tokenizers (--tokenizer DIR)"),
    ("jinja2", "chat templates of real tokenizers"),
    ("grpc", "workers that speak gRPC (frontier-mock[grpc])"),
    ("smg_grpc_proto", "smg's services over gRPC (frontier-mock[grpc])"),
    ("zmq", "KV events (frontier-mock[kv-events])"),
    ("xxhash", "KV events hashed with xxHash (frontier-mock[kv-events])"),
    ("openai", "the SDK of the quick start"),
    ("sglang_router", "scripts/demo"),
    ("prometheus_client", "tests of /metrics"),
)
"""Packages beyond the core dependencies, and what each is for."""

Check = tuple[str, bool, str]
"""(what was checked, whether it is there, what follows)."""


def run(argv: Sequence[str]) -> int:
    """Print one line a check; returns 1 if something necessary is missing."""
    command_parser("doctor", "Check this machine.").parse_args(list(argv))
    sound = True
    for necessary, checks in ((True, necessary_checks()), (False, optional_checks())):
        for name, present, note in checks:
            mark = "ok" if present else ("MISSING" if necessary else "-")
            print(f"{mark:>8}  {name}: {note}")
            sound = sound and (present or not necessary)
    return 0 if sound else 1


def necessary_checks() -> list[Check]:
    """Without these nothing works."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    scenarios = library_names()
    return [
        ("Python", sys.version_info >= (3, 11), f"{version}, 3.11 or newer needed"),
        ("loopback port", _can_bind(), "binding 127.0.0.1"),
        ("scenario library", bool(scenarios), ", ".join(scenarios)),
        ("open files", _open_files() >= 1024, f"limit {_open_files()}, 1024 or more needed"),
    ]


def optional_checks() -> list[Check]:
    """Without these some things do not work."""
    checks: list[Check] = [
        (name, importlib.util.find_spec(name) is not None, use) for name, use in OPTIONAL_PACKAGES
    ]
    data = os.environ.get(DATA_VARIABLE)
    present = data is not None and Path(data).is_dir()
    checks.append((f"${DATA_VARIABLE}", present, data or "not set: a directory with traces"))
    return checks


def _can_bind() -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
        except OSError:
            return False
    return True


def _open_files() -> int:
    import resource

    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft
