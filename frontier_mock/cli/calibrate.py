"""`frontier-mock calibrate`: fit a cluster's few constants to benchmark results taken on it."""

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from frontier_mock.cli.calibration import (
    FACTORS,
    Calibration,
    Comparison,
    calibrate,
    median_errors,
    profile,
)
from frontier_mock.cli.options import command_parser, warn, warn_without_effect, write_text
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_single
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.workload.observations import Observation, ResultError, read_observations

_FITTABLE = [factor.name for factor in FACTORS]


def run(argv: Sequence[str]) -> int:
    """Fit, print what changed and the errors before and after, write the profile."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    options = _options(words[:cut])
    names = options.fit.split(",")
    unknown = [name for name in names if name not in _FITTABLE]
    if unknown:
        raise ConfigError(f"--fit: {unknown[0]!r} is not known; allowed: {', '.join(_FITTABLE)}")
    if not 0 <= options.hold_back < 1:
        raise ConfigError(f"--hold-back: {options.hold_back} is not allowed; must be in [0, 1)")
    observations = [seen for path in options.results for seen in _read(path)]
    cluster = _cluster(words[cut + 1 :])
    if importlib.util.find_spec("scipy") is None:
        raise ConfigError("calibrate needs scipy: pip install 'frontier-mock[profiles]'")
    found = calibrate(cluster, observations, names, options.hold_back)
    if not found.held_back[0]:
        warn(f"{len(observations)} results are too few to hold any back; at least 4 are needed")
    _print(found)
    if options.out:
        text = yaml.safe_dump(profile(cluster, found), sort_keys=False, width=100)
        write_text(Path(options.out), f"# written by frontier-mock calibrate\n{text}")
        print(f"\nwrote {options.out}: pass it as --sim-hardware and --sim-engine, or as")
        print("hardware: and engine: of a scenario")
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(
        "calibrate",
        "Fit a cluster's constants to results of vllm bench serve, guidellm or aiperf. What "
        "follows -- is the server's own command: vllm serve MODEL ... --sim-hardware GPU "
        "--sim-engine vllm-X.Y",
    )
    parser.add_argument("results", nargs="+", help="result files, all of the same server")
    parser.add_argument("--out", metavar="FILE", help="write the calibrated profile here (YAML)")
    parser.add_argument(
        "--fit",
        default=",".join(_FITTABLE),
        metavar="NAMES",
        help="what may change, comma-separated: "
        + "; ".join(f"{factor.name} ({factor.what})" for factor in FACTORS),
    )
    parser.add_argument(
        "--hold-back",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="share of the results that take no part in the fit, for the errors (default 0.3)",
    )
    return parser.parse_args(list(argv))


def _read(path: str) -> list[Observation]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return read_observations(document, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, ResultError) else f"{path}: not JSON ({error})"
        raise ConfigError(reason) from None


def _cluster(words: Sequence[str]) -> ResolvedCluster:
    """The server that was measured, from its own command line."""
    command = list(words)
    if command[:2] == ["vllm", "serve"]:
        command = command[2:]
    if not command:
        raise ConfigError("the server's command is missing; say it after --: -- vllm serve MODEL")
    args = parse_serve(command, os.environ)
    warn_without_effect(args.without_effect)
    sim = args.simulator
    return resolve_single(args.vllm, sim.hardware, sim.engine, sim.seed)


def _print(found: Calibration) -> None:
    print("factor      value  what")
    for factor in FACTORS:
        print(f"{factor.name:10s} {found.factors[factor.name]:6.3f}  {factor.what}")
    for title, part in (("fitted", found.fitted), ("held back", found.held_back)):
        if not part[0]:
            continue
        print(f"\n{title:40s}      TTFT before, after      TPOT before, after    tokens/s")
        for before, after in zip(*part, strict=True):
            print(_row(before.name[-40:], before, after))
        first, last = (median_errors(errors) for errors in part)
        print(
            f"{'median of absolute errors':40s} "
            f"{first['ttft_off']:11.1f}% {last['ttft_off']:6.1f}%     "
            f"{first['tpot_off']:9.1f}% {last['tpot_off']:6.1f}%     "
            f"{first['output_tokens_per_s_off']:5.1f}% {last['output_tokens_per_s_off']:5.1f}%"
        )


def _row(name: str, before: Comparison, after: Comparison) -> str:
    return (
        f"{name:40s} {before.ttft:+11.1%} {after.ttft:+7.1%}     "
        f"{before.tpot:+9.1%} {after.tpot:+7.1%}     "
        f"{before.output_tokens_per_s:+6.1%} {after.output_tokens_per_s:+6.1%}"
    )
