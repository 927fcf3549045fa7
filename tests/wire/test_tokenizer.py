"""The byte tokenizer: any text survives, bytes count, special tokens are one id each."""

from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.wire.tokenizer import BYTE_SPECIALS, ByteTokenizer, byte_vocab_entries, prose

TOKENIZER = ByteTokenizer()
PIECES = st.lists(st.one_of(st.text(), st.sampled_from(BYTE_SPECIALS), st.just("<|")))


@given(PIECES)
def test_any_text_round_trips(pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert "".join(TOKENIZER.decode(ids, skip_special_tokens=False)) == text


@given(st.text().filter(lambda text: "<|" not in text))
def test_one_byte_is_one_token(text: str) -> None:
    assert TOKENIZER.encode(text).tolist() == list(text.encode())


@given(PIECES)
def test_special_tokens_count_once(pieces: list[str]) -> None:
    text = "".join(pieces)
    specials = sum(text.count(special) for special in BYTE_SPECIALS)
    saved = sum(text.count(s) * (len(s) - 1) for s in BYTE_SPECIALS)
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text.encode()) - saved
    assert int((ids >= 256).sum()) == specials


def test_special_ids_and_names() -> None:
    assert TOKENIZER.encode("".join(BYTE_SPECIALS)).tolist() == [256, 257, 258]
    assert TOKENIZER.decode([72, 258, 105]) == "Hi"
    assert TOKENIZER.token_text(258) == "<|im_end|>"
    assert TOKENIZER.token_text(0xC3) == "\ufffd"
    assert TOKENIZER.token_text(300) == ""
    assert TOKENIZER.vocab_entry(32) == "Ġ"
    assert TOKENIZER.vocab_entry(257) == "<|im_start|>"
    assert TOKENIZER.vocab_entry(259) == ""


def test_vocabulary_spells_every_byte_differently() -> None:
    entries = byte_vocab_entries()
    assert len(set(entries)) == 256
    assert entries[ord("A")] == "A"


def test_chat_turns_are_marked() -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    start = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU"
    assert TOKENIZER.render_chat(turns) == f"{start}<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.render_chat(turns, add_generation_prompt=False) == f"{start}<|im_end|>\n"
    assert TOKENIZER.render_chat(turns, False, continue_final_message=True) == start
    assert TOKENIZER.render_chat([]) == "<|im_start|>assistant\n"


def test_prose_may_follow_itself() -> None:
    text = prose()
    assert text.isascii()
    assert text.endswith(" ")
    assert len(TOKENIZER.generated_words()) == len(text)
