"""Digests of workers: what they see of a cluster, and what they must not see."""

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Event
from frontier_mock.report.worker_digests import WorkerDigests, by_name, by_role, digests_of
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512, num_blocks=256
)


def cluster_of(workers: int) -> Cluster:
    return toy_cluster(SCHEDULER, workers=workers, frontend_s=0.001)


def played(cluster: Cluster, placed: list[tuple[int, int]]) -> list[Event]:
    """Events of requests (content, worker), one every 3 ms."""
    for number, (content, worker) in enumerate(placed):
        submit = Submit(prompt(40, content, 16), 5 + content, 5 + content, worker=worker)
        cluster.feed(number * 3_000_000, submit)
    while (due := cluster.next_time()) is not None:
        cluster.advance_to(due)
    return cluster.log.events


PLACED = [(1, 0), (2, 1), (3, 2), (1, 1), (4, 0), (5, 2), (6, 0)]


def test_split_cluster_has_the_same_digest_by_name() -> None:
    whole = digests_of(["a", "b", "c"], played(cluster_of(3), PLACED))
    left, right = cluster_of(2), cluster_of(1)
    for number, (content, worker) in enumerate(PLACED):
        part = left if worker < 2 else right
        submit = Submit(
            prompt(40, content, 16), 5 + content, 5 + content, worker=worker if worker < 2 else 0
        )
        part.feed(number * 3_000_000, submit)
    for part in (left, right):
        while (due := part.next_time()) is not None:
            part.advance_to(due)
    parts = digests_of(["a", "b"], left.log.events) | digests_of(["c"], right.log.events)
    assert parts == whole
    assert by_name(parts) == by_name(whole)


def test_renumbered_workers_differ_by_name_only() -> None:
    names = ["a", "b", "c"]
    one = digests_of(names, played(cluster_of(3), PLACED))
    turned = [(content, (worker + 1) % 3) for content, worker in PLACED]
    other = digests_of(names, played(cluster_of(3), turned))
    assert by_name(one) != by_name(other)
    assert by_role(one) == by_role(other)


def test_any_event_changes_the_digest_of_its_worker_alone() -> None:
    names = ["a", "b", "c"]
    one = digests_of(names, played(cluster_of(3), PLACED))
    other = digests_of(names, played(cluster_of(3), [*PLACED, (7, 1)]))
    assert [name for name in names if one[name] != other[name]] == ["b"]
    assert by_role(one) != by_role(other)


def test_digest_does_not_depend_on_how_the_log_was_read() -> None:
    events = played(cluster_of(3), PLACED)
    digests = WorkerDigests(["a", "b", "c"])
    digests.catch_up(events[:7])
    digests.catch_up(events[:20])
    digests.dropped(events[:30])
    digests.catch_up(events[30:])
    assert digests.digests() == digests_of(["a", "b", "c"], events)
