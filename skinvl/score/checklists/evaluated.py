"""What a run's files know of its evaluation, as sentences; None where they do not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skinvl.score import tables
from skinvl.score.checklists.known import Known

NUMBERS = 6  # of a set that a sentence has
CONFUSIONS = 3
DESCRIBED = ("sex", "age", "skin_type", "tone", "site", "diagnosis", "malignancy")


def unscored(known: Known) -> str | None:
    """What could not be scored."""
    found = []
    for name, what, block in _blocks(known):
        why = ", ".join(f"{reason} {count:,}" for reason, count in (block.get("reasons") or {}).items())
        found.append(f"{name} ({what}): {block['unscored']:,} of {block['rows']:,} rows{f' ({why})' if why else ''}")
    return f"Not scored, counted with the reason: {'; '.join(found)}." if found else None


def acquisition(known: Known) -> str | None:
    """With what images were taken."""
    return _described(known, ("modality", "views", "institution"))


def institutions(known: Known) -> str | None:
    """Where images were taken."""
    return _described(known, ("institution",))


def reference(known: Known) -> str | None:
    """How diagnoses were confirmed."""
    return _described(known, ("confirmed",))


def counts(known: Known) -> str | None:
    """Rows and groups of each set."""
    found = [f"{name}: {len(rows):,} rows of {_groups(rows):,} groups" for name, rows in known.rows.items()]
    return f"Evaluated: {'; '.join(found)}." if found else None


def patients(known: Known) -> str | None:
    """Whom the evaluated rows show."""
    return _described(known, DESCRIBED)


def metrics(known: Known) -> str | None:
    """Which numbers there are."""
    found = [f"{name} ({what}): {', '.join(numbers)}" for name, what, numbers in _numbers(known)]
    return f"{'; '.join(found)}." if found else None


def uncertainty(known: Known) -> str | None:
    """What intervals are, and which tests were done."""
    tests = known.scores.get("comparison")
    of = f" Tested against {tests['against']}: McNemar, paired bootstrap, Holm's correction." if tests else ""
    return tables.about(known.scores) + of


def performance(known: Known) -> str | None:
    """The first numbers of each set with their intervals."""
    found = []
    for name, what, numbers in _numbers(known):
        first = [(metric, number) for metric, number in numbers.items() if number.get("value") is not None][:NUMBERS]
        told = ", ".join(f"{metric} {tables.number(number)} (n {number['n']:,})" for metric, number in first)
        found += [f"{name} ({what}): {told}"] if told else []
    return f"{'; '.join(found)}. All of them: scores.md." if found else None


def robustness(known: Known) -> str | None:
    """What was asked beside the questions themselves."""
    words = {"permuted": "with the images permuted", "reversed": "with the images in reverse order",
             "robustness": "in other ways"}  # fmt: skip
    found = [f"{name} {words[what]}" for name, of in known.scores["sets"].items() for what in words if of.get(what)]
    found += [f"{name} over variations of its prompts" for name, _, block in _blocks(known) if block.get("spread")]
    return f"Asked again: {', '.join(found)}." if found else None


def subgroups(known: Known) -> str | None:
    """The worst of each slice."""
    found = []
    for name, _, block in _blocks(known):
        for field, of in (block.get("slices") or {}).items():
            if of["worst"] is not None:
                found.append(
                    f"{name} by {field.replace('_', ' ')}: worst {of['worst']}, gap {tables.number(of['gap'])}"
                )
    return f"{'; '.join(found)}." if found else None


def internal(known: Known) -> str | None:
    """Sets of sources that were trained on."""
    return _by_training(known, trained=True)


def external(known: Known) -> str | None:
    """Sets of sources that were not."""
    return _by_training(known, trained=False)


def failures(known: Known) -> str | None:
    """Which classes are taken for which."""
    found = []
    for name, _, block in _blocks(known):
        matrix = (block.get("confusion") or {}).get(block.get("headline"))
        classes = block.get("classes") or []
        wrong = [(row[said], true, said) for true, row in enumerate(matrix or ()) for said in range(len(classes))
                 if said != true and row[said]]  # fmt: skip
        for count, true, said in sorted(wrong, reverse=True)[:CONFUSIONS]:
            found.append(f"{name}: {classes[true]} taken for {classes[said]} {count:,} times")
    return f"Most often wrong: {'; '.join(found)}. Rows that are furthest off: report.html." if found else None


def raters(known: Known) -> str | None:
    """How far readers of a study say the same."""
    if not known.readers:
        return None
    pairs = [f"{' and '.join(pair['readers'])} {tables.number(pair['kappa'])}" for pair in known.readers["cohen"]]
    all_of = known.readers.get("fleiss")
    told = [*pairs, *([f"all (Fleiss) {tables.number(all_of)}"] if all_of else [])]
    return f"κ of readers who read {known.readers['cases']:,} cases: {'; '.join(told)}." if told else None


def output(known: Known) -> str | None:
    """What the model gives."""
    found = []
    for name, what, block in _blocks(known):
        if what == "classes":
            found.append(f"{name}: one of {len(block['classes'])} classes, by {block['headline']}")
        else:
            found.append(f"{name}: an answer in words")
    return f"{'; '.join(found)}." if found else None


def _blocks(known: Known) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for name, of in known.scores["sets"].items():
        for what in ("answers", "classes"):
            if of.get(what):
                yield name, what, of[what]


def _numbers(known: Known) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for name, what, block in _blocks(known):
        if what == "answers":
            yield name, what, block["metrics"]
        elif block["headline"]:
            yield name, f"{what} by {block['headline']}", block["variants"][block["headline"]]
    for name, of in known.scores["sets"].items():
        for direction, block in (of.get("retrieval") or {"directions": {}})["directions"].items():
            yield name, direction, block["numbers"]


def _described(known: Known, names: Sequence[str]) -> str | None:
    """What Table 1 says of these facts, of all evaluated groups; None where none is known of any."""
    if known.table is None:
        return None
    told = []
    for fact in known.table.facts:
        if fact.name in names:
            spread = fact.spreads[-1] if fact.spreads else None
            values = [f"mean {spread.mean:.1f} years (SD {spread.sd:.1f})"] if spread else []
            values += [f"{line.value} {line.counts[-1]:,}" for line in fact.lines[:12] if line.counts[-1]]
            told.append(f"{fact.name.replace('_', ' ')}: {', '.join(values)}")
    return f"Of {known.table.totals[-1]:,} evaluated groups: {'; '.join(told)}." if told else None


def _groups(rows: Sequence[Any]) -> int:
    return len({(row.source, row.group) for row in rows})


def _by_training(known: Known, trained: bool) -> str | None:
    data = known.recipe.get("data")
    if not isinstance(data, Mapping) or not known.rows:
        return None
    own = {
        Path(str(spec["source"])).name
        for spec in data.get("train") or ()
        if isinstance(spec, Mapping) and spec.get("source")
    }
    found = [name for name, rows in known.rows.items() if rows and trained == all(row.source in own for row in rows)]
    which = "which training used too" if trained else "that training did not use, or not alone"
    more = "" if trained else "; whether these are of other institutions is not known here"
    return f"Sets of sources {which}: {', '.join(found)}{more}." if found else None
