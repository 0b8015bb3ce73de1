"""`skinvl concepts name`: what each unit of a dictionary is called, how often chance names as well, and its images.

A unit's name is the text whose embedding has the greatest cosine with the unit's direction. Directions are what units
add to the mean image, so that texts are taken from the mean text: what all texts share names nothing.

The null is from shuffled images. A unit's images, the 100 it is most active in, point to the mean of their centred
embeddings, weighted by how active it is in each. The cosine of that with the unit's name is compared with the best
cosine over all names after the images were permuted among the activations: as many images, as active, that have nothing
to do with the unit. `null` is the share of permutations, the one that changes nothing with them, that do at least as
well: of names by chance 5 in 100 have .05 or less. That the best of all names is taken there pays for the choice here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.sparse import csc_array, csr_array, vstack

from skinvl.data import pages
from skinvl.data.pages import Thumbnail
from skinvl.data.progress import Progress
from skinvl.evaluate import distributed, embed
from skinvl.evaluate.concept import vocabulary
from skinvl.evaluate.concept.images import embedded, train_images
from skinvl.model import dictionary as dictionaries
from skinvl.model.dictionary import Dictionary
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.files import read_json, write_json, write_text

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
NAMES, PAGE = "names.json", "names.html"
TOP = 6  # images of a unit that are shown
SIDE = 128  # pixels of their longer side
MOST = 16_000_000  # characters of images on the page
STRONGEST = 100  # images of a unit that are compared with its name
PERMUTATIONS = 200
BLOCK = 1024  # images whose units are computed at a time


class WordsError(ValueError):
    """Words that units cannot be named by."""


@dataclass(frozen=True, slots=True)
class UnitName:
    """What a living unit is called."""

    unit: int
    name: str
    cosine: float  # of its direction with the name
    next: str  # the name that is nearest after it
    margin: float  # by how much it is nearer than the next
    by_images: float  # cosine of what its images point to with the name
    null: float  # share of permutations whose images point to some name at least as well
    active: int  # images it is active in
    images: tuple[int, ...]  # row numbers of the TOP it is most active in


def command(words: Sequence[str]) -> int:
    """0, once the names lie in the run, with their page."""
    parser = recipe_parser("concepts name", "Name the units of a dictionary by text, and show their images.", run=True)
    parser.add_argument("--words", metavar="FILE", help="names to choose from, one on each line (default: our list)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the permutations")
    args = parser.parse_intermixed_args(words)
    recipe, out = run.evaluated_towers(args.recipe, args.overrides)
    state = distributed.ranks()
    say = Console(quiet=not state.is_main_process, highlight=False, markup=False)

    # What can be refused is refused before the towers are loaded.
    names = vocabulary.words(args.words)
    if len(names) < 2:
        raise WordsError(f"{args.words}: one name, which every unit would get; expected several, one on each line")
    dictionary = dictionaries.load(out)
    loaded = load_towers(recipe, state.device)
    images, vectors, unread = embedded(loaded, train_images(recipe), state, say)
    texts = embed.texts(loaded, names, state, say)
    if not state.is_main_process:
        return 0

    active = activations(dictionary.to(state.device), vectors)
    named = unit_names(dictionary.cpu(), active, vectors, texts, names, args.seed, say)
    folder = out / dictionaries.FOLDER
    record = {
        "tower": loaded.facts,
        "dictionary": dictionaries.read_settings(out)["weights"],
        "words": "ours" if args.words is None else Path(args.words).name,
        "vocabulary": list(names),
        "sources": [f"{Path(spec.source).name}:{spec.split}" for spec in recipe.data.train],
        "images": len(vectors),
        "unreadable": unread,
        "permutations": PERMUTATIONS,
        "seed": args.seed,
        "dead": active.shape[1] - len(named),
        "names": [{**asdict(unit), "images": [images.name(row) for row in unit.images]} for unit in named],
    }
    write_json(folder / NAMES, record)
    files = [root / path for root, path in images.shown]
    write_text(folder / PAGE, page(out.name, record, named, files), "replace")
    beyond = sum(unit.null <= 0.05 for unit in named)
    say.print(
        f"{folder / PAGE}: {len(named):,} units named by {len(names)} texts, {record['dead']:,} dead; {beyond:,} names "
        f"fit their units' images better than 95 % of shuffled images fit any, by chance {0.05 * len(named):.0f}",
        soft_wrap=True,
    )
    return 0


def read(out: Path) -> list[dict[str, Any]]:
    """The names of a run's units, as the fields of UnitName.

    Raises:
        DictionaryError: there are none, or they are of another dictionary than the run's.
    """
    again = f"name them with: skinvl concepts name {out}"
    path = out / dictionaries.FOLDER / NAMES
    record = read_json(path, again, dictionaries.DictionaryError, ("names", "dictionary"))
    if record["dictionary"] != dictionaries.read_settings(out)["weights"]:
        raise dictionaries.DictionaryError(f"{path}: of an earlier dictionary than the run's; {again}")
    names: list[dict[str, Any]] = record["names"]
    return names


def activations(dictionary: Dictionary, vectors: Vectors) -> csr_array:
    """float32[N, K], how active each unit is in N images."""
    blocks = []
    for start in range(0, len(vectors), BLOCK):
        block = torch.from_numpy(vectors[start : start + BLOCK]).to(dictionary.mean.device)
        blocks.append(csr_array(dictionary.units(block).cpu().numpy()))
    return csr_array(vstack(blocks))


def unit_names(
    dictionary: Dictionary,
    active: csr_array,
    vectors: Vectors,
    texts: Vectors,
    names: Sequence[str],
    seed: int,
    say: Console,
) -> list[UnitName]:
    """Each living unit's name, with what chance does beside it.

    Args:
        active: float32[N, K], how active each unit is in the images.
        vectors: float32[N, D], of the images.
        texts: float32[V, D], of the names.
    """
    columns = csc_array(active)
    counts = np.diff(columns.indptr)
    alive = np.flatnonzero(counts)
    strongest = [_strongest(columns, unit) for unit in alive.tolist()]
    centred = _of_length_one(texts - texts.mean(0))
    cosines = dictionary.directions.numpy()[alive] @ centred.T
    order = np.argsort(-cosines, axis=1, kind="stable")
    by_images, null = against_shuffled(strongest, vectors, centred, order[:, 0], seed, say)
    named = []
    for row, unit in enumerate(alive.tolist()):
        first, second = order[row, :2].tolist()
        named.append(
            UnitName(
                unit=unit,
                name=names[first],
                cosine=float(cosines[row, first]),
                next=names[second],
                margin=float(cosines[row, first] - cosines[row, second]),
                by_images=float(by_images[row]),
                null=float(null[row]),
                active=int(counts[unit]),
                images=tuple(strongest[row][0][:TOP].tolist()),
            )
        )
    return named


def against_shuffled(
    strongest: Sequence[tuple[Ints, Vectors]], vectors: Vectors, names: Vectors, chosen: Ints, seed: int, say: Console
) -> tuple[Vectors, NDArray[np.float64]]:
    """float32[U], the cosine of what a unit's images point to with its name; float64[U], how often chance does as well.

    Args:
        strongest: of each unit the row numbers of its images, and how active it is in each.
        vectors: float32[N, D], of all images.
        names: float32[V, D], of length one.
        chosen: int64[U], the name of each unit.
    """
    sizes = [len(rows) for rows, _ in strongest]
    starts = np.cumsum([0, *sizes])
    parts = (np.concatenate([each[part] for each in strongest]) for part in (1, 0))
    weights = csr_array((*parts, starts), shape=(len(strongest), len(vectors)))
    pool = vectors - vectors.mean(0)
    own = _of_length_one(weights @ pool) @ names.T
    by_images = np.take_along_axis(own, chosen[:, None], axis=1)[:, 0]

    generator = np.random.default_rng(seed)
    as_well = np.ones(len(chosen))  # of the permutation that changes nothing
    with Progress("shuffled images", PERMUTATIONS, say) as progress:
        for _ in range(PERMUTATIONS):
            shuffled = _of_length_one(weights @ generator.permutation(pool))
            as_well += (shuffled @ names.T).max(axis=1) >= by_images
            progress.advance(1)
    return by_images, as_well / (PERMUTATIONS + 1)


def _strongest(columns: csc_array, unit: int) -> tuple[Ints, Vectors]:
    """Row numbers of the STRONGEST images that a unit is most active in, those first, and how active it is."""
    own = slice(columns.indptr[unit], columns.indptr[unit + 1])
    order = np.argsort(-columns.data[own], kind="stable")[:STRONGEST]
    return columns.indices[own][order], columns.data[own][order]


def _of_length_one(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def page(title: str, record: dict[str, Any], named: Sequence[UnitName], files: Sequence[Path]) -> str:
    """One file of HTML that needs nothing else: the units that chance matches least first, and as many as fit."""
    thumbnails: dict[int, Thumbnail] = {}
    shown, size = [], 0
    for unit in sorted(named, key=lambda unit: (unit.null, -unit.margin)):
        for row in unit.images:
            if row not in thumbnails:
                thumbnails[row] = pages.thumbnail(files[row], SIDE)
        size += sum(len(thumbnails[row].uri or "") for row in unit.images)
        if size > MOST:
            break
        shown.append((unit, [thumbnails[row] for row in unit.images]))
    template = pages.template(Path(__file__).with_name("names.html.j2"))
    return template.render(title=title, record=record, shown=shown, count=len(named))
