"""Typed keys of a configuration section: how each is read, what it may be, its default, its text.

A section is described once, as a tuple of `Key`s. The same description reads the file, names the
nearest known key when one is misspelt, and prints the reference page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from frontier_mock.config.document import Value, type_word
from frontier_mock.config.errors import nearest, shown

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A type of value: `allowed` says in words what may be written, `read` checks and converts."""

    allowed: str
    read: Callable[[Value], T_co]


@dataclass(frozen=True, slots=True)
class Required:
    """Marks a key without a default."""


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Key(Generic[T_co]):
    """One key of a section. `default` is used when the key is absent."""

    name: str
    kind: Kind[T_co]
    default: T_co | Required
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of the document whose keys are known to be among those described."""

    value: Value
    entries: Mapping[str, Value]

    def get(self, key: Key[T]) -> T:
        """The value of `key`, or its default. Raises ConfigError if bad, or required and absent."""
        found = self.entries.get(key.name)
        if found is not None:
            return key.kind.read(found)
        if isinstance(key.default, Required):
            raise self.value.error(f"key {key.name} is missing ({key.kind.allowed})")
        return key.default

    def has(self, name: str) -> bool:
        """Whether the key was written down."""
        return name in self.entries

    def at(self, name: str) -> Value:
        """Where `name` stands, or the section itself if absent; for errors found later."""
        return self.entries.get(name, self.value)


def open_section(value: Value, keys: Sequence[Key[Any]]) -> Section:
    """Check that `value` is a mapping with no key outside `keys`. Raises ConfigError."""
    if not isinstance(value.data, dict):
        raise value.error(f"expected a mapping, got {type_word(value)}")
    known = [key.name for key in keys]
    for name, entry in value.data.items():
        if name not in known:
            hint = nearest(name, known)
            where = f"one of {', '.join(known)}"
            raise value_at(value, entry).error(f"unknown key {shown(name)}{hint}; allowed: {where}")
    return Section(value, value.data)


def value_at(section: Value, entry: Value) -> Value:
    """The section's path with the entry's line."""
    return Value(None, section.path, section.source, entry.line)


def integer(low: int, high: int = 2**63 - 1) -> Kind[int]:
    """A whole number in [low, high]."""
    allowed = f"a whole number >= {low}" if high == 2**63 - 1 else f"a whole number {low}..{high}"

    def read(value: Value) -> int:
        data = value.data
        if isinstance(data, bool) or not isinstance(data, int) or not low <= data <= high:
            raise wrong(value, allowed)
        return data

    return Kind(allowed, read)


def number(low: float, high: float = math.inf, above: bool = False) -> Kind[float]:
    """A finite number in [low, high], or in (low, high] when `above`."""
    bound = f"> {low:g}" if above else f">= {low:g}"
    allowed = f"a number {bound}" + ("" if high == math.inf else f" and <= {high:g}")

    def read(value: Value) -> float:
        data = value.data
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            raise wrong(value, allowed)
        try:
            made = float(data)
        except OverflowError:
            raise wrong(value, allowed) from None
        in_range = low < made <= high if above else low <= made <= high
        if not math.isfinite(made) or not in_range:
            raise wrong(value, allowed)
        return made

    return Kind(allowed, read)


def string() -> Kind[str]:
    """Text, not empty, on one line."""
    allowed = "text"

    def read(value: Value) -> str:
        data = value.data
        if not isinstance(data, str) or not data.strip() or not data.isprintable():
            raise wrong(value, allowed)
        return data

    return Kind(allowed, read)


def boolean() -> Kind[bool]:
    """true or false."""
    allowed = "true or false"

    def read(value: Value) -> bool:
        if not isinstance(value.data, bool):
            raise wrong(value, allowed)
        return value.data

    return Kind(allowed, read)


def one_of(*words: str) -> Kind[str]:
    """One of a few words."""
    allowed = "one of " + ", ".join(words)

    def read(value: Value) -> str:
        if not isinstance(value.data, str) or value.data not in words:
            hint = nearest(value.data, words) if isinstance(value.data, str) else ""
            raise wrong(value, allowed, hint)
        return value.data

    return Kind(allowed, read)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """`kind`, or null."""

    def read(value: Value) -> T | None:
        return None if value.data is None else kind.read(value)

    return Kind(f"{kind.allowed}, or null", read)


def mapping(allowed: str = "a mapping") -> Kind[Value]:
    """A mapping, kept as it is for a section of its own."""

    def read(value: Value) -> Value:
        if not isinstance(value.data, dict):
            raise wrong(value, allowed)
        return value

    return Kind(allowed, read)


def listing(allowed: str = "a list") -> Kind[tuple[Value, ...]]:
    """A list with at least one element, kept as it is."""

    def read(value: Value) -> tuple[Value, ...]:
        if not isinstance(value.data, list) or not value.data:
            raise wrong(value, allowed)
        return tuple(value.data)

    return Kind(allowed, read)


def wrong(value: Value, allowed: str, hint: str = "") -> Exception:
    """The error for a value of the wrong type or out of range."""
    if isinstance(value.data, (dict, list)):
        return value.error(f"got {type_word(value)}{hint}; allowed: {allowed}")
    return value.error(f"got {shown(value.data)}{hint}; allowed: {allowed}")
