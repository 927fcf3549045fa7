"""How many drafts are accepted where nobody says: from published acceptance lengths.

A curve gives mean acceptance lengths for a few numbers of drafts. The length grows by the chance
that one more draft is accepted, so two numbers say what the drafts between them add, and how that
is shared follows if each of them is accepted as often, given the one before. Beyond the last number
that share goes on (cost_model.md section 1.10).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from frontier_mock.config.errors import ConfigError, nearest

CURVES = {
    "mtp": "mtp",
    "eagle": "eagle3",
    "eagle3": "eagle3",
    "draft_model": "draft_model",
    "ngram": "ngram",
    "ngram_gpu": "ngram",
}
"""The curve that stands for a method, vLLM's names."""


@dataclass(frozen=True, slots=True)
class AcceptanceCurve:
    """Mean acceptance lengths by number of drafts, and where they were published."""

    lengths: Mapping[int, float]
    source: str


@cache
def acceptance_curves() -> Mapping[str, AcceptanceCurve]:
    """All curves by name."""
    text = resources.files("frontier_mock.profiles").joinpath("acceptance.yaml").read_text()
    return {name: AcceptanceCurve(**entry) for name, entry in yaml.safe_load(text).items()}


def curve_named(name: str) -> AcceptanceCurve:
    """The curve called `name`. Raises ConfigError."""
    curves = acceptance_curves()
    if name not in curves:
        allowed = ", ".join(curves)
        raise ConfigError(
            f"no acceptance curve {name!r}{nearest(name, curves)}; allowed: {allowed}"
        )
    return curves[name]


def rates_of_curve(curve: AcceptanceCurve, num_drafts: int) -> tuple[float, ...]:
    """The chance that the first i + 1 drafts are all accepted, for each of `num_drafts`."""
    rates: list[float] = []
    last, length, share = 1.0, 1.0, 0.0
    for drafts, total in sorted(curve.lengths.items()):
        count = drafts - len(rates)
        share = _share(last, total - length, count)
        for _ in range(count):
            last *= share
            rates.append(last)
        length = total
    while len(rates) < num_drafts:
        last *= share
        rates.append(last)
    return tuple(rates[:num_drafts])


def _share(last: float, added: float, count: int) -> float:
    """How often a draft is accepted after the one before it, if `count` of them add `added`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(last * middle**i for i in range(1, count + 1))
        low, high = (middle, high) if total < added else (low, middle)
    return (low + high) / 2
