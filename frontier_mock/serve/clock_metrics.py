"""Our own families on /metrics: how the clock is doing. Their names begin with `mock_`."""

from typing import TYPE_CHECKING

from frontier_mock.drive.drift import BUCKETS_S, Drift
from frontier_mock.simtime import NS_PER_S
from frontier_mock.wire.prometheus import Counter, Gauge

if TYPE_CHECKING:
    from frontier_mock.serve.clock_routes import Clockwork


def render_clock_metrics(clockwork: "Clockwork", created_s: float) -> bytes:
    """Prometheus text: virtual time, drift, jumps, guesses and stalls."""
    keeper = clockwork.keeper
    virtual_s = clockwork.now_ns() / NS_PER_S
    wall_s = clockwork.wall_s()
    speed = virtual_s / wall_s if wall_s > 0 else 0.0
    gauges = (
        ("mock_virtual_time_seconds", "Virtual time.", virtual_s),
        ("mock_achieved_scale", "Virtual over real seconds so far.", speed),
    )
    counters = (
        ("mock_jumps", "Moves of the virtual clock.", keeper.jumps),
        ("mock_grace_jumps", "Jumps past clients without a lease.", keeper.guesses),
        ("mock_stalls", "Times that patience overruled held leases.", keeper.stall_count),
        ("mock_late_steps", "Deliveries later than the limit.", clockwork.drift.late),
    )
    text: list[str] = []
    for name, help_text, value in gauges:
        gauge = Gauge(name, help_text, [{}])
        gauge.values[0] = value
        text.append(gauge.render())
    for name, help_text, count in counters:
        counter = Counter(name, help_text, [{}], created_s)
        counter.values[0] = count
        text.append(counter.render())
    text.append("\n".join(_histogram(clockwork.drift)) + "\n")
    return "".join(text).encode()


def _histogram(drift: Drift) -> list[str]:
    name = "mock_drift_seconds"
    lines = [
        f"# HELP {name} Virtual time between an event and its delivery.",
        f"# TYPE {name} histogram",
    ]
    seen = 0
    for bound, count in zip(BUCKETS_S, drift.counts, strict=False):
        seen += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {float(seen)!r}')
    lines.append(f'{name}_bucket{{le="+Inf"}} {float(drift.total)!r}')
    lines.append(f"{name}_count {float(drift.total)!r}")
    lines.append(f"{name}_sum {drift.sum_ns / NS_PER_S!r}")
    return lines
