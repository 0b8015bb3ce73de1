"""A user's own list of texts, such as classes or templates: a file of one on each line, or a list in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path


class TextListError(ValueError):
    """A file that holds no such list."""


def read(name: str, key: str = "") -> tuple[str, ...]:
    """The texts of `FILE`, or of a list within a JSON file, `FILE.json#a.b`; lines that begin with # are left out.

    Args:
        key: where the list lies in an object of JSON, unless the name says it.

    Raises:
        TextListError: no such file or list, not texts, or a text twice.
    """
    file, _, own = name.partition("#")
    path = Path(file).expanduser()
    if not path.is_file():
        raise TextListError(f"{file}: no such file; expected one of one text on each line, or of JSON")
    try:
        content = path.read_text(encoding="utf-8-sig")
        texts = _listed(json.loads(content), own or key, file) if path.suffix == ".json" else content.splitlines()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TextListError(f"{file}: not UTF-8, or not JSON ({error})") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TextListError(f"{name}: found {type(texts).__name__} where a list of texts was expected")

    stripped = [" ".join(text.split()) for text in texts]
    kept = [text for text in stripped if text and (path.suffix == ".json" or not text.startswith("#"))]
    if not kept or len({*kept}) < len(kept):
        twice = next((text for text in kept if kept.count(text) > 1), None)
        raise TextListError(f"{name}: {'empty' if twice is None else f'{twice!r} twice'}; expected different texts")
    return tuple(kept)


def _listed(value: object, keys: str, file: str) -> object:
    """What lies at dotted keys of an object; anything but an object is the list itself."""
    for key in keys.split(".") if keys else ():
        if not isinstance(value, dict):
            break
        if key not in value:
            raise TextListError(f"{file}: no key {key!r}; found {', '.join(value) or 'nothing'}: write FILE#KEY.KEY")
        value = value[key]
    return value
