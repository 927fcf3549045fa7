"""What a scenario says about judging a run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SloSpec:
    """Latency targets of a good request; None: no target. YAML: `slo: {ttft_ms, tpot_ms}`."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
