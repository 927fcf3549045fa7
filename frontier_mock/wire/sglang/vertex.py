"""POST /vertex_generate: /generate in the frame of Vertex AI (SGLang 0.5.23 `vertex_generate`).

A body has `instances`, one prompt each, and `parameters`, which are fields of /generate. They do
not pass through that route's gate: a name it does not know is a bare 500.
"""

from collections.abc import Mapping
from dataclasses import replace

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import Check, check_fields, list_of, mapping, nullable
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import (
    CrashError,
    SettledError,
    SglangError,
    validation_error,
)
from frontier_mock.wire.sglang.generate import FIELDS, request_of
from frontier_mock.wire.sglang.request import VERTEX, SglangRequest
from frontier_mock.wire.sglang.sampling import check_gate
from frontier_mock.wire.sse import EVENT_STREAM
from frontier_mock.wire.tokenizer import Json

_FIELDS: Mapping[str, Check] = {
    "instances": list_of(mapping),
    "parameters": nullable(mapping),
}
_PROMPTS = ("text", "input_ids", "input_embeds")
_UNREAD = frozenset(
    (
        *("mm_hashes", "mm_content_hashes", "use_audio_in_video", "video_config"),
        *("sampling_logprobs_mode", "positional_embed_overrides", "http_worker_ipc"),
        *("need_wait_for_mm_inputs", "num_items_assigned", "encoder_urls", "max_dynamic_patch"),
        *("min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch"),
        *("images_config", "mm_processor_kwargs", "multi_item_delimiter_indices"),
        *("token_indices_to_pool", "kv_hints"),
    )
)
"""Fields of `GenerateReqInput` that nothing here looks at."""


def parse_vertex(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a body asks for.

    Raises SglangError and LateError as /generate does, CrashError for an unknown parameter, and
    SettledError where there are no instances.
    """
    try:
        fields = check_fields(load_object(body), _FIELDS, ("instances",))
    except ApiError as error:
        raise validation_error(error) from None
    given = fields["instances"]
    instances = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    if not instances:
        raise SettledError(lambda _: b"[]", "application/json")
    parameters = fields.get("parameters")
    raw: dict[str, Json] = dict(parameters) if isinstance(parameters, dict) else {}
    # Ours, beside SGLang's own.
    known = FIELDS.keys() | _UNREAD | {"frontier", "metadata"}
    for name in raw:
        if name not in known or name in _PROMPTS or name == "image_data":
            raise CrashError(f"GenerateReqInput got an unexpected keyword argument '{name}'")
    try:
        if raw.get("sampling_params") is not None:
            check_gate(raw["sampling_params"])
    except SglangError as error:
        raise CrashError(error.message, EVENT_STREAM if raw.get("stream") is True else "") from None
    for name in _PROMPTS:
        if instances[0].get(name):
            raw[name] = [instance.get(name) for instance in instances]
            break
    images = [one["image_data"] for one in instances if one.get("image_data") is not None]
    if images:
        raw["image_data"] = images
    return replace(request_of(raw, headers, served), kind=VERTEX)
