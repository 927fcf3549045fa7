"""Calls of tools that a chat was made to make, as SGLang reads them out of the text.

With `tool_choice` "required" or a tool named, SGLang has the model write a JSON list of calls and,
under --tool-call-parser, turns it into `tool_calls`; a list that was cut short stays text. Here the
list has one call (SGLang 0.5.23 `serving_chat.py`, `function_call/json_array_parser.py`).
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import CALL_PARAMETERS, SequencePlan, ToolCall
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.structured import Write, call_writer
from frontier_mock.wire.tokenizer import Json


class Forced(NamedTuple):
    """The function that has to be called. `past` counts the calls of earlier turns."""

    name: str
    parameters: Json
    past: int

    def writer(self, served: ServedModel) -> Write:
        """Writes the list with the call in it."""
        frame = f"{_before_parameters(self.name)}%s}}]"
        return call_writer(self.parameters, served.ring, frame)

    def call(self, served: ServedModel) -> ToolCall:
        """One call of it, under an id as the tool call parser makes it."""
        parser = front_of(served).tool_call_parser
        if parser == "kimi_k2":
            name = f"functions.{self.name}:{self.past}"
        elif parser == "kimi_k3":
            name = f"{self.name}:{self.past}"
        else:
            name = f"call_{served.new_id().replace('-', '')[:24]}"
        return ToolCall(name, self.name, listed=True)


def forced_call(fields: Fields) -> Forced | None:
    """The named function, or the first one if some call is required; None if none is."""
    choice = fields.get("tool_choice")
    named = choice.get("function") if isinstance(choice, dict) else None
    wanted = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and wanted is None:
        return None
    for tool in named_tools(fields):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            schema = function.get("parameters")
            return Forced(str(function.get("name")), schema or {"type": "object"}, _past(fields))
    return None


def named_tools(fields: Fields) -> list[Json]:
    """The tools that the model gets to see: all of them, or the one that must be called."""
    tools = fields.get("tools")
    every = tools if isinstance(tools, list) else []
    choice = fields.get("tool_choice")
    named = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(named, dict):
        return every
    return [tool for tool in every if _name_of(tool) == named.get("name")]


def _name_of(tool: Json) -> Json:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _past(fields: Fields) -> int:
    messages = fields.get("messages")
    calls = [
        message.get("tool_calls")
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict)
    ]
    return sum(len(one) for one in calls if isinstance(one, list))


def arguments_of(plan: SequencePlan, text: str) -> str | None:
    """The arguments of the call that `text` makes, None if it makes none or was cut short."""
    if plan.call is None:
        return None
    try:
        calls = json.loads(text)
    except ValueError:
        return None
    return json.dumps(calls[0]["parameters"], ensure_ascii=False)


class Progress(NamedTuple):
    """What some output tokens add to a call: whether it begins, and more of its arguments."""

    begins: bool
    arguments: str


def progress(plan: SequencePlan, first: int, last: int) -> Progress:
    """What output tokens [first, last) add to the call of `plan`, which has one."""
    call = plan.call
    assert call is not None
    earlier, now = plan.text.piece(0, first), plan.text.piece(0, last)
    begins = len(_before_parameters(call.name)) - len(CALL_PARAMETERS) - 2
    return Progress(
        len(earlier) <= begins < len(now),
        call.arguments(now)[len(call.arguments(earlier)) :],
    )


def _before_parameters(name: str) -> str:
    return f'[{{"name": {dumps(name)}, {CALL_PARAMETERS}'


def call_json(call: ToolCall, arguments: str) -> Json:
    """An entry of `tool_calls`."""
    function: Json = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "index": 0, "type": "function", "function": function}


def call_deltas(call: ToolCall, step: Progress) -> Sequence[Json]:
    """The entries of `tool_calls` that a stream has for `step`, each in a chunk of its own."""
    deltas: list[Json] = [call_json(call, "")] if step.begins else []
    if step.arguments:
        function: Json = {"name": None, "arguments": step.arguments}
        deltas.append({"id": None, "index": 0, "type": "function", "function": function})
    return deltas
