"""What an attention/FFN-disaggregated instance is made of. PURE."""

from dataclasses import dataclass
from typing import Final

from frontier_mock.cost.specs import HardwareSpec

CONNECTORS: Final = ("m2n", "broadcast", "p2p")
"""How a token reaches the FFN GPUs. "m2n": one copy to each that holds one of its experts
(MegaScale-Infer, arXiv 2504.02263). "broadcast": one copy to each FFN instance, whose GPUs gather
them over NVLink (StepMesh, arXiv 2507.19427). "p2p": one copy to the FFN GPU that the attention
rank is paired with, and from there as in expert parallelism (vllm-project/afd-plugin)."""


@dataclass(frozen=True, slots=True)
class AfdSpec:
    """The FFN side of an instance, and how the two sides meet.

    The `StepSpec` beside it is the attention side: `step.parallel.dp` ranks of `step.parallel.tp`
    GPUs, on `attention_instances` machines. `ffn_gpus` hold whole experts each, in `ffn_instances`
    machines; `ffn_weights` is their type. A token travels there with `a2f_bytes` per element (1 is
    fp8, with its scales) and its results come back in bf16. `gate_on_attention`: the router runs on
    attention GPUs; "m2n" cannot do without. `redundant_experts` replicas even out the load. A step
    is cut into micro-batches only if every rank has at least `least_decodes` tokens, or
    `least_prompt_tokens` where it computes prompts.
    """

    attention_instances: int
    ffn_instances: int
    ffn_gpus: int
    ffn_hardware: HardwareSpec
    ffn_weights: str
    micro_batches: int = 3
    connector: str = "m2n"
    a2f_bytes: int = 1
    gate_on_attention: bool = True
    redundant_experts: int = 0
    least_decodes: int = 1
    least_prompt_tokens: int = 1

    @property
    def name(self) -> str:
        """As papers write it, 3A2F, counted in machines."""
        return f"{self.attention_instances}A{self.ffn_instances}F"
