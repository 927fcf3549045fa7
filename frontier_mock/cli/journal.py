"""`frontier-mock journal replay FILE`: feed a journal to a fresh cluster, print the digest."""

from collections.abc import Sequence

from frontier_mock.cli.options import command_parser
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.journals import read_recording
from frontier_mock.drive.offline import replay


def run(argv: Sequence[str]) -> int:
    """Replay offline and print the digest of the event log. Raises ConfigError."""
    parser = command_parser(
        "journal",
        "Replay a journal offline. The digest equals that of the run it was recorded in.",
    )
    parser.add_argument("action", choices=["replay"])
    parser.add_argument("file", help="a journal written by --journal or --sim-journal")
    options = parser.parse_args(list(argv))
    recording = read_recording(options.file)
    cluster = build_cluster(recording.cluster.spec, recording.cluster.costs)
    print(replay(cluster, recording.journal))
    return 0
