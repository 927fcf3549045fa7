"""Where scenarios come from: files, and the library that is installed with the package."""

import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path

from frontier_mock.config.document import Value, read_document
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.workloads import TraceSearch, trace_search

LIBRARY = "frontier_mock.scenarios"
"""Package that holds the scenario library (the directory replay/ of the repository)."""

MAX_BYTES = 1 << 20
"""Largest scenario file read; ours are under 2 kB."""


def open_scenario(
    name: str,
    environment: Mapping[str, str] | None = None,
    *,
    need_trace: bool = True,
    beside: Path | None = None,
) -> tuple[Value, TraceSearch]:
    """The document of scenario `name`, and where its traces are looked for.

    `name` is a file, first looked for in the directory `beside` if that is given, or one of the
    library. `need_trace` False lets a trace be absent. Raises ConfigError.
    """
    variables = os.environ if environment is None else environment
    path = Path(name) if beside is None else beside / name
    if path.suffix in (".yaml", ".yml") or path.is_file():
        search = trace_search(path.parent, variables, need_trace)
        return read_document(read_text(path, "scenario"), str(path)), search
    known = library_names()
    if name in known:
        library = importlib.resources.files(LIBRARY)
        text = library.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return read_document(text, f"{name}.yaml"), trace_search(None, variables, need_trace)
    listed = ", ".join(known)
    raise ConfigError(
        f"scenario {shown(name)}: neither a file nor in the library{nearest(name, known)}; "
        f"the library has {listed}"
    )


def library_names() -> tuple[str, ...]:
    """Names of the scenarios that come with the package, sorted."""
    entries = importlib.resources.files(LIBRARY).iterdir()
    return tuple(
        sorted(
            entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")
        )
    )


def read_text(path: Path, what: str) -> str:
    """A configuration file's text; `what` it is, for the ConfigError raised if it has none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{what} {path}: cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{what} {path}: larger than {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}: not UTF-8 text at byte {error.start}") from None
