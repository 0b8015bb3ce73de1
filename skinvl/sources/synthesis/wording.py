"""The templates of prompt programmes, filled: Jinja in its sandbox, which reaches nothing of Python."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment

from skinvl.recipe import strict
from skinvl.recipe.strict import Fault

MARKS = ("{{", "{%", "{#")  # what makes a text a template
_JINJA = SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


class WordingError(ValueError):
    """A template that cannot be filled with these values."""


def filled(text: str, values: Mapping[str, Any]) -> str:
    """The template with its values.

    Raises:
        WordingError: a value that it names is not there, or it does what the sandbox does not allow.
    """
    try:
        return _template(text).render(values).strip()
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise WordingError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=1_024)
def instruction(text: str, pairs: int | None) -> str:
    """The template filled with the number of pairs, which is the same for every unit.

    Raises:
        WordingError: see `filled`.
    """
    return filled(text, {"pairs": pairs})


def faults(keys: strict.Keys, text: str, variables: Collection[str]) -> Iterator[Fault]:
    """What is wrong with a template at a key that may use these variables."""
    try:
        used = meta.find_undeclared_variables(_JINJA.parse(text))
    except jinja2.TemplateSyntaxError as error:
        yield Fault(keys, f"line {error.lineno} of the text is not Jinja ({error.message})")
        return
    for name in sorted(used - {*variables}):
        yield Fault(keys, f"{{{{ {name} }}}} is {strict.unknown(name, variables)}")


@lru_cache(maxsize=1_024)
def _template(text: str) -> jinja2.Template:
    return _JINJA.from_string(text)


@lru_cache(maxsize=1 << 14)  # most of what is known is known of many images
def _quoted(value: str) -> str:
    """The value as JSON that cannot end the block in which it stands; Jinja's own filter is for HTML, and slow."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


_JINJA.filters["tojson"] = _quoted
