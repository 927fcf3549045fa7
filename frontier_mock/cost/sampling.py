"""What it costs to turn logits into tokens. PURE.

cost_model.md section 1.6. The plain sampler is measured; what sorting, penalties and grammars add
are priors without a source there, the middle of the range it gives.
"""

from typing import Final

from frontier_mock.cost.specs import HardwareSpec, SamplingSpec
from frontier_mock.cost.tables import Floats

_SAMPLER_US: Final = 60.0
"""Fixed GPU time of the sampler."""

_BYTES_PER_LOGIT: Final = 16

_SORTED: Final = 5.0
"""Passes over a row of logits that top-p or top-k take, against one (4 to 6)."""

_PENALTIES_US: Final = 30.0
"""Counting and applying penalties, once a step in which any row has them."""

GRAMMAR_S: Final = 65e-6
"""CPU time of one request's bit mask (30 to 100 us)."""

_MASK_BYTES_PER_LOGIT: Final = 8.125
"""A bit, and reading and writing the logit that it may rule out."""


def sampled_us(hw: HardwareSpec, vocab_size: int, sampling: SamplingSpec, rows: Floats) -> Floats:
    """Microseconds on the GPU for each number of logit rows."""
    passes = 1.0 + (_SORTED - 1.0) * sampling.top_p
    logit_bytes = passes * _BYTES_PER_LOGIT + sampling.grammar * _MASK_BYTES_PER_LOGIT
    fixed_us = _SAMPLER_US + (_PENALTIES_US if sampling.penalties else 0.0)
    made: Floats = fixed_us + rows * (vocab_size * logit_bytes / hw.hbm_bytes_per_s * 1e6)
    return made
