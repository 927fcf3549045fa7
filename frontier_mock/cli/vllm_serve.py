"""`frontier-mock vllm serve MODEL ...`: one mock vLLM, started by vLLM's own command line."""

import os
from collections.abc import Sequence

from frontier_mock.cli.options import warn_without_effect
from frontier_mock.cli.serving import serve, single
from frontier_mock.config.flags import Flag
from frontier_mock.config.resolve import resolve_single
from frontier_mock.config.vllm_flags import parse_serve, simulator_flags, vllm_flags
from frontier_mock.serve.ffn import run_ffn


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    if any(word in ("-h", "--help") or word.startswith("--help=") for word in argv):
        print(help_text())
        return 0
    args = parse_serve(argv, os.environ)
    sim = args.simulator
    if args.vllm.afd is not None and args.vllm.afd.role == "ffn":
        return run_ffn(args.vllm.host, args.vllm.port, sim.ready_file)
    cluster = resolve_single(
        args.vllm, sim.hardware, sim.engine, sim.seed, single_step=sim.single_step
    )
    warn_without_effect(args.without_effect)
    cluster, sim = single(cluster, sim, argv)
    return serve(cluster, sim, args.vllm.model)


def help_text() -> str:
    """The text of `frontier-mock vllm serve --help`: the flags that act."""
    acted = [flag for flag in vllm_flags() if flag.effect]
    idle = sum(not flag.effect for flag in vllm_flags())
    return "\n".join(
        [
            "usage: frontier-mock vllm serve [model_tag] [options]",
            "",
            "Serve a mock of vLLM on --port. Every flag of vLLM 0.33.0's `vllm serve` is accepted.",
            "",
            "The simulator's own:",
            *map(flag_row, simulator_flags()),
            "",
            "vLLM's flags that act:",
            *map(flag_row, acted),
            "",
            f"Another {idle} flags of vLLM are accepted without effect (docs/flags.md).",
        ]
    )


def flag_row(flag: Flag) -> str:
    """One flag as a line of a help text."""
    default = "" if flag.default == "-" else f" [{flag.default}]"
    return f"  {', '.join(flag.options):<34} {flag.effect}{default}"
