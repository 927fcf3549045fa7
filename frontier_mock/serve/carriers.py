"""Which actor's lease a request carries.

Routers drop headers they do not know; these two survive (shared/specs/virtual_time.md section 3.3).
The third carrier, the body's metadata, is read by `wire` together with the rest of the body.
"""

from collections.abc import Mapping

_STATE_KEY = "fmock="
_ID_PREFIX = "fmock-"
_ID_END = "--"


_LEGS = ";legs="
_MAX_LEGS = 64


def actor_and_legs(name: str | None) -> tuple[str | None, int]:
    """What a carrier holds: an actor, or `<actor>;legs=<n>`.

    The latter is for clients of a router that makes n requests of each one it gets, all at once,
    such as SGLang's prefill and decode legs.
    """
    if name is None or _LEGS not in name:
        return name, 1
    actor, _, count = name.rpartition(_LEGS)
    if count.isascii() and count.isdigit() and 1 <= int(count) <= _MAX_LEGS:
        return actor or None, int(count)
    return name, 1


def actor_of(headers: Mapping[str, str]) -> str | None:
    """The actor in `tracestate: fmock=<actor>`, else in `x-request-id: fmock-<actor>--...`."""
    state = headers.get("tracestate")
    if state is not None and _STATE_KEY in state:
        for member in state.split(","):
            member = member.strip()
            if member.startswith(_STATE_KEY):
                return member[len(_STATE_KEY) :] or None
    request_id = headers.get("x-request-id")
    if request_id is not None and request_id.startswith(_ID_PREFIX):
        name, found, _ = request_id[len(_ID_PREFIX) :].partition(_ID_END)
        if found and name:
            return name
    return None
