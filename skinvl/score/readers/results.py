"""What several readers' readings come to, beside the model's: RUN/readers.json and RUN/readers.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from skinvl.recipe.files import write_json, write_text
from skinvl.score import tables
from skinvl.score.readers import kappa, multireader, readings, study
from skinvl.score.readers.cases import Case, predictions
from skinvl.score.readers.kappa import UNREAD
from skinvl.score.stats import LEVEL, Bootstrap, Int, Mask

MODEL, MEAN, DIFFERENCE = "model", "mean of the readers", "model − readers"
FIGURES = ("accuracy", "sensitivity", "specificity")
COUNTS = ("n", "groups", "unscored")


def write(where: Path, folder: Path, resamples: int, seed: int) -> tuple[list[str], list[tables.Titled]]:
    """Reads what readers filled in, and writes RUN/readers.json and readers.md; the lines and tables of the latter.

    Raises:
        StudyError, PredictionError: what a user can mend.
    """
    path = predictions(where)
    cases, names = study.read_key(folder, path)
    read, columns = readings.read(folder, cases, names)
    numbers = block(list(cases.values()), read, columns, resamples, seed)
    numbers |= {"study": folder.name, "predictions": path.name, "absent": [name for name in names if name not in read]}

    run = path.parent.parent.parent
    write_json(run / "readers.json", numbers, indent=1, allow_nan=False)
    lines, titled = [about(numbers)], list(shown(numbers))
    write_text(run / "readers.md", tables.page(lines, titled))
    return [*lines, f"{run / 'readers.json'} and readers.md"], titled


def block(cases: Sequence[Case], names: Sequence[str], columns: Int, resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of readings int[N, J], which are choices or UNREAD, by these readers.

    κ is between categories: the words of the choices. The comparison with the model is over the cases that all read.
    """
    draws = Bootstrap([case.group for case in cases], resamples, seed)
    categories = _categories(cases, columns)
    model = np.array([UNREAD if case.model is None else case.model for case in cases], np.int64)
    model_category = _categories(cases, model[:, None])[:, 0]
    right = np.stack([_right(cases, column) for column in columns.T], axis=1)
    model_right = _right(cases, model)
    is_read = columns != UNREAD
    by_all = is_read.all(axis=1)

    readers: dict[str, Any] = {}
    for place, name in enumerate(names):
        figures = _figures(cases, columns[:, place], right[:, place], is_read[:, place], draws)
        readers[name] = {
            **figures,
            "kappa_with_model": kappa.cohen(categories[:, place], model_category, draws).number(),
        }
    return {
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "cases": len(cases),
        "read_by_all": int(by_all.sum()),
        "readers": readers,
        "model": _figures(cases, model, model_right, np.ones(len(cases), np.bool_), draws),
        "cohen": [
            {
                "readers": [names[one], names[other]],
                "kappa": kappa.cohen(categories[:, one], categories[:, other], draws).number(),
            }
            for one, other in combinations(range(len(names)), 2)
        ],
        "fleiss": kappa.fleiss(categories, draws).number() if len(names) > 1 else None,
        "together": _together(cases, columns, model, right, model_right, by_all, draws),
    }


def _figures(cases: Sequence[Case], said: Int, right: Mask, rows: Mask, draws: Bootstrap) -> dict[str, Any]:
    """A reader's accuracy, and sensitivity and specificity where malignancy is known, over the cases that count."""
    numbers = {"accuracy": draws.share(right, rows, int((~rows).sum())).number()}
    sides = _malignant(cases, said)
    if sides is not None:
        is_malignant, found = sides
        for name, of, hit in (("sensitivity", is_malignant, found == 1), ("specificity", ~is_malignant, found == 0)):
            numbers[name] = draws.share(hit, rows & of, int((~rows & of).sum())).number()
    return numbers


def _together(
    cases: Sequence[Case], columns: Int, model: Int, right: Mask, model_right: Mask, by_all: Mask, draws: Bootstrap
) -> dict[str, Any]:
    """The readers' mean of each figure and the model's difference from it, readers and groups both random."""
    every: dict[str, tuple[Mask, Mask, Mask]] = {"accuracy": (right, model_right, by_all)}
    of_model = _malignant(cases, model)
    if of_model is not None:
        is_malignant, found = of_model
        sides = [_malignant(cases, column) for column in columns.T]
        found_by = np.stack([side[1] for side in sides if side is not None], axis=1)
        every["sensitivity"] = found_by == 1, found == 1, by_all & is_malignant
        every["specificity"] = found_by == 0, found == 0, by_all & ~is_malignant
    return {
        figure: {
            "readers": multireader.readers_alone(readers, rows, draws.of).number(),
            "difference": multireader.against_model(readers, own, rows, draws.of).number(),
        }
        for figure, (readers, own, rows) in every.items()
    }


def _right(cases: Sequence[Case], said: Int) -> Mask:
    """bool[N]: whether each choice is right; none is wrong."""
    return np.array([number in case.right for case, number in zip(cases, said.tolist(), strict=True)], np.bool_)


def _malignant(cases: Sequence[Case], said: Int) -> tuple[Mask, Int] | None:
    """bool[N], whether each case is malignant, and int[N], whether it is said to be, UNREAD for nothing said."""
    if any(case.malignant is None for case in cases):
        return None
    graded = [(case.malignant or (), case.right[0]) for case in cases]
    is_malignant = np.array([grades[true] for grades, true in graded], np.bool_)
    found = [
        UNREAD if number == UNREAD else int(grades[number]) for (grades, _), number in zip(graded, said, strict=True)
    ]
    return is_malignant, np.array(found, np.int64)


def _categories(cases: Sequence[Case], columns: Int) -> Int:
    """int[N, J]: the choices as categories that mean the same in every case, by their words."""
    numbers: dict[str, int] = {}
    for case in cases:
        for choice in case.choices:
            numbers.setdefault(" ".join(choice.casefold().split()), len(numbers))
    of = [[numbers[" ".join(choice.casefold().split())] for choice in case.choices] for case in cases]
    rows = zip(of, columns.tolist(), strict=True)
    return np.array([[UNREAD if n == UNREAD else own[n] for n in row] for own, row in rows], np.int64)


def about(numbers: Mapping[str, Any]) -> str:
    """What was read, and what the letters of the methods are."""
    names = ", ".join(numbers["readers"])
    absent = f"; nothing yet by {', '.join(numbers['absent'])}" if numbers["absent"] else ""
    return (
        f"Reader study {numbers['study']}: {numbers['cases']:,} cases of {numbers['predictions']}, "
        f"{numbers['read_by_all']:,} read by all of {names}{absent}. {tables.METHODS[multireader.METHOD]}: readers and "
        "groups both random, by Obuchowski and Rockette; W and E as skinvl score has them. Readers are a sample of "
        "those who could have read: fewer than five say little of others."
    )


def shown(numbers: Mapping[str, Any]) -> Iterator[tables.Titled]:
    """The tables: each reader and the model, the model against all readers, and κ."""
    figures = [name for name in FIGURES if name in numbers["model"]]
    head = ("reader", *figures, "κ with the model", "n")
    rows = [
        [name, *(tables.number(own[figure]) for figure in figures), tables.number(own["kappa_with_model"]),
         f"{own['accuracy']['n']:,}"]
        for name, own in numbers["readers"].items()
    ]  # fmt: skip
    model = [tables.number(numbers["model"][figure]) for figure in figures]
    yield (
        "Each reader and the model",
        head,
        [*rows, [MODEL, *model, tables.NONE, f"{numbers['model']['accuracy']['n']:,}"]],
    )

    head = ("figure", MEAN, DIFFERENCE, "p", "n", "groups")
    together = [
        [name, tables.number(own["readers"]), tables.number(own["difference"]), tables.p_value(own["difference"]["p"]),
         f"{own['difference']['n']:,}", f"{own['difference']['groups']:,}"]
        for name, own in numbers["together"].items()
    ]  # fmt: skip
    yield "The model against the readers, over the cases that all read", head, together

    pairs = [(" and ".join(pair["readers"]), "Cohen", pair["kappa"]) for pair in numbers["cohen"]]
    pairs += [("all", "Fleiss", numbers["fleiss"])] if numbers["fleiss"] else []
    if pairs:
        lines = [[who, of, tables.number(own), *(f"{own[count]:,}" for count in COUNTS)] for who, of, own in pairs]
        yield "Readers among themselves", ("readers", "κ of", "κ", *COUNTS), lines
