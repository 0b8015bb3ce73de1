"""What a two-tower model is asked of each class: templates × names, and the one embedding that they come to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skinvl.data import labels
from skinvl.evaluate import text_lists

Float = NDArray[np.float64]

CLASS = "{c}"  # stands for the class in a template
# They claim nothing of a class: no word of cancer, lesion or disease, so that they fit whatever is told apart.
NEUTRAL = (
    "{c}",
    "a photo that shows {c}",
    "clinical photograph: {c}",
    "skin with {c}",
    "a close view of {c}",
    "assessment: {c}",
    "what is seen on this skin is {c}",
    "from the records of a dermatology clinic, filed under {c}",
)
CHOICES = 16  # ways to take one name for each class, by which the spread over names is measured
CODE = 5  # letters of the longest code of a dataset, such as AKIEC


class PromptError(ValueError):
    """Classes or templates of which no prompts can be made."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Templates, and the names of each class, of which every pair is a prompt."""

    templates: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]  # of each class, its own first

    @property
    def texts(self) -> list[str]:
        """Every different prompt."""
        every = (prompt(template, name) for names in self.names for name in names for template in self.templates)
        return list(dict.fromkeys(every))

    @property
    def choices(self) -> list[tuple[int, ...]]:
        """Ways to call each class by one of its names: first by its own, then by drawn ones; none if each has one."""
        if all(len(names) == 1 for names in self.names):
            return []
        generator = random.Random(0)
        drawn = [tuple(generator.randrange(len(names)) for names in self.names) for _ in range(CHOICES - 1)]
        return [(0,) * len(self.names), *drawn]


@dataclass(frozen=True, slots=True)
class ClassEmbeddings:
    """What the prompts of C classes come to, each vector of length one."""

    whole: Float  # float64[C, D], of all prompts
    by_template: Float  # float64[T, C, D], of each template alone
    by_choice: Float  # float64[K, C, D], of each choice of names alone


def prompt(template: str, name: str) -> str:
    """The template with the name in it."""
    return template.replace(CLASS, name)


def make(classes: Sequence[str], templates: str, synonyms: bool) -> Prompts:
    """The prompts of classes.

    Args:
        templates: `neutral`, or a file: see `templates_of`.
        synonyms: whether a class is also called by its synonyms and narrower names.

    Raises:
        PromptError, TextListError: no templates, or classes that share a name.
    """
    return Prompts(templates_of(templates), names_of(classes, synonyms))


def templates_of(name: str) -> tuple[str, ...]:
    """Our own templates for `neutral`; else those of a file, a line each, or the list `templates` of its JSON.

    Raises:
        PromptError: one does not say where the class stands.
        TextListError: no such file or list.
    """
    if name == "neutral":
        return NEUTRAL
    templates = text_lists.read(name, "templates")
    for template in templates:
        if CLASS not in template:
            raise PromptError(f"evaluate.prompts={name}: {template!r} has no {CLASS}, where the class is to stand")
    return templates


def names_of(classes: Sequence[str], synonyms: bool) -> tuple[tuple[str, ...], ...]:
    """What each class is called: its own name, then what `labels` knows besides, codes of datasets left out.

    Raises:
        PromptError: two classes share a name, so that no prompt could tell them apart.
    """
    names = []
    owner: dict[str, str] = {}
    for called in classes:
        own: dict[str, str] = {}
        for name in labels.spellings(called) if synonyms else (called,):
            if name == called or not _is_code(name):
                own.setdefault(_plain(name), name)
        names.append(tuple(own.values()))

        # With synonyms, what is the same diagnosis in other words is the same name.
        for plain, name in own.items():
            key = labels.key(name) if synonyms else plain
            if owner.setdefault(key, called) != called:
                hint = "; evaluate.synonyms=false calls each by its own name alone" if synonyms else ""
                raise PromptError(
                    f"classes {owner[key]!r} and {called!r}: both are called {name!r}, and no prompt tells them apart; "
                    f"make one class of them, or leave one out{hint}"
                )
    return tuple(names)


def embeddings(prompts: Prompts, vectors: Mapping[str, NDArray[np.float32]]) -> ClassEmbeddings:
    """What the prompts come to: the mean over templates of each name, the mean over the names of a class, normalised.

    So a class with many names is no smoother than one that has a single one.

    Args:
        vectors: float32[D] of each prompt.
    """
    grids = [
        np.stack([[_unit(vectors[prompt(template, name)]) for template in prompts.templates] for name in names])
        for names in prompts.names
    ]  # float64[S, T, D] of each class
    templates = range(len(prompts.templates))
    chosen = [
        np.stack([_averaged(grid[[name]]) for grid, name in zip(grids, choice, strict=True)])
        for choice in prompts.choices
    ]
    whole = np.stack([_averaged(grid) for grid in grids])
    return ClassEmbeddings(
        whole,
        np.stack([[_averaged(grid[:, [template]]) for grid in grids] for template in templates]),
        np.stack(chosen) if chosen else np.empty((0, *whole.shape)),
    )


def _averaged(grid: Float) -> Float:
    """float64[D], of float64[S, T, D]."""
    return _unit(grid.mean(axis=1).mean(axis=0))


def _unit(vector: NDArray[np.floating]) -> Float:
    long = np.asarray(vector, np.float64)
    return long / max(float(np.linalg.norm(long)), 1e-12)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _is_code(name: str) -> bool:
    return name.isupper() and len(name) <= CODE and " " not in name
