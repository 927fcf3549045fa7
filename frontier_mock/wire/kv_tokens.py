"""Token ids behind cached blocks: what a sequence says, from its Submit.

The engine knows blocks by content keys; KV events spell out tokens. A worker that publishes events
therefore has prompts that remember theirs (`TokenPrompt`). A prompt that does not, such as one from
a trace, still has events: tokens made up from its keys, equal where keys are equal.
"""

from dataclasses import dataclass

import numpy as np

from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES, KeyedPrompt
from frontier_mock.wire.block_keys import Keys
from frontier_mock.wire.kv_hashes import PLAIN, Namespace
from frontier_mock.wire.text import SyntheticText
from frontier_mock.wire.tokenizer import TokenIds

_MADE_UP_IDS = 1 << 15
"""Made-up token ids lie below this, and so within any vocabulary."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenPrompt(KeyedPrompt):
    """A prompt with its token ids, the output that will follow it, its namespace and session."""

    ids: TokenIds
    text: SyntheticText
    namespace: Namespace = PLAIN
    session_id: str | None = None


def namespace_and_session(submit: Submit | None) -> tuple[Namespace, str | None]:
    """What keeps a sequence's blocks from others, and its session; None without one."""
    prompt = None if submit is None else submit.prompt
    if not isinstance(prompt, TokenPrompt):
        return PLAIN, None
    return prompt.namespace, prompt.session_id


def block_ids(submit: Submit | None, keys: bytes, first: int, block_tokens: int) -> list[list[int]]:
    """Token ids of blocks `first` and on of the path `keys`, which `submit` computed."""
    prompt = None if submit is None else submit.prompt
    count = len(keys) // KEY_BYTES - first
    if not isinstance(prompt, TokenPrompt):
        return _made_up(keys[first * KEY_BYTES :], block_tokens)
    start, end = first * block_tokens, (first + count) * block_tokens
    ids: list[int] = prompt.ids[start:end].tolist()
    spoken = end - prompt.num_tokens
    if spoken > 0:
        ids += prompt.text.ids(max(0, start - prompt.num_tokens), spoken)
    return [ids[i : i + block_tokens] for i in range(0, len(ids), block_tokens)]


def _made_up(keys: bytes, block_tokens: int) -> list[list[int]]:
    """One row of ids per key: a fixed mixing of key and position."""
    mixed = mix_keys(np.frombuffer(keys, "<u8"))[:, None]
    places = np.arange(1, block_tokens + 1, dtype=np.uint64)[None, :]
    rows: list[list[int]] = (mix_keys(mixed * places) % np.uint64(_MADE_UP_IDS)).tolist()
    return rows


def mix_keys(keys: Keys) -> Keys:
    """The finaliser of splitmix64, a bijection that leaves no structure in the low bits."""
    mixed = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
