"""The `openai` package, unmodified, against a live server."""

import asyncio
import threading
from collections.abc import Iterator

import openai
import pytest

from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ClusterServer
from tests.serve.live import FAST, WARP, live, serve_spec

pytestmark = pytest.mark.integration

MESSAGES = [{"role": "user", "content": "Say something about time."}]


def async_client(server: ClusterServer, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.urls[0] + "/v1", api_key=key, max_retries=0)


@pytest.fixture
def sync_client() -> Iterator[openai.OpenAI]:
    """A blocking client, and the server in a thread with a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> ClusterServer:
        server = ClusterServer(serve_spec(FAST))
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
    with openai.OpenAI(base_url=server.urls[0] + "/v1", api_key="none", max_retries=0) as client:
        yield client
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def test_sync_chat_whole_and_streamed(sync_client: openai.OpenAI) -> None:
    whole = sync_client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=12)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    stream = sync_client.chat.completions.create(
        model="mock",
        messages=MESSAGES,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_sync_completions_and_models(sync_client: openai.OpenAI) -> None:
    done = sync_client.completions.create(model="alias", prompt=["a", "b"], max_tokens=4, n=2)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [model.id for model in sync_client.models.list()] == ["mock", "alias"]
    parts = list(sync_client.completions.create(model="mock", prompt="a", stream=True))
    whole = sync_client.completions.create(model="mock", prompt="a")
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16


async def test_async_chat_many_at_once() -> None:
    async with live(serve_spec(FAST)) as server, async_client(server) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="mock", messages=[{"role": "user", "content": str(i)}], max_tokens=5 + i
                )
                for i in range(20)
            )
        )
        assert [a.usage.completion_tokens for a in answers if a.usage] == list(range(5, 25))
        assert len({a.id for a in answers}) == 20


async def test_async_stream_helper() -> None:
    async with live(serve_spec(WARP)) as server, async_client(server) as client:
        async with client.chat.completions.stream(
            model="mock", messages=MESSAGES, max_tokens=7
        ) as stream:
            events = [event.type async for event in stream]
            # The helper reads the finish reason and refuses what was cut off by max_tokens.
            with pytest.raises(openai.LengthFinishReasonError):
                await stream.get_final_completion()
        # The role chunk, with its empty content, counts as a delta too.
        assert events.count("content.delta") == 8
        assert events.count("content.done") == 1


async def test_raw_response_shows_virtual_times() -> None:
    async with live(serve_spec(FAST)) as server, async_client(server) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="mock", messages=MESSAGES, max_tokens=3
        )
        assert int(raw.headers["x-frontier-finish-ns"]) > 0
        assert raw.parse().choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("change", "error", "fragment"),
    [
        ({"model": "nope"}, openai.NotFoundError, "does not exist"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens must be at least 1"),
        ({"temperature": 3}, openai.BadRequestError, "temperature must be in"),
        (
            {"messages": [{"role": "user", "content": "x " * 9000}]},
            openai.BadRequestError,
            "maximum context length",
        ),
    ],
)
async def test_error_classes(
    change: dict[str, object], error: type[openai.APIStatusError], fragment: str
) -> None:
    request = {"model": "mock", "messages": MESSAGES, "max_tokens": 5, **change}
    async with live(serve_spec(FAST)) as server, async_client(server) as client:
        with pytest.raises(error, match=fragment) as raised:
            await client.chat.completions.create(**request)
        assert isinstance(raised.value.body, dict)
        assert raised.value.body["code"] == raised.value.status_code


async def test_wrong_key_is_an_authentication_error() -> None:
    spec = serve_spec(FAST, http=HttpSettings(api_key=("right",)))
    async with live(spec) as server:
        async with async_client(server, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with async_client(server, "right") as client:
            assert (await client.models.list()).data[0].id == "mock"


async def test_full_queue_is_a_server_error_that_sdks_retry() -> None:
    spec = serve_spec(ClockSpec(), max_num_queued_reqs=1)
    async with live(spec) as server, async_client(server) as client:
        outcomes = await asyncio.gather(
            *(
                client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2000)
                for _ in range(3)
            ),
            return_exceptions=True,
        )
        refused = [o for o in outcomes if isinstance(o, openai.InternalServerError)]
        assert refused
        assert all(o.status_code == 503 for o in refused)


async def test_closing_a_stream_aborts_the_request() -> None:
    async with live(serve_spec(ClockSpec())) as server, async_client(server) as client:
        stream = await client.chat.completions.create(
            model="mock", messages=MESSAGES, max_tokens=3000, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        while server.driver.in_flight:
            await asyncio.sleep(0)
        again = await client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=2)
        assert again.usage is not None
        gauges = server.cluster.workers[0].gauges(server.cluster.now_ns)
        assert gauges.running == 0


async def test_cancelled_call_aborts_the_request() -> None:
    async with live(serve_spec(ClockSpec())) as server, async_client(server) as client:
        call = asyncio.create_task(
            client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=3000)
        )
        while not server.driver.in_flight:
            await asyncio.sleep(0)
        call.cancel()
        while server.driver.in_flight:
            await asyncio.sleep(0)
        assert server.driver.error is None
