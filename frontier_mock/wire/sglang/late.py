"""What SGLang finds wrong once an answer has begun."""

from collections.abc import Callable
from http import HTTPStatus

from frontier_mock.wire.sglang.errors import openai_error, openai_stream_error_frame
from frontier_mock.wire.sse import DONE
from frontier_mock.wire.structured import ConstraintError


class LateError(Exception):
    """A fault that SGLang finds when a streamed answer has begun; `stream` says whether it has.

    `frames` then makes the whole stream, given unix time, if it is not an error frame of /generate.
    """

    def __init__(
        self, message: str, stream: bool, frames: Callable[[int], bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stream = stream
        self.frames = frames


def refused_constraint(error: ConstraintError, stream: bool) -> Exception:
    """What an OpenAI route raises for a grammar that fails: the engine aborts what has begun.

    So a stream is one error frame under status 200 (`_generate_chat_stream` of SGLang 0.5.23).
    """
    if not stream:
        return openai_error(str(error))
    bad = HTTPStatus.BAD_REQUEST
    frames = openai_stream_error_frame(str(error), bad.name, bad.value) + DONE
    return LateError(str(error), True, lambda _: frames)
