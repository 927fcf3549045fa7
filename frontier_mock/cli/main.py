"""The program `frontier-mock`: one subcommand per module of this package.

A command's module has `run(argv) -> exit code` and is imported only when its command is called, so
that `--help` stays instant. Exit codes: 0 done, 1 the run itself failed, 2 bad configuration, 130
interrupted. Whatever is wrong with a configuration is one line on stderr.
"""

import importlib
import sys
from collections.abc import Sequence

from frontier_mock.config.errors import ConfigError, nearest, shown

COMMANDS: dict[str, tuple[str, str]] = {
    "vllm serve": ("vllm_serve", "one mock vLLM, started by vLLM's own command line"),
    "sglang serve": ("sglang_serve", "one mock SGLang, started by SGLang's own command line"),
    "sglang launch_server": ("sglang_serve", "the same, by its older name"),
    "up": ("up", "every worker of a scenario's cluster on its own port, on one clock"),
    "clock": ("clock", "one clock for several `up` processes"),
    "simulate": ("simulate", "run a scenario offline, without sockets, and report"),
    "sweep": ("sweep", "run a scenario over a grid of its keys, or look for its capacity"),
    "replay": ("replay", "drive a real server or router with a scenario's workload"),
    "demo": ("demo", "a production trace through sglang-router over 8 simulated H800 workers"),
    "report": ("report", "print the report of an earlier run once more"),
    "trace": ("trace", "inspect, convert or synthesise request traces"),
    "calibrate": ("calibrate", "fit a cluster's constants to benchmark results taken on it"),
    "accuracy": ("accuracy", "simulate every measured run in a folder and print the errors"),
    "ratios": ("ratios", "compare attention to FFN ratios of a disaggregated model"),
    "pools": ("pools", "compare numbers of prefill and decode workers"),
    "journal": ("journal", "replay a journal offline and print the digest of its events"),
    "doctor": ("doctor", "check that this machine has what is needed"),
}
"""Command -> (module of this package, one-line summary). A command may be two words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except ConfigError as error:
        print(f"frontier-mock: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"frontier-mock {version('frontier-mock')}")
        return 0
    for length in (2, 1):
        command = " ".join(words[:length])
        if command in COMMANDS:
            module = importlib.import_module(f"frontier_mock.cli.{COMMANDS[command][0]}")
            code: int = module.run(list(words[length:]))
            return code
    families = [command for command in COMMANDS if command.startswith(f"{words[0]} ")]
    if families:
        if words[1:2] in (["-h"], ["--help"], ["help"]):
            print(usage_of(words[0], families))
            return 0
        said = f"{shown(words[1])} is not one of its commands" if words[1:] else "needs a command"
        raise ConfigError(f"{words[0]}: {said}; allowed: {', '.join(families)}")
    raise ConfigError(
        f"unknown command {shown(words[0])}{nearest(words[0], COMMANDS)}; "
        f"allowed: {', '.join(COMMANDS)}"
    )


def usage_of(family: str, commands: Sequence[str]) -> str:
    """The text of `frontier-mock vllm --help` and its like."""
    rows = [f"  frontier-mock {command} ...   {COMMANDS[command][1]}" for command in commands]
    return "\n".join(
        [
            f"usage: frontier-mock {family} COMMAND ...",
            "",
            *rows,
            "",
            f"`frontier-mock {commands[0]} --help` lists the flags.",
        ]
    )


def usage() -> str:
    """The text of `frontier-mock --help`."""
    width = max(len(command) for command in COMMANDS)
    rows = [f"  {command:<{width}}  {summary}" for command, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: frontier-mock COMMAND ...",
            "",
            "A drop-in mock of vLLM and SGLang: a simulated GPU cluster behind a real port.",
            "",
            *rows,
            "",
            "`frontier-mock COMMAND --help` says more about each.",
        ]
    )
