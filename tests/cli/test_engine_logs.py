"""Which lines a server's flags ask for."""

import pytest

from frontier_mock.cli.engine_logs import log_settings
from frontier_mock.config.resolve import resolve_sglang
from frontier_mock.config.sglang_flags import parse_sglang_args


@pytest.mark.parametrize(
    ("flags", "level", "as_json"),
    [
        ([], -1, False),
        (["--log-requests-level", "3"], -1, False),
        (["--log-requests"], 2, False),
        (["--log-requests", "--log-requests-level", "0"], 0, False),
        (["--log-requests", "--log-requests-format", "json"], 2, True),
    ],
)
def test_requests_are_logged_if_that_is_asked_for(
    flags: list[str], level: int, as_json: bool
) -> None:
    args, _ = parse_sglang_args(["--model-path", "Qwen/Qwen3-8B", *flags])
    worker = resolve_sglang(args, "h800", "sglang-0.5.23", "w", 0)
    settings = log_settings(worker, {})
    assert (settings.requests, settings.requests_as_json) == (level, as_json)
