"""Test agents against a simulated cluster, in process, exactly and at once (docs/testing.md)."""

from frontier_mock.drive.virtual_loop import Deadlock, TimeLimit, VirtualTimeLoop
from frontier_mock.testing.cluster import MockCluster, MockSpec, open_cluster, run_virtual
from frontier_mock.testing.determinism import NotDeterministic, check_determinism
from frontier_mock.testing.play import play

__all__ = [
    "Deadlock",
    "MockCluster",
    "MockSpec",
    "NotDeterministic",
    "TimeLimit",
    "VirtualTimeLoop",
    "check_determinism",
    "open_cluster",
    "play",
    "run_virtual",
]
