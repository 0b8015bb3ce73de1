"""The losses of two towers equal their formulas written out pair by pair, and open_clip's where both say the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import normalize

from helpers import batches
from skinvl.model import objectives
from skinvl.model.objectives import EMPTY, IGNORED, NEGATIVE, POSITIVE, Features, Pairing, make_ontology
from skinvl.recipe import towers

CAPTION, ONTOLOGY, CONCEPTS, SENTENCE = range(4)
ASPECTS = ["caption", "ontology", "concepts", "sentences"]
WIDTH, PATCHES = 16, 7
# Of each image the aspects of its texts: one with all, one without sentences, one without an ontology text, …
TEXTS = (
    (CAPTION, ONTOLOGY, CONCEPTS, SENTENCE, SENTENCE, SENTENCE),
    (CAPTION,),
    (CAPTION, SENTENCE, SENTENCE),
    (CAPTION, ONTOLOGY, SENTENCE),
    (ONTOLOGY, CONCEPTS),
    (CAPTION, ONTOLOGY, SENTENCE, SENTENCE),
)
OWNER = [image for image, aspects in enumerate(TEXTS) for _ in aspects]
COPIES = ((1, 11), (6, 10))  # texts that read the same: the ontology texts of images 0 and 3, captions of 1 and 3
SAME_IMAGE = (2, 5)  # images that are one photograph
SAME_GROUP = (0, 4)  # images of one patient
Naive = Callable[[Features, Pairing], torch.Tensor]


def load(name: str, **settings: Any) -> objectives.Objective:
    """The objective of a recipe, with all aspects."""
    return objectives.load(towers.Objective.model_validate({"name": name, "aspects": ASPECTS, **settings}))


def leaf(values: torch.Tensor) -> torch.Tensor:
    return values.detach().clone().requires_grad_()


def batch(dtype: torch.dtype = torch.float64) -> tuple[Features, torch.Tensor, Pairing]:
    """Features without `local`, patches, and the pairing of six images with 19 texts."""
    torch.manual_seed(0)
    images = normalize(torch.randn(len(TEXTS), WIDTH, dtype=torch.float64), dim=1)
    texts = normalize(torch.randn(len(OWNER), WIDTH, dtype=torch.float64), dim=1)
    patches = normalize(torch.randn(len(TEXTS), PATCHES, WIDTH, dtype=torch.float64), dim=2)
    relation = torch.full((len(TEXTS), len(OWNER)), NEGATIVE, dtype=torch.int8)
    owner = torch.tensor(OWNER)
    for here, there in (SAME_GROUP, SAME_GROUP[::-1]):
        relation[here, owner == there] = IGNORED
    for here, there in (SAME_IMAGE, SAME_IMAGE[::-1]):
        relation[here, owner == there] = POSITIVE
    for first, second in COPIES:
        texts[second] = texts[first]
        relation[OWNER[first], second] = relation[OWNER[second], first] = POSITIVE
    relation[owner, torch.arange(len(owner))] = POSITIVE
    features = Features(
        leaf(images.to(dtype)),
        leaf(texts.to(dtype)),
        leaf(torch.tensor(9.0, dtype=dtype)),
        leaf(torch.tensor(-2.0, dtype=dtype)),
    )
    aspect = torch.tensor([aspect for aspects in TEXTS for aspect in aspects])
    return features, leaf(patches.to(dtype)), Pairing(owner, aspect, relation, similarity()[:, owner])


def similarity() -> torch.Tensor:
    """Of six diagnoses: 0 and 3 the same, 5 beside them, 1 farther off, 2 in another class, 4 unknown."""
    return make_ontology.tree_similarity(
        torch.tensor([[1, 2, 3], [1, 5, -1], [7, -1, -1], [1, 2, 3], [-1, -1, -1], [1, 2, 4]])
    )


def gradients(loss: torch.Tensor, *leaves: torch.Tensor | None) -> list[torch.Tensor]:
    """The loss and its gradients by the leaves, in float64; of a leaf that it does not know, zeros."""
    known = [values for values in leaves if values is not None]
    by = torch.autograd.grad(loss, known, allow_unused=True, retain_graph=True)
    zeros = [torch.zeros_like(values) if grad is None else grad for values, grad in zip(known, by, strict=True)]
    return [loss.detach().double(), *(grad.double() for grad in zeros)]


def apart(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest relative difference of two losses or of two gradients."""
    return max(
        float((first - second).norm() / second.norm().clamp(min=1e-12))
        for first, second in zip(left, right, strict=True)
    )


# Losses written out pair by pair


def info_nce(own: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    return -torch.log(own.exp() / (own.exp() + negatives.exp().sum()))


def rows_of_pairs(features: Features, pairing: Pairing, weight: list[float] | None = None) -> torch.Tensor:
    """Clip as a row for each positive pair; with weights of the texts, MAKE's multi-aspect loss."""
    logits = features.scale * features.images @ features.texts.T
    relation = pairing.relation
    to_texts, to_images, weights, shares = [], [], [], []
    for text in range(len(OWNER)):
        images = (relation[:, text] == POSITIVE).nonzero()[:, 0].tolist()
        for image in images:
            to_texts.append(info_nce(logits[image, text], logits[image, relation[image] == NEGATIVE]))
            to_images.append(info_nce(logits[image, text], logits[relation[:, text] == NEGATIVE, text]))
            shares.append(1 / len(images))
            weights.append((weight[text] if weight else 1) / len(images))
    assert sum(shares) == pytest.approx(len(OWNER))
    to_text = sum(w * loss for w, loss in zip(weights, to_texts, strict=True)) / sum(weights)
    to_image = sum(w * loss for w, loss in zip(shares, to_images, strict=True)) / sum(shares)
    return 0.5 * (to_text + to_image)


def guided(texts: torch.Tensor) -> list[float]:
    """The diagnosis-guided weights: a softmax over the sentences of an image, divided by its maximum."""
    weights = [1.0] * len(OWNER)
    places = [[text for text, owner in enumerate(OWNER) if owner == image] for image in range(len(TEXTS))]
    for image, aspects in enumerate(TEXTS):
        sentences = [text for text, aspect in zip(places[image], aspects, strict=True) if aspect == SENTENCE]
        if ONTOLOGY in aspects and sentences:
            prototype = texts[places[image][aspects.index(ONTOLOGY)]].detach()
            shares = torch.stack([texts[text].detach() @ prototype for text in sentences]).softmax(dim=0)
            for text, share in zip(sentences, shares, strict=True):
                weights[text] = float(share / shares.max())
    return weights


def alignment(features: Features, patches: torch.Tensor, pairing: Pairing, sigma: float, off: int = 0) -> torch.Tensor:
    """MAKE's local loss text by text; `off` takes the patches of an image so many farther on."""
    weights, losses, used = guided(features.texts), [], []
    for text, owner in enumerate(OWNER):
        if pairing.aspect[text] == CAPTION:
            continue
        own_patches = patches[(owner + off) % len(TEXTS)]
        cosines = own_patches @ features.texts[text]
        kept = cosines * (cosines >= sigma)
        attended = (kept / kept.square().sum().sqrt()) @ own_patches
        logits = features.scale * features.texts @ attended
        losses.append(info_nce(logits[text], logits[pairing.relation[owner] == NEGATIVE]))
        used.append(weights[text])
    return sum(weight * loss for weight, loss in zip(used, losses, strict=True)) / sum(used)


# Clip and SigLIP


@pytest.mark.parametrize("bias", [False, True])
def test_one_text_an_image_is_open_clips_loss(bias: bool) -> None:
    torch.manual_seed(1)
    images, texts = (leaf(normalize(torch.randn(9, WIDTH, dtype=torch.float64), dim=1)) for _ in range(2))
    scale = leaf(torch.tensor(14.0, dtype=torch.float64))
    offset = leaf(torch.tensor(-9.0, dtype=torch.float64)) if bias else None
    relation = torch.where(torch.eye(9, dtype=torch.bool), POSITIVE, NEGATIVE).to(torch.int8)
    pairing = Pairing(torch.arange(9), torch.zeros(9, dtype=torch.int64), relation)

    theirs = SigLipLoss() if bias else ClipLoss()
    ours = load("siglip" if bias else "clip").loss(Features(images, texts, scale, offset), pairing, 0.0)
    wanted = gradients(theirs(images, texts, scale, offset), images, texts, scale, offset)

    assert apart(gradients(ours, images, texts, scale, offset), wanted) < 1e-9  # softplus is linear from 20 on
    doubled = load("siglip" if bias else "clip").loss(Features(images, texts, 2 * scale, offset), pairing, 0.0)
    assert apart(gradients(doubled, images, texts, scale, offset), wanted) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_equals_a_row_for_each_pair(dtype: torch.dtype) -> None:
    features, _, pairing = batch()
    wanted = gradients(rows_of_pairs(features, pairing), features.images, features.texts, features.scale)
    narrow = batch(dtype)[0]
    ours = gradients(load("clip").loss(narrow, pairing, 0.0), narrow.images, narrow.texts, narrow.scale)
    assert apart(ours, wanted) < 1e-6

    relation = pairing.relation.where(pairing.relation != IGNORED, NEGATIVE)
    other = load("clip").loss(features, replace(pairing, relation=relation), 0.0)
    assert apart(gradients(other, features.images, features.texts, features.scale), wanted) > 0.01


def test_siglip_sums_pairs_over_images_and_drops_ignored_ones() -> None:
    features, _, pairing = batch()
    leaves = features.images, features.texts, features.scale, features.bias
    assert features.bias is not None
    wanted = torch.zeros((), dtype=torch.float64)
    for image in range(len(TEXTS)):
        for text in range(len(OWNER)):
            logit = features.scale * features.images[image] @ features.texts[text] + features.bias
            wanted = wanted - abs(int(pairing.relation[image, text])) * torch.log(
                torch.sigmoid(int(pairing.relation[image, text]) * logit)
            )
    ours = gradients(load("siglip").loss(features, pairing, 0.0), *leaves)
    assert apart(ours, gradients(wanted / len(TEXTS), *leaves)) < 1e-9
    assert apart(ours, gradients(wanted / len(OWNER), *leaves)) > 0.5

    own = torch.where(torch.arange(len(TEXTS))[:, None] == pairing.owner, POSITIVE, NEGATIVE)
    released = load("siglip", released=True).loss(features, pairing, 0.0).item()
    assert released == load("siglip").loss(features, replace(pairing, relation=own.to(torch.int8)), 0.0).item()
    assert released != pytest.approx(ours[0].item(), rel=1e-3)


def test_positives_by_hand() -> None:
    # Logits ln 3 on the diagonal, 0 elsewhere: of three images each text has two negatives.
    unit = torch.eye(3, dtype=torch.float64)
    third = Features(unit, unit, torch.tensor(math.log(3), dtype=torch.float64))
    relation = torch.full((3, 3), NEGATIVE, dtype=torch.int8).fill_diagonal_(POSITIVE)
    pairing = Pairing(torch.arange(3), torch.zeros(3, dtype=torch.int64), relation)
    clip = load("clip")
    assert clip.loss(third, pairing, 0.0).item() == pytest.approx(math.log(5 / 3))

    # Texts 0 and 1 are positives of images 0 and 1: (0, 0) and (1, 1) weigh a half, as do (0, 1) and (1, 0) at logit 0.
    relation[0, 1] = relation[1, 0] = POSITIVE
    wanted = (math.log(4 / 3) + math.log(2) + math.log(5 / 3)) / 3
    assert clip.loss(third, pairing, 0.0).item() == pytest.approx(wanted)

    # Ignored instead: one negative each, and no pair more.
    relation[0, 1] = relation[1, 0] = IGNORED
    wanted = (2 * math.log(4 / 3) + math.log(5 / 3)) / 3
    assert clip.loss(third, pairing, 0.0).item() == pytest.approx(wanted)

    # The same text at images 0 and 1: what either pair alone would be, and no negative.
    texts = unit[[0, 0, 2]]
    relation[0, 1] = relation[1, 0] = POSITIVE
    both = clip.loss(replace(third, texts=texts), pairing, 0.0).item()
    assert both == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(5 / 3)) / 3)
    released = load("clip", released=True).loss(replace(third, texts=texts), pairing, 0.0).item()
    assert released > both + 0.1


def test_all_positive_is_zero_and_no_nan() -> None:
    features, _, pairing = batch()
    alone = replace(pairing, relation=torch.full_like(pairing.relation, POSITIVE))
    computed = gradients(load("clip").loss(features, alone, 0.0), features.images, features.texts, features.scale)
    assert all((grad == 0).all() for grad in computed)


@pytest.mark.parametrize("name", ["clip", "siglip", "make", "make-ontology"])
def test_an_ignored_pair_has_no_gradient(name: str) -> None:
    # Images are the unit vectors, so that component i of a text is its cosine with image i.
    features, _, pairing = batch()
    features = replace(features, images=torch.eye(len(TEXTS), WIDTH, dtype=torch.float64))
    objective = load(name, local=0, weights="none")
    (by_text,) = torch.autograd.grad(objective.loss(features, pairing, 0.0), features.texts)
    by_pair = by_text[:, : len(TEXTS)].T
    assert (pairing.relation == IGNORED).sum() == 8
    assert (by_pair[pairing.relation == IGNORED] == 0).all()
    assert (by_pair[pairing.relation != IGNORED] != 0).all()


@pytest.mark.parametrize("name", ["clip", "siglip", "make", "make-ontology"])
def test_the_order_of_images_does_not_matter(name: str) -> None:
    features, patches, pairing = batch()
    objective = load(name)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    position = order.argsort()  # of each old image among the new ones
    texts = torch.cat([(pairing.owner == image).nonzero()[:, 0] for image in order])
    assert pairing.similarity is not None
    moved = Pairing(
        position[pairing.owner[texts]],
        pairing.aspect[texts],
        pairing.relation[order][:, texts],
        pairing.similarity[order][:, texts],
    )
    shuffled = replace(features, images=features.images[order], texts=features.texts[texts])
    if objective.needs_patches:
        features = replace(features, local=objective.local(patches, features.texts, pairing.owner))
        shuffled = replace(shuffled, local=objective.local(patches[order], shuffled.texts, moved.owner))
    torch.testing.assert_close(objective.loss(shuffled, moved, 0.3), objective.loss(features, pairing, 0.3))


@pytest.mark.parametrize("name", ["clip", "siglip", "make", "make-ontology"])
def test_autocast_changes_nothing(name: str) -> None:
    features, patches, pairing = batch(torch.float32)
    objective = load(name)

    def loss() -> torch.Tensor:
        local = objective.local(patches, features.texts, pairing.owner) if objective.needs_patches else None
        return objective.loss(replace(features, local=local), pairing, 0.3)

    wanted = gradients(loss(), features.images, features.texts, features.scale)
    with torch.autocast("cpu", torch.bfloat16):
        under = loss()
    assert under.dtype == torch.float32
    computed = gradients(under, features.images, features.texts, features.scale)
    assert all(torch.equal(left, right) for left, right in zip(computed, wanted, strict=True))
    half = replace(features, images=features.images.bfloat16(), texts=features.texts.bfloat16())
    wide = replace(half, images=half.images.float(), texts=half.texts.float())
    assert torch.equal(load("clip").loss(half, pairing, 0.0), load("clip").loss(wide, pairing, 0.0))


# MAKE


def whole(objective: objectives.Objective, features: Features, patches: torch.Tensor, pairing: Pairing) -> Features:
    """The features with `local`, computed in chunks of two images."""
    rows = []
    for start in range(0, len(patches), 2):
        part = (pairing.owner >= start) & (pairing.owner < start + 2)
        rows.append(objective.local(patches[start : start + 2], features.texts[part], pairing.owner[part] - start))
    return replace(features, local=torch.cat(rows))


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_make_equals_its_formulas(dtype: torch.dtype, sigma: float) -> None:
    features, patches, pairing = batch()
    leaves = features.images, features.texts, features.scale, patches
    many = rows_of_pairs(features, pairing, guided(features.texts))
    wanted = gradients(many + 0.7 * alignment(features, patches, pairing, sigma), *leaves)

    objective = load("make", sigma=sigma)
    narrow, small, _ = batch(dtype)
    assert objective.needs_patches
    loss = objective.loss(whole(objective, narrow, small, pairing), pairing, 0.5)
    ours = gradients(loss, narrow.images, narrow.texts, narrow.scale, small)
    assert apart(ours, wanted) < 3e-6 if dtype == torch.float32 else apart(ours, wanted) < 1e-8

    # Twins that are wrong: another image's patches, or its weights; the scale twice; what one rank of two has.
    wrong = many + 0.7 * alignment(features, patches, pairing, sigma, off=1)
    assert apart(gradients(wrong, *leaves), wanted) > 0.1
    turned = rows_of_pairs(features, pairing, guided(features.texts.roll(1, dims=0)))
    wrong = turned + 0.7 * alignment(features, patches, pairing, sigma)
    assert apart(gradients(wrong, *leaves), wanted) > 1e-3
    wrong = objective.loss(
        whole(objective, replace(features, scale=2 * features.scale), patches, pairing), pairing, 0.5
    )
    assert apart(gradients(wrong, *leaves), wanted) > 0.1
    ungathered = []
    for images in (slice(0, 3), slice(3, 6)):
        texts = (pairing.owner >= images.start) & (pairing.owner < images.stop)
        part = Pairing(pairing.owner[texts] - images.start, pairing.aspect[texts], pairing.relation[images][:, texts])
        own = replace(features, images=features.images[images], texts=features.texts[texts])
        own = replace(own, local=objective.local(patches[images], own.texts, part.owner))
        ungathered.append(objective.loss(own, part, 0.5))
    assert apart(gradients(torch.stack(ungathered).mean(), *leaves), wanted) > 0.1


def test_words_of_make_do_what_they_say() -> None:
    features, patches, pairing = batch()
    without = load("make", local=0)
    assert not without.needs_patches
    many = rows_of_pairs(features, pairing, guided(features.texts))
    assert without.loss(features, pairing, 0.0).item() == pytest.approx(many.item(), rel=1e-9)

    # With neither weights nor patches what is left is clip, over all texts.
    plain = load("make", local=0, weights="none").loss(features, pairing, 0.0)
    assert plain.item() == pytest.approx(load("clip").loss(features, pairing, 0.0).item(), rel=1e-12)
    assert plain.item() != pytest.approx(many.item(), rel=1e-4)

    half = load("make", local=0.35)
    full = load("make", local=0.7)
    complete = whole(full, features, patches, pairing)
    aligned = full.loss(complete, pairing, 0.0) - many
    assert (half.loss(complete, pairing, 0.0) - many).item() == pytest.approx(aligned.item() / 2, rel=1e-9)


def test_patches_that_no_text_reaches_leave_numbers() -> None:
    features, patches, pairing = batch()
    objective = load("make", sigma=1.0)
    loss = objective.loss(whole(objective, features, patches, pairing), pairing, 0.0)
    computed = gradients(loss, features.images, features.texts, features.scale, patches)
    assert all(grad.isfinite().all() for grad in computed)


def test_blocks_of_the_alignment_are_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    features, patches, pairing = batch()
    objective = load("make")
    leaves = features.images, features.texts, features.scale, patches
    wanted = gradients(objective.loss(whole(objective, features, patches, pairing), pairing, 0.0), *leaves)
    monkeypatch.setattr("skinvl.model.objectives.make.BLOCK", 4)
    computed = gradients(objective.loss(whole(objective, features, patches, pairing), pairing, 0.0), *leaves)
    assert apart(computed, wanted) < 1e-12


def test_of_several_ontology_texts_the_cosines_are_averaged() -> None:
    texts = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 3]]
    aspect = torch.tensor([ONTOLOGY, ONTOLOGY, SENTENCE, SENTENCE, SENTENCE])
    pairing = Pairing(torch.tensor([0, 0, 0, 0, 1]), aspect, torch.empty(0))
    wanted = torch.tensor([1, 1, 1, math.exp(-0.5), 1], dtype=torch.float64)
    torch.testing.assert_close(objectives.make.diagnosis_weights(texts, pairing, 2), wanted)


# MAKE as released


def released_batch() -> tuple[Features, torch.Tensor, Pairing, torch.Tensor]:
    """13 images with 11 places each, some of them empty, and which are valid, bool[13, 11]."""
    torch.manual_seed(2)
    size = 13
    texts = normalize(torch.randn(size * 11, WIDTH, dtype=torch.float64), dim=1)
    valid = torch.rand(size, 11) < 0.7
    valid[:, 0] = True
    valid[3, 3:] = False  # an image without sentences
    assert not valid[:, 1].all()
    texts[~valid.flatten()] = texts[0].neg()  # all empty texts are one
    aspect = torch.tensor([CAPTION, ONTOLOGY, CONCEPTS, *[SENTENCE] * 8]).repeat(size).where(valid.flatten(), EMPTY)
    owner = torch.arange(size).repeat_interleave(11)
    images = normalize(torch.randn(size, WIDTH, dtype=torch.float64), dim=1)
    patches = normalize(torch.randn(size, PATCHES, WIDTH, dtype=torch.float64), dim=2)
    scale = leaf(torch.tensor(9.0, dtype=torch.float64))
    relation = torch.zeros(size, len(owner), dtype=torch.int8)  # is not read
    return Features(leaf(images), leaf(texts), scale), leaf(patches), Pairing(owner, aspect, relation), valid


def released_loss(
    features: Features, patches: torch.Tensor, valid: torch.Tensor, *, caption_major: bool
) -> torch.Tensor:
    """The released computation row by row; not caption-major, with an image's own texts, and captions masked."""
    images, texts, size = features.images, features.texts, len(features.images)

    def place(image: int, number: int) -> int:
        return number * size + image if caption_major else image * 11 + number

    logits = features.scale * images @ texts.T
    to_text, to_image, local, weight_sum, local_sum, rows = 0, 0, 0, 0.0, 0.0, 0
    for image in range(size):
        weights = [1.0] * 11
        sentences = [number for number in range(3, 11) if valid[image, number]]
        if valid[image, 1] and sentences:
            prototype = texts[place(image, 1)].detach()
            others = torch.stack([texts[place(image, number)].detach() for number in sentences])
            shares = (others @ prototype).softmax(dim=0)
            for sentence, share in zip(sentences, shares, strict=True):
                weights[sentence] = float(share / shares.max())
        attending = texts[image] if caption_major else texts[image * 11]
        cosines = patches[image] @ attending
        kept = cosines * (cosines >= 0)
        aligned = features.scale * ((kept / kept.norm()) @ patches[image]) @ texts.T
        for number in range(11):
            row = image * 11 + number
            if valid[image, number]:
                to_text = to_text - weights[number] * logits[image].log_softmax(dim=0)[row]
                to_image = to_image - logits[:, row].log_softmax(dim=0)[image]
                weight_sum, rows = weight_sum + weights[number], rows + 1
            masked = row < size if caption_major else number == 0
            if valid[image, number] and not masked:
                local = local - weights[number] * aligned.log_softmax(dim=0)[row]
                local_sum += weights[number]
    return 0.5 * (to_text / weight_sum + to_image / rows) + 0.7 * local / local_sum


def test_released_computes_what_upstream_does() -> None:
    features, patches, pairing, valid = released_batch()
    leaves = features.images, features.texts, features.scale, patches
    wanted = gradients(released_loss(features, patches, valid, caption_major=True), *leaves)
    objective = load("make", released=True)
    assert objective.places == (1, 1, 1, 8)
    loss = objective.loss(whole(objective, features, patches, pairing), pairing, 0.0)
    assert apart(gradients(loss, *leaves), wanted) < 1e-9

    own = released_loss(features, patches, valid, caption_major=False)
    assert apart(gradients(own, *leaves), wanted) > 0.1
    doubled = replace(features, scale=2 * features.scale)
    loss = objective.loss(whole(objective, doubled, patches, pairing), pairing, 0.0)
    assert apart(gradients(loss, *leaves), wanted) > 0.1
    with pytest.raises(RuntimeError, match="shape"):
        objective.loss(replace(features, texts=features.texts[1:]), replace(pairing, aspect=pairing.aspect[1:]), 0.0)


def test_released_has_the_gradients_of_the_whole_in_chunks() -> None:
    settings = towers.Objective.model_validate({"name": "make", "aspects": ASPECTS, "released": True})
    cached = batches.cached("clip", "make", 4, settings=settings)
    batch = batches.batch(cached.tokenizer, 4, texts=1)
    places = torch.tensor([CAPTION, EMPTY, EMPTY, *[SENTENCE] * 3, *[EMPTY] * 5])
    batch = replace(
        batch,
        owner=torch.arange(4).repeat_interleave(11),
        aspect=places.repeat(4),
        text=torch.arange(4 * 11) % len(batch.texts),
        text_keys=torch.arange(4 * 11),
    )

    def computed(at_once: int) -> list[torch.Tensor]:
        cached.model.zero_grad()
        loss = replace(cached, at_once=at_once).gradients(batch, 0.3).loss
        return [loss, *(weight.grad.clone() for weight in cached.model.parameters() if weight.grad is not None)]

    whole = computed(4)
    largest = max(float(gradient.norm()) for gradient in whole[1:])
    for left, right in zip(computed(3), whole, strict=True):
        assert float((left - right).norm()) < 1e-5 * largest


def test_released_weights_come_from_other_images() -> None:
    features, _, pairing, valid = released_batch()
    released = objectives.make.ReleasedMakeLoss(towers.Objective.model_validate({"name": "make"}))
    weights = released._weights(features.texts, valid).flatten()
    own = objectives.make.diagnosis_weights(features.texts, pairing, len(valid))
    sentences = (pairing.aspect == SENTENCE) & valid[:, 1].repeat_interleave(11)
    correlation = float(torch.corrcoef(torch.stack([weights[sentences], own[sentences]]))[0, 1])
    assert abs(correlation) < 0.3
    assert (weights[~sentences & (pairing.aspect != EMPTY)] == 1).all()


# Soft targets


def soft_rows(features: Features, pairing: Pairing, weight: list[float], beta: float) -> torch.Tensor:
    """Cross-entropies to soft targets, candidate by candidate."""
    assert pairing.similarity is not None
    logits = features.scale * features.images @ features.texts.T

    def cross_entropy(own: torch.Tensor, others: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        candidates = torch.cat([own[None], others])
        target = beta * (torch.cat([torch.ones(1), near]).double() / 0.07).softmax(dim=0)
        target[0] += 1 - beta
        return -(target * candidates.log_softmax(dim=0)).sum()

    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for image, text in (pairing.relation == POSITIVE).nonzero().tolist():
        own, row, column = logits[image, text], pairing.relation[image], pairing.relation[:, text]
        to_texts = cross_entropy(own, logits[image, row == NEGATIVE], pairing.similarity[image, row == NEGATIVE])
        to_images = cross_entropy(own, logits[column == NEGATIVE, text], pairing.similarity[column == NEGATIVE, text])
        share = weight[text] / int((column == POSITIVE).sum())
        total = total + share * 0.5 * (to_texts + to_images)
        weights += share
    return total / weights


def test_soft_targets_equal_their_formulas() -> None:
    features, _, pairing = batch()
    leaves = features.images, features.texts, features.scale
    objective = load("make-ontology", local=0)
    for progress, beta in ((0.0, 0.5), (0.25, 0.25 * (1 + math.sqrt(0.5))), (0.5, 0.25), (1.0, 0.0)):
        wanted = gradients(soft_rows(features, pairing, guided(features.texts), beta), *leaves)
        assert apart(gradients(objective.loss(features, pairing, progress), *leaves), wanted) < 1e-6
        assert apart(gradients(soft_rows(features, pairing, guided(features.texts), 0.1), *leaves), wanted) > 1e-3

    hard = load("make-ontology", local=0, weights="none").loss(features, pairing, 1.0)
    assert hard.item() == pytest.approx(load("clip").loss(features, pairing, 0.0).item(), rel=1e-9)


def test_released_soft_targets() -> None:
    features, _, pairing, _ = released_batch()
    near = torch.rand(13, 13, dtype=torch.float64)[:, pairing.owner]
    pairing = replace(pairing, similarity=near)
    objective = load("make-ontology", released=True, local=0, weights="none")
    logits = features.scale * features.images @ features.texts.T
    to_texts = near.masked_fill(torch.arange(13)[:, None] == pairing.owner, 1).div(0.07)
    wanted = torch.zeros((), dtype=torch.float64)
    rows = (pairing.aspect != EMPTY).nonzero()[:, 0].tolist()
    for row in rows:
        owner = row // 11
        target = 0.5 * to_texts[owner].softmax(dim=0)
        target[row] += 0.5
        wanted = wanted - 0.5 * (target * logits[owner].log_softmax(dim=0)).sum()
        target = 0.5 * to_texts[:, row].softmax(dim=0)
        target[owner] += 0.5
        wanted = wanted - 0.5 * (target * logits[:, row].log_softmax(dim=0)).sum()
    assert objective.loss(features, pairing, 0.0).item() == pytest.approx(wanted.item() / len(rows), rel=1e-6)
    hard = load("make", released=True, local=0, weights="none").loss(features, pairing, 0.0)
    assert objective.loss(features, pairing, 1.0).item() == pytest.approx(hard.item(), rel=1e-9)


def test_similarity_is_the_shared_depth() -> None:
    wanted = [
        [1, 1 / 3, 0, 1, 0, 2 / 3],
        [1 / 3, 1, 0, 1 / 3, 0, 1 / 3],
        [0, 0, 1, 0, 0, 0],
        [1, 1 / 3, 0, 1, 0, 2 / 3],
        [0, 0, 0, 0, 0, 0],
        [2 / 3, 1 / 3, 0, 2 / 3, 0, 1],
    ]
    torch.testing.assert_close(similarity(), torch.tensor(wanted))
    # Below another class the same name is another disease.
    assert make_ontology.tree_similarity(torch.tensor([[1, 3], [2, 3]]))[0, 1] == 0
