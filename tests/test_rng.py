from frontier_mock.rng import draw, draw_u64, stream


def test_a_stream_depends_on_its_name_and_seed_only() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    assert stream(1, "a").random() != stream(1, "b").random()
    assert stream(1, "a").random() != stream(2, "a").random()


def test_a_draw_is_addressed_by_index() -> None:
    values = [draw(0, "x", i) for i in range(1000)]
    assert values[7] == draw(0, "x", 7)
    assert all(0 <= v < 1 for v in values)
    assert 0.45 < sum(values) / len(values) < 0.55
    assert draw_u64(0, "x", 3) != draw_u64(0, "x", 4)
