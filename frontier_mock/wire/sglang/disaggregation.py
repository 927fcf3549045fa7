"""Prefill and decode servers: what a request's bootstrap fields make of its sequences. PURE.

A router sends each request to a prefill and a decode server at once, with the same
`bootstrap_room`. The prefill server computes one token, whatever the request asks for, and answers
when the KV has been sent; the decode server answers with the whole output
(sglang_and_routers.md section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from frontier_mock.core.commands import Submit, Transfer
from frontier_mock.wire.sglang.request import Bootstrap, SglangSequence
from frontier_mock.wire.tokenizer import Json

NO_ROOM: Final = (
    "Invalid request: Disaggregated request received without bootstrap room id. "
    "The router or client must provide one."
)
FAKE_HOST: Final = "2.2.2.2"
"""A bootstrap host that stands for no peer at all: the KV is there at once."""

_TRANSFER_FAILED: Final = {
    "prefill": "Prefill transfer failed for request rank=0",
    "decode": "Decode transfer failed for request rank=0",
}
_NEVER_MET: Final = {
    "prefill": "Prefill bootstrap failed for request rank=0",
    "decode": "Decode handshake failed for request rank=0",
}


@dataclass(frozen=True, slots=True)
class Disaggregation:
    """One server's part. `mode` is "prefill" or "decode", `port` its bootstrap server's.

    `patience_ns` is how long it waits for its other half, `heartbeat_s` how long a decode server
    does without a sign of life of a prefill server in another process.
    """

    mode: str
    backend: str = "mooncake"
    port: int = 8998
    patience_ns: int = 300_000_000_000
    page_size: int = 1
    tp: int = 1
    pp: int = 1
    kv_cache_dtype: str = "auto"
    load_balance_method: str = "follow_bootstrap_room"
    heartbeat_s: float = 10.0


PeerOf = Callable[[str, int], str]
"""Which process has the bootstrap server at a host and port; "" for this one."""


def legs(
    part: Disaggregation | None, sequences: Sequence[SglangSequence], peer_of: PeerOf
) -> list[Submit]:
    """What to submit. Raises ValueError in SGLang's words for a request without a room."""
    if part is None:
        return [sequence.plan.submit for sequence in sequences]
    return [_leg(part, sequence, peer_of) for sequence in sequences]


def nowhere_else(host: str, port: int) -> str:
    """Who knows of no other process (`PeerOf`)."""
    return ""


def mismatch(prefill: Disaggregation, page_size: int, kv_cache_dtype: str) -> str:
    """Why a decode server that is made so cannot take what `prefill` has; "" if it can."""
    if page_size != prefill.page_size:
        return (
            f"Page size mismatch: prefill server has page_size={prefill.page_size}, "
            f"but decode server has page_size={page_size}. "
            "Both servers must use the same --page-size value."
        )
    if kv_cache_dtype != prefill.kv_cache_dtype:
        return (
            f"KV cache dtype mismatch: prefill server has kv_cache_dtype={prefill.kv_cache_dtype}, "
            f"but decode server has kv_cache_dtype={kv_cache_dtype}. "
            "Both servers must use the same --kv-cache-dtype value."
        )
    return ""


def _leg(part: Disaggregation, sequence: SglangSequence, peer_of: PeerOf) -> Submit:
    submit, where = sequence.plan.submit, sequence.bootstrap
    fake = part.backend == "fake" or (where is not None and where.host == FAKE_HOST)
    if not fake and (where is None or where.room is None):
        raise ValueError(NO_ROOM)
    prefill = part.mode == "prefill"
    if prefill:
        submit = replace(
            submit, output_tokens=1, max_tokens=1, finish_reason="length", output_keys=b""
        )
        if fake:
            return submit
    room = where.room if where is not None else None
    transfer = Transfer(
        f"room {sequence.rid if room is None else room}",
        prefill,
        "room",
        part.patience_ns,
        streams=True,
        far=fake,
        peer="" if prefill or fake else _peer(where, peer_of),
    )
    return replace(submit, transfer=transfer)


def _peer(where: Bootstrap | None, peer_of: PeerOf) -> str:
    if where is None or where.host is None or where.port is None:
        return ""
    return peer_of(where.host, where.port)


def failure(mode: str, met: bool, sequence: SglangSequence) -> str:
    """What a client hears of a failed transfer; `met`: both sides had found each other.

    Without the exception that SGLang adds.
    """
    began = (_TRANSFER_FAILED if met else _NEVER_MET).get(mode)
    if began is None:
        return "Aborted"
    of = "decode_req.req" if mode == "decode" else "req"
    room = None if sequence.bootstrap is None else sequence.bootstrap.room
    return f"{began} {of}.rid={sequence.rid!r} {of}.bootstrap_room={room}"


def route_body(part: Disaggregation, http_port: int) -> dict[str, Json]:
    """`GET /route` of the bootstrap server: how the prefill server is made."""
    return {
        "attn_tp_size": part.tp,
        "attn_cp_size": 1,
        "dp_size": 1,
        "pp_size": part.pp,
        "page_size": part.page_size,
        "kv_cache_dtype": part.kv_cache_dtype,
        "follow_bootstrap_room": part.load_balance_method == "follow_bootstrap_room",
        "enable_dsa_cache_layer_split": False,
        "enable_kv_cache_sharding": False,
        "decode_allocation_policy": "early",
        "prefill_http_port": http_port,
        "target_tp_rank": None,
        "target_tp_ranks": None,
        "target_cp_ranks": None,
        "target_pp_ranks": None,
        "required_dst_info_num": None,
        "required_prefill_response_num": None,
    }


_ROUTE_KEYS: Final = ("prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank")


def asked_ranks(query: Callable[[str], str | None]) -> tuple[int, ...] | None:
    """The four ranks of `GET /route`; None if any is missing or no number."""
    try:
        return tuple(int(query(key) or "missing") for key in _ROUTE_KEYS)
    except ValueError:
        return None
