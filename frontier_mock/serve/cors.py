"""Cross-origin rules: starlette 1.10's CORSMiddleware, which vLLM 0.33 always installs.

Without --allowed-origins it lets nobody in, but answers preflights and marks every answer with
`vary: Origin`.
"""

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.http1 import Request

_ALL_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"
_SAFE_HEADERS = ("Accept", "Accept-Language", "Content-Language", "Content-Type")
_VARY = "vary: Origin\r\n"
_VARY_PREFLIGHT = (
    "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, "
    "Access-Control-Request-Private-Network\r\n"
)
_MAX_AGE = "access-control-max-age: 600\r\n"


class Cors:
    """What a browser is told. The arguments are vLLM's flags of the same names."""

    def __init__(
        self,
        allowed_origins: tuple[str, ...],
        allowed_methods: tuple[str, ...],
        allowed_headers: tuple[str, ...],
        allow_credentials: bool,
    ) -> None:
        self._any_origin = "*" in allowed_origins
        self._origins = frozenset(allowed_origins)
        self._any_method = "*" in allowed_methods
        self._methods = frozenset(allowed_methods)
        self._method_list = _ALL_METHODS if self._any_method else ", ".join(allowed_methods)
        self._any_header = "*" in allowed_headers
        self._header_list = ", ".join(sorted({*_SAFE_HEADERS, *allowed_headers}))
        self._headers = frozenset(name.lower() for name in (*_SAFE_HEADERS, *allowed_headers))
        self._credentials = allow_credentials

    def lines(self, request: Request) -> str:
        """Header lines of the answer to any request but a preflight."""
        origin = request.headers.get("origin")
        if origin is None:
            return _VARY
        return self._origin_line(origin) + self._credentials_line() + _VARY

    def preflight(self, request: Request) -> Answer | None:
        """The answer to a preflight; None if the request is none."""
        asked = request.headers
        origin, method = asked.get("origin"), asked.get("access-control-request-method")
        if request.method != "OPTIONS" or origin is None or method is None:
            return None
        extra = f"{_VARY_PREFLIGHT}access-control-allow-methods: {self._method_list}\r\n{_MAX_AGE}"
        names = asked.get("access-control-request-headers")
        if not self._any_header:
            extra += f"access-control-allow-headers: {self._header_list}\r\n"
        elif names is not None:
            extra += f"access-control-allow-headers: {names}\r\n"
        extra += self._credentials_line() + self._origin_line(origin)
        refused = []
        if not self._any_origin and origin not in self._origins:
            refused.append("origin")
        if not self._any_method and method not in self._methods:
            refused.append("method")
        if names is not None and not self._any_header:
            known = [name.strip().lower() in self._headers for name in names.split(",")]
            if not all(known):
                refused.append("headers")
        if refused:
            text = f"Disallowed CORS {', '.join(refused)}".encode()
            return Answer(400, text, "text/plain; charset=utf-8", extra)
        return Answer(200, b"OK", "text/plain; charset=utf-8", extra)

    def _origin_line(self, origin: str) -> str:
        if self._any_origin and not self._credentials:
            return "access-control-allow-origin: *\r\n"
        if self._any_origin or origin in self._origins:
            return f"access-control-allow-origin: {origin}\r\n"
        return ""

    def _credentials_line(self) -> str:
        return "access-control-allow-credentials: true\r\n" if self._credentials else ""
