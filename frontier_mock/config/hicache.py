"""SGLang's host tier as users write it: `--enable-hierarchical-cache` and `--hicache-*`.

Sizes and thresholds are those of SGLang 0.5.23 (mem_cache/pool_host/base.py and
unified_radix_cache.py).
"""

from typing import Final

from frontier_mock.config.errors import ConfigError
from frontier_mock.cost.memory import MemoryPlan
from frontier_mock.cost.offload import tiers
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec

WRITE_POLICIES: Final = ("write_through", "write_through_selective")
"""Values of --hicache-write-policy that are simulated."""

_THRESHOLDS: Final = {"write_through": 1, "write_through_selective": 2}

_RATIO: Final = 2.0
"""Host tokens for each on the GPU, where nothing is given."""

_GB: Final = 1e9


def host_tier(
    ratio: float | None, size_gb: int, policy: str, step: StepSpec, memory: MemoryPlan
) -> HostTierSpec:
    """The host tier of an engine; `size_gb`, of each rank, goes before `ratio`.

    Raises ConfigError for one that is no larger than the GPU's cache, as SGLang does.
    """
    if size_gb:
        pages = int(size_gb * _GB // memory.bytes_per_block)
    else:
        pages = int(memory.num_blocks * (_RATIO if ratio is None else ratio))
    if pages <= memory.num_blocks:
        raise ConfigError(
            f"hicache: a host tier of {pages} pages is no larger than the {memory.num_blocks} on "
            "the GPU; raise --hicache-ratio or --hicache-size"
        )
    cpu = tiers(step.hardware)[0]
    return HostTierSpec(
        pages,
        memory.bytes_per_block,
        LaneSpec(cpu.read_bytes_per_s, cpu.latency_s),
        LaneSpec(cpu.write_bytes_per_s, cpu.latency_s),
        step.model.num_layers,
        _THRESHOLDS[policy],
    )
