"""`frontier-mock trace`: look at a trace, convert it, or make one up."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from frontier_mock.cli.options import command_parser, warn, whole, write_text
from frontier_mock.config.traces import load_trace
from frontier_mock.simtime import to_seconds
from frontier_mock.workload.readers import FORMATS
from frontier_mock.workload.rows import TraceRow, TraceRows
from frontier_mock.workload.specs import TraceSpec
from frontier_mock.workload.synth import NUM_REQUESTS, mooncake_lines, synthesise_conversation

LEVELS = (50, 90, 99)
"""Percentiles shown by `inspect`."""


def run(argv: Sequence[str]) -> int:
    """Run one of the three actions. Raises ConfigError."""
    options = _options(argv)
    if options.action == "synth":
        rows = synthesise_conversation(options.seed, options.requests)
        write_text(Path(options.out), "".join(mooncake_lines(rows)))
        return 0
    rows = _read(options)
    if options.action == "convert":
        write_text(Path(options.out), "".join(mooncake_lines(rows)))
        for line in rows.census.lines()[1:]:
            warn(f"{rows.name}: {line}")
        return 0
    for line in inspection(rows):
        print(line)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("trace", "Inspect, convert or synthesise request traces.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="inspect|convert|synth")
    inspect = actions.add_parser("inspect", help="what is in a trace, and what could not be read")
    convert = actions.add_parser("convert", help="write a trace in Mooncake's format")
    synth = actions.add_parser("synth", help="make up one like Mooncake's conversation trace")
    for reader in (inspect, convert):
        reader.add_argument("trace", help="a trace file")
        reader.add_argument("--format", choices=FORMATS, help="recognised from its contents")
        reader.add_argument("--id-tokens", type=whole(1), default=512, metavar="N")
    for writer in (convert, synth):
        writer.add_argument("out", help="file to write")
    synth.add_argument("--requests", type=whole(1), default=NUM_REQUESTS, metavar="N")
    synth.add_argument("--seed", type=whole(0), default=0)
    return parser.parse_args(list(argv))


def _read(options: argparse.Namespace) -> TraceRows:
    spec = TraceSpec(options.trace, format=options.format, id_tokens=options.id_tokens)
    rows = load_trace(spec, 0)
    assert rows is not None
    return rows


def inspection(rows: TraceRows) -> list[str]:
    """What `inspect` prints, one fact a line."""
    requests = rows.rows
    lines = [f"trace: {rows.name}", f"format: {rows.format}"]
    lines += rows.census.lines()
    if rows.timed:
        span_s = to_seconds(requests[-1].t_ns - requests[0].t_ns)
        rate = f", {len(requests) / span_s:.2f} requests/s" if span_s else ""
        distinct = len({row.t_ns for row in requests})
        lines.append(f"span: {span_s:.3f} s{rate}, {distinct} distinct arrival times")
    else:
        lines.append("span: the trace has no arrival times")
    lines.append(f"input tokens: {_distribution(row.prompt_tokens for row in requests)}")
    lines.append(f"output tokens: {_distribution(row.output_tokens for row in requests)}")
    lines.append(_reuse(requests, rows.id_tokens))
    return lines


def _distribution(values: Iterable[int]) -> str:
    array = np.fromiter(values, np.int64)
    levels = " ".join(f"p{level} {np.percentile(array, level):.0f}" for level in LEVELS)
    return f"mean {array.mean():.1f} {levels} max {array.max()} sum {array.sum()}"


def _reuse(requests: Sequence[TraceRow], id_tokens: int) -> str:
    """Share of hash ids seen before: what a cache that never forgets would find."""
    seen: set[int] = set()
    total = repeated = 0
    for row in requests:
        if row.ids is None:
            return "prefix reuse: the trace has no hash ids"
        ids = row.ids.tolist()
        total += len(ids)
        repeated += sum(one in seen for one in ids)
        seen.update(ids)
    share = repeated / total if total else 0.0
    return (
        f"prefix reuse: {repeated} of {total} blocks of {id_tokens} tokens seen before "
        f"({share:.4f}), {len(seen)} distinct"
    )
