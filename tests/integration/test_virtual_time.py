"""Closed-loop agents with leases, in processes of their own, directly and through real routers.

A *causality error* is a turn stamped at any other moment than when its predecessor's end and the
thought after it say it is due. `scripts/bench virtual` runs the same at full size.
"""

from pathlib import Path

import pytest

from tests.integration.fleet import (
    Played,
    digest_of_journal,
    digest_of_simulation,
    fleet,
    play,
    router,
    write_scenario,
)

pytestmark = pytest.mark.integration

ROUTERS = ("sglang-router", "smg", "vllm-router")
STATELESS_RUNS = 2


def faultless(played: Played) -> bool:
    """No turn late, none failed, and time never moved on a guess or past a held lease."""
    return (played.errors, played.failures, played.stalls, played.guesses) == (0, [], 0, 0)


async def test_direct_equals_the_simulation_of_the_same_agents(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, agents=16, turns=5, workers=3)
    for _ in range(2):
        with fleet(scenario, tmp_path) as served:
            played = await play(scenario, served.urls, served.clock_url)
        assert faultless(played)
        assert played.digest == digest_of_journal(served.journal)
        assert played.digest == digest_of_simulation(scenario)


@pytest.mark.parametrize("name", ROUTERS)
async def test_canonical_order_fixes_a_run_through_a_router(name: str, tmp_path: Path) -> None:
    """Agents that begin apart never reach the router at one instant: its turns are theirs."""
    scenario = write_scenario(tmp_path, agents=16, turns=5, workers=3, together=False)
    roles = set()
    for _ in range(STATELESS_RUNS):
        with (
            fleet(scenario, tmp_path) as served,
            router(name, "round_robin", served.urls, tmp_path / "router.log") as url,
        ):
            played = await play(scenario, [url], served.clock_url)
        assert faultless(played)
        assert played.digest == digest_of_journal(served.journal)
        roles.add(played.by_role)
    assert len(roles) == 1


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("sglang-router", "cache_aware"),
        ("vllm-router", "cache_aware"),
        ("smg", "round_robin"),
    ],
)
async def test_baton_fixes_what_a_router_with_a_memory_sees(
    name: str, policy: str, tmp_path: Path
) -> None:
    """All agents begin at one instant, which only the baton puts in an order for the router."""
    scenario = write_scenario(tmp_path, agents=16, turns=5, workers=3)
    roles = set()
    for _ in range(2):
        with (
            fleet(scenario, tmp_path, "--baton") as served,
            router(name, policy, served.urls, tmp_path / "router.log") as url,
        ):
            played = await play(scenario, [url], served.clock_url, baton=True)
        assert faultless(played)
        assert played.digest == digest_of_journal(served.journal)
        roles.add(played.by_role)
    assert len(roles) == 1


@pytest.mark.parametrize(
    ("name", "policy"), [("smg", "cache_aware"), ("sglang-router", "random"), ("smg", "random")]
)
async def test_a_router_that_draws_lots_is_recorded_exactly(
    name: str, policy: str, tmp_path: Path
) -> None:
    """Nothing outside can repeat these routers' draws, but what they drew is in the journal."""
    scenario = write_scenario(tmp_path, agents=16, turns=5, workers=3)
    with (
        fleet(scenario, tmp_path, "--baton") as served,
        router(name, policy, served.urls, tmp_path / "router.log") as url,
    ):
        played = await play(scenario, [url], served.clock_url, baton=True)
    assert faultless(played)
    assert played.digest == digest_of_journal(served.journal)
