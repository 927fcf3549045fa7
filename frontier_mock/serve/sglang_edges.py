"""SGLang's routes at the edge: its root, Ollama's catalogue, parsers, and features that are off.

A feature that no flag turns on here answers what a server without it answers (SGLang 0.5.23
entrypoints/http_server.py, managers/tokenizer_control_mixin.py).
"""

import json
import time
from collections.abc import Callable

from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.routing import Handler, Table
from frontier_mock.serve.sglang_state import ServerState
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang import edges
from frontier_mock.wire.sglang.errors import CrashError, bad_query, native_error
from frontier_mock.wire.sglang.ollama import show_body, tags_body
from frontier_mock.wire.sglang.parsing import parse_calls, separate_reasoning
from frontier_mock.wire.sglang.plan import front_of

_TEXT = "text/plain; charset=utf-8"


class EdgeRoutes:
    """Routes that answer from what the port knows of itself."""

    def __init__(self, served: ServedModel, state: ServerState) -> None:
        self._served = served
        self._front = front_of(served)
        self._state = state

    def table(self) -> Table:
        """Handlers by (method, path)."""
        names = self._front.routes
        root = names.root or "/"
        said = "SGLang is running" if names.root is None else "Ollama is running"
        table: dict[tuple[str, str], Handler] = {
            ("GET", root): lambda _: Answer(200, json.dumps(said).encode()),
            ("HEAD", root): lambda _: Answer(200, json.dumps(said).encode()),
            ("GET", names.ollama_tags): self._tags,
            ("POST", names.ollama_show): self._show,
            ("POST", "/parse_function_call"): _parsed(parse_calls),
            ("POST", "/separate_reasoning"): _parsed(separate_reasoning),
            ("POST", "/set_internal_state"): self._set_state,
            ("PUT", "/set_internal_state"): self._set_state,
            ("POST", "/pd_role_switch"): self._switch_role,
            ("POST", "/scale_elastic_ep"): self._scale,
            ("GET", "/is_scaling_elastic_ep"): lambda _: json_answer(edges.NOT_ELASTIC, 404),
            ("POST", "/add_external_corpus"): _without_corpus("corpus_id", "loaded_token_count"),
            ("POST", "/remove_external_corpus"): _without_corpus(),
            ("GET", "/list_external_corpora"): _without_corpus("corpus_token_counts"),
            ("POST", "/init_weights_send_group_for_remote_instance"): _sends,
            ("POST", "/send_weights_to_remote_instance"): _sends,
            ("POST", "/v1/audio/transcriptions"): _transcribe,
            ("POST", "/v1/decisions"): _decide,
            ("POST", "/v1/systemone"): _decide,
        }
        for path in (
            "/remote_instance_transfer_engine_info",
            "/get_remote_instance_transfer_engine_info",
        ):
            table["GET", path] = _transfer_engine
        return table

    def _tags(self, exchange: Exchange) -> Answer:
        return Answer(200, tags_body(self._state.served_model_name, time.time()))

    def _show(self, exchange: Exchange) -> Answer:
        return Answer(200, show_body(exchange.request.body, self._served, time.time()))

    def _set_state(self, exchange: Exchange) -> Answer:
        updated = edges.set_state(exchange.request.body, self._front.max_running_requests)
        return Answer(200, json.dumps([updated] * self._front.num_dp_ranks).encode())

    def _switch_role(self, exchange: Exchange) -> Answer:
        role = edges.read_role(exchange.request.body)
        mode = self._front.disaggregation_mode
        return json_answer(edges.role_refused(mode, role), 400)

    def _scale(self, exchange: Exchange) -> Answer:
        refused, status = edges.scale_refused(exchange.request.body)
        return json_answer(refused, status)


def _parsed(parse: Callable[[bytes], bytes]) -> Handler:
    def handle(exchange: Exchange) -> Answer:
        try:
            return Answer(200, parse(exchange.request.body))
        except CrashError:
            return Answer(500, b"Internal Server Error", _TEXT)

    return handle


def _without_corpus(*more: str) -> Handler:
    """What a server says whose drafts do not come from n-grams."""

    def handle(exchange: Exchange) -> Answer:
        refused = edges.corpus_refused(exchange.request.path, exchange.request.body, more)
        return json_answer(refused, 400)

    return handle


def _sends(exchange: Exchange) -> Answer:
    """Nobody is there to receive: the group is made, and the weights leave, in no time."""
    edges.read_remote(exchange.request.body, exchange.request.path)
    return json_answer({"success": True, "message": "Success"})


def _transcribe(exchange: Exchange) -> Answer:
    raise edges.no_speech()


def _decide(exchange: Exchange) -> Answer:
    raise edges.no_decisions(exchange.request.path)


def _transfer_engine(exchange: Exchange) -> Answer:
    rank = exchange.request.query("rank")
    if rank is not None and not rank.removeprefix("-").isdecimal():
        raise bad_query("rank", rank)
    if rank is None or rank.startswith("-"):
        raise native_error("Missing or invalid rank parameter")
    raise native_error(f"Failed to get transfer engine info for rank {int(rank)}")
