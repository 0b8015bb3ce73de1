"""Batches for two towers, of noise, and what the objectives make of them in one graph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from helpers import two_towers
from skinvl.data.texts import text_key
from skinvl.model import objectives, towers
from skinvl.model.cached_gradients import CachedGradients
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.dual_batch import DEPTH, DualBatch, relation
from skinvl.model.dual_inputs import PixelFormat, TextTokenizer
from skinvl.model.objectives import Features, Pairing
from skinvl.model.objectives.make_ontology import tree_similarity
from skinvl.recipe.towers import Negatives, Objective

ALL = ["caption", "ontology", "concepts", "sentences"]
SETTINGS = {
    "clip": Objective(name="clip"),
    "siglip": Objective(name="siglip"),
    "make": Objective(name="make", aspects=ALL, local=0.7),
    "make-ontology": Objective(name="make-ontology", aspects=ALL, local=0.7),
}
SIDE = 48  # of the images, in pixels: nine patches
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
DROPOUT = {
    "clip": {"attention_dropout": 0.2},
    "siglip": {"attention_dropout": 0.2},
    "beit_bert": {"hidden_dropout_prob": 0.2, "drop_path_rate": 0.3},
}


def model(family: str, dropout: bool = False) -> DualEncoder:
    """Towers smaller than the tiny ones, with random weights, the same at every call."""
    config = DualEncoderConfig.from_pretrained(two_towers.base(family))
    config.projection_dim = SMALL["hidden_size"]
    config.image_and_text[0].image_size = SIDE
    for side in config.image_and_text:
        for name, size in SMALL.items():
            setattr(side, name, size)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):  # BERT has them at 0.1
            setattr(side, name, 0.0)
        for name, rate in DROPOUT[family].items() if dropout else ():
            setattr(side, name, rate)
    torch.manual_seed(0)
    made = DualEncoder(config)
    for name in (*made.images.fixed, *made.texts.fixed):
        made.get_parameter(name).requires_grad_(False)
    return made.train()


def cached(family: str, objective: str, at_once: int, **changes: Any) -> CachedGradients:
    """The family's towers under an objective."""
    made = changes.pop("model", None) or model(family, changes.pop("dropout", False))
    kind = towers.load(family)
    config = made.config if isinstance(made, DualEncoder) else made.get_base_model().config
    tokenizer = TextTokenizer.read(two_towers.base(family), config.text_length, kind)
    settings = changes.pop("settings", SETTINGS[objective])
    return CachedGradients(
        made, tokenizer, objectives.load(settings), Negatives(), at_once, changes.pop("autocast", nullcontext)
    )


def batch(tokenizer: TextTokenizer, images: int, seed: int = 0, texts: int | None = None) -> DualBatch:
    """Images of noise with one to four texts each, two of which read the same."""
    torch.manual_seed(seed)
    kinds = [[0], [0, 1, 3, 3], [0, 3], [1, 2, 3]]
    aspects = [(owner, aspect) for owner in range(images) for aspect in kinds[owner % 4][:texts]]
    said = [
        f"{'long ' * (index * 7 % 5)}text {index * 13 % 11} of {'scale ' * (index % 3)}"
        for index in range(len(aspects))
    ]
    if len(said) > 5:
        said[5] = said[1]
    ids = tokenizer(said)
    distinct = sorted({tuple(tokens) for tokens in ids})
    return DualBatch(
        pixels=torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8),
        format=PixelFormat(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        texts=[list(tokens) for tokens in distinct],
        text=torch.tensor([distinct.index(tuple(tokens)) for tokens in ids], dtype=torch.int64),
        owner=torch.tensor([owner for owner, _ in aspects], dtype=torch.int64),
        aspect=torch.tensor([aspect for _, aspect in aspects], dtype=torch.int64),
        keys=torch.tensor([(index, index // 2, index % 3) for index in range(images)], dtype=torch.int64).view(-1, 3),
        text_keys=torch.tensor([text_key(words) for words in said], dtype=torch.int64),
        paths=torch.tensor([[0, index % 3, *[-1] * (DEPTH - 2)] for index in range(images)]).view(-1, DEPTH),
        names=tuple(f"noise:{index}" for index in range(images)),
    )


def rows(whole: DualBatch, start: int, stop: int) -> DualBatch:
    """Some images of a batch with their texts, as a rank has them."""
    own = (whole.owner >= start) & (whole.owner < stop)
    used = sorted(set(whole.text[own].tolist()))
    return replace(
        whole,
        pixels=whole.pixels[start:stop],
        texts=[whole.texts[number] for number in used],
        text=torch.tensor([used.index(number) for number in whole.text[own].tolist()], dtype=torch.int64),
        owner=whole.owner[own] - start,
        aspect=whole.aspect[own],
        keys=whole.keys[start:stop],
        text_keys=whole.text_keys[own],
        paths=whole.paths[start:stop],
        names=whole.names[start:stop],
    )


def in_one_graph(towers: CachedGradients, given: DualBatch, progress: float) -> torch.Tensor:
    """float32[], the loss as autograd has it: the same chunks in the same order, all of them kept."""
    chunks = towers.text_chunks(given)
    with towers.autocast():
        texts = [towers.model.encode_texts(*towers.tokenizer.pad([given.texts[n] for n in chunk])) for chunk in chunks]
    distinct = torch.cat(texts)[torch.cat(chunks).argsort()]
    embeddings, local = [], []
    for start in range(0, len(given.pixels), towers.at_once):
        some = slice(start, start + towers.at_once)
        with towers.autocast():
            images = towers.model.encode_images(given.normalised(some), patches=towers.objective.needs_patches)
        embeddings.append(images.embeddings)
        if images.patches is not None:
            own = (given.owner >= start) & (given.owner < start + towers.at_once)
            local.append(towers.objective.local(images.patches, distinct[given.text[own]], given.owner[own] - start))
    scale = towers.model.scale
    features = Features(
        torch.cat(embeddings), distinct[given.text], scale.value(), scale.bias, torch.cat(local) if local else None
    )
    related = relation(given.keys, given.owner, given.text_keys, towers.negatives)
    similarity = tree_similarity(given.paths)[:, given.owner]
    return towers.objective.loss(features, Pairing(given.owner, given.aspect, related, similarity), progress)
