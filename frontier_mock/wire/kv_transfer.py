"""`kv_transfer_params`: how vLLM's routers tell a prefill and a decode server of each other.

A router first asks a prefill server for one token, with `do_remote_decode`; what that answers under
`kv_transfer_params` goes to a decode server as it is, which fetches the prompt's KV instead of
computing it (vllm.md section 6.2). With connectors that push, both servers are asked at once and
find each other by a transfer or request id (section 6.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from frontier_mock.core.commands import Transfer
from frontier_mock.simtime import NS_PER_S
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import COMPLETION, Generation, Outcome, SequencePlan
from frontier_mock.wire.lmcache import (
    IN_PROCESS,
    MULTI_PROCESS,
    NothingTold,
    Sender,
    with_deposit,
)
from frontier_mock.wire.tokenizer import Json

_SUFFIX_DIGITS = 8
"""vLLM makes request ids its own by so many digits (`assign_request_id`)."""

_COORDINATES = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


_BY_TRANSFER_ID = "MoRIIOConnector"
"""Its legs find each other by `transfer_id` alone (vllm.md section 6.3)."""


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
    back_patience_ns: int = 0
    """How long a decode server keeps what it has for the next turn; 0: it keeps nothing
    (`bidirectional_kv_xfer`, `decoder_kv_blocks_ttl`)."""
    threshold: int = 64
    """Fewer tokens are computed rather than fetched back (`kv_recompute_threshold`)."""
    descriptor_bytes: float = 1.0
    """What one descriptor moves: a block's share of one layer."""
    bootstrap_port: int | None = None
    """Where Mooncake's bootstrap service listens; 0 is any free port."""
    lmcache: Sender | None = None
    """Set if this is a prefill server of LMCache's."""


class FinishedPrompt:
    """What a prefill server says of a finished prompt; rendered once it is known to have one."""

    __slots__ = ("_back", "_port", "_request_id", "_tokens")

    def __init__(
        self, port: KvPort, request_id: str, prompt_tokens: int, back: bool = False
    ) -> None:
        """`back`: a decode server says it, for the prefill server of the next turn."""
        self._port = port
        self._request_id = request_id
        self._tokens = prompt_tokens
        self._back = back

    def params(self, outcome: Outcome) -> dict[str, Json] | None:
        """`kv_transfer_params` of the answer; None if the prompt was not finished.

        Blocks have no numbers here, so those told are made up, as many as there are.
        """
        if outcome.finish_reason not in ("length", "stop"):
            return None
        port, back = self._port, self._back
        tokens = self._tokens + outcome.output_tokens - 1
        first = 1 + int(self._request_id[-4:], 16)
        blocks = -(-(tokens if back else self._tokens) // port.block_tokens)
        expiry_s = (outcome.finish_ns + port.back_patience_ns) / NS_PER_S if back else None
        return {
            "do_remote_prefill": not back,
            "do_remote_decode": back,
            "remote_block_ids": [list(range(first, first + blocks))],
            "remote_engine_id": port.engine_id,
            "remote_request_id": self._request_id,
            "remote_host": port.host,
            "remote_port": port.port,
            "tp_size": port.tp,
            "dcp_size": 1,
            "pp_size": port.pp,
            "remote_num_tokens": tokens,
            "remote_blocks_expiry_time": expiry_s,
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
    own_id = _own_id(generation, new_id()[-_SUFFIX_DIGITS:])
    if port.connector == MULTI_PROCESS:
        return generation._replace(handed_over=NothingTold())
    if port.connector == IN_PROCESS:
        key = _key(port.engine_id, own_id)
        return with_deposit(generation, params, port.lmcache, key, port.patience_ns)
    if params.get("do_remote_prefill"):
        return _receiving(generation, params, headers, port, own_id)
    if params.get("do_remote_decode"):
        return _sending(generation, params, headers, port, own_id)
    return generation


def _own_id(generation: Generation, digits: str) -> str:
    """The engine's own name for a request, its first sequence's if there are several."""
    middle = "-0" if generation.kind == COMPLETION else ""
    return f"{generation.id}{middle}-{digits}"


def _sending(
    generation: Generation,
    params: dict[str, Json],
    headers: Mapping[str, str],
    port: KvPort,
    own_id: str,
) -> Generation:
    shared = own_id if port.style == "pull" else _shared_id(params, headers, generation.id)
    key = _key(_meeting_place(port, port.engine_id), shared)
    wish = _transfer(key, port, sends=True)
    plans = [_moved(plan, wish) for plan in generation.sequences]
    if port.style == "pull" and _has_coordinates(params):
        # The decode server of the last turn has the beginning of this prompt.
        back = _transfer(_remote_key(params), port, sends=False, far=_is_far(params, port))
        tokens = params.get("remote_num_tokens")
        if isinstance(tokens, int) and tokens > 0:
            back = replace(back, tokens=tokens, threshold=port.threshold)
        else:
            # Nothing is fetched, and the decode server's blocks are free all the same.
            back = replace(back, tokens=1, threshold=2)
        plans = [_moved(plan, back, wish) for plan in generation.sequences]
    # Mooncake's answer says nothing of the transfer: the router knows it already.
    silent = port.connector == "MooncakeConnector"
    handed = None if silent else FinishedPrompt(port, own_id, plans[0].submit.prompt.num_tokens)
    return generation._replace(sequences=tuple(plans), handed_over=handed)


def _receiving(
    generation: Generation,
    params: dict[str, Json],
    headers: Mapping[str, str],
    port: KvPort,
    own_id: str,
) -> Generation:
    if port.style == "pull":
        # vLLM warns of anything less, and computes the prompt.
        if not _has_coordinates(params):
            return generation
        key = _remote_key(params)
    else:
        if params.get("remote_engine_id") is None and port.connector != _BY_TRANSFER_ID:
            return generation
        shared = _shared_id(params, headers, generation.id)
        key = _key(_meeting_place(port, str(params.get("remote_engine_id"))), shared)
    wish = _transfer(key, port, sends=False, far=_is_far(params, port))
    if port.style != "pull" or not port.back_patience_ns:
        plans = [_moved(plan, wish) for plan in generation.sequences]
        return generation._replace(sequences=tuple(plans))
    back = _transfer(_key(port.engine_id, own_id), port, sends=True)
    back = replace(back, patience_ns=port.back_patience_ns)
    plans = [_moved(plan, wish, back) for plan in generation.sequences]
    tokens = plans[0].submit.prompt.num_tokens
    handed = FinishedPrompt(port, own_id, tokens, back=True)
    return generation._replace(sequences=tuple(plans), handed_over=handed)


def _has_coordinates(params: dict[str, Json]) -> bool:
    return bool(params.get("remote_block_ids")) and all(key in params for key in _COORDINATES)


def _meeting_place(port: KvPort, engine_id: str) -> str:
    """Which engine a key belongs to; MoRIIO's proxies name none, as transfer ids are theirs."""
    return _BY_TRANSFER_ID if port.connector == _BY_TRANSFER_ID else engine_id


def _is_far(params: dict[str, Json], port: KvPort) -> bool:
    if port.connector == _BY_TRANSFER_ID and params.get("remote_engine_id") is None:
        return False
    return str(params.get("remote_engine_id")) not in port.peers


def _remote_key(params: dict[str, Json]) -> str:
    return _key(str(params["remote_engine_id"]), str(params["remote_request_id"]))


def _shared_id(params: dict[str, Json], headers: Mapping[str, str], own: str) -> str:
    """What both legs of one request have in common, with connectors that push."""
    given = params.get("transfer_id") or headers.get("x-request-id")
    return str(given) if given else own


def _key(engine_id: str, shared: str) -> str:
    return f"{engine_id}/{shared}"


def _transfer(key: str, port: KvPort, *, sends: bool, far: bool = False) -> Transfer:
    return Transfer(
        key=key,
        sends=sends,
        style=port.style,
        patience_ns=port.patience_ns,
        recompute=port.recompute,
        streams=port.streams,
        far=far,
    )


def _moved(plan: SequencePlan, transfer: Transfer, onward: Transfer | None = None) -> SequencePlan:
    """The same plan with its own transfers: every choice of a request has a key of its own."""
    if plan.index:
        transfer = replace(transfer, key=f"{transfer.key}/{plan.index}")
        if onward is not None:
            onward = replace(onward, key=f"{onward.key}/{plan.index}")
    return replace(plan, submit=replace(plan.submit, transfer=transfer, onward=onward))
