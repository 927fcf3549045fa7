"""One served model with the byte tokenizer, as the wire tests share it."""

from dataclasses import replace

import pytest

from frontier_mock.wire.served import ServedModel, counting_ids
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer

_TOKENIZER = ByteTokenizer()
_RING = TextRing(_TOKENIZER, 16)


@pytest.fixture
def served() -> ServedModel:
    """A model that never stops by itself, with a context of 4,096 tokens."""
    model = ServedModel(
        ("mock", "alias"),
        "/models/mock",
        4096,
        _TOKENIZER,
        _RING,
        eos=None,
        system_fingerprint="vllm-0.33.0-tp4-0badcafe",
    )
    return replace(model, new_id=counting_ids())
