"""SGLang's Ollama routes against the `ollama` package."""

import ollama
import pytest

from tests.serve.live import WARP
from tests.serve.sglang_live import sglang_spec
from tests.serve.test_sglang_app import opened

pytestmark = pytest.mark.integration

SHORT = {"num_predict": 6}
TURNS = [{"role": "user", "content": "hi"}]


async def test_ollamas_own_client_chats_whole_and_streamed() -> None:
    async with opened(sglang_spec(WARP)) as (server, _):
        client = ollama.AsyncClient(host=server.urls[0])
        whole = await client.chat(model="any", messages=TURNS, options=SHORT)
        assert (whole.model, whole.done, whole.done_reason) == ("mock", True, "stop")
        assert (whole.prompt_eval_count, whole.eval_count) == (21, 6)
        assert whole.total_duration is not None
        assert whole.total_duration > 0
        assert whole.message.content
        stream = await client.chat(model="any", messages=TURNS, options=SHORT, stream=True)
        parts = [part async for part in stream]
        assert [part.done for part in parts] == [False] * 5 + [True]
        said = "".join(part.message.content or "" for part in parts)
        # The last token's text is lost there.
        assert whole.message.content.startswith(said)
        assert len(said) == 5


async def test_ollamas_own_client_generates_and_looks_around() -> None:
    async with opened(sglang_spec(WARP)) as (server, http):
        client = ollama.AsyncClient(host=server.urls[0])
        whole = await client.generate(model="m", prompt="hello", system="be", options=SHORT)
        assert (whole.prompt_eval_count, whole.eval_count) == (len("be\n\nhello"), 6)
        stream = await client.generate(model="m", prompt="x", options=SHORT, stream=True)
        assert [part.done async for part in stream] == [False] * 5 + [True]
        empty = await client.generate(model="m", prompt=" ")
        assert (empty.response, empty.done, empty.eval_count) == ("", True, None)
        line = await http.post("/api/generate", json={"model": "m", "prompt": ""})
        assert line.headers["content-type"] == "application/x-ndjson"
        assert (await line.text()).endswith('"eval_duration":null}\n')
        (card,) = (await client.list()).models
        assert (card.model, card.size) == ("mock", 0)
        shown = await client.show("org/Llama-3-Instruct")
        assert shown.modelinfo is not None
        assert shown.modelinfo["Llama-3.context_length"] == 4096
        assert shown.capabilities == ["completion"]
