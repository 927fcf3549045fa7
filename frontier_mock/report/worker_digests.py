"""What each worker did, as one digest per worker that names neither the worker nor its process.

The digest of the event log numbers sequences and workers across the whole cluster. That is more
than is fixed when workers live in several processes, or behind a router that numbers them its own
way. A worker's digest covers its own events in order, with its own sequences counted from 0 in the
order in which they arrived there; nothing else about the cluster enters. Two combinations:

* `by_name`: every worker's name with its digest, sorted by name. Equal for one process and for many
  (docs/tutorial-many-processes.md).
* `by_role`: the digests alone, sorted. Equal also where a router, between two of its starts, put
  the same workers in another order.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from frontier_mock.core.events import Event, Finished, Rejected, Submitted

_DIGEST_BYTES = 16


class WorkerDigests:
    """Running digests of a cluster's workers, fed with its event log from the start."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names[i]` is the name of the worker whose events say `worker == i`."""
        self._ahead = 0
        self._names = list(names)
        self._hashes = [hashlib.blake2b(digest_size=_DIGEST_BYTES) for _ in self._names]
        self._arrived = [0] * len(self._names)
        self._numbers: dict[int, int] = {}

    def catch_up(self, events: Sequence[Event]) -> None:
        """Absorb what is new in the log's list of events."""
        self.absorb(events[self._ahead :])
        self._ahead = len(events)

    def dropped(self, events: Sequence[Event]) -> None:
        """The log is about to forget all of its events."""
        self.catch_up(events)
        self._ahead = 0

    def absorb(self, events: Iterable[Event]) -> None:
        """Take the next events of the log into account."""
        lines: list[list[str]] = [[] for _ in self._names]
        numbers = self._numbers
        for event in events:
            worker = event.worker
            if isinstance(event, Submitted):
                numbers[event.rid] = self._arrived[worker]
                self._arrived[worker] += 1
            rest = (event.t_ns, numbers.get(event.rid, -1), *event[3:])
            lines[worker].append(f"{type(event).__name__}{rest}\n")
            if isinstance(event, Finished | Rejected):
                del numbers[event.rid]
        for digest, said in zip(self._hashes, lines, strict=True):
            digest.update("".join(said).encode())

    def digests(self) -> dict[str, str]:
        """Hex digest of each worker's events so far, by name."""
        return {
            name: digest.hexdigest() for name, digest in zip(self._names, self._hashes, strict=True)
        }


def by_name(digests: Mapping[str, str]) -> str:
    """One digest of workers that have names."""
    return _combined(f"{name} {digests[name]}\n" for name in sorted(digests))


def by_role(digests: Mapping[str, str]) -> str:
    """One digest of workers whose names do not matter."""
    return _combined(f"{digest}\n" for digest in sorted(digests.values()))


def digests_of(names: Iterable[str], events: Iterable[Event]) -> dict[str, str]:
    """The digests of a whole log."""
    digests = WorkerDigests(names)
    digests.absorb(events)
    return digests.digests()


def _combined(lines: Iterable[str]) -> str:
    return hashlib.blake2b("".join(lines).encode(), digest_size=_DIGEST_BYTES).hexdigest()
