"""`kv_transfer_params` over gRPC: as over HTTP, but in JSON text or in a protobuf Struct."""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from frontier_mock.wire.generation import Generation, HandedOver, SequencePlan
from frontier_mock.wire.kv_transfer import with_transfer
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

_SAFE_INTEGER = 2**53 - 1


class Transferred(NamedTuple):
    """Sequences whose prompts are computed or decoded elsewhere, and what the answer says of it."""

    sequences: tuple[SequencePlan, ...]
    handed_over: HandedOver | None = None


def transferred(
    plans: Sequence[SequencePlan],
    params: dict[str, Json] | None,
    request_id: str,
    prompt_tokens: int,
    served: ServedModel,
) -> Transferred:
    """What `params` make of a request's sequences, by the rules of the HTTP routes."""
    if params is None or served.kv is None:
        return Transferred(tuple(plans))
    asked = Generation(
        id=request_id,
        kind="grpc",
        model=served.names[0],
        stream=False,
        include_usage=False,
        continuous_usage=False,
        stream_interval=1,
        prompt_tokens=prompt_tokens,
        sequences=tuple(plans),
        prompts=(),
        tokenizer=served.tokenizer,
        system_fingerprint=None,
    )
    made = with_transfer(asked, {"kv_transfer_params": params}, {}, served.kv, served.new_id)
    return Transferred(made.sequences, made.handed_over)


def from_struct(struct: Struct) -> dict[str, Json]:
    """A Struct's value. Its numbers are all floats; whole ones were integers."""
    value: dict[str, Json] = MessageToDict(struct)
    return {key: _whole(item) for key, item in value.items()}


def _whole(value: Json) -> Json:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _SAFE_INTEGER:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


def to_struct(value: dict[str, Json]) -> Struct:
    """The reverse of `from_struct`."""
    struct = Struct()
    struct.update(value)
    return struct
