"""What a run leaves behind: the report on the terminal, and the files asked for."""

import argparse
import json
from pathlib import Path

from frontier_mock.cli.options import writable_directory, write_text
from frontier_mock.report.summary import RunReport


def add_outcome_options(parser: argparse.ArgumentParser) -> None:
    """The options `publish` obeys."""
    parser.add_argument("--json", metavar="FILE", help="write the result JSON there")
    parser.add_argument("--out", metavar="DIR", help="write result.json there")


def publish(report: RunReport, options: argparse.Namespace) -> None:
    """Print the report and write the files asked for. Raises ConfigError if one cannot be."""
    text = json.dumps(report.result, indent=2) + "\n"
    print(text, end="")
    if options.json is not None:
        write_text(Path(options.json), text)
    if options.out is not None:
        write_text(writable_directory(options.out) / "result.json", text)
