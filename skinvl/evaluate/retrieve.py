"""`skinvl retrieve`: how well two towers find an image's texts and a text's images; or what is nearest to a query.

Each eval set is a pool of its own, of images and of the texts that read differently. What is right for a query is a set
(`evaluate.pools`); a rank shares ties, and stands beside that of a random order (`score.ranking`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from scipy.sparse import csr_array

from skinvl.data import texts
from skinvl.data.texts import TextedImage
from skinvl.evaluate import distributed, embed, search
from skinvl.evaluate.pools import Pools, pools
from skinvl.model.towers_loaded import LoadedTowers, load_towers
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import ranking, retrieval
from skinvl.score.ranking import Embeddings
from skinvl.score.retrieval import DIRECTIONS, RankedQuery, RetrievedSet
from skinvl.score.stats import RESAMPLES, Float

SAMPLE = 12  # queries of a direction whose nearest neighbours are kept, to be looked at
NEAREST = 5  # of each
SEED = 0  # of which queries these are
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


class RetrieveError(ValueError):
    """Nothing to retrieve in, or a query that cannot be asked."""


def main(words: Sequence[str]) -> int:
    """0, once the ranks lie in the run, or what is nearest to a query is printed.

    Raises:
        RetrieveError: neither an eval set nor a query with its source is named; see the functions for the rest.
    """
    parser = recipe_parser("retrieve", "Rank the texts of images and the images of texts, or show what is nearest.",
                           run=True)  # fmt: skip
    parser.usage = "skinvl retrieve RUN [QUERY SOURCE [--split S] [--top N] [--html FILE]] [key=value ...]"
    parser.epilog = "QUERY is a text in quotes, or the path of an image; SOURCE a prepared source, by name or path."
    parser.add_argument("--split", metavar="NAME", help="of the source, with a query (default: all)")
    parser.add_argument("--top", type=int, default=8, metavar="N", help="how many are shown of a query (default 8)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with what is nearest to a query")
    args = parser.parse_intermixed_args(words)
    overrides = [word for word in args.overrides if OVERRIDE.match(word)]
    query = [word for word in args.overrides if word not in overrides]
    recipe, out = run.evaluated_towers(args.recipe, overrides)
    if query:
        if len(query) != 2:
            raise RetrieveError(
                f"{' '.join(query)!r}: expected a query and the source to look in, as in "
                f'skinvl retrieve {args.recipe} "annular scaly plaque" derm1m --top 8'
            )
        search.search(recipe, query[0], query[1], args.split, args.top, args.html)
    elif args.split or args.html:
        raise RetrieveError("--split and --html belong to a query; name it and the source to look in")
    else:
        retrieve_sets(recipe, out)
    return 0


def retrieve_sets(recipe: PretrainRecipe, out: Path) -> None:
    """Writes the ranks of each eval set to `out/eval/retrieval`.

    Pools are cleaned of what the recipe trains on, whether it has trained or not: a base is measured in the same ones.

    Raises:
        RetrieveError: the recipe names no eval set.
        PoolError: a set has too little left.
    """
    if not recipe.data.eval:
        raise RetrieveError(
            "data.eval: names no source, so that there is nothing to retrieve in; name one in the recipe, or on the "
            'command line: "data.eval=[{source: NAME, split: test}]"'
        )
    state = distributed.ranks()
    say = Console(quiet=not state.is_main_process, highlight=False, markup=False)
    sets = texts.load(recipe.data, recipe.objective)
    cleaned = {name: pools(name, images, sets.train) for name, images in sets.evaluation.items()}
    if state.is_main_process:
        run.begin(out, recipe)
    loaded = load_towers(recipe, state.device)
    for name, own in cleaned.items():
        path = out / "eval" / "retrieval" / f"{name}.jsonl"
        own, images, written = embedded(loaded, name, own, state, say)
        if not state.is_main_process:
            continue
        retrieved = retrieve(loaded, name, own, images, written)
        retrieval.write(path, retrieved)
        left_out = "".join(f"; {count:,} left out, {rule}" for rule, count in own.left_out.items())
        say.print(
            f"{path}: {len(own.images):,} images, {len(own.texts):,} texts ({own.aspect}){left_out}", soft_wrap=True
        )
        for direction, numbers in retrieved.settings["numbers"].items():
            depth = "R@10" if "R@10" in numbers["numbers"] else "R@1"
            number, chance, unseen = (numbers[name][depth] for name in ("numbers", "chance", "blind"))
            interval = "" if number["low"] is None else f" [{number['low']:.3f}, {number['high']:.3f}]"
            beside = f"by chance {chance:.3f}, one order {unseen:.3f}"
            say.print(f"  {direction}: {depth} {number['value']:.3f}{interval}, {beside}", soft_wrap=True)


def embedded(
    loaded: LoadedTowers, name: str, own: Pools, state: PartialState, say: Console
) -> tuple[Pools, Embeddings, Embeddings]:
    """The pools without the images that cannot be read, and the embeddings of both, float32[N, D] and [M, D]."""
    images = embed.images(loaded, [(image.root, image.path) for image in own.images], state, say)
    readable = np.flatnonzero(np.isfinite(images).all(axis=1)) if images.shape[1] else np.empty(0, np.int64)
    if len(readable) < len(images):
        kept = pools(name, [own.images[number] for number in readable.tolist()], ())
        left_out = {**own.left_out, "unreadable image": len(images) - len(readable)}
        own, images = replace(kept, left_out=left_out), images[readable]
    return own, images, embed.texts(loaded, [text.text for text in own.texts], state, say)


def retrieve(loaded: LoadedTowers, name: str, own: Pools, images: Embeddings, written: Embeddings) -> RetrievedSet:
    """The ranks of every query in both directions, with what they were made with."""
    # Either side asks the other; what is right is the same, turned around.
    rows: dict[str, list[RankedQuery]] = {}
    orders: dict[str, dict[str, dict[str, float]]] = {}
    neighbours: dict[str, list[dict[str, Any]]] = {}
    askers = ([image.path for image in own.images], [text.text for text in own.texts])
    owners = (own.images, [own.images[number] for number in own.first])
    sides = ((images, written, own.right, own.grouped), (written, images, own.right.T.tocsr(), own.grouped.T.tocsr()))
    for direction, ids, asking, (queries, pool, right, grouped) in zip(DIRECTIONS, askers, owners, sides, strict=True):
        ranked, widened = (ranking.ranks(queries, pool, positives) for positives in (right, grouped))
        orders[direction] = {"chance": ranking.chance(right), "blind": ranking.blind(right)}
        counts = np.diff(right.indptr).tolist()
        rows[direction] = [
            RankedQuery(direction, query, owner.source, str(owner.group), rank, count, wide, owner.facts)
            for query, owner, rank, count, wide in zip(
                ids, asking, ranked.tolist(), counts, widened.tolist(), strict=True
            )
        ]
        neighbours[direction] = _neighbours(direction, own, queries, pool, right, ranked)
    settings = {
        "set": name,
        "images": len(own.images),
        "texts": len(own.texts),
        "aspect": own.aspect,
        "texts_cut": sum(loaded.tokenizer.cut(text.text) for text in own.texts),
        "left_out": own.left_out,
        "pools": own.digest,
        "orders": orders,
        **loaded.facts,
        "neighbours": neighbours,
    }
    retrieved = RetrievedSet(settings, rows)
    settings["numbers"] = retrieval.block(retrieved, RESAMPLES, SEED)["directions"]
    return retrieved


def _neighbours(
    direction: str, own: Pools, queries: Embeddings, pool: Embeddings, right: csr_array, ranked: Float
) -> list[dict[str, Any]]:
    """The nearest of a fixed sample of queries, and whether each is right."""
    chosen = sorted(random.Random(SEED).sample(range(len(queries)), min(SAMPLE, len(queries))))
    by_image = direction == DIRECTIONS[0]
    shown = []
    for number in chosen:
        cosines = pool @ queries[number]
        correct = {*right.indices[right.indptr[number] : right.indptr[number + 1]].tolist()}
        nearest = np.argsort(-cosines, kind="stable")[:NEAREST].tolist()
        shown.append(
            {
                "query": _shown(own, number, by_image),
                "rank": float(ranked[number]),
                "nearest": [
                    {**_shown(own, other, not by_image), "cosine": float(cosines[other]), "right": other in correct}
                    for other in nearest
                ],
            }
        )
    return shown


def _shown(own: Pools, number: int, is_image: bool) -> dict[str, str | None]:
    """An image by its path, or a text."""
    if not is_image:
        return {"image": None, "text": own.texts[number].text}
    image: TextedImage = own.images[number]
    return {"image": str((image.root / image.path).absolute()), "text": None}
