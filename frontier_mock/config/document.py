"""YAML text to values that know where they stand, so that an error can name the place.

Reading goes through PyYAML's node tree: the plain loader forgets lines, keeps the last of two equal
keys in silence and expands aliases without limit. Here a key given twice is an error, aliases that
contain themselves are an error, and a document has a bounded size once its aliases are expanded.
"""

from dataclasses import dataclass
from datetime import date, datetime

import yaml

from frontier_mock.config.errors import ConfigError, shown

MAX_NODES = 100_000
"""Values in one document after expanding aliases; the largest scenario we know has under 100."""

MAX_DEPTH = 50
"""Nesting of one document; a scenario needs 6."""

Plain = None | bool | int | float | str | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a document: what it is, its key path, the file and the line it came from."""

    data: Plain
    path: str
    source: str
    line: int

    def error(self, message: str) -> ConfigError:
        """A ConfigError that starts with this value's file, line and path."""
        return ConfigError(f"{self.source}:{self.line}: {self.path or 'document'}: {message}")


def read_document(text: str, source: str) -> Value:
    """Parse YAML `text`; `source` is the file name used in errors. Raises ConfigError."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Value(None, "", source, 1)
        return _Reader(source, loader).value(node, "", 0, ())
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(error, source)) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested more than {MAX_DEPTH} deep") from None


def plain(value: Value) -> object:
    """The value as bare Python lists, dicts and scalars."""
    if isinstance(value.data, list):
        return [plain(item) for item in value.data]
    if isinstance(value.data, dict):
        return {key: plain(item) for key, item in value.data.items()}
    return value.data


def type_word(value: Value) -> str:
    """The YAML word for a value's type, for errors."""
    match value.data:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a mapping"


def _yaml_message(error: yaml.YAMLError, source: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        what = error.problem or error.context or "syntax error"
        return f"{source}:{mark.line + 1}: not valid YAML: {what} (column {mark.column + 1})"
    return f"{source}: not valid YAML: {error}"


class _Reader:
    """Walks a node tree once; counts what it has made."""

    def __init__(self, source: str, loader: yaml.SafeLoader) -> None:
        self.source = source
        self.loader = loader
        self.num_nodes = 0

    def value(self, node: yaml.Node, path: str, depth: int, above: tuple[int, ...]) -> Value:
        line = node.start_mark.line + 1
        here = Value(None, path, self.source, line)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise here.error(f"the document has more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise here.error(f"nested more than {MAX_DEPTH} deep")
        if id(node) in above:
            raise here.error("an alias that contains itself")
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return Value(self.mapping(node, here, depth, inside), path, self.source, line)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self.value(item, f"{path}[{index}]", depth + 1, inside)
                for index, item in enumerate(node.value)
            ]
            return Value(items, path, self.source, line)
        return Value(self.scalar(node, here), path, self.source, line)

    def mapping(
        self, node: yaml.MappingNode, here: Value, depth: int, above: tuple[int, ...]
    ) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            at = Value(None, here.path, self.source, line)
            if not isinstance(key_node, yaml.ScalarNode):
                raise at.error("a key must be plain text")
            key = key_node.value
            if key == "<<":
                raise at.error("merge keys (<<) are not supported; write the keys out")
            if key in entries:
                raise at.error(f"key {shown(key)} is given twice")
            child = f"{here.path}.{key}" if here.path else key
            entries[key] = self.value(value_node, child, depth + 1, above)
        return entries

    def scalar(self, node: yaml.Node, here: Value) -> Plain:
        try:
            made = self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            raise here.error(f"not a usable value: {error}") from None
        if made is None or isinstance(made, (bool, int, float, str)):
            return made
        if isinstance(made, (date, datetime, bytes)):
            raise here.error(f"{shown(node.value)} reads as a {type(made).__name__}; quote it")
        raise here.error(f"{shown(node.value)} is not plain text, a number or a boolean")
