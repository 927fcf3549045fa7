"""Stalls, told in the log as they happen: a run that crawls should not need to be asked why."""

import logging
from typing import Any

from frontier_mock.drive.timekeeper import Timekeeper

logger = logging.getLogger("frontier_mock")

_TOLD_ALL = 5
"""So many are told one by one; from then on each time their number has doubled."""


class StallLog:
    """Watches one Timekeeper."""

    def __init__(self, keeper: Timekeeper[Any, Any]) -> None:
        self._keeper = keeper
        self._next = 1

    def tell(self) -> None:
        """Log the latest stall, if it is one to be told."""
        keeper = self._keeper
        count = keeper.stall_count
        if count < self._next:
            return
        self._next = count + 1 if count < _TOLD_ALL else 2 * count
        logger.warning("stall %d: %s", count, keeper.stalls[-1])
