"""Tokenizers as Hugging Face directories: load a real one, or write our own byte-level one.

Reading needs the extra `frontier-mock[tokenizers]` (the packages `tokenizers` and `jinja2`);
writing needs nothing.
"""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.wire.tokenizer import (
    BYTE_SPECIALS,
    END_OF_TEXT,
    TURN_END,
    ByteTokenizer,
    Json,
    TokenIds,
    Tokenizer,
    byte_vocab_entries,
    prose,
)

BYTE_CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {%- if not loop.last %}{{- '\\n' }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}{{- message.content }}{%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' }}{{- call | tojson }}{{- '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""The template of `ByteTokenizer.render_chat`, for whoever renders chats outside this program."""

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a "
    "chat template if the tokenizer does not define one."
)
"""What vLLM answers to a chat when the tokenizer has no template."""

_TEMPLATE_DATE = "01 Jan 2026"
_RING_WORDS = 4096
_RING_SEED = 11
_REMEMBERED_SEGMENTS = 512
_SPACE_PIECE = "▁"


def load_tokenizer(path: str | Path | None) -> Tokenizer:
    """The tokenizer in the Hugging Face directory `path`, or our byte-level one for None.

    Raises ConfigError if the directory holds no usable tokenizer, or if the packages that read it
    are not installed.
    """
    if path is None:
        return ByteTokenizer()
    directory = Path(path)
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"tokenizer {shown(str(path))} has no tokenizer.json; give a directory")
    try:
        tokenizers = importlib.import_module("tokenizers")
        importlib.import_module("jinja2")
    except ImportError as error:
        raise ConfigError(
            f"tokenizer {shown(str(path))} needs the package {error.name!r}: "
            "pip install 'frontier-mock[tokenizers]'"
        ) from None
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        raise ConfigError(f"tokenizer {shown(str(file))} cannot be read: {error}") from None
    model_settings = _read_json(directory / "config.json")
    model_settings |= _read_json(directory / "generation_config.json")
    own_settings = _read_json(directory / "tokenizer_config.json")
    source = _template_source(directory, own_settings)
    return HfTokenizer(backend, own_settings, model_settings, source, str(path))


def write_byte_tokenizer(directory: str | Path, max_model_len: int = 131072) -> Path:
    """Write `ByteTokenizer` as a Hugging Face directory, made if absent, and return it.

    It can be loaded by `tokenizers.Tokenizer.from_file`, by transformers, and by the routers and
    benchmark tools that want a tokenizer directory; the model in its config.json is a placeholder.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    entries = byte_vocab_entries()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    byte_level |= {"use_regex": False}
    specials = [
        {
            "id": 256 + i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in enumerate(BYTE_SPECIALS)
    ]
    eos_id = ByteTokenizer.eos_token_id
    files: dict[str, dict[str, object]] = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": specials,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {entry: i for i, entry in enumerate(entries)},
                "merges": [],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                str(special["id"]): {k: v for k, v in special.items() if k != "id"}
                for special in specials
            },
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "model_max_length": max_model_len,
            "clean_up_tokenization_spaces": False,
            "chat_template": BYTE_CHAT_TEMPLATE,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": ByteTokenizer.vocab_size,
            "max_position_embeddings": max_model_len,
            "rms_norm_eps": 1e-6,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": eos_id,
        },
        "generation_config.json": {"eos_token_id": eos_id, "pad_token_id": 256},
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (target / name).write_text(text + "\n", encoding="utf-8")
    return target


class HfTokenizer:
    """A tokenizer of the `tokenizers` package with the chat template of its directory."""

    __slots__ = (
        "_adds_tokens",
        "_backend",
        "_segment",
        "_splitter",
        "_template",
        "_tokens",
        "_words",
        "eos_token_id",
        "max_chars_per_token",
        "vocab_size",
    )

    def __init__(
        self,
        backend: Any,
        tokenizer_config: Mapping[str, Json],
        model_settings: Mapping[str, Json],
        template: str | None,
        name: str,
    ) -> None:
        """`backend` is a `tokenizers.Tokenizer`; `model_settings` the model's configuration files.

        Raises ConfigError if the end token is unknown or no synthetic text can be made.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.max_chars_per_token = max(map(len, vocab))
        self.eos_token_id = _eos_id(vocab, tokenizer_config, model_settings, name)
        self._template = _compile(template, name)
        self._tokens = {
            key: text
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (text := _token_spelling(tokenizer_config.get(key))) is not None
        }
        self._words = _stable_words(backend, vocab, name)
        self._adds_tokens = backend.num_special_tokens_to_add(False) > 0
        self._splitter = _special_splitter(backend)
        self._segment = lru_cache(_REMEMBERED_SEGMENTS)(partial(_encode, backend))

    def encode(self, text: str, add_special_tokens: bool = False) -> TokenIds:
        """Ids of `text`, with the tokenizer's own special tokens around it if asked.

        The segments between special tokens are encoded each on its own and remembered: a
        conversation that grows turn by turn costs only its last turn.
        """
        if self._splitter is None or (add_special_tokens and self._adds_tokens):
            return _encode(self._backend, text, add_special_tokens)
        parts = [self._segment(part) for part in self._splitter.split(text) if part]
        if len(parts) == 1:
            return parts[0].copy()
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def decode(self, ids: Sequence[int] | TokenIds, skip_special_tokens: bool = True) -> str:
        """Text of `ids` as the tokenizer decodes them; ids outside the vocabulary are left out."""
        known = [i for i in np.asarray(ids, np.int64).tolist() if 0 <= i < self.vocab_size]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one id, with the leading space that SentencePiece decoders drop."""
        text = self.decode((token_id,), skip_special_tokens=False)
        return f" {text}" if self.vocab_entry(token_id).startswith(_SPACE_PIECE) else text

    def vocab_entry(self, token_id: int) -> str:
        """The vocabulary's own spelling; "" if out of range."""
        if not 0 <= token_id < self.vocab_size:
            return ""
        return self._backend.id_to_token(token_id) or ""

    def render_chat(
        self,
        messages: Sequence[dict[str, Json]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Json] = (),
        template_kwargs: Mapping[str, Json] = MappingProxyType({}),
    ) -> str:
        """The directory's chat template applied as transformers applies it.

        Raises ValueError if there is none or it refuses the conversation.
        """
        import jinja2

        if self._template is None:
            raise ValueError(NO_TEMPLATE)
        try:
            text: str = self._template.render(
                {
                    **self._tokens,
                    "documents": None,
                    **template_kwargs,
                    "messages": messages,
                    "tools": list(tools) or None,
                    "add_generation_prompt": add_generation_prompt and not continue_final_message,
                }
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(str(error)) from None
        return _cut_after_last_message(text, messages) if continue_final_message else text

    def generated_words(self) -> Sequence[int]:
        """Common lower-case words, each a token of its own with its leading space."""
        return self._words


def _encode(backend: Any, text: str, add_special_tokens: bool = False) -> TokenIds:
    try:
        encoded = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    except (TypeError, ValueError):
        text.encode()
        raise
    return np.array(encoded[0].ids, np.uint32)


def _special_splitter(backend: Any) -> re.Pattern[str] | None:
    """Cuts a text before and after each added token, or None where segments are not independent.

    They are not where an added token swallows the space beside it, is matched in normalised text
    or only as a whole word, or where the encoding of a segment depends on its place in the text.
    """
    added = list(backend.get_added_tokens_decoder().values())
    plain = [t for t in added if not (t.lstrip or t.rstrip or t.single_word or t.normalized)]
    if not added or len(plain) < len(added):
        return None
    longest_first = sorted((t.content for t in added), key=lambda text: (-len(text), text))
    splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    probe = longest_first[0].join(["a b", " c\n", "\nd ", " "])
    apart = np.concatenate([_encode(backend, part) for part in splitter.split(probe) if part])
    return splitter if np.array_equal(apart, _encode(backend, probe)) else None


def _compile(source: str | None, name: str) -> Any:
    """The template as transformers compiles it, or None. Its date stands still."""
    import jinja2.ext
    import jinja2.sandbox

    if source is None:
        return None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    # A prompt that changed with the date would make yesterday's run irreproducible.
    environment.globals["strftime_now"] = lambda _format: _TEMPLATE_DATE
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ConfigError(f"tokenizer {shown(name)} has a bad chat template: {error}") from None


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _cut_after_last_message(text: str, messages: Sequence[dict[str, Json]]) -> str:
    """The rendered chat up to the end of the last message's content, for it to be continued."""
    content = messages[-1].get("content") if messages else None
    last = content.strip() if isinstance(content, str) else ""
    at = text.rfind(last) if last else -1
    if at < 0:
        raise ValueError(
            "continue_final_message is set but the final message does not appear in the chat "
            "after applying the chat template."
        )
    return text[: at + len(last)]


def _read_json(path: Path) -> dict[str, Json]:
    """The JSON object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(str(path))} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{shown(str(path))} must hold a JSON object")
    return value


def _template_source(directory: Path, tokenizer_config: Mapping[str, Json]) -> str | None:
    """chat_template.jinja if there is one, else the configuration's (default) template."""
    own_file = directory / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {
            str(item.get("name")): item.get("template")
            for item in template
            if isinstance(item, dict)
        }
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_spelling(value: Json) -> str | None:
    """A special token of tokenizer_config.json, written as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _eos_id(
    vocab: Mapping[str, int],
    tokenizer_config: Mapping[str, Json],
    model_settings: Mapping[str, Json],
    name: str,
) -> int:
    """The end token: the tokenizer's, else the (first) one of the model's configuration."""
    spelling = _token_spelling(tokenizer_config.get("eos_token"))
    if spelling is not None and spelling in vocab:
        return vocab[spelling]
    value = model_settings.get("eos_token_id")
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, int):
        return value
    raise ConfigError(
        f"tokenizer {shown(name)} names no end token: set eos_token in tokenizer_config.json "
        "or eos_token_id in generation_config.json"
    )


def _prose_ids(backend: Any, name: str) -> list[int]:
    """English sentences for a vocabulary of single characters, which may be cut anywhere."""
    text = prose()
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    if len(ids) != len(text):
        raise ConfigError(f"tokenizer {shown(name)} has no lower-case words with a leading space")
    return ids


def _stable_words(backend: Any, vocab: Mapping[str, int], name: str) -> list[int]:
    """Words whose concatenation, in any order, encodes to one token each."""
    # Byte-level vocabularies spell a leading space as U+0120, SentencePiece ones as U+2581.
    pattern = re.compile("[\u0120\u2581][a-z]{2,12}")
    found = sorted(token_id for entry, token_id in vocab.items() if pattern.fullmatch(entry))
    # Low ids are the frequent words of a BPE vocabulary.
    found = found[:_RING_WORDS]
    if not found:
        return _prose_ids(backend, name)
    generator = np.random.Generator(np.random.PCG64(_RING_SEED))
    words: list[int] = [found[i] for i in generator.permutation(len(found)).tolist()]
    pieces = [" " + backend.id_to_token(i)[1:] for i in words]
    encoded = backend.encode_batch_fast(["".join(pieces)], add_special_tokens=False)[0].ids
    if encoded == words:
        return words
    # Some words split or merge: keep those that stand alone, and look again.
    alone = backend.encode_batch_fast(pieces, add_special_tokens=False)
    words = [i for i, own in zip(words, alone, strict=True) if own.ids == [i]]
    text = "".join(" " + backend.id_to_token(i)[1:] for i in words)
    if not words or backend.encode_batch_fast([text], add_special_tokens=False)[0].ids != words:
        raise ConfigError(
            f"tokenizer {shown(name)} does not encode space-prefixed words to the tokens they "
            "were decoded from (SentencePiece with a dummy prefix is not supported)"
        )
    return words
