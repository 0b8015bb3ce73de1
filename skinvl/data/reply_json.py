"""The JSON in what a model replied, also where it is fenced, framed by talk or a bit broken; LaTeX stays LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

FAILURES = 500  # brackets that open no JSON, after which a reply is given up: each costs a look at all before it
# Patterns of the LaTeX commands that begin like an escape of JSON: `\times` would be read as a tab and "imes", `\frac`
# as a form feed and "rac". Those that would be a line break and a word are left out, such as `\nless` and `\nmid`, and
# `\ni`, which is the first item of i, ii, iii.
NE, NU = "ne(?![.):-])", "nu(?!-)"  # but no line that begins with the item "e." or with "u-shaped"
COMMANDS = (
    *("backslash", "bar", "because", "begin", "beta", "beth", "between", "bf", "bfseries", "big", "bigcap"),
    *("bigcup", "bigg", "biggl", "biggr", "bigl", "bigoplus", "bigotimes", "bigr", "bigskip", "binom", "bm"),
    *("bmod", "boldsymbol", "bot", "bowtie", "boxed", "breve", "bullet", "bumpeq", "fbox", "flat", "footnote"),
    *("footnotesize", "forall", "frac", "frown", "nabla", "natural", NE, "nearrow", "neg", "neq", "newline"),
    *("ngeq", "ngtr", "nleq", "noindent", "nolimits", "nonumber", "normalsize", "not", "notin", "nsubseteq"),
    *(NU, "nwarrow", "raisebox", "rangle", "rbrace", "rbrack", "rceil", "ref", "rfloor", "rho", "right"),
    *("rightarrow", "rightharpoonup", "rightleftharpoons", "rm", "risingdotseq", "root", "rule", "tag", "tan"),
    *("tanh", "tau", "tbinom", "text", "textbackslash", "textbf", "textcolor", "textdegree", "textit"),
    *("textmd", "textmu", "textnormal", "textrm", "textsc", "textsf", "textstyle", "textsubscript"),
    *("textsuperscript", "texttt", "textup", "tfrac", "therefore", "theta", "thickapprox", "thicksim"),
    *("thinspace", "tilde", "times", "tiny", "to", "top", "triangle", "triangledown", "triangleleft"),
    *("triangleq", "triangleright", "tt", "twoheadrightarrow"),
)
_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[a-zA-Z]*\s*(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_STRING_OR_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])', re.DOTALL)
_LATEX = rf"(?:{'|'.join(COMMANDS)})(?![a-zA-Z])"
_ESCAPE = re.compile(rf'\\(?:(["\\/]|u[0-9a-fA-F]{{4}}|(?!{_LATEX})[bfnrt])|)')
_DECODER = json.JSONDecoder(strict=False)  # models leave line breaks in strings


def values(reply: str) -> Iterator[Any]:
    r"""The JSON objects and lists of a reply: those in fences where there are any, else all, in order.

    >>> list(values('Here you are: ```json {"answer": "5 \times 5 mm",} ```'))
    [{'answer': '5 \\times 5 mm'}]
    """
    bare = _THOUGHT.sub("", reply)
    fenced = [value for part in _FENCED.findall(bare) for value in _decoded(part)]
    yield from fenced or _decoded(bare)


def last_object(reply: str) -> dict[str, Any] | None:
    """The last JSON object of a reply, since a model that corrects itself does so last; None where there is none."""
    objects = [value for value in values(reply) if isinstance(value, dict)]
    return objects[-1] if objects else None


def _decoded(text: str) -> Iterator[Any]:
    opening = _OPENING.search(text)
    mended = _mended(text[opening.start() :]) if opening else ""
    position = failed = 0
    while failed < FAILURES and (opening := _OPENING.search(mended, position)):
        try:
            value, position = _DECODER.raw_decode(mended, opening.start())
        except ValueError:
            position, failed = opening.end(), failed + 1
            continue
        except RecursionError:
            return
        yield value


def _mended(text: str) -> str:
    """The text without commas before a closing bracket, its backslashes doubled where they escape nothing of JSON."""
    escaped = _ESCAPE.sub(lambda match: match[0] if match[1] else "\\\\", text)
    return _STRING_OR_COMMA.sub(lambda match: match[0] if match[0] != "," else "", escaped)
