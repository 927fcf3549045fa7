"""`frontier-mock report DIR`: print the report of an earlier run once more."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_type_hints

from rich.console import Console

from frontier_mock.cli.options import command_parser
from frontier_mock.cli.outcome import RESULT_FILE
from frontier_mock.config.errors import ConfigError
from frontier_mock.report.summary import Result
from frontier_mock.report.terminal import print_result


def run(argv: Sequence[str]) -> int:
    """Print the report. Raises ConfigError if there is none."""
    parser = command_parser("report", "Print the report of an earlier run.")
    parser.add_argument("directory", help=f"a directory written by --out, or a {RESULT_FILE}")
    options = parser.parse_args(list(argv))
    path = Path(options.directory)
    print_result(read_result(path / RESULT_FILE if path.is_dir() else path), Console())
    return 0


def read_result(path: Path) -> Result:
    """The result in a JSON file. Raises ConfigError if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"report {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"report {path}: not a JSON file") from None
    missing = set(Result.__required_keys__) - set(value if isinstance(value, dict) else ())
    if missing:
        first = next(key for key in get_type_hints(Result) if key in missing)
        raise ConfigError(f"report {path}: key {first} is missing; not a result of this program")
    return cast(Result, value)
