"""Routes of vLLM's scale-out API that answer at once: rendering, and refusal where it is off."""

from collections.abc import Callable, Mapping

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Handler, Table
from frontier_mock.serve.streaming import error_answer
from frontier_mock.wire.errors import scale_out_disabled
from frontier_mock.wire.rendering import (
    render_chat,
    render_completion,
    render_messages,
    render_responses,
)
from frontier_mock.wire.served import ServedModel

Render = Callable[[bytes, Mapping[str, str], ServedModel], bytes]

GENERATE_PATH = "/inference/v1/generate"
ABORT_PATH = "/inference/v1/abort_requests"
_RENDERERS: Mapping[str, Render] = {
    "/v1/chat/completions/render": render_chat,
    "/v1/completions/render": render_completion,
    "/v1/messages/render": render_messages,
    "/v1/responses/render": render_responses,
}
_DERENDER = ("/v1/chat/completions/derender", "/v1/completions/derender")


class ScaleOutRoutes:
    """One per port; `check_json` refuses bodies that do not say that they are JSON."""

    def __init__(
        self,
        served: Callable[[], ServedModel],
        enabled: bool,
        check_json: Callable[[Request], None],
    ) -> None:
        self._served = served
        self._enabled = enabled
        self._check_json = check_json

    def table(self) -> Table:
        """Handlers by (method, path)."""
        if self._enabled:
            return {("POST", path): self._rendering(how) for path, how in _RENDERERS.items()}
        paths = (GENERATE_PATH, ABORT_PATH, *_RENDERERS, *_DERENDER)
        return {("POST", path): _disabled for path in paths}

    def _rendering(self, render: Render) -> Handler:
        def handle(exchange: Exchange) -> Answer:
            request = exchange.request
            self._check_json(request)
            return Answer(200, render(request.body, request.headers, self._served()))

        return handle


_DISABLED = error_answer(scale_out_disabled())


def _disabled(exchange: Exchange) -> Answer:
    # vllm-router's cache_aware asks every worker to render every prompt, and is refused.
    return _DISABLED
