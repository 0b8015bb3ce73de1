"""Findings that an answer states and the image's concept labels deny, by the matcher that never guesses.

A finding is stated where its name, or a spelling below, stands in an answer and is neither denied, left open nor asked;
"no scale" states nothing. The labels deny it where an expert did not see it (`facts.absent`); of what they do not know
nothing is said. A finding in other words ("erythematous" for erythema) is not read, so that rates are of what is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skinvl.data import clauses
from skinvl.data.clauses import SplitText
from skinvl.data.match import unwrapped
from skinvl.data.mentions import mentioned
from skinvl.score.predictions import Answer
from skinvl.score.stats import Bootstrap, Mask, ratio

# What may be said for a concept beside its name.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "brown (hyperpigmentation)": ("hyperpigmentation",),
    "white (hypopigmentation)": ("hypopigmentation",),
    "ulcer": ("ulceration",),
    "blue-whitish veil": ("blue-white veil",),
    "irregular dots and globules": ("irregular dots", "irregular globules"),
    "irregular pigmentation": ("irregular blotches",),
    "atypical vessels": ("atypical vascular structures",),
}
# What holds the name of a concept and is no finding.
DECOYS = (
    *("patch test", "patch testing", "on a scale", "scale of", "scale from", "scale bar", "gray scale", "full scale"),
    *("black patient", "black people", "black skin", "black background", "yellow pages", "crust of the earth"),
)


def stated(answer: str, concepts: tuple[str, ...]) -> frozenset[str]:
    """The concepts that an answer states.

    >>> sorted(stated("A scaly plaque with crusts, without ulceration. Is there scale?", ("crust", "scale", "ulcer")))
    ['crust']
    """
    names = [*((name, name) for name in concepts), *((other, name) for name in concepts for other in _others(name))]
    spelt = tuple(dict.fromkeys([*(name for name, _ in names), *DECOYS]))
    of = {**dict.fromkeys(DECOYS), **dict(reversed(names))}
    text = SplitText.of(clauses.plain(unwrapped(answer)))
    mentions = mentioned(text, spelt, {})
    found = {spelt[number] for each in mentions if not text.asked(each.last) for number in each.counted}
    return frozenset(name for spelling in found if (name := of[spelling]) is not None)


def block(rows: Sequence[Answer], draws: Bootstrap) -> dict[str, Any] | None:
    """The unsupported findings of a set's answers; None where no row knows of a concept.

    `answers`: of the answers about images of which a concept is denied, the share that state one that is.
    `findings`: of the findings stated of which it is known, the share that the labels deny.
    `by_concept`: how often a concept is stated where the labels deny it, and where they show it.
    """
    concepts = tuple(sorted({name for row in rows for name in (*row.facts.present, *row.facts.absent)}))
    if not concepts:
        return None
    places = {name: place for place, name in enumerate(concepts)}
    said, shown, denied = np.zeros((3, len(rows), len(concepts)), np.bool_)
    answered = np.array([row.answer is not None for row in rows], np.bool_)
    for number, row in enumerate(rows):
        known = {*row.facts.present, *row.facts.absent}
        if known:
            shown[number, [places[name] for name in row.facts.present]] = True
            denied[number, [places[name] for name in row.facts.absent]] = True
            said[number, [places[name] for name in stated(row.answer or "", concepts)]] = True

    against, backed = (said & denied).sum(axis=1), (said & shown).sum(axis=1)
    asked = denied.any(axis=1)
    sums = draws.sums(np.stack([against, against + backed], axis=1).astype(np.float64), answered)
    counted = answered & (against + backed > 0)
    return {
        "answers": draws.share(against > 0, asked & answered, int((asked & ~answered).sum())).number(),
        "findings": draws.estimate(ratio(sums[:, 0], sums[:, 1]), counted).number(),
        "stated": {
            "denied": int(against[answered].sum()),
            "shown": int(backed[answered].sum()),
            "not known": int((said & ~denied & ~shown)[answered].sum()),
        },
        "by_concept": {
            name: {
                "denied": _share(said[:, place], denied[:, place], answered, draws),
                "shown": _share(said[:, place], shown[:, place], answered, draws),
            }
            for name, place in places.items()
            if (said[:, place] & answered).any()
        },
    }


def _share(said: Mask, of: Mask, answered: Mask, draws: Bootstrap) -> dict[str, Any]:
    return draws.share(said, of & answered, int((of & ~answered).sum())).number()


def _others(name: str) -> tuple[str, ...]:
    return SPELLINGS.get(name.casefold(), ())
