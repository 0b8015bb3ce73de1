"""Pages of HTML that need nothing else: their templates and policy, small pictures, and texts fit to be shown."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from skinvl.data.pixels import ImageError, data_url

QUALITY = 80  # of JPEG
LONGEST = 6_000  # characters of one text that are shown
# From where a path begins to its last part. A folder's name may hold spaces; what ends a path in a message may not.
_FOLDERS = re.compile(r"""(?<![\w.:/~])/(?=[^\s/])(?:[^/\n"'<>|:,;=]+/)*""")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image of a page: the name of its file, and a JPEG data URI or why there is none."""

    name: str
    uri: str | None
    why: str = ""


def template(path: Path, **filters: Callable[..., Any]) -> jinja2.Template:
    """The template of this file, which escapes what comes from data; pages.html.j2 is there to be imported."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"csp": csp, "cut": cut, "short": short, **filters}
    return environment.get_template(path.name)


def csp(text: str) -> str:
    """By what a page's policy allows this one style sheet or script: its hash."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def thumbnail(path: Path, side: int) -> Thumbnail:
    """The image upright and without metadata, its longer side at most `side` pixels."""
    try:
        return Thumbnail(path.name, data_url(path, side, QUALITY))
    except ImageError as error:
        return Thumbnail(path.name, None, "image not found" if error.rule == "missing-image" else "image unreadable")


def cut(text: Any) -> str:
    """The text, at most LONGEST characters of it."""
    words = str(text)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} … ({len(words) - LONGEST:,} characters more)"


def short(value: Any) -> Any:
    """The value with every absolute path in it cut down to its last part: a machine's folders are not published."""
    if isinstance(value, str):
        return _FOLDERS.sub("…/", value)
    if isinstance(value, Mapping):
        return {short(key): short(inner) for key, inner in value.items()}
    return [short(inner) for inner in value] if isinstance(value, list | tuple) else value
