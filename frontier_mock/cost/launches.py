"""Host time of a forward pass whose kernels are launched one by one. PURE."""

from typing import Final

from frontier_mock.cost.layers import linear_weights
from frontier_mock.cost.specs import StepSpec

_PYTHON_LAUNCH_US: Final = 18.0
"""Host time of a kernel that Python calls, whether eagerly or out of Inductor's code, which is
Python too (cost_model.md section 1.9, eager minus graphed all-reduce: 16 to 20 us)."""

_LAYER_KERNELS: Final = 11
"""Kernels of a dense layer: four linear ones, two norms, rope, activation, cache write, attention
and its scheduler."""

_EAGER_OPS: Final = 40
"""What a dense layer that nobody compiled asks of the host in calls of that length: Qwen2.5-Omni-7B
without graphs takes 22 ms a token where the GPU needs 13 (row B81), 28 layers and 2 ms beside
them. Most are views, splits and modules without a kernel."""

_EXPERT_KERNELS: Final = 40
"""What a layer with experts launches more, all of it through Python inside one custom op. Eager
Qwen3-30B-A3B launches 61 kernels a layer (nsys, h200_kernels_nsys_4096tok_tp4dp2ep8.csv), of which
about 20 are a dense layer's and its collectives'."""

_FUSED_EXPERT_KERNELS: Final = 20
"""The same where routing is part of the expert kernels (mxfp4 in vLLM and SGLang): an inference, no
more than half."""

_BLOCK_LINEAR_US: Final = 75.0
"""Host time of one block-fp8 linear layer, quantisation included: aiconfigurator's tables of vLLM's
show 60 to 90 us whatever the size, which its README puts down to launches."""


def eager_launch_us(spec: StepSpec) -> float:
    """Microseconds to launch one forward pass kernel by kernel.

    An engine that captures graphs of prompts and decodes alike has compiled the layers (vLLM). One
    told not to (`--enforce-eager`), or that captures decodes as they are (SGLang), runs each
    operation of the model's own code.
    """
    collectives = 0 if spec.parallel.tp == 1 else 2
    eager = not spec.cudagraph_sizes or spec.prompt_graph_sizes is not None
    calls = collectives + (_EAGER_OPS if eager else _LAYER_KERNELS)
    layers, with_experts = spec.model.num_layers, spec.model.expert_layers
    fused = spec.precision.weights == "mxfp4"
    kernels = _FUSED_EXPERT_KERNELS if fused else _EXPERT_KERNELS
    made = (layers * calls + with_experts * kernels) * _PYTHON_LAUNCH_US
    if linear_weights(spec.model, spec.precision) == "fp8_block":
        made += (4 * layers - 2 * with_experts) * _BLOCK_LINEAR_US
    return made
