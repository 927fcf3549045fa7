"""Pool studies: seconds for a table, and one line for what cannot be."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.pools import read_ratio, study
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.scenario import load_scenario


def test_ratios_share_a_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pools", "pdd-4xh800", "--ratios", "1P3D,3P1D,4C", "--requests", "40"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["1P3D", "3P1D", "4C"]


def test_tails_of_gaps_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "itl.svg"
    command = ["pools", "pdd-4xh800", "--ratios", "2P2D,4C", "--requests", "20", "--chart"]
    assert main([*command, str(drawn)]) == 0
    names = [
        line.text for line in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}title")
    ]
    assert names == ["2P2D", "4C"]
    assert main([*command, str(tmp_path / "no" / "itl.svg")]) == 2
    assert "argument --chart:" in capsys.readouterr().err


def test_co_location_stalls_decodes_and_pools_do_not() -> None:
    scenario = load_scenario("pdd-4xh800")
    apart = study(scenario, read_ratio("2P2D"), 80)
    together = study(scenario, read_ratio("4C"), 80)
    assert apart["requests"]["completed"] == together["requests"]["completed"] == 80
    assert len(apart["workers"]) == len(together["workers"]) == 4
    assert (together["itl_ms"]["max"] or 0) > 5 * (apart["itl_ms"]["max"] or 0)
    assert "transfers" not in together


@pytest.mark.parametrize("name", ["", "0P2D", "2P", "P2D", "2A3F", "400P400D"])
def test_a_ratio_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed: xPyD or nC, 512 workers at most"):
        read_ratio(name)


def test_other_scenarios_have_no_pools() -> None:
    scenario = load_scenario("burst-h800")
    with pytest.raises(ConfigError, match="workers must have roles prefill and decode"):
        study(scenario, read_ratio("1P1D"))
    pools = load_scenario("pdd-4xh800")
    twice = replace(pools, groups=(*pools.groups, replace(pools.groups[1], name="e")))
    with pytest.raises(ConfigError, match="one group of workers for each role"):
        study(twice, read_ratio("1P1D"))
