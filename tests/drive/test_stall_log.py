"""Stalls are told while they happen, and never so often that they drown everything else."""

import logging
from collections.abc import Iterator

import pytest

from frontier_mock.drive.stall_log import StallLog
from frontier_mock.drive.timekeeper import Timekeeper


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.lines.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[Heard]:
    # Not caplog: whoever has set up the server's own log has cut it off from the root.
    handler = Heard()
    logger = logging.getLogger("frontier_mock")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_first_stalls_one_by_one_then_ever_fewer(heard: Heard) -> None:
    keeper: Timekeeper[str, str] = Timekeeper(patience_ns=1)
    log = StallLog(keeper)
    keeper.register(1, ["lazy", "busy"])
    log.tell()
    assert heard.lines == []
    for turn in range(1, 41):
        keeper.sleep("busy", turn, "busy")
        for wall_ns in (10 * turn, 10 * turn + 1, 10 * turn + 2):
            keeper.decide(None, wall_ns)
        assert keeper.stall_count == turn
        log.tell()
        log.tell()
    assert heard.lines[0] == "stall 1: clock stalled at 0 ns: held by lazy (last: register)"
    numbers = [int(line.split(":")[0].removeprefix("stall ")) for line in heard.lines]
    assert numbers == [1, 2, 3, 4, 5, 10, 20, 40]
