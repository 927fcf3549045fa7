"""Tokenizer directories: ours means the same to `tokenizers` as to us; others load and count."""

import json
import random
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.tokenizers import HfTokenizer, load_tokenizer, write_byte_tokenizer
from frontier_mock.wire.text import SyntheticText, TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer, Tokenizer

OURS = ByteTokenizer()
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Häh? 你好\n"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}],
    },
    {"role": "tool", "content": "4"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bytes", 8192)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


def word_level(tmp_path: Path, **config: object) -> Path:
    """A small byte-level BPE directory with whole words in it, as real vocabularies have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {entry: i for i, entry in enumerate(alphabet)}
    merges = []
    for word in ("the", "cat", "sat", "mat"):
        for end in range(2, len(word) + 2):
            whole = ("Ġ" + word)[:end]
            if whole not in vocab:
                vocab[whole] = len(vocab)
                merges.append((whole[:-1], whole[-1]))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@given(st.text())
def test_same_ids_and_text_as_the_tokenizers_package(text: str) -> None:
    theirs = _theirs()
    ids = OURS.encode(text)
    assert theirs.encode(text).tolist() == ids.tolist()
    for skip in (True, False):
        assert theirs.decode(ids, skip) == OURS.decode(ids, skip)


@given(st.lists(st.integers(0, 258)))
def test_same_text_for_any_ids(ids: list[int]) -> None:
    # Ids that are no valid UTF-8 decode to U+FFFD in both, though not always to as many of them.
    ours, other = OURS.decode(ids, False), _theirs().decode(ids, False)
    assert ours.replace("\ufffd", "") == other.replace("\ufffd", "")


_CACHE: list[Tokenizer] = []


def _theirs() -> Tokenizer:
    assert _CACHE, "set by the fixture below"
    return _CACHE[0]


@pytest.fixture(autouse=True, scope="module")
def _loaded(theirs: Tokenizer) -> None:
    _CACHE.append(theirs)


def test_same_vocabulary_and_special_tokens(theirs: Tokenizer) -> None:
    assert theirs.vocab_size == OURS.vocab_size == 259
    assert theirs.eos_token_id == OURS.eos_token_id == 258
    for token_id in range(259):
        assert theirs.vocab_entry(token_id) == OURS.vocab_entry(token_id)
        assert theirs.token_text(token_id) == OURS.token_text(token_id)


@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize("add", [True, False])
def test_same_chat_rendering(theirs: Tokenizer, tools: list[object], add: bool) -> None:
    ours = OURS.render_chat(CHAT, add, False, tools)
    assert theirs.render_chat(CHAT, add, False, tools) == ours
    assert theirs.encode(ours).tolist() == OURS.encode(ours).tolist()


def test_same_continued_message(theirs: Tokenizer) -> None:
    turns = [*CHAT[:2], {"role": "assistant", "content": "I think"}]
    ours = OURS.render_chat(turns, False, True)
    assert ours.endswith("I think")
    assert theirs.render_chat(turns, False, True) == ours


def test_directory_describes_a_model(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["vocab_size"] == 259
    assert config["max_position_embeddings"] == 8192
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 258


def test_no_path_is_the_byte_tokenizer() -> None:
    assert isinstance(load_tokenizer(None), ByteTokenizer)


def test_synthetic_text_counts_exactly_under_a_loaded_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(word_level(tmp_path))
    assert isinstance(tokenizer, HfTokenizer)
    ring = TextRing(tokenizer, 4)
    assert {"the", "cat", "sat", "mat"} <= set(ring.text.split())
    assert min(len(tokenizer.vocab_entry(i)) for i in ring.words) > 2
    draw = random.Random(5)
    for _ in range(50):
        start, count = draw.choice(ring.starts), draw.randrange(1, 40)
        text = SyntheticText(ring, start, count)
        assert tokenizer.encode(text.piece(0, count)).tolist() == text.ids(0, count)


def test_end_token_and_template_come_from_the_directory(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ shout }}"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    tokenizer = load_tokenizer(word_level(tmp_path, chat_template=named))
    assert tokenizer.token_text(tokenizer.eos_token_id) == "</s>"
    rendered = tokenizer.render_chat(CHAT[:1], template_kwargs={"shout": "!"})
    assert rendered == "<s>Be brief.!"
    ids = tokenizer.encode(rendered)
    assert tokenizer.decode(ids) == "Be brief.!"
    assert tokenizer.decode([*ids, 10**9], skip_special_tokens=False) == rendered


def test_template_refusals_are_value_errors(tmp_path: Path) -> None:
    refuses = "{{ raise_exception('No user turn') }}"
    tokenizer = load_tokenizer(word_level(tmp_path, chat_template=refuses))
    with pytest.raises(ValueError, match="No user turn"):
        tokenizer.render_chat(CHAT)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].role }}")
    assert load_tokenizer(tmp_path).render_chat(CHAT) == "system"
    bare = load_tokenizer(word_level(_fresh(tmp_path)))
    with pytest.raises(ValueError, match="default chat template is no longer allowed"):
        bare.render_chat(CHAT)


def _fresh(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    return other


def test_unusable_directories_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(tmp_path)
    good = word_level(_fresh(tmp_path), chat_template="{% if %}")
    with pytest.raises(ConfigError, match="bad chat template"):
        load_tokenizer(good)
    (good / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        load_tokenizer(good)
    (good / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no end token"):
        load_tokenizer(good)
    (good / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load_tokenizer(good).eos_token_id == 7
    lossy = tokenizers.Tokenizer.from_file(str(good / "tokenizer.json"))
    lossy.normalizer = normalizers.Prepend("x")
    lossy.save(str(good / "tokenizer.json"))
    with pytest.raises(ConfigError, match="does not encode space-prefixed words"):
        load_tokenizer(good)


@given(st.lists(st.one_of(st.text(), st.sampled_from(["<s>", "</s>", " the cat", "\n"]))))
def test_segments_encode_as_the_whole_does(pieces: list[str]) -> None:
    tokenizer, backend = _segmented()
    text = "".join(pieces)
    whole = backend.encode(text, add_special_tokens=False).ids
    for _ in range(2):
        assert tokenizer.encode(text).tolist() == whole
        assert tokenizer.encode(text, add_special_tokens=True).tolist() == whole


@lru_cache
def _segmented() -> tuple[Tokenizer, tokenizers.Tokenizer]:
    with tempfile.TemporaryDirectory() as directory:
        path = word_level(Path(directory))
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        return load_tokenizer(path), backend


def test_remembered_ids_cannot_be_changed_from_outside(theirs: Tokenizer) -> None:
    first = theirs.encode("abc")
    first[0] = 0
    assert theirs.encode("abc").tolist() == [97, 98, 99]


@pytest.mark.parametrize("how", ["lstrip", "normalized", "prepend"])
def test_dependent_segments_are_encoded_together(tmp_path: Path, how: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(word_level(tmp_path) / "tokenizer.json"))
    if how == "prepend":
        backend.add_special_tokens(["<x>"])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        backend.add_special_tokens([AddedToken("<x>", **{"normalized": False, how: True})])
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "the cat <x>sat<x> the <s>mat"
    assert load_tokenizer(tmp_path).encode(text).tolist() == backend.encode(text).ids


def test_tokens_added_by_the_tokenizer_itself(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(word_level(tmp_path) / "tokenizer.json"))
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    bare = tokenizer.encode(" the cat").tolist()
    assert tokenizer.encode(" the cat", add_special_tokens=True).tolist() == [begin, *bare]


def test_lone_surrogates_are_refused(theirs: Tokenizer) -> None:
    for tokenizer in (theirs, OURS):
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("\ud800")
    assert isinstance(OURS.encode("a"), np.ndarray)
