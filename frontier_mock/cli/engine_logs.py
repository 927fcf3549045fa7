"""Which lines a server logs as its engine would: its flags' and variables' word on it."""

from collections.abc import Mapping

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.resolve import ResolvedWorker
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.serve.settings import LogSettings

_QUIET = ("warning", "warn", "error", "critical", "fatal")
"""Levels at which neither engine says how it is going."""


def log_settings(worker: ResolvedWorker, environment: Mapping[str, str]) -> LogSettings:
    """What a worker logs. Raises ConfigError for an interval that is none."""
    largest = max(worker.spec.step.cudagraph_sizes, default=0)
    if worker.sglang is not None:
        return _sglang(worker.sglang, largest)
    return _vllm(worker.args, environment.get("VLLM_LOG_STATS_INTERVAL", "10"))


def _sglang(args: SglangArgs, largest_graph: int) -> LogSettings:
    given = dict(args.given)
    level = given.get("log_level", "info")
    interval = given.get("decode_log_interval", 40)
    if not isinstance(interval, int) or interval < 1:
        raise ConfigError(
            f"argument --decode-log-interval: {shown(interval)} is not a whole number >= 1"
        )
    excluded = given.get("uvicorn_access_log_exclude_prefixes")
    return LogSettings(
        sglang=True,
        batches=str(level).lower() not in _QUIET,
        interval=interval,
        access=str(given.get("log_level_http") or level).lower() not in _QUIET,
        largest_graph=largest_graph,
        excluded=tuple(map(str, excluded)) if isinstance(excluded, tuple | list) else (),
        requests=_request_level(given),
        requests_as_json=given.get("log_requests_format") == "json",
    )


def _request_level(given: Mapping[str, object]) -> int:
    """--log-requests-level, 2 unless it is said; -1 without --log-requests."""
    return int(str(given.get("log_requests_level", 2))) if given.get("log_requests") else -1


def _vllm(args: VllmArgs, stats_interval: str) -> LogSettings:
    try:
        stats_s = float(stats_interval)
    except ValueError:
        stats_s = 0.0
    if not 0.0 < stats_s < 1e9:
        raise ConfigError(
            f"environment variable VLLM_LOG_STATS_INTERVAL: {shown(stats_interval)}; "
            "allowed: seconds above 0"
        )
    paths = (args.disable_access_log_for_endpoints or "").split(",")
    return LogSettings(
        batches=not args.disable_log_stats,
        stats_s=stats_s,
        access=not args.disable_uvicorn_access_log and args.uvicorn_log_level not in _QUIET,
        excluded=tuple(path.strip() for path in paths if path.strip()),
    )
