"""Table 1 of a study: whom the conversations of each set show, what is not known of them, and how far sets differ."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skinvl.data.example import Facts
from skinvl.recipe.files import whole_file

Unit = Literal["groups", "images", "conversations"]
UNITS: tuple[Unit, ...] = ("groups", "images", "conversations")
FACTS = (
    *("age", "sex", "skin_type", "tone", "site", "institution", "modality", "views"),
    *("diagnosis", "malignancy", "confirmed"),
)
ORDERED = ("skin_type", "tone")  # by their own order; the values of the others by how many there are
MOST = 25  # values of a fact that have a line of their own; the rarer ones share one
UNKNOWN, SEVERAL = -1, -2  # instead of a value's number
YEARS = ("mean", "SD", "lower quartile", "median", "upper quartile")  # what a table says of ages
ALL = "all"  # the column of all sets together
_ROMAN = {"I": "1", "II": "2", "III": "3", "IV": "4", "V": "5", "VI": "6"}
_NUMERAL = re.compile(r"\d+|\b(?:IV|VI?|I{1,3})\b")

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """N conversations of some sets as columns, of what Table 1 asks; P times one shows an image."""

    sets: tuple[str, ...]
    set: Ints  # [N], a number in `sets`
    group: Ints  # [N], a number that means the same in all sets
    row: Ints  # [P], the conversation
    image: Ints  # [P], a number that means the same in all sets
    facts: Mapping[str, pa.DictionaryArray]  # [N] each, by the names of FACTS


class Described(Protocol):
    """A conversation, or what was predicted of it."""

    @property
    def source(self) -> str:
        """The prepared source, in which its group is named."""

    @property
    def group(self) -> str:
        """The patient, lesion or figure."""

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of what it shows."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""


@dataclass(frozen=True, slots=True)
class Line:
    """How many units of each column have a value."""

    value: str
    counts: tuple[int, ...]
    missing: bool = False  # whether it says that there is no one value


@dataclass(frozen=True, slots=True)
class Spread:
    """How the ages of a column's units are spread, in years."""

    mean: float
    sd: float  # of a sample; NaN of fewer than two
    quartiles: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact in each column; its lines add up to the column's units."""

    name: str
    lines: tuple[Line, ...]  # the values, then units with several of them, then those of which it is not known
    spreads: tuple[Spread | None, ...] = ()  # of ages, whose values have no lines; None where none is known
    smd: float | None = None  # the largest standardised mean difference of two sets; None where it cannot be had


@dataclass(frozen=True, slots=True)
class Table1:
    """Table 1, counted by unit."""

    unit: Unit
    columns: tuple[str, ...]  # the sets, and all of them where there are several
    totals: tuple[int, ...]  # units of each column
    facts: tuple[Fact, ...]
    unknown: tuple[str, ...]  # facts that are not known of any


def columns(sets: Mapping[str, Sequence[Described]]) -> Columns:
    """The rows of each set as columns."""
    rows = [row for rows in sets.values() for row in rows]
    groups: dict[tuple[str, str], int] = {}
    images: dict[tuple[str, str], int] = {}
    return Columns(
        tuple(sets),
        np.repeat(np.arange(len(sets)), [len(rows) for rows in sets.values()]),
        np.array([groups.setdefault((row.source, row.group), len(groups)) for row in rows], np.int64),
        np.array([number for number, row in enumerate(rows) for _ in row.images], np.int64),
        np.array([images.setdefault((row.source, path), len(images)) for row in rows for path in row.images], np.int64),
        {
            name: pa.array(
                [fact(row.facts, name) for row in rows], pa.float64() if name == "age" else pa.string()
            ).dictionary_encode()
            for name in FACTS
        },
    )


def together(views: Sequence[str]) -> str | None:
    """The views of a conversation as one value, whatever their order; None where they are not known."""
    return " + ".join(sorted(views)) or None


def fact(facts: Facts, name: str) -> str | float | None:
    """A fact as the table has it: all views together; None where it is not known."""
    return together(facts.views) if name == "views" else getattr(facts, name)


def table(rows: Columns, unit: Unit, sets: Sequence[int] | None = None) -> Table1:
    """Table 1 of these sets of the rows, all of them by default.

    A unit counts once in a column. It has the value that all its conversations have that know one; where they have
    several, it is counted as that. A group that stands in several sets counts in each.
    """
    numbers = range(len(rows.sets)) if sets is None else sets
    masks = [rows.set == number for number in numbers]
    names = tuple(rows.sets[number] for number in numbers)
    if len(masks) > 1:
        masks, names = [*masks, np.logical_or.reduce(masks)], (*names, ALL)
    members = [_members(rows, unit, mask) for mask in masks]
    totals = tuple(int(unit_of.max(initial=-1)) + 1 for _, unit_of in members)

    facts, unknown = [], []
    for name in FACTS:
        encoded = rows.facts[name]
        codes = pc.fill_null(encoded.indices, UNKNOWN).to_numpy(zero_copy_only=False).astype(np.int64)
        values = [_one_value(codes[row], unit_of, total) for (row, unit_of), total in zip(members, totals, strict=True)]
        if all((column == UNKNOWN).all() for column in values):
            unknown.append(name.replace("_", " "))
        else:
            make = _ages if name == "age" else _categories
            facts.append(make(name, encoded.dictionary, values, len(numbers)))
    return Table1(unit, names, totals, tuple(facts), tuple(unknown))


def _members(rows: Columns, unit: Unit, mask: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """int64[M] and int64[M]: a conversation of a column and its unit, from 0 on, each pair at least once."""
    if unit == "images":
        inside = mask[rows.row]
        row, units = rows.row[inside], rows.image[inside]
    else:
        row = np.flatnonzero(mask)
        units = rows.group[row] if unit == "groups" else row
    return row, np.unique(units, return_inverse=True)[1].astype(np.int64)


def _one_value(codes: Ints, unit: Ints, count: int) -> Ints:
    """int64[units]: the one value of each, UNKNOWN or SEVERAL."""
    known = codes >= 0
    least, greatest = np.full(count, np.iinfo(np.int64).max), np.full(count, UNKNOWN)
    np.minimum.at(least, unit[known], codes[known])
    np.maximum.at(greatest, unit[known], codes[known])
    return np.where((greatest >= 0) & (least < greatest), SEVERAL, greatest)


def _rest(values: Sequence[Ints]) -> tuple[Line, ...]:
    """The lines of units without one value: with several, if there are any, and unknown."""
    several, unknown = (tuple(int((column == code).sum()) for column in values) for code in (SEVERAL, UNKNOWN))
    lines = [Line("several values", several, missing=True)] if any(several) else []
    return (*lines, Line("not known", unknown, missing=True))


def _ages(name: str, ages: pa.Array, values: Sequence[Ints], sets: int) -> Fact:
    known = [ages.to_numpy(zero_copy_only=False)[column[column >= 0]] for column in values]
    spreads = tuple(_spread(column) if len(column) else None for column in known)
    pairs = [(a, b) for a, b in combinations(spreads[:sets], 2) if a and b]
    return Fact(name, _rest(values), spreads, _largest([_apart(a, b) for a, b in pairs]))


def _spread(ages: NDArray[np.float64]) -> Spread:
    low, middle, high = np.percentile(ages, (25, 50, 75)).tolist()
    return Spread(float(ages.mean()), float(ages.std(ddof=1)) if len(ages) > 1 else math.nan, (low, middle, high))


def _apart(a: Spread, b: Spread) -> float:
    """|difference of the means| / √(mean of the variances); NaN where one has fewer than two ages.

    Source: B. K. Flury and H. Riedwyl, "Standard distance in univariate and multivariate analysis" (1986).
    """
    difference, variance = abs(a.mean - b.mean), (a.sd**2 + b.sd**2) / 2
    return math.sqrt(difference**2 / variance) if variance else math.inf if difference else 0.0


def _categories(name: str, words: pa.Array, values: Sequence[Ints], sets: int) -> Fact:
    counts = np.stack([np.bincount(column[column >= 0], minlength=len(words)) for column in values])
    total = counts[-1]  # of all sets, as the last column has them
    labels = words.to_pylist()
    present = [int(number) for number in np.flatnonzero(counts.any(axis=0))]
    present.sort(key=lambda number: (-int(total[number]), labels[number]))
    own, rare = present[:MOST], present[MOST:]
    if name in ORDERED:
        own.sort(key=lambda number: _place(labels[number]))
    lines = [Line(labels[number], tuple(counts[:, number].tolist())) for number in own]
    if rare:
        lines.append(Line(f"{len(rare):,} rarer values", tuple(counts[:, rare].sum(axis=1).tolist())))
    shown = np.array([line.counts for line in lines], float).reshape(len(lines), len(values)).T
    distances = [_distance(a, b) for a, b in combinations(shown[:sets], 2) if a.any() and b.any()]
    return Fact(name, (*lines, *_rest(values)), smd=_largest(distances))


def _place(value: str) -> str:
    """A text that sorts as the numerals in a value do, Roman ones too."""
    return _NUMERAL.sub(lambda match: _ROMAN.get(match[0], match[0]).zfill(4), value)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """√(d' S⁻¹ d) of the shares of K values in two sets: d their difference, S the mean of both covariances.

    Infinite where S has no inverse in the direction of d, as of sets that have no value in common.

    Source: D. Yang and J. E. Dalton, "A unified approach to measuring the effect size between two groups using SAS",
    SAS Global Forum 2012, 335.
    """
    shares = np.stack([a / a.sum(), b / b.sum()])
    shares = shares[:, shares.any(axis=0)][:, :-1]  # the last share follows from the others
    if not shares.size:
        return 0.0
    covariance = np.mean([np.diag(share) - np.outer(share, share) for share in shares], axis=0)
    difference = shares[0] - shares[1]
    solution = np.linalg.lstsq(covariance, difference, rcond=None)[0]
    if not np.allclose(covariance @ solution, difference, atol=1e-9):
        return math.inf
    return math.sqrt(max(0.0, float(difference @ solution)))


def _largest(distances: Sequence[float]) -> float | None:
    known = [distance for distance in distances if not math.isnan(distance)]
    return max(known, default=None)


def write_csv(path: Path, tables: Sequence[Table1]) -> None:
    """Writes the tables below one another, of the same columns: for each a number, and its share in percent."""
    head = [name for column in tables[0].columns for name in (column, f"{column} %")]
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["unit", "characteristic", "value", *head, "largest SMD of two sets"])
        for each in tables:
            writer.writerow([each.unit, "n", "", *(cell for total in each.totals for cell in (total, "")), ""])
            for fact in each.facts:
                smd = "" if fact.smd is None else f"{fact.smd:.4f}"
                for value, cells in _csv_lines(each, fact):
                    writer.writerow([each.unit, fact.name, value, *cells, smd])


def _csv_lines(counted: Table1, fact: Fact) -> list[tuple[str, list[Any]]]:
    lines: list[tuple[str, list[Any]]] = []
    if fact.spreads:
        nothing = (math.nan,) * len(YEARS)
        columns = [(each.mean, each.sd, *each.quartiles) if each else nothing for each in fact.spreads]
        for name, numbers in zip(YEARS, zip(*columns, strict=True), strict=True):
            shown = ["" if math.isnan(number) else f"{number:.2f}" for number in numbers]
            lines.append((name, [cell for number in shown for cell in (number, "")]))
    for line in fact.lines:
        pairs = zip(line.counts, counted.totals, strict=True)
        cells = [cell for count, total in pairs for cell in (count, f"{100 * count / total:.2f}" if total else "")]
        lines.append((line.value, cells))
    return lines
