"""Structural tags: free text with tagged parts of a prescribed shape, as xgrammar 0.2.8 has them.

The older form, `structures` and `triggers`, is the same as `triggered_tags` over JSON schemas.
Formats that speak of token ids are not written here, and refused.
"""

from frontier_mock.wire.grammar.ebnf import EbnfReader
from frontier_mock.wire.grammar.faults import GrammarFault
from frontier_mock.wire.grammar.regex import RegexReader
from frontier_mock.wire.grammar.tree import Builder, Grammar, Prose, Value
from frontier_mock.wire.tokenizer import Json

_MAX_DEPTH = 80
_Object = dict[str, Json]


def read_tags(described: Json) -> Grammar:
    """The language of a structural tag. Raises GrammarFault in xgrammar's words."""
    if not isinstance(described, dict):
        raise _fault("Structural tag must be an object")
    if isinstance(described.get("structures"), list):
        described = {"format": _of_structures(described)}
    wanted = described.get("format")
    if not isinstance(wanted, dict):
        raise _fault("Structural tag must have a format field")
    reader = _Reader()
    return reader.builder.finish(reader.read(wanted, (), 0))


def _of_structures(described: _Object) -> Json:
    tags: list[Json] = []
    for structure in _list(described, "structures"):
        if not isinstance(structure, dict):
            raise _fault("Structure must be an object")
        content: Json = {"type": "json_schema", "json_schema": structure.get("schema") or {}}
        tag = {"begin": structure.get("begin"), "content": content, "end": structure.get("end")}
        tags.append(tag)
    return {
        "type": "triggered_tags",
        "triggers": described.get("triggers"),
        "tags": tags,
        "at_least_one": described.get("at_least_one", False),
    }


class _Reader:
    """Reads formats; `ends` are texts that must not occur in free text, as they would end it."""

    def __init__(self) -> None:
        self.builder = Builder()
        self._grammars = 0

    def read(self, wanted: Json, ends: tuple[str, ...], depth: int) -> int:
        """The node of a format."""
        if not isinstance(wanted, dict):
            raise _fault("Format must be an object")
        if depth > _MAX_DEPTH:
            raise _fault("Formats are nested too deeply")
        builder, kind = self.builder, wanted.get("type")
        if kind == "const_string":
            return builder.literal(_text(wanted, "value"))
        if kind in ("json_schema", "qwen_xml_parameter"):
            return self._schema(wanted, kind)
        if kind == "any_text":
            return builder.add(Prose((*_texts(wanted, "excludes"), *ends), _most(wanted)))
        if kind == "regex":
            return RegexReader(_text(wanted, "pattern"), builder).read()
        if kind == "grammar":
            self._grammars += 1
            prefix = f"{self._grammars}/"
            return EbnfReader(_text(wanted, "grammar"), builder, prefix=prefix).read()
        if kind in ("sequence", "or"):
            return self._elements(wanted, ends, depth)
        if kind in ("optional", "plus", "star", "repeat"):
            return self._repeated(wanted, ends, depth)
        if kind == "tag":
            return self._tag(wanted, depth)
        if kind in ("triggered_tags", "tags_with_separator"):
            return self._tags(wanted, ends, depth)
        if kind == "dispatch":
            return self._dispatch(wanted, ends, depth)
        if isinstance(kind, str) and "token" in kind:
            raise _fault(f"frontier_mock does not write the format {kind}")
        raise _fault(f"Format type not recognized: {kind}")

    def _schema(self, wanted: _Object, kind: Json) -> int:
        schema = wanted.get("json_schema", True)
        style = "qwen_xml" if kind == "qwen_xml_parameter" else wanted.get("style", "json")
        if style == "json":
            return self.builder.add(Value(schema))
        if style != "qwen_xml":
            raise _fault(f"frontier_mock does not write JSON schemas in the style {style}")
        properties = schema.get("properties") if isinstance(schema, dict) else None
        parts: list[int] = []
        for name, inner in (properties if isinstance(properties, dict) else {}).items():
            spoken = isinstance(inner, dict) and inner.get("type", "string") == "string"
            value = Prose(("<",)) if spoken else Value(inner)
            parts += [
                self.builder.literal(f"<parameter={name}>"),
                self.builder.add(value),
                self.builder.literal("</parameter>"),
            ]
        return self.builder.sequence(parts) if parts else self.builder.literal("")

    def _elements(self, wanted: _Object, ends: tuple[str, ...], depth: int) -> int:
        name = "Sequence" if wanted["type"] == "sequence" else "Or"
        elements = _list(wanted, "elements")
        if not elements:
            raise _fault(f"{name} format must have at least one element")
        nodes = [self.read(element, ends, depth + 1) for element in elements]
        return self.builder.sequence(nodes) if name == "Sequence" else self.builder.choice(nodes)

    def _repeated(self, wanted: _Object, ends: tuple[str, ...], depth: int) -> int:
        content = self.read(wanted.get("content"), ends, depth + 1)
        bounds = {"optional": (0, 1), "plus": (1, None), "star": (0, None)}
        low, high = bounds.get(str(wanted["type"]), (_int(wanted, "min"), _int(wanted, "max")))
        if high is not None and low > high:
            raise _fault("Repeat format must have min not greater than max")
        return self.builder.repeat(content, low, high)

    def _tag(self, wanted: Json, depth: int) -> int:
        if not isinstance(wanted, dict):
            raise _fault("Tag must be an object")
        given = wanted.get("end")
        ends = _texts(wanted, "end") if isinstance(given, list) else (_text(wanted, "end"),)
        begin = self.builder.literal(_text(wanted, "begin"))
        inner = tuple(end for end in ends if end)
        content = self.read(wanted.get("content"), inner, depth + 1)
        last = self.builder.choice([self.builder.literal(end) for end in ends])
        return self.builder.sequence([begin, content, last])

    def _tags(self, wanted: _Object, ends: tuple[str, ...], depth: int) -> int:
        """Some tags, at least one, with free text or a separator between them."""
        builder = self.builder
        tags = [tag for tag in _list(wanted, "tags") if isinstance(tag, dict)]
        if not tags:
            raise _fault("Tags format must have at least one tag")
        free = wanted["type"] == "triggered_tags"
        triggers = _texts(wanted, "triggers") if free else ()
        for tag in tags if free else ():
            if not _text(tag, "begin").startswith(triggers):
                raise _fault("One tag does not match any trigger in a triggered tags format")
        some = builder.choice([self._tag(tag, depth + 1) for tag in tags])
        alone = wanted.get("stop_after_first") is True
        if not free:
            apart = builder.sequence([builder.literal(_text(wanted, "separator")), some])
            return some if alone else builder.sequence([some, builder.repeat(apart, 0, None)])
        without = (*triggers, *_texts(wanted, "excludes"), *ends)
        prose = builder.add(Prose(without))
        at_once = wanted.get("at_least_one") is True
        first = some if at_once else builder.sequence([prose, some])
        if alone:
            return first
        more = builder.repeat(builder.sequence([prose, some]), 0, 2)
        return builder.sequence([first, more, prose])

    def _dispatch(self, wanted: _Object, ends: tuple[str, ...], depth: int) -> int:
        builder, triggers, ways = self.builder, [], []
        for rule in _list(wanted, "rules"):
            if not isinstance(rule, list) or len(rule) != 2 or not isinstance(rule[0], str):
                raise _fault("Dispatch rule must be a pair of a text and a format")
            triggers.append(rule[0])
            content = self.read(rule[1], ends, depth + 1)
            ways.append(builder.sequence([builder.literal(rule[0]), content]))
        if not ways:
            raise _fault("Dispatch format must have at least one rule")
        prose = builder.add(Prose((*triggers, *_texts(wanted, "excludes"), *ends)))
        return builder.sequence([prose, builder.choice(ways)])


def _fault(message: str) -> GrammarFault:
    return GrammarFault(f"Invalid structural tag error: {message}")


def _text(wanted: _Object, name: str) -> str:
    value = wanted.get(name)
    if not isinstance(value, str):
        kind = str(wanted.get("type", "tag"))
        raise _fault(f"{kind.capitalize()} format must have a {name} field with a string")
    return value


def _list(wanted: _Object, name: str) -> list[Json]:
    value = wanted.get(name)
    if not isinstance(value, list):
        kind = str(wanted.get("type", "structures"))
        raise _fault(f"{kind.capitalize()} format must have a {name} field with an array")
    return value


def _texts(wanted: _Object, name: str) -> tuple[str, ...]:
    value = wanted.get(name)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _int(wanted: _Object, name: str) -> int:
    value = wanted.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _most(wanted: _Object) -> int | None:
    limits = [_int(wanted, name) for name in ("max_chars", "max_tokens") if name in wanted]
    return min(limits, default=None)
