"""Licences are read as they are stated, the strictest of them holds, and none grants more than what it was made of."""

from __future__ import annotations

import pytest
import yaml

import data_prep
from skinvl.data import licences
from skinvl.data.licences import LicenceError, chosen, read
from skinvl.recipe.shipped import shipped

APACHE, LLAMA = read("Apache-2.0"), read("Llama 3.2 Community License")
FREE, BY, NC = read("CC0-1.0"), read("CC-BY-4.0"), read("CC-BY-NC-4.0")
SA, ND, RESEARCH, UNKNOWN = (
    read("CC-BY-NC-SA-3.0"),
    read("CC-BY-ND-4.0"),
    read("research use agreement"),
    read("unknown"),
)


@pytest.mark.parametrize("name", data_prep.names())
def test_every_card_is_read(name: str) -> None:
    licence = data_prep.load(name).CARD.licence
    words = read(licence).words
    expected = {
        **dict.fromkeys(("ddi", "dermavqa", "dermnet", "dicom", "mm_skin", "skincon"), "research only"),
        **dict.fromkeys(("llava", "passion", "patch16"), "not known: nothing is taken to be permitted"),
        "derm7pt": "non-commercial, no derivatives",
        "skincare": "non-commercial, no derivatives",
        "demo": "any use",
        "fitzpatrick17k": "non-commercial, share alike",
        **dict.fromkeys(("derm12345", "pad_ufes_20", "scin"), "any use with attribution"),
        **dict.fromkeys(("derm1m", "dermasynth", "ham10000", "isic", "milk10k", "slice_3d"), "non-commercial"),
    }
    assert words == expected[name]


def test_every_base_is_read() -> None:
    for path in shipped("recipes/bases").glob("*.yaml"):
        licence = yaml.safe_load(path.read_text(encoding="utf-8")).get("licence")
        assert read(licence).known == (licence != "not verified"), path.name


@pytest.mark.parametrize(
    ("stated", "name", "words"),
    [
        ("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0", "non-commercial, no derivatives"),
        ("CC-BY-NC-SA-4.0, no derivatives without permission", None, "non-commercial, no derivatives"),
        ("CC-BY-4.0, no derivatives", None, "no derivatives"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", "share alike"),
        ("cc by 4.0", "cc-by-4.0", "any use with attribution"),
        ("CC0", "cc0-1.0", "any use"),
        ("CC-0", "cc0-1.0", "any use"),
        ("MIT License", "mit", "any use"),
        ("Llama 3.1 Community License", "llama3.1", "its own conditions"),
        ("Gemma Terms of Use", "gemma", "its own conditions"),
        ("Health AI Developer Foundations terms", "health-ai-developer-foundations", "its own conditions"),
        ("CC-BY-4.0, Apache-2.0", "cc-by-4.0", "any use with attribution"),
        ("CC-BY-4.0, CC-BY-NC-4.0", "cc-by-nc-4.0", "non-commercial"),
        ("CC0-1.0, Llama 3.2 Community License", "llama3.2", "its own conditions"),
        ("none stated (research only), CC-BY-4.0", None, "research only"),
        ("CC-BY-4.0, the terms of an API", None, "not known: nothing is taken to be permitted"),
        ("CC-BY-4.0, Llama 3.2 Community License", None, "not known: nothing is taken to be permitted"),
        ("Microsoft Research License", None, "research only"),
        ("proprietary", None, "not known: nothing is taken to be permitted"),
        (None, None, "not known: nothing is taken to be permitted"),
        ("", None, "not known: nothing is taken to be permitted"),
        ("CC0-1.0, CC-BY-4.0", "cc-by-4.0", "any use with attribution"),
    ],
)
def test_licences_by_their_words(stated: str | None, name: str | None, words: str) -> None:
    assert (read(stated).id, read(stated).words) == (name, words)


@pytest.mark.parametrize(
    ("base", "data", "name"),
    [
        (APACHE, [FREE], "apache-2.0"),
        (APACHE, [FREE, BY], "apache-2.0"),
        (FREE, [FREE], "cc0-1.0"),
        (FREE, [BY], "cc-by-4.0"),
        (APACHE, [BY, NC], "cc-by-nc-4.0"),
        (APACHE, [NC, SA], "cc-by-nc-sa-3.0"),
        (APACHE, [SA, read("CC-BY-NC-SA-4.0")], "cc-by-nc-sa-4.0"),
        (APACHE, [read("CC-BY-SA-4.0"), NC], "other: non-commercial-share-alike"),
        (LLAMA, [BY], "llama3.2"),
        (LLAMA, [NC], "other: llama3.2-non-commercial"),
        (LLAMA, [SA], "other: llama3.2-non-commercial-share-alike"),
        (read("Health AI Developer Foundations"), [FREE], "other: health-ai-developer-foundations"),
        (APACHE, [RESEARCH, NC], "other: research-only"),
        (APACHE, [UNKNOWN], "other: terms-not-known"),
        (UNKNOWN, [FREE], "other: terms-not-known"),
        (APACHE, [ND], "other: no-derivatives"),
    ],
)
def test_the_strictest_holds(base: licences.Terms, data: list[licences.Terms], name: str) -> None:
    found = chosen(base, {str(place): one for place, one in enumerate(data)})
    assert (found.id if found.name is None else f"{found.id}: {found.name}") == name
    assert (found.link == "LICENSE") == (found.id == "other")
    assert bool(found.private) == any(not one.known or not one.derivatives for one in (base, *data))


@pytest.mark.parametrize(
    ("base", "data", "asked", "why"),
    [
        (APACHE, NC, "apache-2.0", r"data is non-commercial \(CC-BY-NC-4\.0\)"),
        (APACHE, NC, "cc-by-4.0", "non-commercial"),
        (APACHE, SA, "cc-by-nc-4.0", "share-alike"),
        (APACHE, read("CC-BY-NC-SA-4.0"), "cc-by-nc-sa-3.0", "share-alike"),
        (APACHE, RESEARCH, "cc-by-nc-4.0", "research only"),
        (APACHE, UNKNOWN, "mit", "not known"),
        (APACHE, ND, "cc-by-nc-4.0", "no derivatives"),
        (LLAMA, FREE, "apache-2.0", "hands its own licence down"),
        (UNKNOWN, FREE, "apache-2.0", "the base has terms that are not known"),
        (APACHE, FREE, "do-what-you-like", "not a licence that is known here"),
    ],
)
def test_a_licence_that_grants_more_is_refused(
    base: licences.Terms, data: licences.Terms, asked: str, why: str
) -> None:
    with pytest.raises(LicenceError, match=why):
        chosen(base, {"data": data}, asked)


def test_a_licence_that_grants_less_is_taken() -> None:
    assert chosen(APACHE, {"data": BY}, "CC-BY-NC-4.0").id == "cc-by-nc-4.0"
    assert chosen(APACHE, {"data": NC}, "cc-by-nc-nd-4.0").id == "cc-by-nc-nd-4.0"
    assert chosen(APACHE, {"data": SA}, "cc-by-nc-sa-4.0").id == "cc-by-nc-sa-4.0"  # a later version
    assert chosen(LLAMA, {"data": FREE}, "llama3.2").id == "llama3.2"
    other = chosen(APACHE, {"data": NC}, "other")
    assert (other.id, other.name, other.link) == ("other", "as-cc-by-nc-4.0", "LICENSE")
    assert chosen(APACHE, {"data": ND}, "other").private


def test_what_is_made_of_llama_is_named_so() -> None:
    for name in ("ada/skin", "ada/my-Llama", "Llama/skin", "ada/llama-skin"):
        with pytest.raises(LicenceError, match=r"begin with \"Llama\"; such as \w+/Llama-"):
            licences.refuse_name(LLAMA, name)
    licences.refuse_name(LLAMA, "ada/Llama-skin")
    licences.refuse_name(APACHE, "ada/skin")
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright" in (licences.notice(LLAMA) or "")
    assert licences.notice(APACHE) is None
