"""A model served by SGLang with the byte tokenizer, as these tests share it."""

from dataclasses import replace

import pytest

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.served import SglangFront

FRONT = SglangFront(context_len=4096, max_req_len=4095, max_req_input_len=4090, num_pages=65536)


@pytest.fixture
def sglang(served: ServedModel) -> ServedModel:
    """As `served`, behind SGLang."""
    return replace(served, names=("mock",), system_fingerprint=None, sglang=FRONT)
