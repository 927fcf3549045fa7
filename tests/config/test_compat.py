"""Switches for what a version gave up: by command line, and by scenario."""

from pathlib import Path

import pytest

from frontier_mock.cli.serving import with_compat
from frontier_mock.config.compat import read_compat
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.served import served_models
from frontier_mock.config.vllm_flags import SimulatorArgs
from frontier_mock.wire.compat import COMPAT, DEFAULT_COMPAT

SCENARIO = """
name: x
cluster:
  workers:
    - {name: s, engine: sglang-0.5.23, model: llama-3.1-8b, compat: "none"}
    - {name: v, model: llama-3.1-8b, compat: "default, old-metric-names"}
"""


def test_names_stand_for_themselves_and_for_several() -> None:
    assert read_compat("default", "compat") == DEFAULT_COMPAT
    assert read_compat("all", "compat") == tuple(COMPAT)
    assert read_compat("none", "compat") == ()
    assert read_compat("slime-routes, removed-routes", "c") == ("slime-routes", "removed-routes")
    with pytest.raises(ConfigError, match=r"compat: 'removed-route' is none.*allowed: removed-"):
        read_compat("removed-route", "compat")


def test_scenarios_say_it_by_worker_and_the_command_line_for_all(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(SCENARIO)
    cluster = resolve_scenario(load_scenario(str(path)))
    sglang, vllm = served_models(cluster, None, {})
    assert sglang.sglang is not None
    assert sglang.sglang.compat == ()
    assert vllm.old_metric_names
    told = with_compat(cluster, SimulatorArgs(compat="cache-config-info"))
    sglang, vllm = served_models(told, None, {})
    assert sglang.sglang is not None
    assert sglang.sglang.compat == ("cache-config-info",)
    assert not vllm.old_metric_names
    flagged = with_compat(told, SimulatorArgs(old_metric_names=True))
    assert served_models(flagged, None, {})[1].old_metric_names
    path.write_text(SCENARIO.replace('"none"', "nonsense"))
    with pytest.raises(ConfigError, match=r"x.yaml:5: .*compat: 'nonsense' is none"):
        load_scenario(str(path))
