"""`clock`, and the options of `up` that follow one: what is refused before anything is served."""

from pathlib import Path

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.up import chosen_workers
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import write_scenario


@pytest.fixture
def cluster(tmp_path: Path) -> ResolvedCluster:
    return resolve_scenario(load_scenario(scenario(tmp_path)))


def scenario(directory: Path) -> str:
    return write_scenario(directory, agents=1, turns=1, workers=4).source


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("w2", ["w2"]),
        ("w1..w3", ["w1", "w2", "w3"]),
        ("w3, w0..w1", ["w3", "w0", "w1"]),
        ("w2..w2", ["w2"]),
    ],
)
def test_workers_are_chosen_by_name_or_range(
    cluster: ResolvedCluster, text: str, names: list[str]
) -> None:
    chosen = chosen_workers(cluster, text)
    assert [worker.name for worker in chosen.spec.workers] == names
    assert [worker.spec.name for worker in chosen.workers] == names
    assert len(chosen.costs) == len(names)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("w4", "workers: 'w4' is none; allowed: w0, w1, w2, w3, or A..B"),
        ("", "workers: '' is none"),
        ("w1..", "workers: '' is none"),
        ("w0..w2,w1", "names a worker twice"),
        ("w2..w1", "names a worker twice, or none"),
    ],
)
def test_workers_that_cannot_be_chosen(cluster: ResolvedCluster, text: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as raised:
        chosen_workers(cluster, text)
    assert fragment in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--clock-server", "http://127.0.0.1:1"], "cannot join the clock at http://127.0.0.1:1"),
        (["--clock-server", "nowhere"], "clock-server: 'nowhere' is not http://HOST:PORT"),
        (["--clock-server", "http://h:port"], "is not http://HOST:PORT"),
        (["--clock-server", "http://h:1", "--clock", "real"], "'real' cannot be shared"),
        (
            ["--clock-server", "http://h:1", "--clock-grpc-port", "0"],
            "clock-grpc-port: the clock is served by its clock-server alone",
        ),
    ],
)
def test_clock_servers_that_cannot_be_followed(
    flags: list[str], fragment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["up", scenario(tmp_path), "--host", "127.0.0.1", "--port", "0", *flags]
    assert main(argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("frontier-mock: error: ")
    assert fragment in last


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--port", "x"], "--port"),
        (["--patience-s", "-1"], "patience_s"),
        (["--port", "0", "--ready-file", "/nowhere/f"], "ready-file: cannot write /nowhere/f"),
    ],
)
def test_clocks_that_cannot_be_served(
    flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clock", "--host", "127.0.0.1", *flags]) == 2
    assert fragment in capsys.readouterr().err
