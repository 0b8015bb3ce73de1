"""What is retrieved in: what belongs together, and what training saw and is therefore left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from skinvl.data import seen
from skinvl.data.texts import Aspect, ImageText, TextedImage, text_key
from skinvl.evaluate.pools import PoolError, pools

LONG = "A sharply bordered plaque of the left forearm with central clearing and fine scale at its raised edge."


def image(
    name: str, *said: str, photograph: int | None = None, group: int | None = None, aspect: Aspect = "caption"
) -> TextedImage:
    """An image of its own photograph and patient, unless others are given."""
    number = sum(map(ord, name)) * 1000
    texts = tuple(ImageText(text, aspect, text_key(text)) for text in said)
    key = number if photograph is None else photograph
    return TextedImage(Path("derm"), f"{name}.png", "derm", texts, key, number if group is None else group, None)


def dense(right: object) -> list[list[int]]:
    return [row.nonzero()[0].tolist() for row in right.toarray()]  # type: ignore[attr-defined]


def test_all_texts_of_a_photograph_are_right_for_each_of_its_copies_and_equal_texts_stand_once() -> None:
    images = [
        image("a", "Red plaque", "Scaly edge", photograph=1),
        image("b", "red  plaque", photograph=2),
        image("c", "Blue nodule", photograph=1),
        image("d", "Smooth papule", photograph=3),
    ]
    own = pools("set", images, [])
    assert [text.text for text in own.texts] == ["Red plaque", "Scaly edge", "Blue nodule", "Smooth papule"]
    assert dense(own.right) == [[0, 1, 2], [0], [0, 1, 2], [3]]
    assert dense(own.right.T) == [[0, 1, 2], [0, 2], [0, 2], [3]]
    assert own.first == [0, 0, 2, 3]
    assert own.left_out == {}


def test_a_patients_other_images_are_right_only_apart() -> None:
    own = pools("set", [image("a", "One", group=7), image("b", "Two", group=7), image("c", "Three")], [])
    assert dense(own.right) == [[0], [1], [2]]
    assert dense(own.grouped) == [[0, 1], [0, 1], [2]]


def test_captions_come_before_what_is_said_of_a_diagnosis_and_images_without_one_are_counted() -> None:
    mixed = [image("a", "One"), image("b", "Two"), image("c", "Skin condition: scar.", aspect="ontology")]
    own = pools("set", mixed, [])
    assert (own.aspect, len(own.images), own.left_out) == ("caption", 2, {"no caption": 1})
    diagnoses = [image(name, f"Skin condition: {name}.", aspect="ontology") for name in "ab"]
    assert pools("set", diagnoses, diagnoses[:0]).aspect == "ontology"


def test_what_training_saw_is_left_out_by_image_by_group_and_by_caption() -> None:
    train = [
        image("t1", "Something else", photograph=1),
        image("t2", "And this", group=2),
        image("t3", LONG.upper()),
        image("t4", "Melanoma of the back"),
    ]
    images = [
        image("a", "One", photograph=1),
        image("b", "Two", group=2),
        image("c", LONG),
        image("d", "melanoma of  the back"),
        image("e", "Four"),
        image("f", "Five"),
    ]
    own = pools("set", images, train)
    assert [each.path for each in own.images] == ["e.png", "f.png"]
    assert own.left_out == {"trained-on: image": 1, "trained-on: group": 1, "trained-on: caption": 2}


def test_a_phrase_that_several_patients_share_gives_no_image_away_and_a_long_text_does() -> None:
    train = [image("t1", "a red lesion", LONG), image("t2", "a red lesion", LONG)]
    images = [image("a", "a red lesion"), image("b", "a blue lesion"), image("c", LONG)]
    images.append(image("d", "a green lesion", LONG))
    own = pools("set", images, train)
    assert [each.path for each in own.images] == ["a.png", "b.png"]
    assert own.left_out == {"trained-on: caption": 2}


def test_a_diagnosis_is_shared_by_nature_and_leaves_nothing_out() -> None:
    names = ["scar", "wart"]
    train = [image("t", "Skin condition: scar.", aspect="ontology")]
    images = [image(name, f"Skin condition: {name}.", aspect="ontology") for name in names]
    assert pools("set", images, train).left_out == {}


def test_a_set_with_nothing_left_is_refused_with_the_reasons() -> None:
    images = [image("a", "One", photograph=1), image("b", "Two")]
    with pytest.raises(PoolError, match=r"1 images and 1 texts .* 1 trained-on: image"):
        pools("set", images, [image("t", "Other", photograph=1)])
    with pytest.raises(PoolError, match="none left out"):
        pools("set", [], [])


def test_other_pools_have_another_digest() -> None:
    images = [image("a", "One"), image("b", "Two")]
    own = pools("set", images, [])
    assert own.digest == pools("set", images[::-1], []).digest
    assert own.digest != pools("set", [*images, image("c", "Three")], []).digest
    assert seen.LONG == 12
