"""The journal: every command with its stamp, enough to repeat a run byte for byte.

One JSON line per command. Prompts are written as block keys, which is all the engine ever sees of
them, so a journal holds no text.
"""

import base64
import json
from collections.abc import Iterable

from frontier_mock.core.commands import (
    CHANGES,
    PAUSE_MODES,
    TRANSFER_STYLES,
    Abort,
    Change,
    Command,
    Control,
    Flush,
    Media,
    Pause,
    Resume,
    Slow,
    Storage,
    Submit,
    Transfer,
)
from frontier_mock.core.prompt import CutPrompt, KeyedPrompt, Prompt
from frontier_mock.core.words import Over, Ready, Sent, Word, word_of, word_to_list
from frontier_mock.simtime import SimTime


class JournalError(ValueError):
    """A line that is not a journal entry; the message names the line number."""


class Journal:
    """Commands in the order in which they were fed, with their stamps."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[tuple[SimTime, Command]] = []

    def record(self, stamp_ns: SimTime, command: Command) -> None:
        """Append one command fed at `stamp_ns`."""
        self.entries.append((stamp_ns, command))


def to_line(stamp_ns: SimTime, command: Command, block_tokens: int, *others: int) -> str:
    """One entry as JSON without a newline; prompts are cut into blocks of `block_tokens`.

    `others` are further sizes to cut them into, where the engine is not chosen yet.
    """
    if not isinstance(command, Submit):
        return json.dumps({"t": stamp_ns, **_control_fields(command)})
    keys = command.prompt.block_keys(block_tokens)
    rare: dict[str, object] = {} if command.rank < 0 else {"rank": command.rank}
    if not command.reads_cache:
        rare["reads_cache"] = False
    if others:
        rare["cuts"] = [[size, _pack(command.prompt.block_keys(size))] for size in others]
    if command.media:
        rare["media"] = [_media_line(one) for one in command.media]
    return json.dumps(
        {
            "t": stamp_ns,
            "worker": command.worker,
            "prompt": [command.prompt.num_tokens, block_tokens, _pack(keys)],
            "output": [command.output_tokens, command.max_tokens, command.finish_reason],
            "output_keys": _pack(command.output_keys),
            "priority": command.priority,
            "tag": command.tag,
            **rare,
            **_transfer_fields("transfer", command.transfer),
            **_transfer_fields("onward", command.onward),
        }
    )


def _transfer_fields(name: str, transfer: Transfer | None) -> dict[str, object]:
    if transfer is None:
        return {}
    flags = [transfer.sends, transfer.recompute, transfer.streams, transfer.far]
    counts = [transfer.tokens, transfer.threshold]
    # Few receivers have a peer, few senders deposit; older journals have no such fields.
    peer: list[object] = [transfer.peer] if transfer.peer else []
    if transfer.target >= 0:
        peer = [transfer.peer, transfer.target, transfer.notice]
    return {name: [transfer.key, transfer.style, transfer.patience_ns, *flags, *counts, *peer]}


def _control_fields(command: Abort | Control | Change | Word) -> dict[str, object]:
    if isinstance(command, Ready | Sent | Over):
        return {"word": word_to_list(command)}
    if isinstance(command, Change):
        return {"change": command.worker, "what": command.what, "factor": command.factor}
    if isinstance(command, Abort):
        return {"abort": command.rid}
    if isinstance(command, Pause):
        return {"pause": command.worker, "mode": command.mode, "refuse": command.refuse}
    if isinstance(command, Resume):
        return {"resume": command.worker}
    if isinstance(command, Slow):
        return {"slow": command.worker, "extra_ns": command.extra_ns}
    if isinstance(command, Storage):
        return {"storage": command.worker, "verb": command.verb, "policy": command.policy}
    below = {"below": True} if command.below else {}
    return {"flush": command.worker, "retract": command.retract, **below}


def from_lines(lines: Iterable[str]) -> Journal:
    """Read what `to_line` wrote. Raises JournalError naming the first bad line."""
    journal = Journal()
    for number, line in enumerate(lines, start=1):
        try:
            journal.record(*_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"journal line {number}: {error}") from None
    return journal


def _entry(fields: dict[str, object]) -> tuple[SimTime, Command]:
    stamp_ns = _int(fields["t"])
    control = _control(fields)
    if control is not None:
        return stamp_ns, control
    prompt, output = fields["prompt"], fields["output"]
    if not isinstance(prompt, list) or not isinstance(output, list):
        raise ValueError("prompt and output must be lists")
    num_tokens, *cut = prompt
    output_tokens, max_tokens, reason = output
    return stamp_ns, Submit(
        prompt=_prompt(_int(num_tokens), [cut, *_cuts(fields)]),
        output_tokens=_int(output_tokens),
        max_tokens=_int(max_tokens),
        finish_reason=str(reason),
        worker=_int(fields["worker"]),
        priority=_int(fields["priority"]),
        output_keys=_unpack(fields["output_keys"]),
        tag=str(fields["tag"]),
        rank=_int(fields.get("rank", -1)),
        transfer=_transfer(fields.get("transfer")),
        onward=_transfer(fields.get("onward")),
        reads_cache=fields.get("reads_cache") is not False,
        media=_media(fields.get("media", [])),
    )


def _media_line(one: Media) -> list[int]:
    line = [one.key, one.start, one.tokens, one.patches]
    return [*line, 1] if one.stored else line


def _cuts(fields: dict[str, object]) -> list[list[object]]:
    """(block size, keys) of a prompt beyond the first."""
    cuts = fields.get("cuts", [])
    if not isinstance(cuts, list) or not all(isinstance(one, list) for one in cuts):
        raise ValueError("cuts must be a list of lists")
    return cuts


def _prompt(num_tokens: int, cuts: list[list[object]]) -> Prompt:
    made = [KeyedPrompt(num_tokens, _int(size), _unpack(keys)) for size, keys in cuts]
    return made[0] if len(made) == 1 else CutPrompt(tuple(made))


def _media(value: object) -> tuple[Media, ...]:
    if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
        raise ValueError("media must be a list of lists")
    return tuple([_item(*map(_int, one)) for one in value])


def _item(key: int, start: int, tokens: int, patches: int, stored: int = 0) -> Media:
    return Media(key, start, tokens, patches, bool(stored))


def _transfer(value: object) -> Transfer | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError("transfer must be a list")
    key, style, patience_ns, sends, recompute, streams, far, tokens, threshold, *peer = value
    if style not in TRANSFER_STYLES:
        raise ValueError(f"unknown transfer style {style!r}")
    flags = bool(recompute), bool(streams), bool(far)
    counts = _int(tokens), _int(threshold)
    where = str(peer[0]) if peer else ""
    target, notice = (_int(peer[1]), str(peer[2])) if len(peer) > 1 else (-1, "")
    ways = bool(sends), str(style), _int(patience_ns)
    return Transfer(str(key), *ways, *flags, *counts, where, target, notice)


def _control(fields: dict[str, object]) -> Command | None:
    """The command, if it is not a Submit."""
    if "abort" in fields:
        return Abort(_int(fields["abort"]))
    if "pause" in fields:
        mode = str(fields["mode"])
        if mode not in PAUSE_MODES:
            raise ValueError(f"unknown pause mode {mode!r}")
        return Pause(_int(fields["pause"]), mode, bool(fields["refuse"]))
    if "resume" in fields:
        return Resume(_int(fields["resume"]))
    if "change" in fields:
        what, factor = str(fields["what"]), fields["factor"]
        if what not in CHANGES or not isinstance(factor, int | float | None):
            raise ValueError(f"unknown change {what!r}")
        # Journals from before had a factor of 1 for every change.
        told = float(factor) if what == "link" and factor is not None else None
        return Change(_int(fields["change"]), what, told)
    if "flush" in fields:
        below = bool(fields.get("below", False))
        return Flush(_int(fields["flush"]), bool(fields["retract"]), below)
    if "word" in fields:
        return word_of(fields["word"])
    if "slow" in fields:
        return Slow(_int(fields["slow"]), _int(fields["extra_ns"]))
    if "storage" in fields:
        return Storage(_int(fields["storage"]), str(fields["verb"]), str(fields["policy"]))
    return None


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an integer")
    return value


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpack(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("block keys must be a base64 string")
    return base64.b64decode(value, validate=True)
