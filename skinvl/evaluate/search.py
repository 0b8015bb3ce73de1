"""What is nearest to a query in a source: images to a text, images and texts to an image; printed, or on a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from skinvl.data import example, pages, texts
from skinvl.data.pixels import FORMATS, ImageError, upright
from skinvl.data.source import source_folder
from skinvl.data.texts import TextedImage, TextsError
from skinvl.evaluate import distributed, embed
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import SourceSpec
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score.ranking import Embeddings

SIDE = 480  # pixels of the longer side of an image on the page
ENDINGS = {*(f".{name.casefold()}" for name in FORMATS), ".jpg", ".tif"}  # of what is meant as an image's path


class SearchError(ValueError):
    """A query or a source that cannot be had."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What is near to a query: an image with its texts, or a text alone."""

    cosine: float
    path: Path | None
    texts: tuple[str, ...]


def search(recipe: PretrainRecipe, query: str, source: str, split: str | None, top: int, html: Path | None) -> None:
    """Prints what is nearest to the query, an image's path or a text, and writes a page of it where `html` names one.

    Raises:
        SearchError: no such source, split or image, or a query without a letter.
    """
    state = distributed.ranks()
    if not state.is_main_process:  # one query is no work to share
        return
    image = _image(query)
    if top < 1:
        raise SearchError(f"--top {top}: expected how many to show, such as 8")
    if html is not None and not html.absolute().parent.is_dir():
        raise SearchError(f"--html {html}: there is no folder {html.parent}; make it, or name another file")
    paths, texted = _pool(recipe, source, split)
    root = source_folder(source)

    # The query among the images, and an image among the texts too.
    console = Console(highlight=False, markup=False)
    loaded = load_towers(recipe, state.device)
    asked = embed.texts(loaded, [query]) if image is None else embed.images(loaded, [(image.parent, image.name)])
    images = embed.images(loaded, [(root, path) for path in paths], say=console)
    texts_of = {each.path: tuple(text.text for text in each.texts) for each in texted}
    nearest = [
        Neighbour(cosine, root / paths[number], texts_of.get(paths[number], ()))
        for number, cosine in _nearest(images, asked[0], top)
    ]
    written = list(dict.fromkeys(text.text for each in texted for text in each.texts))
    by_text = []
    if image is not None and written:
        ranked = _nearest(embed.texts(loaded, written), asked[0], top)
        by_text = [Neighbour(cosine, None, (written[number],)) for number, cosine in ranked]

    for neighbour in nearest:
        console.print(f"{neighbour.cosine:6.3f}  {neighbour.path}", soft_wrap=True)
    for neighbour in by_text:
        console.print(f"{neighbour.cosine:6.3f}  {neighbour.texts[0]}", soft_wrap=True)
    if html is not None:
        write_text(html, page(query, image, source, len(paths), nearest, by_text), "replace")
        console.print(f"{html}: {len(nearest)} images of {len(paths):,}, one file", soft_wrap=True)


def page(
    query: str, image: Path | None, source: str, count: int, nearest: list[Neighbour], by_text: list[Neighbour]
) -> str:
    """One file of HTML that needs nothing else."""
    shown = [(neighbour, pages.thumbnail(neighbour.path, SIDE)) for neighbour in nearest if neighbour.path is not None]
    asked = None if image is None else pages.thumbnail(image, SIDE).uri
    template = pages.template(Path(__file__).with_name("retrieve.html.j2"))
    return template.render(query=query, asked=asked, source=source, count=count, shown=shown, by_text=by_text)


def _image(query: str) -> Path | None:
    """The image that a query names, None if it is a text.

    Raises:
        SearchError: it names none that can be read, or is a text without a letter.
    """
    path = Path(query)
    if path.suffix.casefold() in ENDINGS or ("/" in query and path.is_file()):
        try:
            upright(path)
        except ImageError as error:
            raise SearchError(f"{error.detail}; expected a text, or the path of an image") from error
        return path.absolute()
    if not any(map(str.isalnum, query)):
        raise SearchError(f"{query!r}: a query without a letter; give a text, or the path of an image")
    return None


def _pool(recipe: PretrainRecipe, source: str, split: str | None) -> tuple[list[str], list[TextedImage]]:
    """The images of a source, each once, and those of them that have texts."""
    root = source_folder(source)
    names = example.splits(root)
    if not names or (split is not None and split not in names):
        wanted = f"split {split}" if names else "prepared source"
        raise SearchError(f"{source}: no such {wanted} in {root}; {example.have(root)}")
    wanted_splits = [split] if split is not None else names
    paths = dict.fromkeys(path for name in wanted_splits for row in example.read(root, name) for path in row.images)
    if not paths:
        raise SearchError(f"{root}: its rows show no images; name another source or split")
    specs = [SourceSpec(source=source, split=name) for name in wanted_splits]
    data = recipe.data.model_copy(update={"train": specs, "eval": []})
    try:
        return list(paths), texts.load(data, recipe.objective).train
    except TextsError:  # images alone are enough to look in
        return list(paths), []


def _nearest(pool: Embeddings, query: Embeddings, top: int) -> list[tuple[int, float]]:
    """Numbers and cosines of the nearest, nearest first, of equal ones the first; none of an unread image, NaN."""
    cosines = np.where(np.isfinite(pool).all(axis=1), pool @ query, -np.inf)
    order = np.argsort(-cosines, kind="stable")[:top].tolist()
    return [(number, float(cosines[number])) for number in order if np.isfinite(cosines[number])]
