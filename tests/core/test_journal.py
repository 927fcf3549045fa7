import pytest

from frontier_mock.core.commands import Abort, Submit
from frontier_mock.core.journal import JournalError, from_lines, to_line
from frontier_mock.core.prompt import KeyedPrompt


def test_what_is_written_is_read() -> None:
    submit = Submit(
        KeyedPrompt(40, 16, b"0123456789abcdef"), 7, 9, "stop", 3, -1, b"8 bytes!", "actor-1"
    )
    lines = [to_line(5, submit, 16), to_line(9, Abort(0), 16)]
    assert from_lines(lines).entries == [(5, submit), (9, Abort(0))]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"t": 1}',
        '{"t": "1", "abort": 2}',
        '{"t": 1, "abort": true}',
        '{"t": 1, "prompt": 3, "output": []}',
        '{"t": 1, "prompt": [1, 16, "?"], "output": [1, 1, "stop"], "output_keys": ""}',
    ],
)
def test_a_bad_line_is_named(line: str) -> None:
    good = to_line(0, Abort(0), 16)
    with pytest.raises(JournalError, match="journal line 2: "):
        from_lines([good, line])
