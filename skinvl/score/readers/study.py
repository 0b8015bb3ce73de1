"""A blinded reader study on disk: for each reader a page and a CSV to fill in, and the key that no reader must see.

`DIR/<reader>/` is what a reader gets: `study.html`, one file that loads nothing, and `readings.csv`. Cases stand in an
order of the reader's own under random names, with images encoded anew. What tells their names from one another lies
beside the folder, in `DIR.key.json`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skinvl.data import pages
from skinvl.data.pixels import ImageError, data_url
from skinvl.recipe.files import digest, read_json, whole_folder, write_json, write_text
from skinvl.score.readers.cases import Case, StudyError, cases, predictions

SIDE, QUALITY = 1024, 90  # pixels of the longer side of an image, and of JPEG
MOST = 500  # cases of a page, each of some 100 kB; nobody reads more at a time
LETTERS = "23456789BCDFGHJKMNPQRSTVWXZ"  # of a case's name: none that is taken for another, and no vowel for a word
LENGTH = 5
NAME = re.compile(r"[\w-]{1,40}")
HEAD = ("case", "reading")


def write(where: Path, out: Path, readers: Sequence[str], most: int | None, seed: int) -> str:
    """Writes the study of a run, or of one file of its predictions, whole or not at all; what is in it, in words.

    Args:
        readers: names of the readers, each a folder.
        most: cases that are drawn, where not all.
        seed: of the draw, of the cases' names, and of each reader's order.

    Raises:
        StudyError: what a user can mend.
        PredictionError, ClassError: the predictions cannot be read.
    """
    _check(out, readers)
    path = predictions(where)
    found, left_out = cases(path)
    if (count := most or len(found)) > MOST:
        raise StudyError(f"{path}: {count:,} cases; expected at most {MOST}, which --cases N draws")
    generator = random.Random(f"{seed}-cases")
    chosen = sorted(generator.sample(range(len(found)), min(count, len(found))))
    names = _names(len(chosen), generator)

    # Each image once; a case of which one cannot be read is none.
    kept: dict[str, Case] = {}
    shown: dict[str, list[str]] = {}
    for name, number in zip(names, chosen, strict=True):
        try:
            shown[name] = [data_url(Path(image), SIDE, QUALITY) for image in found[number].images]
            kept[name] = found[number]
        except ImageError as error:
            left_out[f"with an image that cannot be read ({error.rule})"] += 1
    if not kept:
        raise StudyError(f"{path}: no case has images that can be read ({', '.join(left_out)})")

    orders = {reader: random.Random(f"{seed}-{reader}").sample(list(kept), len(kept)) for reader in readers}
    template = pages.template(Path(__file__).with_name("study.html.j2"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as partial:
        for reader, order in orders.items():
            (partial / reader).mkdir()
            asked = [(name, kept[name].question, kept[name].choices, shown[name]) for name in order]
            write_text(partial / reader / "study.html", template.render(reader=reader, cases=asked), "replace")
            lines = [",".join(HEAD), *(f"{name}," for name in order)]
            write_text(partial / reader / "readings.csv", "\n".join(lines) + "\n")
        write_json(key_path(out), _key(path, kept, readers, seed))
    rest = "".join(f"; {count:,} rows left out {reason}" for reason, count in left_out.items())
    return (
        f"{out}: {len(kept):,} cases for {len(readers)} readers ({', '.join(readers)}), of {path}{rest}\n"
        f"{key_path(out)}: the key, which is not for readers"
    )


def key_path(study: Path) -> Path:
    """Where the key of a study lies."""
    return study.with_name(f"{study.name}.key.json")


def read_key(study: Path, path: Path) -> tuple[dict[str, Case], list[str]]:
    """The cases of a study by name, and its readers.

    Args:
        path: the predictions that it must be of.

    Raises:
        StudyError: there is no key, it cannot be read, or is of other predictions.
    """
    key = read_json(key_path(study), "write the study with skinvl score RUN --study DIR NAME,…", StudyError, KEYS)
    if key["digest"] != digest(path):
        raise StudyError(
            f"{key_path(study)}: is of other predictions than {path} ({key['predictions']} as it was then); name the "
            "file that the study was made of, or make a study of the new ones"
        )
    try:
        return {name: _case(plain) for name, plain in key["cases"].items()}, list(key["readers"])
    except (TypeError, KeyError, AttributeError) as error:
        raise StudyError(f"{key_path(study)}: not the key of a study ({type(error).__name__}: {error})") from error


KEYS = ("predictions", "digest", "readers", "seed", "cases")


def _key(path: Path, kept: dict[str, Case], readers: Sequence[str], seed: int) -> dict[str, Any]:
    values = (str(path), digest(path), list(readers), seed, {name: asdict(case) for name, case in kept.items()})
    return dict(zip(KEYS, values, strict=True))


def _case(plain: dict[str, Any]) -> Case:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return Case(**values)


def _names(count: int, generator: random.Random) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(generator.choices(LETTERS, k=LENGTH))] = None
    return list(names)


def _check(out: Path, readers: Sequence[str]) -> None:
    wrong = [name for name in readers if not NAME.fullmatch(name)]
    if wrong or len({*readers}) < len(readers):
        found = repr(wrong[0]) if wrong else "a name twice"
        raise StudyError(
            f"--study … {','.join(readers)}: {found}; expected names of letters, digits, - and _, once each"
        )
    for path in (out, key_path(out)):
        if path.exists():
            raise StudyError(f"{path}: is there already, and may hold readings; name another folder, or remove it")
