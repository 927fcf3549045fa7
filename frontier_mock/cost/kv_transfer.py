"""How much KV there is to move, and what laying it out anew costs. PURE.

The cache of a grouped-query model is cut by heads over the tensor-parallel ranks, and copied where
there are more ranks than heads; that of a model with latent attention is the same on every rank. So
what one engine's ranks hold of a prompt is not what another's need, and every byte that a receiving
rank needs has to reach it.
"""

from dataclasses import dataclass
from typing import Final

from frontier_mock.cost.layers import shard_model
from frontier_mock.cost.specs import ParallelSpec, StepSpec
from frontier_mock.simtime import NS_PER_S, SimTime

_PASSES: Final = 2
"""Laying blocks out anew reads and writes each byte once."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """Bytes that one engine's ranks need of a prompt, all ranks together.

    A token takes `token_bytes` in the layers that see everything, and `window_bytes` more while it
    is among the last `window` tokens, if some layers see no further.
    """

    token_bytes: int
    window_bytes: int
    window: int
    ranks: int
    hbm_bytes_per_s: float

    def prompt_bytes(self, tokens: int) -> int:
        """For `tokens` tokens of a prompt, the last one among them."""
        return tokens * self.token_bytes + min(tokens, self.window) * self.window_bytes

    def relayout_ns(self, num_bytes: int) -> SimTime:
        """Time that laying out `num_bytes` anew, spread over the ranks, takes at HBM speed."""
        moved = _PASSES * num_bytes / self.ranks
        return round(moved / self.hbm_bytes_per_s * NS_PER_S)


def kv_shape(spec: StepSpec) -> KvShape:
    """The shape for an engine's model, parallelism and cache type."""
    model, ranks = spec.model, spec.parallel.tp
    # Of one engine: where experts are, and on how many GPUs, is nothing to the cache.
    alone = ParallelSpec(tp=ranks)
    per_rank = shard_model(model, alone, spec.precision).heads.bytes_per_token
    full = model.num_layers - model.sliding_layers
    return KvShape(
        token_bytes=per_rank * ranks * full,
        window_bytes=per_rank * ranks * model.sliding_layers,
        window=model.sliding_window,
        ranks=ranks,
        hbm_bytes_per_s=spec.hardware.hbm_bytes_per_s,
    )


def same_layout(one: StepSpec, other: StepSpec) -> bool:
    """Whether ranks of the two hold the same slices, so that blocks can be taken as they are."""
    latent = one.model.latent is not None
    return latent or one.parallel.tp == other.parallel.tp
