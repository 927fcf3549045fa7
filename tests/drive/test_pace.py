"""Clock arguments, the line between wall and virtual time, and what counts as late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.drift import Drift
from frontier_mock.drive.pace import ClockSpec, Pace, parse_clock


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("real", ("real", 1.0)),
        ("warp", ("warp", 1.0)),
        ("scaled:10", ("scaled", 10.0)),
        ("scaled:0.5", ("scaled", 0.5)),
    ],
)
def test_clock_is_parsed(text: str, expected: tuple[str, float]) -> None:
    assert parse_clock(text) == expected


@pytest.mark.parametrize(
    "text", ["", "fast", "scaled", "scaled:", "scaled:0", "scaled:nan", "scaled:-1"]
)
def test_unusable_clock_names_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="real, scaled:N"):
        parse_clock(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mode": "slow"}, "clock: 'slow'"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"on_late": "panic"}, "on-late: 'panic'"),
        ({"patience_s": -1.0}, "patience_s: -1.0"),
        ({"grace_ms": float("nan")}, "grace_ms: nan"),
    ],
)
def test_unusable_clock_spec_names_the_key(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClockSpec(**spec)


@given(st.integers(0, 10**15), st.floats(0.01, 1000.0), st.integers(0, 10**18))
def test_nothing_is_due_before_its_time_nor_more_than_a_step_after(
    t_ns: int, scale: float, origin_ns: int
) -> None:
    pace = Pace(origin_ns, scale)
    wall = pace.wall_ns(t_ns)
    assert pace.now_ns(wall) >= t_ns
    assert pace.now_ns(wall - 2) < t_ns + 1


def test_real_pace_is_exact() -> None:
    pace = Pace(1000, 1.0)
    assert pace.now_ns(1500) == 500
    assert pace.wall_ns(10**18 + 1) == 10**18 + 1001


def test_drift_counts_what_is_late_in_real_time() -> None:
    drift = Drift(late_ms=5.0, scale=10.0)
    for lateness_ms in (1, 20, 49, 51):
        drift.observe(lateness_ms * 1_000_000)
    assert drift.late == 1
    assert drift.total == 4
    assert drift.quantile_s(0.5) == 0.02
    assert drift.max_ns == 51_000_000
    assert "fell behind" in drift.verdict()


def test_drift_without_deliveries_says_so() -> None:
    assert "no step" in Drift(late_ms=1.0, scale=1.0).verdict()


def test_precise_clock_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not ClockSpec().precise
    with pytest.raises(ConfigError, match=r"precise: .* under Linux"):
        ClockSpec(precise=True)
