"""SkinCon: 48 concepts that dermatologists marked in photos of Fitzpatrick17k and DDI → questions about what one sees.

It has no photos: its parts lie over the prepared sources of those names. Expected: annotations_fitzpatrick17k.csv and
annotations_ddi.csv with the columns ImageID (or DDI_file), the name of the photo, `Do not consider this image`, and one
for each of the 48 concepts, which is 1 (present) or 0 (absent); anything else is not known. Capitals and blanks in the
names of the columns do not count.

Each photo is asked four times: all concepts that it shows, one of four, and a yes and a no. Where it shows several the
yes is about one of them, drawn evenly; the no is about one that it lacks, drawn as often as the whole table lets the
others be drawn for a yes, so that no concept is known by its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from random import Random

from data_prep import Card, PrepError, Shard, count_csv, find, header, lookup, read_csv, seeded
from skinvl.data.example import Dropped, Example, Facts, text
from skinvl.data.questions import Missing, choices

CARD = Card(
    title="SkinCon",
    address="https://skincon-dataset.github.io",
    licence="none stated (research only)",
    terms="The authors state no licence for their annotations: research use, never redistribute.",
    citation="Daneshjou et al., SkinCon: A skin disease dataset densely annotated by domain experts for fine-grained "
    "debugging and analysis, NeurIPS Datasets and Benchmarks, 2022",
    obtain="take annotations_fitzpatrick17k.csv and annotations_ddi.csv from the address; RAW holds them at any depth. "
    "The photos are those of fitzpatrick17k and ddi: prepare these first.",
    splits=("train", "validation", "test"),
    parts=("fitzpatrick17k", "ddi"),
    over=("fitzpatrick17k", "ddi"),
    published="3,866",
    use="research",
)

# The concepts by what sets them off from one another: the wrong options of a choice are first of the family.
FAMILIES = {
    "flat": ("macule", "patch"),
    "raised": ("papule", "plaque", "nodule", "wheal", "cyst", "comedo"),
    "filled": ("vesicle", "bulla", "pustule", "abscess", "exudate"),
    "broken": ("erosion", "ulcer", "fissure", "excoriation", "burrow"),
    "surface": ("scale", "crust", "xerosis", "lichenification", "warty/papillomatous", "friable"),
    "tissue": ("atrophy", "scar", "sclerosis", "induration", "poikiloderma"),
    "vessels": ("erythema", "telangiectasia", "purpura/petechiae"),
    "shape": ("dome-shaped", "flat topped", "pedunculated", "exophytic/fungating", "umbilicated", "acuminate"),
    "colour": (
        *("brown (hyperpigmentation)", "white (hypopigmentation)", "purple", "yellow", "black", "blue", "salmon"),
        *("gray", "pigmented", "translucent"),
    ),
}
CONCEPTS = tuple(concept for family in FAMILIES.values() for concept in family)
IMAGE = ("ImageID", "DDI_file")  # either
IGNORED = "Do not consider this image"
FLAGS = {"0": "no", "0.0": "no", "1": "yes", "1.0": "yes"}
KINDS = ("list", "choice", "present", "absent")
ALL = (
    "Which of these features does the image show: {options}? Name all that apply.",
    "Name every feature that can be seen, out of {options}.",
)
ONE = ("Which one of these features does the image show?", "One of these features can be seen. Which is it?")
WHETHER = ("Does the image show this feature: {concept}?", "Can this feature be seen: {concept}? Answer yes or no.")
LETTERS = "ABCD"


def rows(raw: Path, part: str) -> int:
    """Photos in the part's file times the kinds of question."""
    return count_csv(find(raw, f"annotations_{part}.csv", CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """Four questions per photo, whose group, split and terms are those of the source below.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flags = dict.fromkeys(CONCEPTS, "0") | {"scale": "1", "plaque": "1", "scar": ""}
    ...     row = {"ImageID": "0a1b.jpg", **flags, "Do not consider this image": "0"}
    ...     table = f"{','.join(row)}\\n{','.join(row.values())}\\n"
    ...     _ = (Path(folder) / "annotations_fitzpatrick17k.csv").write_text(table)
    ...     every, one, yes, no = convert(Path(folder), "fitzpatrick17k")
    >>> every.id, every.images, len(every.options), sorted(every.options[number] for number in every.right)
    ('0a1b-list', ('0a1b.jpg',), 47, ['plaque', 'scale'])
    >>> every.facts.present, "scar" in every.facts.absent, len(one.options), len(one.right)
    (('plaque', 'scale'), False, 4, 1)
    >>> [row.messages[1]["content"][0]["text"] for row in (yes, no)]
    ['Yes.', 'No.']
    """
    path = find(raw, f"annotations_{part}.csv", CARD)
    refuse_columns(path, (IMAGE, (IGNORED,)))
    shares = _shares(path)
    for where, row in read_csv(path, (), shard):
        fields = squeezed(row)
        name = next(fields[squeeze(column)] for column in IMAGE if squeeze(column) in fields).strip()
        missing = ignored(where, fields) or (None if PurePosixPath(name).name else Missing("no name of it", "empty"))
        present, absent = concepts(fields)
        for kind in KINDS:
            draw = seeded("skincon", name, kind)
            made = missing or _asked(kind, present, absent, shares, draw)
            if isinstance(made, Missing):
                yield Dropped(f"{where} {kind}", made.rule, made.detail)
                continue
            question, answer, options, right = made
            yield Example(
                id=f"{PurePosixPath(name).stem}-{kind}",
                source="skincon",
                images=(name,),
                messages=(text("user", question, images=1), text("assistant", answer)),
                group=name,
                split="train",  # this and the group are those of the source below, once the row lies over it
                licence=CARD.licence,
                facts=Facts(modality="clinical", kind="concept", present=present, absent=absent),
                options=options,
                right=right,
            )


# What SkinCAP has in common with it.


def squeeze(name: str) -> str:
    """A name without capitals and blanks, by which columns and concepts are known."""
    return "".join(name.split()).casefold()


def squeezed(row: Mapping[str, str]) -> dict[str, str]:
    """The fields of a row by what is left of their columns' names."""
    return {squeeze(column): field for column, field in row.items()}


def refuse_columns(path: Path, needed: tuple[tuple[str, ...], ...]) -> None:
    """Refuses a table without the concepts, or without any of the names of another column.

    Raises:
        PrepError: naming what is missing and what is there.
    """
    there = header(path)
    columns = {squeeze(column) for column in there}
    missing = [names for names in needed if not {*map(squeeze, names)} & columns]
    lacking = [choices(names) if len(names) > 1 else names[0] for names in missing]
    lacking += [concept for concept in CONCEPTS if squeeze(concept) not in columns]
    if lacking:
        raise PrepError(
            f"{path}: no column {', '.join(lacking)}; found {', '.join(there) or 'nothing'}; expected these and the "
            f"{len(CONCEPTS)} concepts of SkinCon, in any case and with any blanks"
        )


def ignored(where: str, fields: Mapping[str, str]) -> Missing | None:
    """Why a photo is not asked about: its annotators say that it should not be considered."""
    if lookup(where, {IGNORED: fields[squeeze(IGNORED)].strip()}, IGNORED, FLAGS) == "yes":
        return Missing("its annotators say: do not consider this image", "not-considered")
    return None


def concepts(fields: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The concepts that are present and those that are absent; a flag other than 0 or 1 is in neither."""
    flags = {concept: FLAGS.get(fields[squeeze(concept)].strip()) for concept in CONCEPTS}
    present, absent = (tuple(name for name in CONCEPTS if flags[name] == flag) for flag in ("yes", "no"))
    return present, absent


# The questions.


def _shares(path: Path) -> dict[str, float]:
    """How many times a concept is drawn for a yes, by expectation, over the whole table."""
    shares = dict.fromkeys(CONCEPTS, 1e-9)  # where none is drawn, any will do
    for _, row in read_csv(path, ()):
        fields = squeezed(row)
        present, _ = concepts(fields)
        if FLAGS.get(fields[squeeze(IGNORED)].strip()) != "yes":
            for concept in present:
                shares[concept] += 1 / len(present)
    return shares


def _asked(
    kind: str, present: tuple[str, ...], absent: tuple[str, ...], shares: Mapping[str, float], draw: Random
) -> tuple[str, str, tuple[str, ...], tuple[int, ...]] | Missing:
    """Question, answer, and of a question with options these and the numbers of the right ones."""
    if not present:
        return Missing("no concept is marked as present")
    if not absent:
        return Missing("no concept is marked as absent")
    if kind == "list":
        options = tuple(draw.sample((*present, *absent), len(present) + len(absent)))
        right = tuple(number for number, option in enumerate(options) if option in present)
        answer = ", ".join(options[number] for number in right)
        return draw.choice(ALL).format(options=", ".join(options)), answer, options, right
    if kind == "choice":
        answer = draw.choice(present)
        family = next(names for names in FAMILIES.values() if answer in names)
        near = draw.sample(absent, len(absent))
        wrong = sorted(near, key=lambda concept: concept not in family)[: len(LETTERS) - 1]
        options = tuple(draw.sample((answer, *wrong), len(wrong) + 1))
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        number = options.index(answer)
        return "\n".join((draw.choice(ONE), *lines)), lines[number], options, (number,)
    if kind == "present":
        return draw.choice(WHETHER).format(concept=draw.choice(present)), "Yes.", (), ()
    (concept,) = draw.choices(absent, [shares[concept] for concept in absent])
    return draw.choice(WHETHER).format(concept=concept), "No.", (), ()
