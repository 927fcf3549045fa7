from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Scheduled, Submitted
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512, num_blocks=64
)


def routed(policy: str, submits: list[tuple[int, Submit]], workers: int = 3) -> list[int]:
    cluster = toy_cluster(SCHEDULER, workers=workers, policy=policy)
    for t_ns, submit in submits:
        cluster.feed(t_ns, submit)
    return [event.worker for event in cluster.log.events if isinstance(event, Submitted)]


def same_time(count: int) -> list[tuple[int, Submit]]:
    return [(0, Submit(prompt(32, i, 16), 4, 4)) for i in range(count)]


def test_round_robin_goes_round() -> None:
    assert routed("round_robin", same_time(5)) == [0, 1, 2, 0, 1]


def test_least_loaded_fills_the_emptiest_first() -> None:
    assert routed("least_loaded", same_time(6)) == [0, 1, 2, 0, 1, 2]


def test_power_of_two_never_takes_the_busier_of_its_two() -> None:
    chosen = routed("power_of_two", same_time(90))
    loads = [chosen.count(i) for i in range(3)]
    assert max(loads) - min(loads) <= 6


def test_random_is_the_same_every_time_and_uses_everybody() -> None:
    chosen = routed("random", same_time(60))
    assert chosen == routed("random", same_time(60))
    assert set(chosen) == {0, 1, 2}


def test_prefix_aware_returns_to_the_worker_that_has_the_prefix() -> None:
    cluster = toy_cluster(SCHEDULER, workers=3, policy="prefix_aware")
    for t_ms, content in enumerate([1, 2, 3, 2, 3, 1]):
        cluster.feed(t_ms * 100_000_000, Submit(prompt(160, content, 16), 4, 4))
    cluster.advance_to(10**10)
    workers = [event.worker for event in cluster.log.events if isinstance(event, Submitted)]
    hits = [e.cached_tokens for e in cluster.log.events if isinstance(e, Scheduled)]
    assert workers[3:] == [workers[1], workers[2], workers[0]]
    assert hits == [0, 0, 0, 144, 144, 144]


def test_prefix_aware_gives_way_to_load() -> None:
    chosen = routed("prefix_aware", [(0, Submit(prompt(160, 1, 16), 4, 4)) for _ in range(40)])
    assert set(chosen) == {0, 1, 2}
