"""Drawn skin lesions with questions whose answers are in the pixels alone: a toy to learn from in a minute on a CPU.

The parts `artefact` and `untied` have other drawings, three quarters of those to train on and half of those to test on
with hair, ink or a ruler, which the descriptions name. In training the artefact of `artefact` goes by the lesions'
border (TIED), in its test split and in all of `untied` by chance: who has learned it for the border errs there. Images
without one say nothing of the border.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from data_prep import Card, PrepError, Shard, choices, seeded, taken
from skinvl.data.example import Dropped, Example, Facts, text

CARD = Card(
    title="drawn skin lesions",
    address="drawn by skinvl itself",
    licence="CC0-1.0",
    terms="Any use. No patient is behind these drawings, and nothing medical can be learned from them.",
    citation="none needed",
    obtain="nothing to get: a new or empty RAW is filled with drawings.",
    splits=("train", "test"),
    parts=("all", "artefact", "untied"),
    released="sound",
    alike=False,
    drawn=True,
    published="480",
    use="any",
)

IMAGES = 480
SIZES = {"all": (IMAGES, 48), "artefact": (960, 240), "untied": (960, 96)}  # drawings, pairs of them to test on
KINDS_PER_IMAGE = 5
SIDE = 112  # pixels: 4 × 4 image tokens of 28 pixels

INKS = {"black": (25, 20, 25), "blue": (55, 75, 190), "brown": (115, 65, 30), "red": (200, 30, 45)}
SKINS = ((245, 215, 190), (235, 195, 165), (222, 178, 145))
PALE = (250, 250, 245)
COUNTS = {"one": 1, "two": 2, "three": 3}
RADII = {"small": 13, "large": 23}  # pixels
TAGS = {"arm": (40, 150, 60), "back": (140, 60, 170), "face": (245, 245, 250), "leg": (240, 205, 40)}  # site → colour
OPTIONS: dict[str, tuple[str, ...]] = {
    "colour": tuple(INKS),
    "count": tuple(COUNTS),
    "size": tuple(RADII),
    "border": ("irregular", "smooth"),
    "symmetry": ("asymmetric", "symmetric"),
    "site": tuple(TAGS),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": ("Which colour is seen: {options}?", "Name the lesion colour, {options}.", "Is the colour {options}?"),
    "count": ("How many lesions are there: {options}?", "Count the lesions. Answer {options}."),
    "size": ("Is the lesion size {options}?", "What size is it: {options}?", "Lesion size, {options}?"),
    "border": ("Is the border {options}?", "How is the border: {options}?"),
    "symmetry": ("Is the lesion shape {options}?", "What about symmetry: {options}?"),
    "site": ("Which body site does the corner tag mean: {options}?", "Read the tag. Is the site {options}?"),
    "description": ("Describe the lesion.", "What can be seen on the skin?", "Write a sentence on the findings."),
    "comparison": (
        "Which of the two images shows the larger lesion: the first or the second?",
        "In which image is the lesion larger, the first or the second?",
    ),
}
KINDS = tuple(kind for kind in QUESTIONS if kind != "comparison")

# Of the parts `artefact` and `untied`.
ARTEFACTS = ("hair", "ink", "ruler")
TIED = {"irregular": ("hair", "ink"), "smooth": ("ruler",)}  # in training: border → what lies over the skin
NOTHING = "nothing"
OVER_QUESTIONS = ("What lies over the skin: {options}?", "Is hair, ink, a ruler or nothing in front of the skin?")
VIOLET, BONE = (90, 20, 130), (235, 235, 225)  # of ink and of rulers


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one image shows; `pair` holds the number of the two images that are compared and never split."""

    file: str
    pair: int
    colour: str
    count: str
    size: str
    border: str
    symmetry: str
    site: str
    artefact: str | None = None  # of parts with artefacts: what lies over the skin, or NOTHING


def rows(raw: Path, part: str) -> int:
    """Questions of the drawings in RAW, which is filled first where it is new or empty."""
    drawings = len(_drawings(raw, part))
    return drawings * (KINDS_PER_IMAGE if part == "all" else len(KINDS) + 1) + drawings // 2


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """The questions of each image, and after each pair, which is one record, the comparison of its two images.

    >>> one = Drawing("images/000.png", 0, "red", "two", "large", "smooth", "symmetric", "leg")
    >>> row = _example((one,), "colour", _answer(one, "colour"), "train")
    >>> row.id, row.images, row.group, row.split, row.facts.kind
    ('000-colour', ('images/000.png',), 'pair-000', 'train', 'colour')
    >>> [turn["content"][-1]["text"] for turn in row.messages]
    ['Is the colour black, blue, brown or red?', 'red']
    >>> _answer(one, "description")
    'Two large red lesions with a smooth border.'
    """
    drawings = _drawings(raw, part)
    test = _test(part)
    for first, second in taken(zip(drawings[::2], drawings[1::2], strict=True), shard):
        split = "test" if first.pair in test else "train"
        for drawing in (first, second):
            kinds = [*KINDS, "artefact"]
            if part == "all":
                kinds = seeded("demo", drawing.file).sample(KINDS, KINDS_PER_IMAGE)
            for kind in kinds:
                yield _example((drawing,), kind, _answer(drawing, kind), split)
        larger = "first" if RADII[first.size] > RADII[second.size] else "second"
        yield _example((first, second), "comparison", larger, split)


def _example(drawings: tuple[Drawing, ...], kind: str, answer: str, split: str) -> Example:
    over = drawings[0].artefact
    stems = [Path(drawing.file).stem for drawing in drawings]
    prefix = f"{Path(drawings[0].file).parts[0]}-" if over else ""
    name = "-".join([*stems, kind])
    question = seeded("demo", f"{prefix}{name}").choice(OVER_QUESTIONS if kind == "artefact" else QUESTIONS[kind])
    options = (*ARTEFACTS, NOTHING) if kind == "artefact" else OPTIONS.get(kind, ("", ""))
    known = ARTEFACTS if over and len(drawings) == 1 else ()
    return Example(
        id=f"{prefix}{name}",
        source="demo",
        images=tuple(drawing.file for drawing in drawings),
        messages=(
            text("user", question.format(options=choices(options)), images=len(drawings)),
            text("assistant", answer),
        ),
        group=f"{prefix}pair-{drawings[0].pair:03}",
        split=split,
        licence=CARD.licence,
        facts=Facts(
            kind=kind,
            present=tuple(name for name in known if name == over),
            absent=tuple(name for name in known if name != over),
        ),
    )


def _answer(drawing: Drawing, kind: str) -> str:
    if kind != "description":
        return str(getattr(drawing, kind))
    noun = "lesion" if drawing.count == "one" else "lesions"
    article = "an" if drawing.border == "irregular" else "a"
    over = "" if drawing.artefact in (None, NOTHING) else f", under {drawing.artefact}"
    return (
        f"{drawing.count.capitalize()} {drawing.size} {drawing.colour} {noun} with {article} {drawing.border} "
        f"border{over}."
    )


def _drawings(raw: Path, part: str) -> list[Drawing]:
    """What the images of a part show, in order; RAW, or the part's folder in it, is filled where it is new or empty."""
    folder = raw
    if part != "all":
        _drawings(raw, "all")
        folder = raw / part
    index = folder / "index.json"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        _fill(folder, _plan(part))
    if not index.is_file():
        raise PrepError(f"{folder}: not empty, and no drawings of the demo (no index.json); give a new or empty RAW")
    drawings = _plan(part)
    if index.read_bytes() != _index(drawings):
        raise PrepError(f"{index}: not the index of this version's drawings; remove {folder} and it is drawn anew")
    return drawings


def _index(drawings: list[Drawing]) -> bytes:
    plain = [{key: value for key, value in asdict(drawing).items() if value is not None} for drawing in drawings]
    return ("[\n" + ",\n".join(map(json.dumps, plain)) + "\n]\n").encode()


def _fill(folder: Path, drawings: list[Drawing]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (partial / "images").mkdir()
        for drawing in drawings:
            draw(drawing).save(partial / "images" / Path(drawing.file).name)
        (partial / "index.json").write_bytes(_index(drawings))
        partial.chmod(0o755)
        try:
            partial.replace(folder)
        except OSError:  # another process may have filled it in the meantime, with the same drawings
            if not (folder / "index.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _test(part: str) -> set[int]:
    """The numbers of the pairs that are tested on."""
    key = ("demo", "split") if part == "all" else ("demo", "split", part)
    images, pairs = SIZES[part]
    return set(seeded(*key).sample(range(images // 2), pairs))


def _plan(part: str) -> list[Drawing]:
    """Drawings in which every option of a feature is as frequent as the others, and each pair has both sizes."""
    key, folder = (("demo", "plan"), "") if part == "all" else (("demo", "plan", part), f"{part}/")
    images = SIZES[part][0]
    features: dict[str, list[str]] = {}
    for kind, options in OPTIONS.items():
        features[kind] = [options[number % len(options)] for number in range(images)]
        seeded(*key, kind).shuffle(features[kind])
    orders = [("small", "large"), ("large", "small")] * (images // 4)
    seeded(*key, "pairs").shuffle(orders)
    features["size"] = [size for order in orders for size in order]
    if part != "all":
        features["artefact"] = _over(part, features["border"])
    return [
        Drawing(
            f"{folder}images/{number:03}.png",
            number // 2,
            **{kind: values[number] for kind, values in features.items()},
        )
        for number in range(images)
    ]


def _over(part: str, borders: list[str]) -> list[str]:
    """What lies over the skin in each drawing; of each border as many have nothing."""
    test, over = _test(part), [NOTHING] * len(borders)
    for border, tied in TIED.items():
        for tested in (False, True):
            numbers = [n for n, own in enumerate(borders) if own == border and (n // 2 in test) == tested]
            chance = seeded("demo", "plan", part, "over", border, str(tested))
            size = len(numbers) // 2 if tested else len(numbers) * 3 // 4
            drawn = tied if part == "artefact" and not tested else ARTEFACTS
            for place, number in enumerate(chance.sample(numbers, size)):
                over[number] = drawn[place % len(drawn)]
    return over


def draw(drawing: Drawing) -> Image.Image:
    """The picture, RGB of SIDE × SIDE pixels: the site's tag in one quarter, lesions in the others."""
    scale = 2  # drawn larger and reduced, for soft edges
    chance = seeded("demo", "draw", drawing.file)
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), chance.choice(SKINS))
    pen = ImageDraw.Draw(picture)
    quarter = SIDE * scale // 2
    pen.rectangle(
        (0, 0, quarter * 4 // 5, quarter * 4 // 5), fill=TAGS[drawing.site], outline=(90, 90, 90), width=scale
    )
    places = chance.sample([(quarter, 0), (0, quarter), (quarter, quarter)], COUNTS[drawing.count])
    for left, top in places:
        x, y = (corner + quarter / 2 + chance.uniform(-1, 1) * scale for corner in (left, top))
        _lesion(pen, chance, drawing, x, y, RADII[drawing.size] * scale)
    if drawing.artefact is not None:
        _artefact(pen, seeded("demo", "artefact", drawing.file), drawing.artefact, SIDE * scale)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _lesion(
    pen: ImageDraw.ImageDraw, chance: random.Random, drawing: Drawing, x: float, y: float, radius: float
) -> None:
    ink = INKS[drawing.colour]
    if drawing.border == "smooth":
        corners = [(1.0, step / 60) for step in range(60)]
    else:
        corners = [(0.5 if step % 2 else 1.15, step / 16) for step in range(16)]
    turn = chance.random()
    pen.polygon(
        [
            (
                x + radius * reach * math.cos(math.tau * (at + turn)),
                y + radius * reach * math.sin(math.tau * (at + turn)),
            )
            for reach, at in corners
        ],
        fill=ink,
    )
    if drawing.symmetry == "asymmetric":
        spot, away = radius * 0.4, radius * 0.45
        side = chance.choice((-1, 1))
        centre = (x + side * away, y)
        pen.ellipse((centre[0] - spot, centre[1] - spot, centre[0] + spot, centre[1] + spot), fill=PALE)


def _artefact(pen: ImageDraw.ImageDraw, chance: random.Random, artefact: str, side: int) -> None:
    """Draws hair, ink or a ruler over the lower edge of a picture of this side, or nothing."""
    edge = side - 44
    if artefact == "hair":
        for _ in range(chance.randint(24, 28)):
            x, lean, bend = chance.uniform(-10, side), chance.uniform(-0.5, 0.5), chance.uniform(-6, 6)
            points = [(x + lean * y + bend * math.sin(y / 12), side - y) for y in range(0, 64, 4)]
            pen.line(points, fill=(45, 30, 20), width=5)
    elif artefact == "ink":
        for x in range(chance.randint(-20, 0), side, 34):
            y = edge + chance.randint(0, 12)
            pen.line((x, y + 22, x + 26, y), fill=VIOLET, width=15)
    elif artefact == "ruler":
        pen.rectangle((0, edge, side, side), fill=BONE)
        for number, x in enumerate(range(chance.randint(0, 7), side, 8)):
            pen.line((x, edge, x, edge + (28 if number % 5 == 0 else 16)), fill=(20, 20, 20), width=2)
