"""`frontier-mock ratios MODEL`: how many attention machines per FFN machine, by context length.

For each xAyF the largest batch that keeps a token time and fits the KV cache, and what that gives
per GPU and per dollar. Prices come from the closed form of a step, so dozens of clusters take
seconds; `simulate` plays any of them with queues, prompts and ragged contexts.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from frontier_mock.cli.options import command_parser
from frontier_mock.config.afd import AfdArgs
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.profiles import known_hardware
from frontier_mock.config.resolve import ResolvedCluster, resolve_single
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.cost.afd.step import AfdStepCost
from frontier_mock.cost.protocol import RankBatch
from frontier_mock.report.terminal import figure

DEFAULT_RATIOS = "1A2F,2A2F,3A2F,4A2F,8A2F,16A2F"
_GPUS_PER_MACHINE = 8
_PRICE = re.compile(r"\d{1,6}(\.\d{1,6})?")
_RATIO = re.compile(r"(\d{1,3})A(\d{1,3})F")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One cluster at one context: `batch` sequences per attention rank, and what that gives.

    `bound` says what limits the batch, "KV" cache or token "time". It is 0 if not even one sequence
    a rank keeps the time.
    """

    name: str
    context: int
    gpus: int
    batch: int
    bound: str
    tpot_ms: float
    tokens_per_s_per_gpu: float
    tokens_per_usd: float


def run(argv: Sequence[str]) -> int:
    """Print the study. Raises ConfigError."""
    parser = command_parser("ratios", "Compare attention to FFN ratios by context length.")
    parser.add_argument("model", help="a model with experts")
    parser.add_argument("--hardware", default="h800", help="of attention [h800]")
    parser.add_argument("--ffn-hardware", help="of FFN [as attention]")
    parser.add_argument("--contexts", default="4096,8192,32768", help="tokens [4096,8192,32768]")
    parser.add_argument("--ratios", default=DEFAULT_RATIOS, help=f"[{DEFAULT_RATIOS}]")
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="longest token time [50]")
    parser.add_argument("--micro-batches", type=int, default=3, help="in flight [3]")
    parser.add_argument(
        "--prices",
        default="",
        help="USD per GPU-hour, as h800=2,h20=1.2 [the profiles' made-up ones]",
    )
    options = parser.parse_args(list(argv))
    prices = _prices(options.prices)
    if not options.tpot_ms > 0:
        raise ConfigError(f"argument --tpot-ms: {options.tpot_ms} is not above 0")
    if not 1 <= options.micro_batches <= 16:
        raise ConfigError(f"argument --micro-batches: {options.micro_batches} is not in 1..16")
    rows = []
    for context in _contexts(options.contexts):
        for name in options.ratios.split(","):
            args = _args(options, name, context)
            rows.append(study(args, options.hardware, name, context, options.tpot_ms, prices))
    _print(rows)
    return 0


def study(
    args: VllmArgs,
    hardware: str,
    name: str,
    context: int,
    tpot_ms: float,
    prices: Mapping[str, float] | None = None,
) -> Ratio:
    """The largest batch of `context` tokens a sequence that keeps `tpot_ms`. Raises ConfigError."""
    resolved = resolve_single(args, hardware, "vllm", 0)
    cost, spec = resolved.costs[0], resolved.spec.workers[0]
    assert isinstance(cost, AfdStepCost)
    assert spec.afd is not None

    def step_ms(batch: int) -> float:
        ranks = [RankBatch(batch, batch * context)] * spec.dp_size
        return cost.lockstep_run(ranks).first_ns / 1e6

    room = spec.scheduler.num_blocks * spec.scheduler.block_size // context
    batch = largest(lambda tried: step_ms(tried) <= tpot_ms, room)
    gpus = spec.gpus * spec.dp_size + spec.afd.ffn_gpus
    tokens_per_s = batch * spec.dp_size / step_ms(batch) * 1e3 if batch else 0.0
    return Ratio(
        name,
        context,
        gpus,
        batch,
        "KV" if batch == room else "time",
        step_ms(max(batch, 1)),
        tokens_per_s / gpus,
        _per_usd(tokens_per_s, _usd_per_hour(resolved, prices or {})),
    )


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where whatever is below one that fits does too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _usd_per_hour(resolved: ResolvedCluster, prices: Mapping[str, float]) -> float:
    spec = resolved.spec.workers[0]
    assert spec.afd is not None
    sides = (
        (spec.gpus * spec.dp_size, spec.step.hardware),
        (spec.afd.ffn_gpus, spec.afd.ffn_hardware),
    )
    return sum(gpus * prices.get(hw.name, hw.usd_per_hour) for gpus, hw in sides)


def _per_usd(tokens_per_s: float, usd_per_hour: float) -> float:
    return tokens_per_s * 3600.0 / usd_per_hour if usd_per_hour > 0 else 0.0


def _prices(text: str) -> dict[str, float]:
    known, prices = known_hardware(), {}
    for word in filter(None, text.split(",")):
        name, _, price = word.partition("=")
        if name not in known or not _PRICE.fullmatch(price):
            raise ConfigError(
                f"argument --prices: {shown(word)} is not like h800=2.5; hardware is one of "
                f"{', '.join(known)}"
            )
        prices[name] = float(price)
    return prices


def _contexts(text: str) -> Iterator[int]:
    for word in text.split(","):
        if not word.strip().isdecimal() or not 1 <= int(word) <= 1 << 20:
            raise ConfigError(f"argument --contexts: {shown(word)} is not a number of tokens")
        yield int(word)


def _args(options: argparse.Namespace, name: str, context: int) -> VllmArgs:
    match = _RATIO.fullmatch(name.strip())
    if match is None or not int(match[1]) or not int(match[2]):
        raise ConfigError(f"argument --ratios: {shown(name)} is not like 3A2F")
    attention, ffn = int(match[1]), int(match[2])
    afd = AfdArgs(
        attention_gpus=attention * _GPUS_PER_MACHINE,
        ffn_gpus=ffn * _GPUS_PER_MACHINE,
        attention_instances=attention,
        ffn_instances=ffn,
        ffn_hardware=options.ffn_hardware,
        micro_batches=options.micro_batches,
    )
    return VllmArgs(
        model=options.model, max_model_len=context, max_num_batched_tokens=8192, afd=afd
    )


def _print(rows: Sequence[Ratio]) -> None:
    table = Table()
    for column in ("context", "ratio", "GPUs", "batch", "bound", "TPOT ms", "tok/s/GPU", "tok/$"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        alike = [one for one in rows if one.context == row.context]
        best = max(alike, key=lambda one: one.tokens_per_s_per_gpu)
        table.add_row(
            f"{row.context:,}",
            row.name,
            f"{row.gpus:,}",
            f"{row.batch:,}",
            row.bound,
            figure(row.tpot_ms),
            f"{row.tokens_per_s_per_gpu:,.0f}",
            f"{row.tokens_per_usd:,.0f}",
            "*" if row is best and row.batch else "",
            end_section=row is alike[-1],
        )
    console = Console()
    console.print(table)
    console.print("* most tokens per GPU at its context", style="dim")
