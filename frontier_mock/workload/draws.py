"""Draws from the distributions of `workload.specs`, vectorised."""

import numpy as np
import numpy.typing as npt

from frontier_mock.simtime import NS_PER_S
from frontier_mock.workload.specs import (
    Delay,
    FixedDelay,
    FixedTokens,
    HistogramTokens,
    LognormalTokens,
    TokenCount,
    UniformTokens,
)

Tokens = npt.NDArray[np.int64]


def draw_tokens(dist: TokenCount, rng: np.random.Generator, count: int) -> Tokens:
    """`count` token counts from `dist`."""
    match dist:
        case FixedTokens(tokens):
            return np.full(count, tokens, np.int64)
        case UniformTokens(low, high):
            return rng.integers(low, high, count, endpoint=True)
        case LognormalTokens(median, sigma, low, high):
            drawn = np.rint(median * np.exp(sigma * rng.standard_normal(count)))
            return np.clip(drawn, low, high).astype(np.int64)
        case HistogramTokens(bins):
            weights = np.array([weight for _, _, weight in bins])
            chosen = rng.choice(len(bins), count, p=weights / weights.sum())
            lows = np.array([low for low, _, _ in bins])[chosen]
            highs = np.array([high for _, high, _ in bins])[chosen]
            return rng.integers(lows, highs, count, endpoint=True)


def draw_delays_ns(dist: Delay, rng: np.random.Generator, count: int) -> Tokens:
    """`count` pauses from `dist`, in nanoseconds."""
    if isinstance(dist, FixedDelay):
        return np.full(count, round(dist.seconds * NS_PER_S), np.int64)
    return np.rint(rng.exponential(dist.mean_s * NS_PER_S, count)).astype(np.int64)
