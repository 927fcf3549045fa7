"""What is said when a configuration cannot be used."""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """A configuration that cannot be used, told in one line: the key, its value, what is allowed.

    The command line prints it as `frontier-mock: error: ...` and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def shown(value: object, limit: int = 60) -> str:
    """`value` as it is quoted in an error: on one line, cut after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean X?)"` for the known word closest to `word`, or nothing if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
