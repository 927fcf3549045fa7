"""`kv_transfer_params` as LMCache's proxy speaks them.

The proxy has the prompt made tokens, asks a prefill server for one token with `disagg_spec` (which
decode server gets the KV, and what to call the request) and `ret_first_tok`, adds the token it is
told as `first_tok` to the prompt, waits for word that the KV is there, and asks the decode server,
without any parameters: that finds the prompt by its content.
Source: LMCache's examples/disagg_prefill/disagg_proxy_server.py; vLLM 0.33.0,
kv_connector/v1/lmcache_integration/vllm_v1_adapter.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from frontier_mock.core.commands import Transfer
from frontier_mock.wire.errors import invalid
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.text import SyntheticText
from frontier_mock.wire.tokenizer import Json

IN_PROCESS: Final = "LMCacheConnectorV1"
MULTI_PROCESS: Final = "LMCacheMPConnector"
CONNECTORS: Final = (IN_PROCESS, MULTI_PROCESS)


@dataclass(frozen=True, slots=True)
class Sender:
    """What a prefill server knows: which engine listens on which init port, and its proxy.

    `proxy` is the "host:port" where that wants to hear of what has been sent, "" if nowhere.
    """

    receivers: Mapping[int, int] = field(default_factory=dict)
    proxy: str = ""


class FirstToken:
    """The answer to `ret_first_tok` (`wire.generation.HandedOver`)."""

    __slots__ = ("_text",)

    def __init__(self, text: SyntheticText) -> None:
        self._text = text

    def params(self, outcome: Outcome) -> dict[str, Json] | None:
        """`first_tok`; None if there is no token."""
        return {"first_tok": self._text.ids(0, 1)[0]} if outcome.output_tokens else None


class NothingTold:
    """What the multi-process connector answers to whatever parameters."""

    __slots__ = ()

    def params(self, outcome: Outcome) -> dict[str, Json] | None:
        """An empty object."""
        return {}


def with_deposit(
    generation: Generation,
    params: dict[str, Json],
    sender: Sender | None,
    key: str,
    patience_ns: int,
) -> Generation:
    """The same generation, its prompt moved to a decode server if the request says so.

    `key` is to be the transfer's. Raises ApiError for a `disagg_spec` that names no receiver: a
    real engine dies of what is missing and waits for ever for who is not there.
    """
    plans = generation.sequences
    if "ret_first_tok" in params:
        generation = generation._replace(handed_over=FirstToken(plans[0].text))
    spec = params.get("disagg_spec")
    if sender is None or spec is None:
        return generation
    target, notice = _receiver(spec, sender)
    wish = Transfer(key, True, "deposit", patience_ns, streams=True, target=target, notice=notice)
    moved = [
        replace(plan, submit=replace(plan.submit, transfer=replace(wish, key=f"{key}/{number}")))
        for number, plan in enumerate(plans)
    ]
    return generation._replace(sequences=tuple(moved))


def _receiver(spec: Json, sender: Sender) -> tuple[int, str]:
    """The engine that a `disagg_spec` names, and what the proxy calls the request."""
    if not isinstance(spec, dict) or spec.get("req_id") is None:
        raise invalid("disagg_spec must be an object with req_id, receiver_host and its ports")
    ports = spec.get("receiver_init_port")
    first = ports[0] if isinstance(ports, list) and ports else ports
    target = sender.receivers.get(first) if isinstance(first, int) else None
    if target is None:
        known = ", ".join(str(port) for port in sender.receivers) or "none"
        raise invalid(
            f"disagg_spec: receiver_init_port {first!r} is no receiver of this process; "
            f"there are: {known}"
        )
    return target, str(spec["req_id"])
