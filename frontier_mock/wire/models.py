"""GET /v1/models."""

from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json


def models_body(served: ServedModel, created_s: int) -> bytes:
    """One card per served name, then one per adapter.

    `created_s` is now, as vLLM stamps each answer anew.
    """
    cards: list[Json] = [_card(name, served, created_s) for name in served.names]
    for name, path in served.adapters.items():
        own = {"root": path, "parent": served.names[0], "max_model_len": None}
        cards.append({**_card(name, served, created_s), **own})
    return dumps({"object": "list", "data": cards}).encode()


def _card(name: str, served: ServedModel, created_s: int) -> dict[str, Json]:
    permission: Json = {
        "id": f"modelperm-{served.new_id()}",
        "object": "model_permission",
        "created": created_s,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "vllm",
        "root": served.root,
        "parent": None,
        "max_model_len": served.max_model_len,
        "permission": [permission],
    }
