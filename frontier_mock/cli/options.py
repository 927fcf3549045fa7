"""Command lines of our own commands: argparse whose complaints are ConfigErrors."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.flags import LineParser


def command_parser(command: str, summary: str) -> LineParser:
    """A parser for `frontier-mock COMMAND`; `-h` prints its help and ends the program."""
    return LineParser(prog=f"frontier-mock {command}", description=summary)


def whole(low: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low`."""

    def read(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is not allowed; must be >= {low}")
        return value

    read.__name__ = "int"
    return read


def warn(message: str) -> None:
    """One line of warning on stderr."""
    print(f"frontier-mock: warning: {message}", file=sys.stderr)


def warn_without_effect(flags: Sequence[str]) -> None:
    """One warning line for all engine flags that are accepted but not simulated."""
    if flags:
        warn(f"accepted without effect: {', '.join(dict.fromkeys(flags))}")


def writable_directory(name: str) -> Path:
    """The directory `name`, made if need be. Raises ConfigError if it cannot be."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {name}: cannot be made: {error.strerror}") from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file whole. Raises ConfigError if that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
