"""What ends a sequence, against a model that looks at the output token by token."""

from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.stops import Ending, StopRules, find_ending
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer


class Words(ByteTokenizer):
    """A short period, so that stops lie on both sides of the wrap."""

    __slots__ = ()

    def generated_words(self) -> list[int]:
        return list(b"one two, three. ")


RING = TextRing(Words(), 16)
EOS = 258


def reference(start: int, rules: StopRules) -> tuple[int, str, int | str | None, str]:
    """(tokens, finish reason, stop reason, text) by vLLM's own loop, one token a step."""
    text = ""
    for count in range(1, rules.max_tokens + 1):
        token = int(RING.ids[(start + count - 1) % RING.period])
        due = rules.eos_tokens and count >= max(rules.eos_tokens, rules.min_tokens + 1)
        if due and not rules.ignore_eos:
            return count, "stop", None, text
        if count > rules.min_tokens and token in rules.stop_token_ids:
            return count, "stop", token, text + chr(token) * rules.include_stop
        before = len(text)
        text += chr(token)
        if count > rules.min_tokens:
            hits = []
            for stop in rules.stop:
                at = text.find(stop, max(0, before - len(stop) + 1))
                if at >= 0:
                    hits.append((at + len(stop), rules.stop.index(stop), at, stop))
            if hits:
                end, _, at, stop = min(hits)
                return count, "stop", stop, text[: end if rules.include_stop else at]
    return rules.max_tokens, "length", None, text


def shown(ending: Ending) -> tuple[int, str, int | str | None, str]:
    text = ending.text
    return (
        text.num_tokens,
        ending.finish_reason,
        ending.stop_reason,
        text.piece(0, text.num_tokens),
    )


@given(
    start=st.integers(0, 15),
    max_tokens=st.integers(1, 60),
    min_tokens=st.integers(0, 40),
    eos_tokens=st.integers(0, 50),
    ignore_eos=st.booleans(),
    stop=st.lists(
        st.sampled_from(["one", "o", "e. o", ", three. one two", "nowhere", "two, t"]),
        max_size=3,
        unique=True,
    ),
    stop_ids=st.lists(st.sampled_from([ord(","), ord("h"), 200, 10**6]), max_size=2, unique=True),
    include=st.booleans(),
)
def test_endings_are_vllms(
    start: int,
    max_tokens: int,
    min_tokens: int,
    eos_tokens: int,
    ignore_eos: bool,
    stop: list[str],
    stop_ids: list[int],
    include: bool,
) -> None:
    rules = StopRules(
        max_tokens,
        min(min_tokens, max_tokens),
        eos_tokens,
        ignore_eos,
        tuple(stop),
        tuple(stop_ids),
        include,
    )
    assert shown(find_ending(RING, start, rules)) == reference(start, rules)


def test_explicit_end_token_stops_even_with_ignore_eos() -> None:
    rules = StopRules(20, 0, 5, ignore_eos=True, stop_token_ids=(EOS,))
    ending = find_ending(RING, 0, rules)
    assert shown(ending) == (5, "stop", EOS, "one ")
    assert ending.text.ids(3, 5) == [32, EOS]


def test_long_outputs_are_searched_no_further_than_a_period() -> None:
    rules = StopRules(10**9, stop=("absent",), stop_token_ids=(1,))
    assert find_ending(RING, 0, rules).finish_reason == "length"


def test_answer_lengths_have_the_mean_they_were_given() -> None:
    model = EosModel(mean_tokens=100.0, sigma=0.5)
    lengths = [model.length(3, key, 0) for key in range(4000)]
    assert abs(sum(lengths) / len(lengths) - 100) < 3
    assert min(lengths) >= 1
    assert model.length(3, 5, 0) == model.length(3, 5, 0) != model.length(3, 5, 1)
    assert {EosModel(7, 0).length(0, key, 0) for key in range(9)} == {7}
