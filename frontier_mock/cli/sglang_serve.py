"""`frontier-mock sglang serve MODEL ...`: one mock SGLang, by SGLang's own command line."""

import os
from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.cli.options import warn, warn_without_effect
from frontier_mock.cli.serving import serve, single
from frontier_mock.cli.vllm_serve import flag_row
from frontier_mock.config.resolve import resolve_single_sglang
from frontier_mock.config.sglang_flags import parse_sglang_serve, sglang_flags
from frontier_mock.config.vllm_flags import simulator_flags
from frontier_mock.serve.ffn import run_ffn

DEFAULT_HOST = "127.0.0.1"

_ALONE = (
    "--disaggregation-mode {}: no other process shares this warp clock, so a request here waits "
    "for its other half until it times out; --sim-clock-server shares one "
    "(docs/tutorial-disaggregation.md)"
)


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    if any(word in ("-h", "--help") for word in argv):
        print(help_text())
        return 0
    args = parse_sglang_serve(argv, os.environ)
    sim = args.simulator
    sglang = args.sglang if args.sglang.host else replace(args.sglang, host=DEFAULT_HOST)
    if sglang.afd is not None and sglang.afd.role == "ffn":
        return run_ffn(sglang.host, sglang.port, sim.ready_file)
    cluster = resolve_single_sglang(
        sglang, sim.hardware, sim.engine, sim.seed, single_step=sim.single_step
    )
    warn_without_effect(args.without_effect)
    cluster, sim = single(cluster, sim, argv)
    apart = (
        sglang.disaggregation_mode != "null" and sglang.disaggregation_transfer_backend != "fake"
    )
    if apart and sim.clock == "warp" and sim.clock_server is None:
        warn(_ALONE.format(sglang.disaggregation_mode))
    return serve(cluster, sim, sglang.model_path)


def help_text() -> str:
    """The text of `frontier-mock sglang serve --help`: the flags that act."""
    acted = [flag for flag in sglang_flags() if flag.effect]
    idle = sum(not flag.effect for flag in sglang_flags())
    return "\n".join(
        [
            "usage: frontier-mock sglang serve [model_path] [options]",
            "",
            "Serve a mock of SGLang on --port. Every flag of SGLang 0.5.23's `sglang serve` is",
            "accepted.",
            "",
            "The simulator's own:",
            *map(flag_row, simulator_flags()),
            "",
            "SGLang's flags that act:",
            *map(flag_row, acted),
            "",
            f"Another {idle} flags of SGLang are accepted without effect (docs/sglang-flags.md).",
        ]
    )
