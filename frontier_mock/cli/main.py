"""The program `frontier-mock`: one subcommand per module of this package."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    print(f"frontier-mock: no command {' '.join(arguments)!r} yet", file=sys.stderr)
    return 2
