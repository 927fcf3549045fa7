"""Every scenario of an adapter can be read and resolved, and its workload built."""

from pathlib import Path

import pytest

from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import TraceSpec

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
SCENARIOS = sorted(ADAPTERS.glob("*/scenario*.yaml"))


def test_there_is_one_for_each_adapter() -> None:
    folders = {path.parent.name for path in SCENARIOS}
    assert folders == {path.name for path in ADAPTERS.iterdir() if path.is_dir()}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_complete(path: Path) -> None:
    scenario = load_scenario(str(path), {}, need_trace=False)
    assert scenario.groups
    # Dynamo's launch line makes the model's folder.
    if not any(Path(group.model).is_absolute() for group in scenario.groups):
        assert resolve_scenario(scenario).workers
    assert scenario.workload is not None
    if not isinstance(scenario.workload, TraceSpec):
        assert build_source(scenario.workload, seed=scenario.seed).num_requests > 0


def test_trls_server_is_the_one_of_its_launch_line() -> None:
    scenario = load_scenario(str(ADAPTERS / "trl" / "scenario.yaml"), {})
    (worker,) = resolve_scenario(scenario).workers
    launch = (ADAPTERS / "trl" / "launch").read_text()
    args = worker.args
    assert f"vllm serve {args.model} -tp {args.tensor_parallel_size} " in launch
    assert f"--max-logprobs {args.max_logprobs} " in launch
    assert '--weight-transfer-config \'{"backend": "nccl"}\'' in launch
