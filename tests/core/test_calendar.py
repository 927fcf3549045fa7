from frontier_mock.core.calendar import RANK_DELIVER, RANK_WAKE, Calendar


def test_deliveries_precede_wakes_and_numbers_break_ties() -> None:
    calendar = Calendar(3)
    calendar.wake_at(2, 10)
    calendar.wake_at(0, 10)
    calendar.deliver_at(10, 7)
    calendar.deliver_at(10, 3)
    popped = [calendar.pop_until(10) for _ in range(5)]
    assert popped == [
        (10, RANK_DELIVER, 3),
        (10, RANK_DELIVER, 7),
        (10, RANK_WAKE, 0),
        (10, RANK_WAKE, 2),
        None,
    ]


def test_a_worker_has_one_wake_the_last_one_asked_for() -> None:
    calendar = Calendar(1)
    calendar.wake_at(0, 50)
    calendar.wake_at(0, 20)
    calendar.wake_at(0, 30)
    assert calendar.next_time() == 30
    assert calendar.pop_until(29) is None
    assert calendar.pop_until(30) == (30, RANK_WAKE, 0)
    assert calendar.next_time() is None
    calendar.wake_at(0, 40)
    calendar.wake_at(0, None)
    assert calendar.next_time() is None
