"""Answers that are to be JSON: the share that is valid by its schema, and the share of fields that are right.

An answer is JSON, or JSON in one fenced block, with or without words around that; nothing else is read as JSON, nor
what nests as deep as DEEPEST, and nothing is mended. It is valid where it parses, names no key twice, and keeps the
schema, of which no reference to another place is ever fetched. Fields are the paths of reference and answer, such as
lesion.colour: text is right by its normalised words, a number by its value, a list as a set. What only one of them has
is wrong. Of several references the one that agrees most counts. A row whose schema or reference cannot be used is not
scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from skinvl.score.metrics import means as value
from skinvl.score.metrics import right_answers, words
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "asked", "counts", "fields", "statistics", "unread", "value"]

NAMES = ("json_valid", "json_fields")
_FENCED = re.compile(r"```[ \t]*(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.S | re.I)
_NO_JSON = object()
DEEPEST = 64  # objects and lists within one another; an answer that goes round in circles may have hundreds
Check = Callable[[Any], bool]


def counts(row: Answer) -> bool:
    """Whether the answer is to be JSON, and its schema and references can be used."""
    return row.schema is not None and _usable(row.schema, right_answers(row))


def unread(row: Answer) -> bool:
    """Whether the answer is to be JSON, and its schema or a reference cannot be used."""
    return row.schema is not None and not counts(row)


def statistics(answer: str, row: Answer) -> tuple[float, float, float]:
    """1 if the answer is valid, else 0; the share of its fields that are right; and 1, the row."""
    right = fields(answer, row)
    return float(_is_valid(row.schema or "", answer)), sum(right.values()) / max(len(right), 1), 1.0


def fields(answer: str, row: Answer) -> dict[str, bool]:
    """Path → whether the answer has what the reference has there, for all paths of both."""
    ours = _flat(_parsed(answer))
    compared = [_compared(ours, _flat(_parsed(text))) for text in right_answers(row)]
    return max(compared, key=lambda right: sum(right.values()) / max(len(right), 1))


def asked(row: Answer) -> set[str]:
    """The paths that the row's references have."""
    return {path for text in right_answers(row) for path in _flat(_parsed(text))}


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, bool]:
    return {path: path in ours and path in theirs and ours[path] == theirs[path] for path in {**theirs, **ours}}


def _flat(whole: Any, path: str = "") -> dict[str, Any]:
    """Path → what there is, in a form in which equal means the same; what is no object has the path of its place."""
    if whole is _NO_JSON:
        return {}
    if isinstance(whole, dict) and whole:
        return {
            inner: leaf
            for key, part in whole.items()
            for inner, leaf in _flat(part, f"{path}.{key}" if path else key).items()
        }
    return {path or "(whole)": _comparable(whole)}


def _comparable(whole: Any) -> Any:
    """The value with its type: true is not 1, and "1" is not 1 either."""
    if isinstance(whole, str):
        return "text", words(whole) or whole.strip()
    if isinstance(whole, list):
        return "list", frozenset(map(_comparable, whole))
    if isinstance(whole, dict):
        return "object", frozenset((key, _comparable(part)) for key, part in whole.items())
    return "flag" if isinstance(whole, bool) else "number", whole


@lru_cache(maxsize=1 << 14)
def _parsed(text: str) -> Any:
    """The JSON that a text is, or that its one fenced block is; `_NO_JSON` for any other text."""
    blocks = _FENCED.findall(text)
    try:
        whole = json.loads(
            blocks[0] if len(blocks) == 1 else text, object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return _NO_JSON
    level = [whole]
    for _ in range(DEEPEST):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
    return _NO_JSON if level else whole


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of the pairs.

    Raises:
        ValueError: a key stands twice.
    """
    whole = dict(pairs)
    if len(whole) < len(pairs):
        raise ValueError("a key stands twice")
    return whole


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=1 << 14)
def _usable(schema: str, references: tuple[str, ...]) -> bool:
    """Whether the schema can be used, and every reference is valid by it."""
    return all(_is_valid(schema, text) for text in references)


@lru_cache(maxsize=1 << 14)
def _is_valid(schema: str, text: str) -> bool:
    """Whether a text is JSON that keeps the schema; False also where the schema cannot be used."""
    whole, check = _parsed(text), _check(schema)
    return whole is not _NO_JSON and check is not None and check(whole)


@lru_cache(maxsize=1 << 10)
def _check(schema: str) -> Check | None:
    """What tells whether a value keeps the schema; None where that is no JSON schema."""
    # Imported here, since few runs have answers in JSON and all that are scored load this module.
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    parsed = _parsed(schema)
    if not isinstance(parsed, dict):
        return None
    kind = validators.validator_for(parsed, default=validators.Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except (exceptions.SchemaError, RecursionError):
        return None
    validator = kind(parsed, registry=Registry())  # an empty one: jsonschema's own would fetch what a $ref names

    def keeps(whole: Any) -> bool:
        try:
            return bool(validator.is_valid(whole))
        except (Unresolvable, RecursionError):
            return False

    return keeps
