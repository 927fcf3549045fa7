"""Tell the clock whose request it is: the carrier, added to anybody's client in one line.

A request names its thread of control in `tracestate: fmock=<name>`, a header that routers keep
(shared/specs/virtual_time.md section 3.3). The name is that of the current `Actor`, else, on a
`VirtualTimeLoop`, the path of the current task or thread, which gives the requests of one instant
an order. Libraries are recognised by name and never imported, so none of them is required.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from frontier_mock.drive.virtual_loop import task_path

ClientT = TypeVar("ClientT")

HEADER = "tracestate"
_KEY = "fmock="
_SDKS = ("openai", "anthropic")
_HTTPX = ("httpx", "httpx2")


class Named(Protocol):
    """Anything with an actor's name, such as an `Actor`."""

    @property
    def name(self) -> str:
        """The name of its lease."""
        ...


_current: ContextVar[str | None] = ContextVar("frontier_mock_actor", default=None)


@contextmanager
def speaking_as(name: str | None) -> Iterator[None]:
    """Requests and sleeps inside, and in tasks begun inside, are those of actor `name`."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_actor() -> str | None:
    """The actor whose turn it is in this task or thread."""
    return _current.get()


def carrier_of(given: str | None = None) -> str | None:
    """The tracestate to send where the caller's own is `given`; None to leave it as it is."""
    if given is not None and _KEY in given:
        return None
    name = _current.get() or task_path()
    if name is None:
        return None
    return f"{_KEY}{name},{given}" if given else _KEY + name


def with_actor(client: ClientT, actor: Named | str | None = None) -> ClientT:
    """A client whose requests carry an actor's lease.

    With `actor`, always that one's: clients of openai and anthropic are copied (the copy shares its
    connections with the original), clients of httpx, httpx2 and aiohttp are changed and returned.
    Without, that of whoever makes the request, the current actor or task; the client is changed.
    Raises TypeError for a client of another library.
    """
    library = _library_of(client)
    value = None if actor is None else _KEY + (actor if isinstance(actor, str) else actor.name)
    subject: Any = client
    if library in _SDKS:
        if value is not None:
            copy: ClientT = subject.with_options(default_headers={HEADER: value})
            return copy
        _watch_httpx(subject._client)
    elif library in _HTTPX:
        if value is None:
            _watch_httpx(subject)
        else:
            subject.headers[HEADER] = value
    elif value is None:
        _watch_aiohttp(subject)
    else:
        subject.headers[HEADER] = value
    return client


def _library_of(client: object) -> str:
    """Whose client it is; an SDK's own subclass of an httpx client is one of httpx."""
    ancestors = {kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    for library in (*_HTTPX, "aiohttp", *_SDKS):
        if library in ancestors:
            return library
    known = ", ".join((*_SDKS, *_HTTPX, "aiohttp"))
    raise TypeError(f"{type(client).__name__} is not a client of {known}")


def _watch_httpx(client: Any) -> None:
    def add(request: Any) -> None:
        carrier = carrier_of(request.headers.get(HEADER))
        if carrier is not None:
            request.headers[HEADER] = carrier

    async def add_async(request: Any) -> None:
        add(request)

    hook = add_async if hasattr(client, "aclose") else add
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks.get("request", ()), hook]}


def _watch_aiohttp(session: Any) -> None:
    import aiohttp

    async def add(session: object, context: object, params: Any) -> None:
        carrier = carrier_of(params.headers.get(HEADER))
        if carrier is not None:
            params.headers[HEADER] = carrier

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(add)
    trace.freeze()
    session.trace_configs.append(trace)
