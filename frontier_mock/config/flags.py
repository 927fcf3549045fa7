"""A command line in the manner of vLLM's own parser, built from a table of flags.

What vLLM 0.33 accepts beyond argparse (`vllm/utils/argparse_utils.py`): `_` for `-` in names,
numbers like 8k and 8K, `--x.key value` for one key of a JSON flag (`+` after the key appends to a
list), `-O2`, `--disable-y` as well as `--no-enable-y`, and a YAML file whose keys are flags.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from frontier_mock.config.document import plain, read_document
from frontier_mock.config.errors import ConfigError, nearest, shown

_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT])")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BOUND = re.compile(r"(>=|<=|>|<)(-?[\d.]+)")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a table: its spellings, how its value is read, its default, what it does here.

    `effect` is empty for a flag that is accepted without effect.
    """

    options: tuple[str, ...]
    kind: str
    default: str
    effect: str

    @property
    def name(self) -> str:
        """Attribute name: the first option without dashes, words joined by `_`."""
        return self.options[0].lstrip("-").replace("-", "_")


@cache
def read_table(table: str) -> tuple[Flag, ...]:
    """The flags of a table (see `vllm_flag_table` for its columns)."""
    flags = []
    for line in table.strip().splitlines():
        options, kind, default, effect = (cell.strip() for cell in line.split(" |"))
        flags.append(Flag(tuple(options.split()), kind, default, effect))
    return tuple(flags)


def human_int(text: str) -> int:
    """A whole number, with k, m, g, t for powers of 1000 and K, M, G, T for powers of 1024."""
    match = _HUMAN.fullmatch(text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    if suffix in _DECIMAL:
        return int(float(number) * _DECIMAL[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"{text!r}: no decimals before {suffix}; did you mean {number}{suffix.lower()}?"
        )
    return int(number) * _BINARY[suffix]


def length_or_auto(text: str) -> int:
    """A human number, or -1 for `auto` and `-1`."""
    return -1 if text.strip().lower() in ("-1", "auto") else human_int(text)


class LineParser(argparse.ArgumentParser):
    """argparse that raises ConfigError where it would print and exit."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments: "):
            words = [word for word in message.split()[2:] if word.startswith("-")]
            hint = (
                nearest(words[0].split("=")[0].split(".")[0], self._option_string_actions)
                if words
                else ""
            )
        raise ConfigError(message + hint)


class _Switch(argparse.Action):
    """--x and --no-x, and --disable-y beside --enable-y (or the reverse)."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_ignored: object) -> None:
        negative = [f"--no-{option[2:]}" for option in option_strings if option.startswith("--")]
        for option in option_strings:
            for prefix, inverse in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
                if option.startswith(prefix):
                    negative.append(inverse + option.removeprefix(prefix))
        self.negative = tuple(negative)
        super().__init__([*option_strings, *negative], dest, nargs=0, default=argparse.SUPPRESS)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, option_string not in self.negative)


def parse(flags: Sequence[Flag], argv: Sequence[str], positional: str = "") -> dict[str, Any]:
    """Values of the flags given in `argv`, by flag name; those not given are absent.

    `positional` names an optional first argument that is not a flag. Raises ConfigError.
    """
    parser = _parser(tuple(flags), positional)
    return vars(parser.parse_args(list(_normalise(argv))))


@cache
def _parser(flags: tuple[Flag, ...], positional: str) -> argparse.ArgumentParser:
    """The argparse parser for a table; built once, it keeps nothing of what it has parsed."""
    parser = LineParser(add_help=False, argument_default=argparse.SUPPRESS)
    if positional:
        parser.add_argument(positional, nargs="?")
    for flag in flags:
        _add(parser, flag)
    return parser


def from_mapping(flags: Sequence[Flag], values: dict[str, object], where: str) -> list[str]:
    """The command line that says the same as a mapping of flag names to values (YAML files)."""
    by_name = {
        option.lstrip("-").replace("_", "-"): flag for flag in flags for option in flag.options
    }
    argv: list[str] = []
    for key, value in values.items():
        name = key.lstrip("-").replace("_", "-")
        flag = by_name.get(name.split(".")[0])
        if flag is None:
            raise ConfigError(f"{where}: unknown flag {shown(key)}{nearest(name, by_name)}")
        option = f"--{name}" if f"--{name}".split(".")[0] in flag.options else f"-{name}"
        if isinstance(value, bool) and flag.kind in ("switch", "flag", "optional"):
            if value:
                argv.append(option)
            elif flag.kind == "switch":
                argv.append(f"--no-{flag.options[0][2:]}")
        elif isinstance(value, dict):
            argv += [option, json.dumps(value)]
        elif isinstance(value, list) and flag.kind in ("texts", "ints", "append"):
            argv += [option, *(str(item) for item in value)] if value else []
        elif isinstance(value, list):
            argv += [option, json.dumps(value)]
        else:
            argv += [option, _as_text(value)]
    return argv


def expand_config_file(flags: Sequence[Flag], argv: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the flags in that YAML file, placed before the others.

    What the command line says wins. Raises ConfigError if the file is missing or not YAML.
    """
    rest: list[str] = []
    found: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            path = word.removeprefix("--config").removeprefix("=") or next(words, "")
            found.append(path)
        else:
            rest.append(word)
    if not found:
        return rest
    if len(found) > 1:
        raise ConfigError("argument --config: given more than once")
    return from_mapping(flags, _read_config(found[0]), f"--config {found[0]}") + rest


def _read_config(path: str) -> dict[str, object]:
    if not path.endswith((".yaml", ".yml")):
        raise ConfigError(f"argument --config: {shown(path)} is not a .yaml or .yml file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"argument --config: cannot read {path}: {reason}") from None
    values = plain(read_document(text, path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of flag names to values")
    return values


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    options: dict[str, Any] = {"dest": flag.name}
    kind, _, words = flag.kind.partition(":")
    base = _BOUND.split(kind)[0]
    if base == "switch":
        parser.add_argument(*flag.options, action=_Switch, **options)
    elif base == "flag":
        parser.add_argument(*flag.options, action="store_true", **options)
    elif base == "append":
        parser.add_argument(*flag.options, action="append", **options)
    elif base == "choice":
        parser.add_argument(*flag.options, choices=words.split(","), **options)
    elif base == "optional":
        parser.add_argument(*flag.options, nargs="?", const=True, **options)
    else:
        many: dict[str, Any] = {"nargs": "+"} if base in ("texts", "ints") else {}
        read = _reader(base, _BOUND.findall(kind), flag.default == "-")
        parser.add_argument(*flag.options, type=read, **many, **options)


def _reader(
    base: str, bounds: Sequence[tuple[str, str]], nullable: bool
) -> Callable[[str], object]:
    read = _READERS[base]

    def checked(text: str) -> object:
        if nullable and text in ("", "None"):
            return None
        try:
            value = read(text)
        except OverflowError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is too large") from None
        for sign, limit in bounds:
            if not _HOLDS[sign](value, float(limit)):
                raise argparse.ArgumentTypeError(f"{text} is not allowed; must be {sign} {limit}")
        return value

    checked.__name__ = _WORDS.get(base, base)
    return checked


def _json_value(text: str) -> object:
    try:
        return json.loads(_expand_numbers(text))
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not valid JSON: {error}") from None


def _json_object(text: str) -> dict[str, object]:
    value = _json_value(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a JSON object")
    return value


def _json_or_text(text: str) -> object:
    return _json_object(text) if re.fullmatch(r"(?s)\s*{.*}\s*", text) else text


def _expand_numbers(text: str) -> str:
    """8k and the like outside quoted strings, as plain numbers."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(
            r"\b\d+(?:\.\d+)?[kKmMgGtT]\b", lambda match: str(human_int(match[0])), parts[index]
        )
    return "".join(parts)


def _normalise(argv: Sequence[str]) -> Iterator[str]:
    """Dashes for underscores in names, `-O2` in full, dotted keys gathered into JSON."""
    dotted: dict[str, dict[str, Any]] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-O") and word != "-O":
            yield from ("--optimization-level", word[2:].removeprefix("="))
        elif word == "-O":
            yield "--optimization-level"
        elif name.startswith("-") and "." in name and not _is_number(name):
            head, _, key = name.partition(".")
            if not equals:
                if (following := next(words, None)) is None:
                    raise ConfigError(f"argument {name}: expected one argument")
                value = following
            _put(dotted.setdefault(_dashes(head), {}), key, value)
        else:
            yield _dashes(name) + equals + value if name.startswith("--") else word
    for head, values in dotted.items():
        yield from (head, json.dumps(values))


def _dashes(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", text) is not None


def _put(into: dict[str, Any], dotted_key: str, text: str) -> None:
    value: object
    if dotted_key.endswith("+"):
        dotted_key = dotted_key[:-1]
        value = text.split(",")
    else:
        value = _loose(text)
    *path, last = dotted_key.split(".")
    for step in path:
        into = into.setdefault(step, {})
        if not isinstance(into, dict):
            raise ConfigError(f"argument key {dotted_key}: {step} already has a value")
    if isinstance(value, list) and isinstance(into.get(last), list):
        into[last] = into[last] + value
    else:
        into[last] = value


def _loose(text: str) -> Any:
    """JSON if it is JSON, else a human number if it is one, else text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return human_int(text)
    except (ValueError, argparse.ArgumentTypeError):
        return text


_READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "ints": int,
    "human": human_int,
    "len": length_or_auto,
    "float": float,
    "text": str,
    "texts": str,
    "json": _json_value,
    "jsontext": _json_or_text,
}
_WORDS = {"ints": "int", "human": "int", "len": "int", "texts": "text", "json": "JSON"}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}
