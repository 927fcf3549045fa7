"""`frontier-mock journal replay FILE`: feed a journal to a fresh cluster, print the digest."""

from collections.abc import Sequence
from pathlib import Path

from frontier_mock.cli.options import command_parser, write_text
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.journals import read_recording
from frontier_mock.drive.offline import replay
from frontier_mock.report.perfetto import trace_json
from frontier_mock.report.step_runs import keep_step_logs


def run(argv: Sequence[str]) -> int:
    """Replay offline and print the digest of the event log. Raises ConfigError."""
    parser = command_parser(
        "journal",
        "Replay a journal offline. The digest equals that of the run it was recorded in.",
    )
    parser.add_argument("action", choices=["replay"])
    parser.add_argument("file", help="a journal written by --journal or --sim-journal")
    parser.add_argument(
        "--trace-out", metavar="FILE", help="write a trace that ui.perfetto.dev opens"
    )
    options = parser.parse_args(list(argv))
    recording = read_recording(options.file)
    cluster = build_cluster(recording.cluster.spec, recording.cluster.costs)
    if options.trace_out is not None:
        keep_step_logs(cluster)
    print(replay(cluster, recording.journal))
    if options.trace_out is not None:
        write_text(Path(options.trace_out), trace_json(cluster, recording.cluster.costs))
    return 0
