"""`kv_transfer_params`: how vLLM's routers tell a prefill and a decode server of each other.

A router first asks a prefill server for one token, with `do_remote_decode`; what that answers under
`kv_transfer_params` goes to a decode server as it is, which fetches the prompt's KV instead of
computing it (vllm.md section 6.2). With connectors that push, both servers are asked at once and
find each other by a transfer or request id (section 6.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from frontier_mock.core.commands import Transfer
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import Generation, Outcome, SequencePlan
from frontier_mock.wire.tokenizer import Json

_SUFFIX_DIGITS = 8
"""vLLM makes request ids its own by so many digits (`assign_request_id`)."""

_COORDINATES = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


@dataclass(frozen=True, slots=True)
class KvPort:
    """What a server's connector tells others of itself, and how it moves KV.

    `peers` are the engines that share this process and its clock; a sender elsewhere is taken to
    have what it says it has.
    """

    connector: str
    style: str
    engine_id: str
    host: str = "localhost"
    port: int = 5600
    tp: int = 1
    pp: int = 1
    block_tokens: int = 16
    patience_ns: int = 30_000_000_000
    recompute: bool = False
    streams: bool = False
    peers: frozenset[str] = frozenset()
    descriptor_bytes: float = 1.0
    """What one descriptor moves: a block's share of one layer."""
    bootstrap_port: int | None = None
    """Where Mooncake's bootstrap service listens; 0 is any free port."""


class FinishedPrompt:
    """What a prefill server says of a finished prompt; rendered once it is known to have one."""

    __slots__ = ("_blocks", "_port", "_request_id", "_tokens")

    def __init__(self, port: KvPort, request_id: str, prompt_tokens: int) -> None:
        self._port = port
        self._request_id = request_id
        self._tokens = prompt_tokens
        self._blocks = -(-prompt_tokens // port.block_tokens)

    def params(self, outcome: Outcome) -> dict[str, Json] | None:
        """`kv_transfer_params` of the answer; None if the prompt was not finished.

        Blocks have no numbers here, so those told are made up, as many as there are.
        """
        if outcome.finish_reason not in ("length", "stop"):
            return None
        port = self._port
        first = 1 + int(self._request_id[-4:], 16)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(first, first + self._blocks))],
            "remote_engine_id": port.engine_id,
            "remote_request_id": self._request_id,
            "remote_host": port.host,
            "remote_port": port.port,
            "tp_size": port.tp,
            "dcp_size": 1,
            "pp_size": port.pp,
            "remote_num_tokens": self._tokens + outcome.output_tokens - 1,
            "remote_blocks_expiry_time": None,
            "remote_registration_generation": 0,
            "transfer_mode": port.style,
        }


def with_transfer(
    generation: Generation,
    fields: Fields,
    headers: Mapping[str, str],
    port: KvPort | None,
    new_id: Callable[[], str],
) -> Generation:
    """The same generation, its prompt computed or decoded elsewhere if the request says so.

    `new_id` makes ids of hex digits, to tell apart requests that come with the same one.
    """
    params = fields.get("kv_transfer_params")
    if port is None or not isinstance(params, dict):
        return generation
    if params.get("do_remote_prefill"):
        return _receiving(generation, params, headers, port)
    if params.get("do_remote_decode"):
        return _sending(generation, params, headers, port, new_id()[-_SUFFIX_DIGITS:])
    return generation


def _sending(
    generation: Generation,
    params: dict[str, Json],
    headers: Mapping[str, str],
    port: KvPort,
    digits: str,
) -> Generation:
    pulled = port.style == "pull"
    base = generation.id
    own_id = f"{base}-0-{digits}" if generation.kind == "completion" else f"{base}-{digits}"
    shared = own_id if pulled else _shared_id(params, headers, base)
    key = _key(port.engine_id, shared)
    plans = [_moved(plan, key, True, port) for plan in generation.sequences]
    # Mooncake's answer says nothing of the transfer: the router knows it already.
    silent = port.connector == "MooncakeConnector"
    handed = None if silent else FinishedPrompt(port, own_id, plans[0].submit.prompt.num_tokens)
    return generation._replace(sequences=tuple(plans), handed_over=handed)


def _receiving(
    generation: Generation, params: dict[str, Json], headers: Mapping[str, str], port: KvPort
) -> Generation:
    engine_id = params.get("remote_engine_id")
    if port.style == "pull":
        # vLLM warns of anything less, and computes the prompt.
        if not params.get("remote_block_ids") or any(key not in params for key in _COORDINATES):
            return generation
        shared = str(params["remote_request_id"])
    else:
        if engine_id is None:
            return generation
        shared = _shared_id(params, headers, generation.id)
    far = str(engine_id) not in port.peers
    key = _key(str(engine_id), shared)
    plans = [_moved(plan, key, False, port, far) for plan in generation.sequences]
    return generation._replace(sequences=tuple(plans))


def _shared_id(params: dict[str, Json], headers: Mapping[str, str], own: str) -> str:
    """What both legs of one request have in common, with connectors that push."""
    given = params.get("transfer_id") or headers.get("x-request-id")
    return str(given) if given else own


def _key(engine_id: str, shared: str) -> str:
    return f"{engine_id}/{shared}"


def _moved(
    plan: SequencePlan, key: str, sends: bool, port: KvPort, far: bool = False
) -> SequencePlan:
    transfer = Transfer(
        key=key if not plan.index else f"{key}/{plan.index}",
        sends=sends,
        style=port.style,
        patience_ns=port.patience_ns,
        recompute=port.recompute,
        streams=port.streams,
        far=far,
    )
    return replace(plan, submit=replace(plan.submit, transfer=transfer))
