"""Readers of request traces: lines of text in, `TraceRows` out.

Formats, units and traps are those of `shared/specs/traces.md` section 2.1. Every reader obeys the
same rules. A row that cannot be read is skipped and named with its line number and a reason. A
length of zero becomes one token, counted as clipped, because no engine accepts less. Rows are
sorted by time, stably, and those that needed it are counted. Prompts longer than a model are not
judged here: the engine rejects them.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import chain

import numpy as np

from frontier_mock.simtime import NS_PER_S, SimTime, from_ms, from_seconds
from frontier_mock.workload.prompts import UNIT_TOKENS
from frontier_mock.workload.rows import Census, SkippedRow, TraceError, TraceRow, TraceRows

FORMATS = ("mooncake", "azure", "vidur", "burstgpt", "llmservingsim")
"""Formats by the name that `format:` takes."""

_MAX_TOKENS = 1 << 30
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?"
)


class _BadRow(Exception):
    """This row cannot be read; the message says why."""


_Fields = tuple[SimTime, int, int, Sequence[int] | None, int]
"""(t_ns, prompt tokens, output tokens, hash ids, priority), lengths as recorded."""
_Parse = Callable[[Mapping[str, object]], _Fields]
_Record = tuple[int, Mapping[str, object] | str | None]
"""(line number, the fields, or why they cannot be read, or None for a blank line)."""


def read_trace(
    lines: Iterable[str], name: str, format: str | None = None, id_tokens: int = 512
) -> TraceRows:
    """Read the trace called `name`; without `format`, recognise it by its first line.

    `id_tokens` is the number of tokens a hash id stands for. Raises TraceError if the format is
    unknown or cannot be recognised, a column is missing, or no row is readable.
    """
    source = iter(lines)
    first = next(source, "")
    kind = format or detect_format(first, name)
    if kind not in FORMATS:
        raise TraceError(f"{name}: unknown trace format {kind!r}; known: {', '.join(FORMATS)}")
    records: Iterator[_Record]
    columns: tuple[str, ...] = ()
    if kind in ("mooncake", "llmservingsim"):
        records = _json_records(chain([first], source))
    else:
        records, columns = _csv_records(first, source, name, kind)
    return _collect(records, name, kind, columns, id_tokens)


def detect_format(first_line: str, name: str) -> str:
    """The format whose first line looks like `first_line`; TraceError if there is none."""
    text = first_line.strip().lstrip("\ufeff")
    if text.startswith("{"):
        try:
            keys = set(json.loads(text))
        except ValueError:
            keys = set()
        if {"timestamp", "output_length"} <= keys:
            return "mooncake"
        if {"input_toks", "output_toks"} <= keys:
            return "llmservingsim"
    else:
        columns = {column.strip().lower() for column in text.split(",")}
        for kind, needed in _COLUMNS.items():
            if {column.lower() for column in needed} <= columns:
                return kind
    shown = text if len(text) <= 80 else text[:77] + "..."
    raise TraceError(
        f"{name}: cannot recognise the trace format from its first line {shown!r}; "
        f"set format to one of {', '.join(FORMATS)}"
    )


def _json_records(
    lines: Iterable[str],
) -> Iterator[_Record]:
    """(line number, object), or a reason why it is none, or None for a blank line."""
    for number, line in enumerate(lines, start=1):
        text = line.strip().lstrip("\ufeff") if number == 1 else line.strip()
        if not text:
            yield number, None
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            yield number, f"not valid JSON ({error})"
            continue
        yield number, value if isinstance(value, dict) else "not a JSON object"


def _csv_records(
    header: str, lines: Iterator[str], name: str, kind: str
) -> tuple[Iterator[_Record], tuple[str, ...]]:
    columns = [column.strip() for column in header.strip().lstrip("\ufeff").split(",")]
    folded = [column.lower() for column in columns]
    missing = [column for column in _COLUMNS[kind] if column.lower() not in folded]
    if missing:
        raise TraceError(
            f"{name}: not a {kind} trace: no column {', '.join(missing)} in {', '.join(columns)}"
        )

    def records() -> Iterator[_Record]:
        reader = csv.reader(lines)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num + 1, f"not valid CSV ({error})"
                continue
            number = reader.line_num + 1
            if not cells:
                yield number, None
            elif len(cells) != len(folded):
                yield number, f"{len(cells)} fields where the header has {len(folded)}"
            else:
                yield number, dict(zip(folded, cells, strict=True))

    return records(), tuple(columns)


def _collect(
    records: Iterator[_Record],
    name: str,
    kind: str,
    columns: tuple[str, ...],
    id_tokens: int,
) -> TraceRows:
    parse = _PARSERS[kind]
    kept: list[tuple[_Fields, int]] = []
    skipped: list[SkippedRow] = []
    seen: set[object] = set()
    fields = {column.lower(): column for column in columns}
    timed = kind != "vidur" or "arrived_at" in fields
    blank = clipped = duplicates = 0
    for line, record in records:
        if record is None:
            blank += 1
            continue
        if isinstance(record, str):
            skipped.append(SkippedRow(line, record))
            continue
        try:
            t_ns, prompt, output, ids, priority = parse(record)
            if ids is not None and len(ids) != -(-max(prompt, 1) // id_tokens):
                raise _BadRow(f"{len(ids)} hash ids for {prompt} tokens in blocks of {id_tokens}")
        except _BadRow as error:
            skipped.append(SkippedRow(line, str(error)))
            continue
        if kind == "mooncake" and "session_id" in record:
            raise TraceError(
                f"{name}: line {line}: rows with session_id may be deltas or cumulative, and "
                "which cannot be told from the file; not supported"
            )
        if not columns:
            fields.update(zip(record, record, strict=True))
        clipped += prompt == 0 or output == 0
        row = (t_ns, max(prompt, 1), max(output, 1), ids, priority)
        if timed:
            mark = (t_ns, prompt, output, ids[-1] if ids else None)
            duplicates += mark in seen
            seen.add(mark)
        kept.append((row, line))
    if not kept:
        first = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise TraceError(f"{name}: no readable row in {len(skipped)}{first}")
    out_of_order = _count_out_of_order([row[0] for row, _ in kept])
    if out_of_order:
        kept.sort(key=lambda pair: pair[0][0])
    used = _USED[kind]
    census = Census(
        rows=len(kept) + len(skipped),
        read=len(kept),
        blank=blank,
        clipped=clipped,
        out_of_order=out_of_order,
        duplicates=duplicates,
        skipped=tuple(skipped),
        ignored=tuple(field for key, field in fields.items() if key not in used),
    )
    return TraceRows(name, kind, _numbered(kept, id_tokens), id_tokens, timed, census)


def _count_out_of_order(times: Sequence[SimTime]) -> int:
    latest = times[0]
    count = 0
    for t_ns in times:
        if t_ns < latest:
            count += 1
        else:
            latest = t_ns
    return count


def _numbered(kept: list[tuple[_Fields, int]], id_tokens: int) -> list[TraceRow]:
    """Rows with ids as arrays; ids too large for `HashedPrompt` are renumbered by appearance."""
    limit = (1 << 48) // -(-id_tokens // UNIT_TOKENS)
    tables = [row[3] for row, _ in kept if row[3]]
    if any(max(ids) >= limit or min(ids) < 0 for ids in tables):
        number: dict[int, int] = {}
        for ids in tables:
            for value in ids:
                number.setdefault(value, len(number))
        kept = [
            ((*row[:3], None if row[3] is None else [number[i] for i in row[3]], row[4]), line)
            for row, line in kept
        ]
    return [
        TraceRow(
            t, prompt, output, None if ids is None else np.array(ids, np.int64), priority, line
        )
        for (t, prompt, output, ids, priority), line in kept
    ]


def _number(record: Mapping[str, object], key: str) -> float:
    """A finite number, from JSON or from a CSV cell."""
    value = record.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _BadRow(f"{key} is {value!r}, not a number") from None
    if value is None:
        raise _BadRow(f"no {key}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadRow(f"{key} is {json.dumps(value)[:40]}, not a number")
    if not math.isfinite(value):
        raise _BadRow(f"{key} is {value}, not a finite number")
    return value


def _tokens(record: Mapping[str, object], key: str) -> int:
    value = _number(record, key)
    if value != int(value):
        raise _BadRow(f"{key} is {value}, not a whole number")
    if not 0 <= value <= _MAX_TOKENS:
        raise _BadRow(f"{key} is {int(value)}, out of range")
    return int(value)


def _mooncake(record: Mapping[str, object]) -> _Fields:
    t_ms = _number(record, "timestamp")
    prompt = _tokens(record, "input_length")
    output = _tokens(record, "output_length")
    ids = record.get("hash_ids")
    if ids is not None and not (isinstance(ids, list) and all(type(value) is int for value in ids)):
        raise _BadRow("hash_ids is not a list of integers")
    return from_ms(t_ms), prompt, output, ids, 0


def _azure(record: Mapping[str, object]) -> _Fields:
    t_ns = _timestamp_ns(str(record["timestamp"]))
    return t_ns, _tokens(record, "contexttokens"), _tokens(record, "generatedtokens"), None, 0


def _timestamp_ns(text: str) -> SimTime:
    """Nanoseconds since year 1 of an ISO timestamp with up to nine fractional digits."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise _BadRow(f"TIMESTAMP is {text!r}, not a timestamp")
    day, hour, minute, second, fraction, sign, zone_hour, zone_minute = match.groups()
    try:
        days = date.fromisoformat(day).toordinal()
    except ValueError:
        raise _BadRow(f"TIMESTAMP is {text!r}, not a date") from None
    seconds = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second)
    if sign:
        offset = (int(zone_hour) * 60 + int(zone_minute)) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))


def _vidur(record: Mapping[str, object]) -> _Fields:
    t_ns = from_seconds(_number(record, "arrived_at")) if "arrived_at" in record else 0
    prompt = _tokens(record, "num_prefill_tokens")
    output = _tokens(record, "num_decode_tokens")
    priority = int(_number(record, "priority")) if record.get("priority") else 0
    return t_ns, prompt, output, _hash_cell(str(record.get("block_hash_ids", ""))), priority


def _hash_cell(cell: str) -> list[int] | None:
    """Frontier writes ids as `11|22` or `[11,22]`; an empty cell is none."""
    text = cell.strip().strip("[]").replace(",", "|")
    if not text:
        return None
    try:
        return [int(part) for part in text.split("|")]
    except ValueError:
        raise _BadRow(f"block_hash_ids is {cell!r}, not a list of integers") from None


def _burstgpt(record: Mapping[str, object]) -> _Fields:
    t_s = _number(record, "timestamp")
    prompt = _tokens(record, "request tokens")
    output = _tokens(record, "response tokens")
    if output == 0:
        raise _BadRow("Response tokens is 0: a request that failed when recorded")
    return from_seconds(t_s), prompt, output, None, 0


def _llmservingsim(record: Mapping[str, object]) -> _Fields:
    t_ns = _number(record, "arrival_time_ns")
    return round(t_ns), _tokens(record, "input_toks"), _tokens(record, "output_toks"), None, 0


_PARSERS: Mapping[str, _Parse] = {
    "mooncake": _mooncake,
    "azure": _azure,
    "vidur": _vidur,
    "burstgpt": _burstgpt,
    "llmservingsim": _llmservingsim,
}
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "vidur": ("num_prefill_tokens", "num_decode_tokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}
"""Columns a CSV format must have; case does not matter."""
_USED: Mapping[str, frozenset[str]] = {
    "mooncake": frozenset(("timestamp", "input_length", "output_length", "hash_ids")),
    "azure": frozenset(("timestamp", "contexttokens", "generatedtokens")),
    "vidur": frozenset(
        (
            "arrived_at",
            "num_prefill_tokens",
            "num_decode_tokens",
            "priority",
            "block_hash_ids",
            "num_total_tokens",
            "pd_ratio",
        )
    ),
    "burstgpt": frozenset(("timestamp", "request tokens", "response tokens")),
    "llmservingsim": frozenset(("input_toks", "output_toks", "arrival_time_ns")),
}
