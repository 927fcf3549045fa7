"""What a run leaves behind: the report on the terminal, and the files asked for."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from frontier_mock.cli.options import writable_directory, write_text
from frontier_mock.report.html import html_report
from frontier_mock.report.summary import RunReport, TraceStats
from frontier_mock.report.terminal import print_result
from frontier_mock.workload.rows import TraceRows

RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
"""What `--out DIR` writes."""


def add_outcome_options(parser: argparse.ArgumentParser) -> None:
    """The options `publish` obeys."""
    parser.add_argument("--json", metavar="FILE", help="write the result JSON there")
    parser.add_argument("--out", metavar="DIR", help=f"write {RESULT_FILE} and {REPORT_FILE} there")


def publish(report: RunReport, rows: TraceRows | None, options: argparse.Namespace) -> None:
    """Print the report and write the files asked for. Raises ConfigError if one cannot be."""
    if rows is not None:
        report.result["trace"] = trace_stats(rows)
    text = json.dumps(report.result, indent=2) + "\n"
    if options.json is not None:
        write_text(Path(options.json), text)
    if options.out is not None:
        directory = writable_directory(options.out)
        write_text(directory / RESULT_FILE, text)
        write_text(directory / REPORT_FILE, html_report(report))
    print_result(report.result, Console())


def trace_stats(rows: TraceRows) -> TraceStats:
    """The census of a trace as the result JSON has it."""
    census = rows.census
    return TraceStats(
        rows=census.rows,
        read=census.read,
        clipped=census.clipped,
        out_of_order=census.out_of_order,
        skipped=[f"line {row.line}: {row.reason}" for row in census.skipped],
    )
