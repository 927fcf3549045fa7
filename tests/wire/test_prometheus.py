"""Text expositions."""

from frontier_mock.wire.prometheus import Counter, Gauge, merged


def test_expositions_of_the_same_families_merge_family_by_family() -> None:
    def exposition(engine: str) -> str:
        child = {"engine": engine}
        gauge = Gauge("a", "some help", [child])
        counter = Counter("b", "more help", [child], 5.0)
        return gauge.render() + counter.render()

    assert merged([exposition("0")]) == exposition("0")
    assert merged([exposition("0"), exposition("1")]).splitlines() == [
        "# HELP a some help",
        "# TYPE a gauge",
        'a{engine="0"} 0.0',
        'a{engine="1"} 0.0',
        "# HELP b_total more help",
        "# TYPE b_total counter",
        'b_total{engine="0"} 0.0',
        'b_total{engine="1"} 0.0',
        "# HELP b_created more help",
        "# TYPE b_created gauge",
        'b_created{engine="0"} 5.0',
        'b_created{engine="1"} 5.0',
    ]
