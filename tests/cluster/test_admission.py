"""The limits on a server's queue."""

from dataclasses import replace

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import FirstToken, Rejected
from tests.cluster.test_cluster import SCHEDULER
from tests.engine import prompt, toy_cluster


def test_the_limit_on_requests_counts_those_that_run() -> None:
    cluster = toy_cluster(replace(SCHEDULER, max_num_queued_reqs=2))
    cluster.feed(0, Submit(prompt(10, 0, 16), 50, 50))
    cluster.feed(5_000_000, Submit(prompt(10, 1, 16), 50, 50))
    assert cluster.workers[0].gauges(cluster.now_ns).waiting <= 1
    cluster.feed(9_000_000, Submit(prompt(10, 2, 16), 1, 1))
    assert cluster.workers[0].gauges(cluster.now_ns).waiting == 0
    refused = [event for event in cluster.log.events if isinstance(event, Rejected)]
    assert [(event.rid, event.reason) for event in refused] == [(2, "queue_full")]


def test_the_limit_on_tokens_counts_prompts_without_a_first_token() -> None:
    cluster = toy_cluster(replace(SCHEDULER, max_num_queued_tokens=100), frontend_s=0.001)
    cluster.feed(0, Submit(prompt(99, 0, 16), 50, 50))
    cluster.feed(0, Submit(prompt(200, 1, 16), 50, 50))
    cluster.feed(0, Submit(prompt(1, 2, 16), 1, 1))
    while not any(isinstance(e, FirstToken) and e.rid == 1 for e in cluster.log.events):
        at_ns = cluster.next_time()
        assert at_ns is not None
        cluster.advance_to(at_ns)
    cluster.feed(cluster.now_ns, Submit(prompt(1, 3, 16), 1, 1))
    refused = [event for event in cluster.log.events if isinstance(event, Rejected)]
    assert [(event.rid, event.reason) for event in refused] == [(2, "backlog_full")]
