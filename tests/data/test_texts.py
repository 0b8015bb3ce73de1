"""The texts of images: what becomes one, what does not and why, whose they are, and what is the same."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.sources import fingerprint, photo
from skinvl.data import texts
from skinvl.data.example import Example, Facts, Message, text, write
from skinvl.data.sentences import sentences
from skinvl.data.texts import TextedImage, TextedSets, TextsError, text_key
from skinvl.recipe.recipe import SourceSpec
from skinvl.recipe.towers import Objective, PretrainData


def example(name: str, image: str, kind: str | None, *answers: str, group: str = "", **facts: str) -> Example:
    turns: list[Message] = []
    for number, answer in enumerate(answers):
        turns += [text("user", "What is shown?", images=not number), text("assistant", answer)]
    known = Facts(kind=kind, **facts)  # type: ignore[arg-type]
    return Example(name, "drawn", (f"images/{image}",), tuple(turns), group or image, "train", "CC0-1.0", known)


def source(folder: Path, split: str, *examples: Example) -> SourceSpec:
    """A prepared source; every image it names is drawn by the number in its name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for path in {folder / name for each in examples for name in each.images} - {*folder.glob("images/*")}:
        photo(int("".join(filter(str.isdigit, path.stem)))).save(path)
    write(folder, split, [replace(each, split=split) for each in examples])
    fingerprint(folder)
    return SourceSpec(source=str(folder), split=split)


def loaded(
    *train: SourceSpec, aspects: str = "caption", evaluation: tuple[SourceSpec, ...] = (), **templates: str
) -> TextedSets:
    data = PretrainData(train=list(train), eval=list(evaluation), texts=templates)
    return texts.load(data, Objective(name="make", aspects=aspects.split()))  # type: ignore[arg-type]


def said(image: TextedImage) -> list[tuple[str, str]]:
    return [(each.aspect, each.text) for each in image.texts]


ALL = "caption ontology concepts sentences"


def test_every_aspect_of_an_image_in_order_and_each_text_once(tmp_path: Path) -> None:
    spec = source(
        tmp_path / "derm",
        "train",
        example("c", "1.png", "concept", "I note: erythema and scale."),
        example("d", "1.png", "diagnosis", "This is most consistent with Tinea corporis."),
        example("h", "1.png", "hierarchy", "It is infectious.", "fungal.", "The diagnosis is Tinea corporis."),
        example("a", "1.png", "description", "A plaque of 2.5 cm.  It scales."),
        example("b", "1.png", "description", "a plaque of 2.5 cm. it scales."),
        example("e", "2.png", "description", "One sentence alone."),
        example("f", "2.png", "diagnosis", "Melanocytic naevi"),
    )
    sets = loaded(spec, aspects=ALL)
    first, second = sets.train
    assert said(first) == [
        ("caption", "A plaque of 2.5 cm. It scales."),
        ("ontology", "Skin condition: infectious, fungal, tinea corporis."),
        ("concepts", "Visible features: erythema and scale."),
        ("sentence", "A plaque of 2.5 cm."),
        ("sentence", "It scales."),
    ]
    assert (first.diagnosis, first.path_of_diagnosis) == ("tinea corporis", ("infectious", "fungal", "tinea corporis"))
    assert said(second) == [("caption", "One sentence alone."), ("ontology", "Skin condition: nevus.")]
    assert (second.diagnosis, second.path_of_diagnosis) == ("nevus", ())
    assert (sets.used, sets.ledger) == (7, [])
    assert [each.text for each in loaded(spec, aspects="sentences").train[1].texts] == ["One sentence alone."]


def test_an_image_keeps_what_its_examples_know_of_it_and_a_template_of_no_kind_is_named(tmp_path: Path) -> None:
    spec = source(
        tmp_path / "derm",
        "train",
        example("a", "1.png", "description", "A plaque."),
        example("b", "1.png", "description", "A nodule.", modality="clinical", sex="female"),
        example("c", "1.png", "description", "A papule.", modality="dermoscopy", site="back"),
        example("d", "2.png", "description", "A scale."),
        example("e", "2.png", "colour", "red", sex="male"),
    )
    sets = loaded(spec, weather="a {answer} day", aspects="caption concepts")
    assert [image.facts for image in sets.train] == [Facts(modality="clinical", sex="female", site="back"), Facts()]
    assert sets.idle == ("weather",)


def test_what_gives_no_text_is_in_the_ledger_with_its_rule_and_nothing_is_lost(tmp_path: Path) -> None:
    both = example("both", "1.png", "comparison", "first")
    both = replace(both, images=("images/1.png", "images/2.png"), messages=(text("user", "?", 2), both.messages[1]))
    none = replace(
        example("none", "1.png", "knowledge", "A fact."),
        images=(),
        messages=(text("user", "?"), text("assistant", "x")),
    )
    examples = (
        both,
        none,
        example("used", "1.png", "description", "A red patch."),
        example("vqa", "1.png", "open", "It is red."),
        example("llava", "2.png", None, "It is red."),
        example("signs", "2.png", "description", "—…"),
        example("point", "2.png", "diagnosis", "."),
        example("disease", "2.png", "diagnosis", "Melanoma."),
        example("colour", "2.png", "colour", "red."),
        example("prose", "2.png", "colour", "It is red. There is a rim around it."),
        example("reason", "2.png", "diagnosis", "The rim is raised. This suggests a basal cell carcinoma."),
        example("gone", "3.png", "description", "A patch."),
    )  # fmt: skip
    spec = source(tmp_path / "all", "train", *examples)
    (tmp_path / "all" / "images" / "3.png").unlink()
    sets = loaded(spec, aspects="caption concepts", colour="a {answer} lesion")
    assert {row.row.removeprefix("all:"): row.rule for row in sets.ledger} == {
        **{"both": "several-images", "none": "no-image", "vqa": "kind-without-text", "llava": "kind-without-text"},
        **{
            "signs": "empty-text",
            "point": "empty-text",
            "disease": "aspect-left-out",
            "prose": "long-answer",
            "reason": "long-answer",
        },
        "gone": "missing-image",
    }
    assert sets.used + len(sets.ledger) == len(examples)
    assert [said(image) for image in sets.train] == [[("caption", "A red patch.")], [("concepts", "a red lesion")]]


def test_a_template_goes_before_the_table_and_unknown_is_a_kind(tmp_path: Path) -> None:
    spec = source(
        tmp_path / "s",
        "train",
        example("a", "1.png", "site", "It is on the left arm."),
        example("b", "2.png", None, "A long answer of its own. In two sentences."),
        example("c", "3.png", "diagnosis", "The diagnosis is melanoma."),
    )
    sets = loaded(
        spec,
        aspects="caption ontology concepts",
        site="on the {answer}",
        unknown="{answer}",
        diagnosis="a photo of {answer}",
    )
    assert [each.text for image in sets.train for each in image.texts] == [
        *("on the left arm", "A long answer of its own. In two sentences.", "a photo of melanoma")
    ]
    assert [image.texts[0].aspect for image in sets.train] == ["concepts", "caption", "ontology"]
    assert sets.train[2].diagnosis == "melanoma"
    with pytest.raises(TextsError, match=r"data\.texts\.site: its texts are of the aspect concepts, which objective"):
        loaded(spec, site="on the {answer}", unknown="{answer}")


def test_a_source_without_a_text_is_refused_with_its_kinds(tmp_path: Path) -> None:
    good = source(tmp_path / "good", "train", example("a", "1.png", "description", "A patch."))
    bad = source(tmp_path / "bad", "train", *(example(str(n), f"{n}.png", "open", "Yes.") for n in (2, 3)))
    with pytest.raises(TextsError, match=r"data\.train: no image of .*bad has a text. Its kinds of question: open 2"):
        loaded(good, bad)
    with pytest.raises(TextsError, match=r"data\.eval: bad"):
        loaded(good, evaluation=(bad,))


def test_keys_tell_one_photograph_and_one_patient_across_sources_and_sets(tmp_path: Path) -> None:
    one = source(
        tmp_path / "one",
        "train",
        example("a", "1.png", "description", "A  Red patch.", group="patient"),
        example("b", "2.png", "description", "A nodule.", group="patient"),
        example("c", "3.png", "description", "A scar."),
    )
    (tmp_path / "two" / "images").mkdir(parents=True)
    photo(1).save(tmp_path / "two" / "images" / "91.jpg", quality=60)
    two = source(tmp_path / "two", "train", example("d", "91.jpg", "description", "a red patch."))
    three = source(tmp_path / "three", "test", example("e", "4.png", "description", "A red patch."))
    sets = loaded(one, two, evaluation=(three,))
    images = [*sets.train, *sets.evaluation["three"]]
    assert [image.path for image in images] == [
        f"images/{name}" for name in ("1.png", "2.png", "3.png", "91.jpg", "4.png")
    ]
    first, second, third, copy, other = images
    assert first.image == copy.image
    assert len({image.image for image in images}) == 4
    assert first.group == second.group == copy.group
    assert len({image.group for image in images}) == 3
    assert first.texts[0].key == copy.texts[0].key == other.texts[0].key == text_key("A red patch.")
    assert len({image.texts[0].key for image in images}) == 3
    assert third.name == "one:images/3.png"


def test_an_image_of_the_train_set_leaves_the_eval_set(tmp_path: Path) -> None:
    one = source(tmp_path / "one", "train", example("a", "1.png", "description", "A patch."))
    (tmp_path / "two" / "images").mkdir(parents=True)
    shutil.copy(tmp_path / "one" / "images" / "1.png", tmp_path / "two" / "images" / "51.png")
    two = source(tmp_path / "two", "test", *(example(n, f"{n}.png", "description", "A scar.") for n in ("51", "52")))
    sets = loaded(one, evaluation=(two,))
    assert [image.path for image in sets.evaluation["two"]] == ["images/52.png"]
    assert Counter(row.rule for row in sets.ledger) == {"left-out-of-eval": 1}


def test_a_disease_has_the_way_that_is_said_elsewhere(tmp_path: Path) -> None:
    spec = source(
        tmp_path / "s",
        "train",
        example("a", "1.png", "diagnosis", "nevus"),
        example("b", "2.png", "hierarchy", "It is neoplastic.", "It is benign.", "It is Nevus."),
        example("c", "3.png", "description", "A dot.", diagnosis="nevus"),
    )
    sets = loaded(spec, aspects="caption ontology")
    assert {image.path_of_diagnosis for image in sets.train} == {("neoplastic", "benign", "nevus")}


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("Papules of 0.5–2.5 cm vs. plaques. Next", 2),
        ("T. rubrum grew. See Fig. 2. No. 3 is healed.", 3),
        ("Scale, crust etc. The rest is normal.", 2),
        ("Scale, crust etc. and pus.", 1),
        ('He said "It itches." Then he left.', 2),
        ("Is it red? Yes! It is.", 3),
        ("First line\nSecond line", 2),
        ("红斑。伴有鳞屑。", 2),
        ("Lesion (approx. 3 mm). Patient from the U.S. Army", 2),
        ("   ", 0),
        ("...", 0),
    ],
)  # fmt: skip
def test_sentences_lose_no_word(whole: str, parts: int) -> None:
    assert len(sentences(whole)) == parts
    assert "".join("".join(sentences(whole)).split()) == ("".join(whole.split()) if parts else "")
