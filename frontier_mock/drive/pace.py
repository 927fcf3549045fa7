"""How virtual time relates to the wall: the clock a user asked for, and the arithmetic of pace."""

import math
import sys
from dataclasses import dataclass

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.simtime import SimTime

MODES = ("real", "scaled", "warp")
"""`real` is scaled:1; `scaled` runs N virtual seconds per real one; `warp` jumps."""


@dataclass(frozen=True, slots=True)
class ClockSpec:
    """Which clock a server runs on.

    Warp only: `grace_ms` of real silence before time moves past a client without a lease;
    `patience_s` of real time until held leases count as stalled; `strict` ends the run at the
    first stall; `baton` lets one actor run at a time.
    Real and scaled only: a delivery more than `late_ms` real milliseconds late is counted;
    `on_late="abort"` ends the run at the first one later than `late_ms_max` (ns-3's HardLimit,
    whose default is also 0.1 s). `precise` wakes for every step at its nanosecond instead of at the
    event loop's next millisecond (`drive.alarm`); Linux only.
    """

    mode: str = "real"
    scale: float = 1.0
    grace_ms: float = 5.0
    patience_s: float = 1.0
    strict: bool = False
    baton: bool = False
    on_late: str = "report"
    late_ms: float = 5.0
    late_ms_max: float = 100.0
    precise: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError naming the key, its value and what is allowed."""
        if self.mode not in MODES:
            raise ConfigError(f"clock: {shown(self.mode)} is not one of real, scaled:N, warp")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"clock: scale {shown(self.scale)} is not a number above 0")
        if self.precise and not sys.platform.startswith("linux"):
            raise ConfigError("precise: on is not possible here; allowed: off, or on under Linux")
        if self.on_late not in ("report", "abort"):
            raise ConfigError(f"on-late: {shown(self.on_late)} is not one of report, abort")
        for key in ("grace_ms", "patience_s", "late_ms", "late_ms_max"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{key}: {shown(value)} is not a number of at least 0")


def parse_clock(text: str) -> tuple[str, float]:
    """Mode and scale of `--clock`: `real`, `scaled:N` or `warp`. Raises ConfigError."""
    if text in ("real", "warp"):
        return text, 1.0
    mode, _, factor = text.partition(":")
    if mode == "scaled":
        try:
            scale = float(factor)
        except ValueError:
            scale = 0.0
        if math.isfinite(scale) and scale > 0:
            return "scaled", scale
    raise ConfigError(f"clock: {shown(text)} is not one of real, scaled:N (N > 0), warp")


@dataclass(frozen=True, slots=True)
class Pace:
    """Virtual time as a straight line over a monotonic wall clock that starts at `origin_ns`.

    Deadlines are absolute: they come from the virtual time alone, so that lateness of one
    delivery never moves the next.
    """

    origin_ns: int
    scale: float

    def now_ns(self, wall_ns: int) -> SimTime:
        """Virtual time at `wall_ns`."""
        elapsed = wall_ns - self.origin_ns
        return elapsed if self.scale == 1.0 else int(elapsed * self.scale)

    def wall_ns(self, t_ns: SimTime) -> int:
        """The first wall nanosecond at which `now_ns` is at least `t_ns`: nothing is early."""
        if self.scale == 1.0:
            return self.origin_ns + t_ns
        wall = self.origin_ns + math.ceil(t_ns / self.scale)
        return wall if self.now_ns(wall) >= t_ns else wall + 1
