"""Real routers when a worker behind them becomes slow: who notices, and what becomes of its share.

A step of the slow worker takes a quarter of a second more (SGLang's `/slow_down`): half a second of
real time for an answer that takes the other worker a few hundredths. It stays healthy, so no router
takes it out. Round robin goes on giving it every other request; a balancer that counts what is
under way gives it next to nothing. Policies that poll loads (`power_of_two`, `least_load`) are not
here: on figures that are up to ten seconds old they send everybody to the one or to the other.
"""

from pathlib import Path

import httpx
import pytest

from tests.integration.test_router_faults import CLIENTS, any_router, traffic, until, workers

pytestmark = pytest.mark.integration

ANSWERS = 32


@pytest.mark.parametrize(
    ("name", "policy", "notices"),
    [
        ("sglang-router", "round_robin", False),
        ("smg", "round_robin", False),
        ("vllm-router", "round_robin", False),
        ("haproxy", "round_robin", False),
        ("haproxy", "leastconn", True),
    ],
)
async def test_a_slowed_worker_keeps_its_share_unless_somebody_counts(
    name: str, policy: str, notices: bool, tmp_path: Path
) -> None:
    with workers(tmp_path, 2, "sglang") as served:
        urls = [worker.url for worker in served]
        with any_router(name, urls, tmp_path, policy) as url:
            async with traffic(url) as seen:
                await until(lambda: len(seen.good_s) >= 24)
                slow_down(urls[0], 0.25)
                before = [worker.completed() for worker in served]
                start = len(seen.good_s)
                await until(lambda: len(seen.good_s) >= start + ANSWERS)
                after = [worker.completed() for worker in served]
                slow_down(urls[0], None)
        total = sum(worker.completed() for worker in served)
    slow, fast = (after[i] - before[i] for i in range(2))
    assert seen.bad == []
    assert total >= len(seen.good_s)
    if notices:
        assert slow <= CLIENTS < fast
    else:
        assert abs(slow - fast) <= CLIENTS


def slow_down(url: str, step_s: float | None) -> None:
    """Add so many (virtual) seconds to every step of a worker, or none any more."""
    answer = httpx.post(f"{url}/slow_down", json={"forward_sleep_time": step_s}, timeout=10)
    assert answer.status_code == 200
