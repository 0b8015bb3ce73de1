"""`skinvl concepts fit`: a sparse dictionary of the embeddings of a run's training images, and how far to rely on it.

A share of the groups is held out of every fit, and what the dictionaries explain is measured there. A dictionary is
fitted from several seeds: a unit that recurs is no accident of one start. The first seed's is the one that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from skinvl.data import mixture
from skinvl.evaluate import distributed
from skinvl.evaluate.concept.images import embedded, train_images
from skinvl.model import dictionary as dictionaries
from skinvl.model import dictionary_fit
from skinvl.model.dictionary import KINDS, Dictionary
from skinvl.model.dictionary_fit import FitSettings
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score.stats import Bootstrap, ratio

FEWEST = 20  # images to fit to, and to measure on fewer than a tenth of these
RECURS = 0.7  # cosine from which a unit of another seed is the same
BLOCK = 1024  # images, or units, that are computed at a time


class FitError(ValueError):
    """Images or settings that no dictionary can be fitted by."""


def command(words: Sequence[str]) -> int:
    """0, once the dictionary lies in the run."""
    parser = recipe_parser("concepts fit", "Fit a sparse dictionary to the embeddings of training images.", run=True)
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=KINDS[0],
        help="what keeps it sparse (default batch-topk: at as many active units it explains more than topk, as images "
        "differ in how much they show)",
    )
    parser.add_argument("--units", type=int, metavar="N", help="default 8 times the embedding's width")
    parser.add_argument("--k", type=int, metavar="N", help="active units of an image (default 32; a 16th of the width)")
    parser.add_argument("--steps", type=int, default=5_000, metavar="N", help="default 5,000")
    parser.add_argument("--batch", type=int, default=1024, metavar="N", help="images of a step (default 1024)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many times it is fitted (default 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first, and of what is held out")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the groups (default 0.1)")
    args = parser.parse_intermixed_args(words)
    recipe, out = run.evaluated_towers(args.recipe, args.overrides)
    for name, least in (("units", 2), ("k", 1), ("steps", 1), ("batch", 1), ("seeds", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise FitError(f"--{name} {value}: expected at least {least}")
    if not 0 < args.held_out < 1:
        raise FitError(f"--held-out {args.held_out}: expected a share of the groups between 0 and 1, such as 0.1")
    state = distributed.ranks()
    say = Console(quiet=not state.is_main_process, highlight=False, markup=False)

    # Embeddings of what the run was trained on, or would be; a share of the groups is for measuring alone.
    images = train_images(recipe)
    if state.is_main_process:
        run.begin(out, recipe)
    loaded = load_towers(recipe, state.device)
    images, vectors, unread = embedded(loaded, images, state, say)
    if not state.is_main_process:  # the rest is little work
        return 0
    held_out = held_out_groups(images.groups, args.held_out, args.seed)
    require_enough(recipe, held_out, len(unread))
    settings = settings_of(args.kind, args.units, args.k, args.steps, args.batch, vectors.shape[1])

    embeddings = torch.from_numpy(vectors).to(state.device)
    train, test = (embeddings[torch.from_numpy(rows).to(state.device)] for rows in (~held_out, held_out))
    fitted, by_seed = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        dictionary, revived = dictionary_fit.fit(train, settings, seed, say)
        numbers = {
            "seed": seed,
            "revived": revived,
            "train": measured(dictionary, train, train.mean(0), images.groups[~held_out]),
            "held_out": measured(dictionary, test, train.mean(0), images.groups[held_out]),
        }
        fitted.append(dictionary)
        by_seed.append(numbers)
        say.print(line(numbers), soft_wrap=True)
    recurrence = recurring(fitted, train, args.seed)

    made_of = recipe.data.model_copy(update={"eval": []})
    record = {
        "tower": loaded.facts,
        "sources": [f"{Path(spec.source).name}:{spec.split}" for spec in recipe.data.train],
        "data": {Path(path).parent.name + "/" + Path(path).name: of for path, of in mixture.digests(made_of).items()},
        "settings": {**asdict(settings), "seed": args.seed, "held_out": args.held_out},
        "unreadable": unread,
        "seeds": by_seed,
        "recurrence": recurrence,
    }
    dictionaries.save_dictionary(out, fitted[0], record)
    say.print(f"{out / dictionaries.FOLDER}: {settings.units:,} units{recurs(recurrence)}", soft_wrap=True)
    return 0


def held_out_groups(groups: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """bool[N], the images of a drawn share of the groups, at least one."""
    distinct = np.unique(groups)
    drawn = np.random.default_rng(seed).permutation(distinct)[: max(1, round(share * len(distinct)))]
    return np.isin(groups, drawn)


def require_enough(recipe: PretrainRecipe, held_out: NDArray[np.bool_], unread: int) -> None:
    """Refuses to fit to, or to measure on, next to nothing.

    Raises:
        FitError: there are too few images.
    """
    train, test = int((~held_out).sum()), int(held_out.sum())
    if train < FEWEST or test < FEWEST // 10:
        names = ", ".join(spec.source for spec in recipe.data.train)
        raise FitError(
            f"{names}: {train} images to fit to and {test} held out ({unread} more cannot be read); expected at least "
            f"{FEWEST} and {FEWEST // 10}: train on more images, or change --held-out"
        )


def settings_of(kind: Any, units: int | None, k: int | None, steps: int, batch: int, width: int) -> FitSettings:
    """The settings, with what is not given by the embeddings' width.

    Raises:
        FitError: as many active units as there are, or as the embedding has numbers, which would be no dictionary.
    """
    units = units or 8 * width
    k = k or max(1, min(32, width // 16))
    if k >= min(units, width):
        raise FitError(f"--k {k}: expected fewer than the {units} units, and than the {width} numbers of an embedding")
    return FitSettings(kind, units, k, steps, batch)


def measured(
    dictionary: Dictionary, embeddings: torch.Tensor, mean: torch.Tensor, groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Explained variance and L0 of embeddings float32[N, D] with their intervals by group, and the share of dead units.

    Explained variance is 1 − Σ‖x − x̂‖² / Σ‖x − m‖² with m the mean of the training images; L0 is how many units are
    active in an image; a unit is dead that is active in none of these.
    """
    tables = []
    for block in torch.split(embeddings, BLOCK):
        units = dictionary.units(block)
        lost = (block - dictionary.rebuilt(units)).square().sum(1)
        whole = (block - mean).square().sum(1)
        tables.append(torch.stack([lost, whole, (units > 0).sum(1).float(), torch.ones_like(lost)], 1).cpu())
    bootstrap, rows = Bootstrap(groups.tolist()), np.ones(len(groups), bool)
    sums = bootstrap.sums(torch.cat(tables).double().numpy())
    return {
        "explained_variance": bootstrap.estimate(1 - ratio(sums[:, 0], sums[:, 1]), rows).number(),
        "l0": bootstrap.estimate(ratio(sums[:, 2], sums[:, 3]), rows).number(),
        "dead_share": float((~living(dictionary, embeddings)).float().mean()),
        "images": len(groups),
        "groups": len(bootstrap.counts),
    }


def living(dictionary: Dictionary, embeddings: torch.Tensor) -> torch.Tensor:
    """bool[K], the units that are active in any of the embeddings float32[N, D]."""
    active = [(dictionary.units(block) > 0).any(0) for block in torch.split(embeddings, BLOCK)]
    return torch.stack(active).any(0)


def recurring(fitted: Sequence[Dictionary], embeddings: torch.Tensor, seed: int) -> dict[str, Any]:
    """Which share of the living units of a dictionary another seed's have too, over all ordered pairs.

    A unit recurs where the direction of one of the other's living units has a cosine of RECURS or more with its own
    (a threshold as Paulo & Belrose 2025, arXiv:2501.16615, have it). By chance: the same share among as many random
    directions, drawn from a normal distribution with the embeddings' covariance, since these fill no whole space.
    """
    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(torch.cov(embeddings.T))
    root = vectors * values.clamp_min(0).sqrt()
    alive, random = [], []
    for dictionary in fitted:
        alive.append(dictionary.directions[living(dictionary, embeddings)])
        drawn = torch.randn(alive[-1].shape, generator=generator).to(root.device) @ root.T
        random.append(torch.nn.functional.normalize(drawn, dim=1))
    return {"cosine": RECURS, "share": _shared(alive), "by_chance": _shared(random)}


def _shared(sets: Sequence[torch.Tensor]) -> float | None:
    shares = []
    for own in sets:
        for other in sets:
            if own is not other and len(own) and len(other):
                best = [(block @ other.T).max(1).values for block in torch.split(own, BLOCK)]
                shares.append(float((torch.cat(best) >= RECURS).float().mean()))
    return float(np.mean(shares)) if shares else None


def line(numbers: dict[str, Any]) -> str:
    """What is printed of one seed."""
    held_out = numbers["held_out"]
    explained, l0 = held_out["explained_variance"], held_out["l0"]
    interval = "" if explained["low"] is None else f" [{explained['low']:.3f}, {explained['high']:.3f}]"
    return (
        f"seed {numbers['seed']}: explains {explained['value']:.3f}{interval} of the variance of "
        f"{held_out['images']:,} images of {held_out['groups']:,} groups held out, by {l0['value']:.1f} units each; "
        f"{numbers['train']['dead_share']:.1%} are dead in training, {numbers['revived']:,} were revived"
    )


def recurs(recurrence: dict[str, Any]) -> str:
    """What is printed of how many units recur; nothing of one seed."""
    if recurrence["share"] is None:
        return ""
    return (
        f", {recurrence['share']:.1%} of the living recur from seed to seed "
        f"(cosine ≥ {recurrence['cosine']}), by chance {recurrence['by_chance']:.1%}"
    )
