"""Every scenario of the library can be read, built and says where its trace is from."""

from importlib.resources import files
from pathlib import Path

import pytest

from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.scenario_files import LIBRARY, library_names
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import TraceSpec

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize("name", library_names())
def test_a_scenario_of_the_library_is_complete(name: str) -> None:
    scenario = load_scenario(name, {}, need_trace=False)
    text = files(LIBRARY).joinpath(f"{name}.yaml").read_text()
    assert scenario.name == name
    assert text.startswith("# ")
    assert scenario.groups
    assert scenario.workload is not None
    if not isinstance(scenario.workload, TraceSpec):
        assert build_source(scenario.workload, seed=scenario.seed).num_requests >= 64
    elif not scenario.workload.path.startswith("synthetic:"):
        assert "Source:" in text or "same trace" in text


@pytest.mark.golden
@pytest.mark.parametrize("name", library_names())
def test_a_scenarios_trace_is_where_it_says(name: str) -> None:
    if not DATA.exists():
        pytest.skip("needs ../shared/data")
    scenario = load_scenario(name, {"FRONTIER_MOCK_DATA": str(DATA)})
    if isinstance(scenario.workload, TraceSpec):
        path = scenario.workload.path
        assert path.startswith("synthetic:") or Path(path).is_file()
