"""What the wire layer needs of a tokenizer, and the built-in one that needs no files.

`ByteTokenizer` maps each UTF-8 byte to the token of the same number, so encoding a prompt is one
numpy view and counting is exact by construction. Three special tokens follow the bytes; they make
the chat template unambiguous. `config.tokenizers` writes the same tokenizer out as a Hugging Face
directory, so that routers and benchmark tools count what the server counts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.uint32]
"""Token ids of one text."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""Any value `json.loads` can return."""

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
BYTE_SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)
"""Special tokens of the byte tokenizer, in id order from 256."""

_SPECIAL_IDS = {text: 256 + i for i, text in enumerate(BYTE_SPECIALS)}
# Bytes that UTF-8 never uses stand for the special tokens while a text is being encoded.
_FIRST_STAND_IN = 0xF8
_STAND_INS = [(s.encode(), bytes([_FIRST_STAND_IN + i])) for i, s in enumerate(BYTE_SPECIALS)]
_ID_OF_BYTE = np.arange(256, dtype=np.uint32)
_ID_OF_BYTE[_FIRST_STAND_IN:] += 256 - _FIRST_STAND_IN


class Tokenizer(Protocol):
    """Text to token ids and back, plus the chat template that belongs to the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: valid ids are 0 to `vocab_size - 1`."""
        ...

    @property
    def eos_token_id(self) -> int:
        """The id that ends a generation."""
        ...

    @property
    def max_chars_per_token(self) -> int:
        """Length of the longest vocabulary entry, for vLLM's bound on the length of a text."""
        ...

    def encode(self, text: str, add_special_tokens: bool = False) -> TokenIds:
        """Ids of `text`. Raises UnicodeEncodeError for lone surrogates."""
        ...

    def decode(self, ids: Sequence[int] | TokenIds, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; malformed UTF-8 becomes U+FFFD, ids outside the vocabulary nothing."""
        ...

    def token_text(self, token_id: int) -> str:
        """Text of one id on its own, special tokens included."""
        ...

    def vocab_entry(self, token_id: int) -> str:
        """The vocabulary's own spelling of one id, as `return_token_strs` shows it."""
        ...

    def render_chat(
        self,
        messages: Sequence[dict[str, Json]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Json] = (),
        template_kwargs: Mapping[str, Json] = MappingProxyType({}),
    ) -> str:
        """The prompt text of a conversation; `template_kwargs` are the template's own switches.

        Raises ValueError with the template's message if it refuses the conversation.
        """
        ...

    def generated_words(self) -> Sequence[int]:
        """Ids for synthetic output, in an order that reads like text.

        Any run of them, wherever it starts and wrapping round at the end, must decode to text that
        encodes to the same ids. Their text must be printable ASCII without `"` and backslash.
        """
        ...


def byte_vocab_entries() -> list[str]:
    """Spelling of each of the 256 byte tokens in GPT-2's byte-level alphabet.

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in order
    (the alphabet of the `ByteLevel` pre-tokenizer in Hugging Face `tokenizers`).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    entries, shifted = [], 0
    for byte in range(256):
        if byte in printable:
            entries.append(chr(byte))
        else:
            entries.append(chr(256 + shifted))
            shifted += 1
    return entries


_VOCAB_ENTRIES = (*byte_vocab_entries(), *BYTE_SPECIALS)

# What the mock says. Only its statistics matter: word lengths and punctuation of plain English.
_SENTENCES = (
    "The scheduler admits a request when its prompt fits in the free blocks. ",
    "Each step computes one token for every running sequence and a chunk of some prompt. ",
    "Tokens leave in order, and the cache remembers what it has seen before. ",
    "When memory runs short the last arrival gives way, waits its turn and starts again. ",
    "A longer batch takes longer, but not twice as long for twice the work. ",
    "Nothing here was sampled from a model, so the words repeat after a while. ",
    "The clock moves only when the engine does, and so the numbers agree every time. ",
    "Count these letters and you will find as many as were asked for. ",
)
_SHUFFLES = 32
_SHUFFLE_SEED = 7


def prose() -> str:
    """A few English sentences in one shuffled order after another, ending where it can begin."""
    generator = np.random.Generator(np.random.PCG64(_SHUFFLE_SEED))
    orders = [generator.permutation(len(_SENTENCES)) for _ in range(_SHUFFLES)]
    return "".join(_SENTENCES[i] for order in orders for i in order)


class ByteTokenizer:
    """One token per UTF-8 byte, with special tokens for the turns of a chat."""

    __slots__ = ()

    vocab_size = 256 + len(BYTE_SPECIALS)
    eos_token_id = _SPECIAL_IDS[TURN_END]
    max_chars_per_token = max(len(s) for s in BYTE_SPECIALS)

    def encode(self, text: str, add_special_tokens: bool = False) -> TokenIds:
        """Bytes of `text`, each special token's spelling as its single id; adds nothing."""
        data = text.encode()
        if "<|" not in text:
            return np.frombuffer(data, np.uint8).astype(np.uint32)
        for spelling, stand_in in _STAND_INS:
            data = data.replace(spelling, stand_in)
        ids: TokenIds = _ID_OF_BYTE.take(np.frombuffer(data, np.uint8))
        return ids

    def decode(self, ids: Sequence[int] | TokenIds, skip_special_tokens: bool = True) -> str:
        """Bytes decoded as UTF-8, special tokens left out or spelled out."""
        array = np.asarray(ids, np.int64)
        if skip_special_tokens:
            return _utf8(array[(array >= 0) & (array < 256)])
        text, start = [], 0
        for position in np.flatnonzero((array < 0) | (array >= 256)).tolist():
            text.append(_utf8(array[start:position]))
            token_id = int(array[position])
            text.append(BYTE_SPECIALS[token_id - 256] if 256 <= token_id < self.vocab_size else "")
            start = position + 1
        return "".join(text) + _utf8(array[start:])

    def token_text(self, token_id: int) -> str:
        """The byte's character if it is ASCII, U+FFFD for part of one, a special's spelling."""
        return self.decode((token_id,), skip_special_tokens=False)

    def vocab_entry(self, token_id: int) -> str:
        """The byte-level alphabet's character, or the special's spelling; "" if out of range."""
        return _VOCAB_ENTRIES[token_id] if 0 <= token_id < self.vocab_size else ""

    def render_chat(
        self,
        messages: Sequence[dict[str, Json]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Json] = (),
        template_kwargs: Mapping[str, Json] = MappingProxyType({}),
    ) -> str:
        """ChatML: each turn between its markers, tools as JSON lines in a first system turn."""
        text = []
        if tools:
            lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            text.append(f"{TURN_START}system\n# Tools\n{lines}{TURN_END}\n")
        for message in messages:
            text.append(f"{TURN_START}{message['role']}\n{_content(message)}{TURN_END}\n")
        if continue_final_message and messages:
            text[-1] = text[-1].removesuffix(f"{TURN_END}\n")
        elif add_generation_prompt:
            text.append(f"{TURN_START}assistant\n")
        return "".join(text)

    def generated_words(self) -> Sequence[int]:
        """The bytes of a few English sentences, in one shuffled order after another."""
        return list(prose().encode())


def _content(message: dict[str, Json]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    return text + "".join(_tool_call_lines(message.get("tool_calls")))


def _tool_call_lines(calls: Json) -> Iterable[str]:
    for call in calls if isinstance(calls, list) else ():
        yield f"\n<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def _utf8(ids: NDArray[np.int64]) -> str:
    return ids.astype(np.uint8).tobytes().decode(errors="replace")
