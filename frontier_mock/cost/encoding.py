"""An engine that encodes images and does nothing else with its prompts. PURE.

vLLM 0.33's producer of embeddings (`ec_role: ec_producer`) schedules prompts as ever, but its steps
run the encoder only (v1/worker/gpu_model_runner.py). What remains is the host's work.
"""

from collections.abc import Sequence

from frontier_mock.cost.protocol import Chunk, DecodeLine
from frontier_mock.cost.step import TabledStepCost

_ANY = 1 << 62
"""More context than there is: it has no price."""


class EncodingOnly:
    """`EncodingCost` of such an engine."""

    def __init__(self, cost: TabledStepCost) -> None:
        """`cost` prices its encoder and its host's work."""
        self._cost = cost

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """See `StepCost`."""
        return DecodeLine(self._cost.with_cpu(0.0, num_seqs), 0.0, _ANY)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """See `StepCost`."""
        return round(self._cost.with_cpu(0.0, num_decodes + len(chunks)))

    def encode_ns(self, images: Sequence[int]) -> int:
        """See `EncodingCost`."""
        return self._cost.encode_ns(images)
