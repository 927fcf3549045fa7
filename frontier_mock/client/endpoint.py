"""One generation request over HTTP: the body that asks for it, and what came back.

Speaks the part of the OpenAI API that every engine and router serves, so a real one can stand where
the mock stands. The mock's answers also carry virtual times, in `x-frontier-*` headers or, in a
stream, in the usage chunk's `frontier` object; from anybody else the client's own clock has to do.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from frontier_mock.client.http1 import HttpClient
from frontier_mock.client.pictures import picture_url
from frontier_mock.core.commands import Submit
from frontier_mock.simtime import SimTime
from frontier_mock.workload.prompts import HashedPrompt, StreamPrompt

NEVER = -1


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Where and how to ask. `api` is "completions" or "chat"; `prompt_ids` sends token ids.

    `legs` is how many requests the router behind `url` makes of one at once. `picture` is how many
    pixels wide and high the images are of prompts that have some, which only "chat" can send.
    """

    url: str
    model: str
    api: str = "completions"
    stream: bool = False
    prompt_ids: bool = False
    api_key: str | None = None
    legs: int = 1
    picture: tuple[int, int] = (1024, 1024)


class Answer(NamedTuple):
    """What came back. Virtual times in ns, `NEVER` if the server gave none; wall times always.

    `status` 0 means that no answer came at all; `message` is the server's own, or the transport's.
    `chunks_wall_ns` are the arrival times of a stream's chunks of text.
    """

    status: int
    message: str
    arrival_ns: SimTime
    first_token_ns: SimTime
    finish_ns: SimTime
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    text: str
    sent_wall_ns: int
    first_wall_ns: int
    done_wall_ns: int
    chunks_wall_ns: tuple[int, ...] = ()


class Endpoint:
    """A server or router to send requests to."""

    def __init__(self, spec: EndpointSpec) -> None:
        """Raises HttpError if `spec.url` is no URL."""
        self._spec = spec
        self._chat = spec.api == "chat"
        self._path = "/v1/chat/completions" if self._chat else "/v1/completions"
        key = "" if spec.api_key is None else f"Authorization: Bearer {spec.api_key}\r\n"
        self.http = HttpClient(spec.url, key)
        self._sent = 0

    async def generate(
        self, submit: Submit, actor: str | None, spoken: Mapping[int, str]
    ) -> Answer:
        """Send one request and wait for all of its answer; failures are answers too.

        `actor` is the lease the request carries; `spoken` holds earlier outputs by stream number.
        """
        body = self._body(submit, spoken)
        headers = "" if actor is None else self._carriers(actor)
        stream = _Stream() if self._spec.stream else None
        sent = time.perf_counter_ns()
        try:
            reply = await self.http.request(
                "POST", self._path, body, headers, None if stream is None else stream.take
            )
        except (OSError, ValueError) as error:
            done = time.perf_counter_ns()
            return _failure(0, f"{type(error).__name__}: {error}", sent, done)
        done = time.perf_counter_ns()
        if stream is None or reply.status != 200:
            return _whole_answer(reply.status, reply.headers, reply.body, sent, done)
        return _streamed_answer(stream, reply.headers, sent, done)

    def _carriers(self, actor: str) -> str:
        """Header lines that carry a lease: what some routers drop, others make request ids of."""
        self._sent += 1
        if self._spec.legs > 1:
            actor = f"{actor};legs={self._spec.legs}"
        return f"tracestate: fmock={actor}\r\nx-request-id: fmock-{actor}--{self._sent}\r\n"

    def _body(self, submit: Submit, spoken: Mapping[int, str]) -> bytes:
        prompt: object = render_prompt(submit, spoken)
        if submit.media:
            prompt = _with_pictures(submit, str(prompt), *self._spec.picture)
        elif self._spec.prompt_ids:
            prompt = list(str(prompt).encode())
        tokens = submit.output_tokens
        body: dict[str, object] = {"model": self._spec.model}
        if self._chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        body |= {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
        if submit.priority:
            body["priority"] = submit.priority
        if self._spec.stream:
            body |= {
                "stream": True,
                "stream_options": {"include_usage": True},
                "frontier": True,
            }
        return json.dumps(body, separators=(",", ":")).encode()


def render_prompt(submit: Submit, spoken: Mapping[int, str]) -> str:
    """The prompt's text. Raises ValueError for one that has none, such as a journal's."""
    prompt = submit.prompt
    if not isinstance(prompt, HashedPrompt | StreamPrompt):
        raise ValueError(f"a {type(prompt).__name__} cannot be sent: it has no text")
    return prompt.text(spoken)


def _with_pictures(submit: Submit, text: str, width: int, height: int) -> list[object]:
    """A chat message's parts: images, and the text between, in place of their tokens."""
    parts: list[object] = []
    past = 0
    for item in submit.media:
        # One token before an image and one after it say where it begins and ends.
        if item.start - 1 > past:
            parts.append({"type": "text", "text": text[past : item.start - 1]})
        url = picture_url(item.key, width, height)
        parts.append({"type": "image_url", "image_url": {"url": url}})
        past = item.start + item.tokens + 1
    if past < len(text):
        parts.append({"type": "text", "text": text[past:]})
    return parts


class _Stream:
    """A stream of server-sent events, folded as its bytes arrive."""

    __slots__ = ("_rest", "chunks_wall_ns", "error", "stamps", "text", "usage")

    def __init__(self) -> None:
        self._rest = b""
        self.text: list[str] = []
        self.chunks_wall_ns: list[int] = []
        self.usage: Mapping[str, object] = {}
        self.stamps: Mapping[str, object] = {}
        self.error = ""

    def take(self, data: bytes) -> None:
        """More bytes. Raises ValueError if an event's data is not JSON."""
        now = time.perf_counter_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                self._take_chunk(json.loads(line[6:]), now)

    def _take_chunk(self, chunk: object, now: int) -> None:
        if not isinstance(chunk, dict):
            return
        error = chunk.get("error")
        if isinstance(error, dict):
            self.error = str(error.get("message"))
            return
        for choice in chunk.get("choices") or ():
            piece = choice.get("text")
            if piece is None:
                piece = (choice.get("delta") or {}).get("content")
            if piece:
                self.text.append(piece)
                self.chunks_wall_ns.append(now)
        if chunk.get("usage"):
            self.usage = chunk["usage"]
            self.stamps = chunk.get("frontier") or {}


def _streamed_answer(stream: _Stream, headers: Mapping[str, str], sent: int, done: int) -> Answer:
    if stream.error:
        return _failure(200, stream.error, sent, done)
    stamps = stream.stamps
    chunks = tuple(stream.chunks_wall_ns)
    return Answer(
        200,
        "",
        _int(stamps.get("arrival_ns", headers.get("x-frontier-arrival-ns"))),
        _int(stamps.get("first_token_ns")),
        _int(stamps.get("finish_ns")),
        *_usage(stream.usage, stamps.get("cached_tokens")),
        "".join(stream.text),
        sent,
        chunks[0] if chunks else done,
        done,
        chunks,
    )


def _whole_answer(
    status: int, headers: Mapping[str, str], data: bytes, sent: int, done: int
) -> Answer:
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        shown = data[:200].decode("utf-8", "replace")
        return _failure(status, f"not a JSON object: {shown!r}", sent, done)
    if status != 200:
        error = body.get("error", body.get("message", body.get("detail")))
        message = error.get("message") if isinstance(error, dict) else error
        return _failure(status, str(message), sent, done)
    choices = body.get("choices") or [{}]
    text = choices[0].get("text")
    if text is None:
        text = (choices[0].get("message") or {}).get("content") or ""
    return Answer(
        status,
        "",
        _int(headers.get("x-frontier-arrival-ns")),
        _int(headers.get("x-frontier-first-token-ns")),
        _int(headers.get("x-frontier-finish-ns")),
        *_usage(body.get("usage") or {}, headers.get("x-frontier-cached-tokens")),
        text,
        sent,
        done,
        done,
    )


def _usage(usage: Mapping[str, object], cached: object) -> tuple[int, int, int]:
    """Prompt, output and cached tokens; vLLM itself says the last only if told to at launch."""
    if cached is None:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return (
        max(0, _int(usage.get("prompt_tokens"))),
        max(0, _int(usage.get("completion_tokens"))),
        max(0, _int(cached)),
    )


def _int(value: object) -> int:
    if isinstance(value, str):
        return int(value) if value.lstrip("-").isdigit() else NEVER
    return value if isinstance(value, int) else NEVER


def _failure(status: int, message: str, sent: int, done: int) -> Answer:
    return Answer(status, message, NEVER, NEVER, NEVER, 0, 0, 0, "", sent, done, done)
