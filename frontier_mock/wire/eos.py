"""When a model that may stop would stop: the length of an answer, drawn once per sequence."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from frontier_mock import rng

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class EosModel:
    """Log-normal answer lengths: `mean_tokens` with the end token, `sigma` of their logarithm.

    The default resembles chat traffic: the conversation traces of Azure (2023) and Mooncake have
    means of 211 and 343 output tokens and a spread of about one e-fold.
    """

    mean_tokens: float = 256.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a mean below one token or a negative spread."""
        if not self.mean_tokens >= 1 or not 0 <= self.sigma < math.inf:
            raise ValueError("an EOS model needs mean_tokens >= 1 and a finite sigma >= 0")

    def length(self, seed: int, key: int, choice: int) -> int:
        """Output tokens, the end token included, of choice `choice` for the content `key`."""
        uniform = rng.draw(seed, f"eos/{key:x}", choice)
        z = _NORMAL.inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))
        log_mean = math.log(self.mean_tokens) - self.sigma**2 / 2
        return max(1, round(math.exp(log_mean + self.sigma * z)))
