"""What the licences of a base and of data allow and demand of a model that is made of them.

Licences are read as they are stated, and what cannot be read allows nothing. Whether a model is a derivative of what it
was trained on is not settled; here it is taken for one, which errs on the careful side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from skinvl.data.example import splits
from skinvl.data.source import read_card
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Base

BASE = "base"  # its name where a licence is vouched for
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc")
_CREATIVE = re.compile(r"\bCC[- ]BY(-NC)?(?:-(SA|ND))?(?:[- ](\d\.\d))?(?![\w-])", re.IGNORECASE)
_AND = re.compile(r", +(?![^(]*\))")  # a comma that stands in no brackets
_ZERO = re.compile(r"\bCC-?0\b|public domain|\bnone needed\b", re.IGNORECASE)
# Licences of their own that a base hands down: the words they are known by, the hub's id, and where they can be read.
_HANDED_DOWN = (
    (r"\bllama[ -]?3\.2\b", "llama3.2", "https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/LICENSE"),
    (r"\bllama[ -]?3\.1\b", "llama3.1", "https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/LICENSE"),
    (r"\bllama[ -]?3\b(?!\.)", "llama3", "https://github.com/meta-llama/llama3/blob/main/LICENSE"),
    (
        r"\bhealth[ -]ai[ -]developer[ -]foundations\b",
        "health-ai-developer-foundations",
        "https://developers.google.com/health-ai-developer-foundations/terms",
    ),
    (r"\bgemma\b", "gemma", "https://ai.google.dev/gemma/terms"),
)
_NOT_OF_THE_HUB = ("health-ai-developer-foundations",)
LLAMA = {"llama3.2": "Llama 3.2", "llama3.1": "Llama 3.1", "llama3": "Meta Llama 3"}
# The file that a copy of a Llama derivative carries beside the licence, with this line (§1.b.iii of the licences).
_LLAMA_NOTICE = (
    "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


class LicenceError(ValueError):
    """A licence or a name that the terms of base or data do not allow."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence says; `stated` are its own words."""

    stated: str
    id: str | None = None  # the hub's identifier
    known: bool = True
    commercial: bool = True
    derivatives: bool = True
    alike: bool = False  # what is made of the work carries the same licence
    research: bool = False  # for research alone
    link: str | None = None  # of a licence that a base hands down to what is made of it

    @property
    def words(self) -> str:
        """What it lets one do, in a few words."""
        if not self.known:
            return "not known: nothing is taken to be permitted"
        limits = ["research only"] * self.research
        limits += ["non-commercial"] * (not self.commercial and not self.research)
        limits += ["no derivatives"] * (not self.derivatives) + ["share alike"] * self.alike
        limits += ["its own conditions"] * (self.link is not None)
        return ", ".join(limits) or "any use" + " with attribution" * bool(self.id and self.id.startswith("cc-by"))


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of what is published: the three fields of the hub's card, and what speaks against the public."""

    id: str
    name: str | None
    link: str | None
    private: tuple[str, ...]  # why it may not be public; empty where it may


def read(stated: str | None) -> Terms:
    """The terms of a licence by its name; of several in one sentence the strictest.

    Where commas stand between licences all of them hold, as those of an image and of the model that wrote about it.

    >>> read("CC-BY-NC-SA-3.0").words, read("by image (CC0-1.0, CC-BY-4.0 or CC-BY-NC-4.0)").id
    ('non-commercial, share alike', 'cc-by-nc-4.0')
    >>> read("none stated (research only)").words, read(None).known
    ('research only', False)
    >>> read("CC-BY-4.0, Apache-2.0").id, read("CC-BY-4.0, the terms of an API").known
    ('cc-by-4.0', False)
    """
    words = " ".join((stated or "").split())
    low = words.casefold()
    if "no derivatives" in low:  # in words, as the terms of a gate
        return Terms(words, commercial="commercial" not in low and "-nc" not in low, derivatives=False)
    if len(parts := _AND.split(words)) > 1:
        return replace(_all([read(part) for part in parts]), stated=words)
    if re.search(r"\bresearch\b", low):
        return Terms(words, commercial=False, research=True)
    for pattern, name, link in _HANDED_DOWN:
        if re.search(pattern, low):
            return Terms(words, name, link=link)
    creative = [_creative(words, match) for match in _CREATIVE.finditer(words)]
    if creative:
        return max(creative, key=_strictness)
    if _ZERO.search(words):
        return Terms(words, "cc0-1.0")
    name = re.sub(r"[\s_]+", "-", low).removesuffix("-license").removesuffix("-licence")
    return Terms(words, name) if name in PERMISSIVE else Terms(words or "none stated", known=False)


def _all(parts: Sequence[Terms]) -> Terms:
    """The terms that hold where all of these do; not known where no single licence says so."""
    binding = [terms for terms in parts if terms.id not in PERMISSIVE]
    if len({(terms.id, terms.known, terms.words) for terms in binding}) < 2:
        return (binding or list(parts))[0]
    if any(terms.research for terms in binding) and all(terms.known for terms in binding):
        return next(terms for terms in binding if terms.research)
    if all(terms.id and terms.id.startswith("cc-by") for terms in binding):
        return max(binding, key=_strictness)
    return Terms("", known=False)


def _strictness(terms: Terms) -> tuple[bool, bool, bool]:
    return not terms.derivatives, not terms.commercial, terms.alike


def _creative(words: str, match: re.Match[str]) -> Terms:
    version, nc, last = match[3] or "4.0", match[1] is not None, (match[2] or "").upper()
    name = f"cc-by{'-nc' * nc}{'-' + last.lower() if last else ''}-{version}"
    return Terms(words, name, commercial=not nc, derivatives=last != "ND", alike=last == "SA")


def of_base(base: Base, model_type: str, rights: dict[str, str] | None = None) -> Terms:
    """The terms of a base: those its YAML states, here or under its shipped name.

    Args:
        rights: licences of what states none, by name; that of "base" is taken out where it is used.
    """
    stated = base.licence
    if stated is None and base.model is not None:
        shipped = [recipe.load_base(name) for name in recipe.bases()]
        stated = next((other.licence for other in shipped if other.model == base.model), None)
    terms = read(stated)
    if not terms.known and rights and BASE in rights:
        terms = read(rights.pop(BASE))
    if model_type == "mllama" and base.random is None and terms.id not in LLAMA:
        return read("Llama 3.2 Community License")  # all of this architecture descend from it
    return terms


def of_source(root: Path) -> Terms:
    """The terms of a prepared source: those that its conversations carry, else those of its card."""
    files = [root / f"{split}.parquet" for split in splits(root)]
    stated = {
        word for file in files for word in pq.read_table(file, columns=["licence"])["licence"].unique().to_pylist()
    }
    return read(", ".join(sorted(stated)) or read_card(root).get("licence"))


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a model was made of, by name, and what of it sets which bound."""

    base: Terms
    every: Mapping[str, Terms]

    def those(self, test: Callable[[Terms], bool]) -> list[str]:
        return [name for name, terms in self.every.items() if test(terms)]

    def reasons(self, test: Callable[[Terms], bool], reason: str) -> list[str]:
        return [f"{name} {reason} ({self.every[name].stated})" for name in self.those(test)]

    @property
    def unshared(self) -> list[str]:
        """Why it may not be given to everyone."""
        return [
            *self.reasons(lambda terms: not terms.known, "has terms that are not known"),
            *self.reasons(lambda terms: not terms.derivatives, "allows no derivatives"),
        ]


def chosen(base: Terms, data: Mapping[str, Terms], asked: str | None = None) -> Licence:
    """The licence of a model that was made of this base and these data: the strictest of all, or the one asked for.

    Raises:
        LicenceError: the licence asked for grants what base or data do not.
    """
    bounds = _Bounds(base, {"the base": base, **data})
    default = _strictest(bounds)
    private = tuple(bounds.unshared)
    if asked is None or asked.casefold() == default.id:
        return Licence(default.id, default.name, default.link, private)
    if asked.casefold() == "other":
        return Licence("other", f"as-{default.id}", "LICENSE", private)
    terms = read(asked)
    if terms.id is None or terms.id in _NOT_OF_THE_HUB:
        raise LicenceError(
            f"--license {asked}: not a licence that is known here; expected {', '.join(PERMISSIVE[:3])}, cc-by-4.0, "
            f"cc-by-nc-4.0, another of Creative Commons, {default.id} or other"
        )
    if faults := _faults(terms, bounds):
        raise LicenceError(
            f"--license {asked} grants more than what the model was made of: {'; '.join(faults)}. "
            f"Leave it out for the strictest of these, {default.name or default.id}"
        )
    return Licence(terms.id, None, None, private)


def _strictest(bounds: _Bounds) -> Licence:
    base, every = bounds.base, bounds.every
    closed, alike = bounds.those(lambda terms: not terms.commercial), bounds.those(lambda terms: terms.alike)
    research = bounds.those(lambda terms: terms.research)
    flags = ["research-only"] * bool(research)
    flags += ["terms-not-known"] * bool(bounds.those(lambda terms: not terms.known))
    flags += ["no-derivatives"] * bool(bounds.those(lambda terms: not terms.derivatives))

    # A licence of the hub's list, where one says all of it.
    if not flags and base.link is None:
        names = sorted({every[name].id or "" for name in alike})
        if not names and closed:
            return Licence("cc-by-nc-4.0", None, None, ())
        if not names:
            named = base.id != "cc0-1.0" or not bounds.those(lambda terms: (terms.id or "").startswith("cc-by"))
            return Licence(base.id if named and base.id else "cc-by-4.0", None, None, ())
        if len({_family(name) for name in names}) == 1 and ("-nc-" in names[-1] or not closed):
            return Licence(names[-1], None, None, ())  # a later version of the same licence is as good
    elif not flags and not closed and not alike and base.id and base.id not in _NOT_OF_THE_HUB:
        return Licence(base.id, None, None, ())

    # Else a name for all terms together, which the file LICENSE then lists.
    if base.link is not None and base.id is not None:
        flags.insert(0, base.id)
    flags += ["non-commercial"] * bool(closed and not research) + ["share-alike"] * bool(alike)
    return Licence("other", "-".join(flags), "LICENSE", ())


def _faults(asked: Terms, bounds: _Bounds) -> list[str]:
    """What the licence asked for grants, and base or data do not."""
    faults = bounds.unshared + bounds.reasons(lambda terms: terms.research, "is for research only")
    if asked.commercial:
        faults += bounds.reasons(lambda terms: not terms.commercial and not terms.research, "is non-commercial")
    own = asked.id or ""
    faults += bounds.reasons(lambda terms: terms.alike and not _as_strict(own, terms.id or ""), "is share-alike")
    if bounds.base.link and own != bounds.base.id:
        faults.append(f"the base hands its own licence down ({bounds.base.stated})")
    return faults


def _family(name: str) -> str:
    return name.rpartition("-")[0]


def _as_strict(own: str, alike: str) -> bool:
    """Whether it is the share-alike licence itself, or a later version of it."""
    return _family(own) == _family(alike) and own >= alike


def refuse_name(base: Terms, repo: str) -> None:
    """Refuses a name that what is made of the base may not have.

    Raises:
        LicenceError: the name of a Llama derivative that does not begin with Llama.
    """
    owner, _, name = repo.rpartition("/")
    if base.id in LLAMA and not name.startswith("Llama"):
        raise LicenceError(
            f"{repo}: the base is {LLAMA[base.id]}, whose licence has the name of what is made of it begin with "
            f'"Llama"; such as {owner}/Llama-{name}'
        )


def notice(base: Terms) -> str | None:
    """The text of the file NOTICE that the licence of the base demands; None where it demands none."""
    return _LLAMA_NOTICE.format(name=LLAMA[base.id]) + "\n" if base.id in LLAMA else None
