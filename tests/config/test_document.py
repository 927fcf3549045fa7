"""YAML with places: what is refused, and that every refusal names file and line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.document import MAX_DEPTH, plain, read_document
from frontier_mock.config.errors import ConfigError


def test_values_know_their_path_and_line() -> None:
    document = read_document("a: 1\nb:\n  - x\n  - {c: 2.5}\n", "f.yaml")
    assert plain(document) == {"a": 1, "b": ["x", {"c": 2.5}]}
    assert isinstance(document.data, dict)
    items = document.data["b"].data
    assert isinstance(items, list)
    inner = items[1].data
    assert isinstance(inner, dict)
    assert (inner["c"].path, inner["c"].line) == ("b[1].c", 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "f.yaml:1: not valid YAML: expected ',' or ']'"),
        ("a: 1\nb: 'x\n", "not valid YAML: found unexpected end of stream"),
        ("a: 1\na: 2\n", "f.yaml:2: document: key 'a' is given twice"),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml:3: a: key 'b' is given twice"),
        ("a: \x00", "f.yaml: not valid YAML"),
        ("a: &x [*x]", "f.yaml:1: a[0]: an alias that contains itself"),
        ("? [1, 2]\n: 3\n", "f.yaml:1: document: a key must be plain text"),
        ("a: 2024-01-01", "a: '2024-01-01' reads as a date; quote it"),
        ("a: !python/object:os.system x", "not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML: but found another document"),
        ("x: &x {a: 1}\ny: {<<: *x}", "f.yaml:2: y: merge keys (<<) are not supported"),
        ("[" * 5000, "nested more than"),
        ("{a: " * (MAX_DEPTH + 2) + "}" * (MAX_DEPTH + 2), "nested more than"),
        ("a: " + "1" * 5000, "a: not a usable value"),
    ],
)
def test_bad_documents_are_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(text, "f.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_cannot_blow_a_document_up() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(ConfigError, match="more than 100000 values"):
        read_document("\n".join(levels), "bomb.yaml")


def test_an_empty_document_has_no_data() -> None:
    assert read_document("# nothing\n", "f.yaml").data is None


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    assert "\n" not in outcome(text)


def outcome(text: str) -> str:
    try:
        return read_document(text, "f.yaml").source
    except ConfigError as error:
        return str(error)
