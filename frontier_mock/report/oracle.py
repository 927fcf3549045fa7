"""How good the routing was for the prefix cache: what was hit against what could have been.

All figures are prompt tokens of measured requests that were admitted; what each of them means is
in `cluster.oracle`. `hit` is what the engine in fact reused, at admission: a little after arrival,
so it may be more than the worker had when the request came (another one computed the prefix in the
meantime) or less (it was evicted).
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from frontier_mock.cluster.oracle import CacheOracle
from frontier_mock.report.records import RequestRecord

_Tokens = npt.NDArray[np.int64]


class HitRates(TypedDict):
    """Shares of `query_tokens`. In this order each bounds the next, save the last two."""

    query_tokens: int
    unlimited: float
    oracle: float
    taken: float
    hit: float
    round_robin: float


class OracleStats(TypedDict):
    """What routing decisions cost or won.

    `regret_vs_oracle` is how many tokens per request the best server at arrival had cached more
    than the one chosen; `regret_vs_round_robin` likewise for round robin's turn, negative where the
    router did better. `beyond_common_prefix` are the rates without the `common_prefix_tokens` that
    every request begins with, which any router hits.
    """

    requests: int
    rates: HitRates
    regret_vs_oracle_tokens: float
    regret_vs_round_robin_tokens: float
    common_prefix_tokens: int
    beyond_common_prefix: HitRates


def oracle_stats(
    oracle: CacheOracle, records: Sequence[RequestRecord], measured: Sequence[bool] | None
) -> OracleStats:
    """Score the routing of a run; `records` and `measured` are by rid, None: all are measured."""
    kept = [
        place
        for place, rid in enumerate(oracle.rids)
        if records[rid].scheduled and (measured is None or measured[rid])
    ]
    rids = [oracle.rids[place] for place in kept]
    hit = np.array([records[rid].cached_tokens for rid in rids], np.int64)
    prompts, best, taken, turn, unlimited = (
        np.array(column, np.int64)[kept]
        for column in (
            oracle.prompts,
            oracle.best,
            oracle.taken,
            oracle.round_robin,
            oracle.unlimited,
        )
    )
    common = oracle.common_tokens if len(oracle.rids) > 1 else 0

    def rates(skipped: int) -> HitRates:
        queries = int((prompts - np.minimum(prompts, skipped)).sum())

        def rate(tokens: _Tokens) -> float:
            found = int((tokens - np.minimum(tokens, skipped)).sum())
            return found / queries if queries else 0.0

        return HitRates(
            query_tokens=queries,
            unlimited=rate(unlimited),
            oracle=rate(best),
            taken=rate(taken),
            hit=rate(hit),
            round_robin=rate(turn),
        )

    return OracleStats(
        requests=len(kept),
        rates=rates(0),
        regret_vs_oracle_tokens=float((best - taken).mean()) if kept else 0.0,
        regret_vs_round_robin_tokens=float((turn - taken).mean()) if kept else 0.0,
        common_prefix_tokens=common,
        beyond_common_prefix=rates(common),
    )


def oracle_lines(stats: OracleStats) -> list[tuple[str, str]]:
    """The figures as rows of (name, value), for terminal and page."""
    names = [
        "one unlimited cache",
        "best worker at arrival",
        "worker chosen, at arrival",
        "reused at admission",
        "round robin, at arrival",
    ]
    beyond = _in_order(stats["beyond_common_prefix"])
    rows = []
    for name, rate, rest in zip(names, _in_order(stats["rates"]), beyond, strict=True):
        more = f" ({rest:.2%})" if stats["common_prefix_tokens"] else ""
        rows.append((name, f"{rate:.2%}{more}"))
    rows.append(("regret, tokens/request", f"{stats['regret_vs_oracle_tokens']:,.1f}"))
    against = stats["regret_vs_round_robin_tokens"]
    rows.append(("against round robin", f"{against:+,.1f}"))
    return rows


def _in_order(rates: HitRates) -> tuple[float, ...]:
    return (
        rates["unlimited"],
        rates["oracle"],
        rates["taken"],
        rates["hit"],
        rates["round_robin"],
    )


def oracle_title(stats: OracleStats) -> str:
    """A heading for those rows, which says what the second column of rates is."""
    common = stats["common_prefix_tokens"]
    beyond = f" (beyond the first {common:,})" if common else ""
    return f"prompt tokens hit{beyond}"
