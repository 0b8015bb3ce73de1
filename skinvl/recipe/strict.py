"""YAML as plain values with the line of every key: no duplicates, and the scalars of YAML 1.2.

PyYAML follows YAML 1.1, which reads `1e-4` as text and `no` as false: both are values of Hugging Face's arguments.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

COMMAND_LINE = "command line"

Keys = tuple[str | int, ...]  # where a value lies: names in mappings, indices in lists


class RecipeError(ValueError):
    """A recipe or a base's YAML that does not hold: one line for each fault, with its place, key and what to do."""


class StrictModel(BaseModel):
    """Typed values that are read as they stand: no unknown key, no text where a number belongs, no change later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong at a key, and what was expected there."""

    keys: Keys
    text: str


@dataclass(slots=True)
class Document:
    """The values of a YAML file and of the overrides laid over it, with the place of each."""

    name: str
    data: dict[str, Any]
    lines: dict[Keys, int | None] = field(default_factory=dict)  # counted from 1; None is the command line

    def fail(self, faults: Iterable[Fault]) -> None:
        """Refuses the document if there are faults.

        Raises:
            RecipeError: all of them, in the order of the file and then of the command line.
        """
        by_line = [(self._line(fault.keys), fault) for fault in faults]
        if by_line:
            by_line.sort(key=lambda pair: (pair[0] is None, pair[0] or 0))
            raise RecipeError(
                "\n".join(f"{self._where(line)} {dotted(fault.keys)}: {fault.text}" for line, fault in by_line)
            )

    def _line(self, keys: Keys) -> int | None:
        """The line of the keys, or of the nearest above them that has one."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def _where(self, line: int | None) -> str:
        return COMMAND_LINE if line is None else f"{self.name}:{line}"


def dotted(keys: Keys) -> str:
    """The keys as they are written on the command line: `data.train.0.weight`."""
    return ".".join(map(str, keys))


def unknown(key: str, known: Iterable[str]) -> str:
    """What to say of a key that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown; did you mean {near[0]}?" if near else f"unknown; expected one of {', '.join(sorted(known))}"


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, dict | list) and len(repr(value)) > 60:
        return "a mapping" if isinstance(value, dict) else "a list"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def faults(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """What pydantic found in the values of a model, in the words of this module."""
    faults = []
    for detail in error.errors():
        keys, kind, message = detail["loc"], detail["type"], detail["msg"]
        if kind == "extra_forbidden":
            text = unknown(str(keys[-1]), _model_at(keys[:-1], root).model_fields)
        elif kind == "missing":
            text = f"missing; {_model_at(keys[:-1], root).model_fields[str(keys[-1])].description}"
        elif kind == "value_error":
            text = message.removeprefix("Value error, ")
        elif kind == "string_pattern_mismatch":
            text = f"found {shown(detail['input'])}; expected letters, digits, '.', '_' and '-', the first not a sign"
        else:
            text = f"found {shown(detail['input'])}; expected {message.removeprefix('Input should be ')}"
        faults.append(Fault(keys, text))
    return faults


def read(path: Path) -> Document:
    """The document in a file.

    Raises:
        RecipeError: not UTF-8, not YAML, a key given twice, or no mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    value, lines = _parse(text, path.name)
    if not isinstance(value, dict):
        raise RecipeError(f"{path.name}:1 found {shown(value)}; expected a mapping of keys")
    return Document(path.name, value, dict(lines))


def override(document: Document, overrides: Sequence[str]) -> list[Fault]:
    """The faults of the `key=value` words, after those without fault were laid over the document, the last one on top.

    Keys are dotted, list items are counted from 0, and values are YAML.

    Raises:
        RecipeError: a word without `=`, or a value that is not YAML.
    """
    faults = []
    for word in overrides:
        name, equals, text = word.partition("=")
        if not equals or not all(name.split(".")):
            raise RecipeError(f"{COMMAND_LINE} {word!r}: expected key=value, such as train.learning_rate=1e-4")
        value, _ = _parse(text, f"{COMMAND_LINE} {name}")
        keys, fault = _lay(document.data, name.split("."), value)
        if fault:
            faults.append(Fault(keys, fault))
        document.lines = {at: line for at, line in document.lines.items() if at[: len(keys)] != keys} | {keys: None}
    return faults


def write(value: Any) -> str:
    """The YAML text that reads back to an equal value, here and in readers of YAML 1.1."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _model_at(keys: Keys, root: type[BaseModel]) -> type[BaseModel]:
    """The model of the mapping that lies at the keys."""
    model = root
    for key in keys:
        if isinstance(key, str):
            annotation = model.model_fields[key].annotation
            arms = (annotation, *get_args(annotation))
            model = next(arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel))
    return model


def _lay(data: dict[str, Any], parts: Sequence[str], value: Any) -> tuple[Keys, str | None]:
    """The keys that the parts of a dotted name stand for, and the fault that kept the value from being laid there."""
    parent: Any = data
    keys: Keys = ()
    for depth, part in enumerate(parts, start=1):
        if isinstance(parent, list):
            if not part.isdecimal() or int(part) >= len(parent):
                return (*keys, part), f"the list has {len(parent)} items, counted from 0"
            key: str | int = int(part)
        elif isinstance(parent, dict):
            key = part
            if depth < len(parts) and parent.get(key) is None:
                parent[key] = {}  # so that quantization.load_in_4bit=true works where quantization is null
        else:
            return (*keys, part), f"{dotted(keys)} has no keys of its own; override it as a whole"
        keys = (*keys, key)
        if depth == len(parts):
            parent[key] = value
        else:
            parent = parent[key]
    return keys, None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # none of YAML 1.1's


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$"
)
for _tag, _pattern, _first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
# Text that only one of the two YAML versions would read as a number gets quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse(text: str, name: str) -> tuple[Any, dict[Keys, int | None]]:
    """The value of a YAML text, and the line of each of its keys.

    Raises:
        RecipeError: not YAML, a key given twice, or an alias of what it lies in.
    """
    lines: dict[Keys, int | None] = {}
    twice: list[str] = []
    loader = _Loader(text)

    def build(node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...]) -> Any:
        if node in above:
            raise RecipeError(f"{name}:{node.start_mark.line + 1} {dotted(keys)}: an alias of what it lies in")
        if isinstance(node, yaml.MappingNode):
            values: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key, line = str(key_node.value), key_node.start_mark.line + 1
                at = (*keys, key)
                if key in values:
                    twice.append(f"{name}:{line} {dotted(at)}: given twice, first in line {lines[at]}; keep one")
                    continue
                lines[at] = line
                values[key] = build(value_node, at, (*above, node))
            return values
        if isinstance(node, yaml.SequenceNode):
            elements = []
            for index, element in enumerate(node.value):
                lines[*keys, index] = element.start_mark.line + 1
                elements.append(build(element, (*keys, index), (*above, node)))
            return elements
        return loader.construct_object(node)

    try:
        node = loader.get_single_node()
        value = None if node is None else build(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = "" if mark is None else f":{mark.line + 1} column {mark.column + 1}"
        raise RecipeError(f"{name}{position}: not YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML ({str(error).splitlines()[0]})") from error
    if twice:
        raise RecipeError("\n".join(twice))
    return value, lines
