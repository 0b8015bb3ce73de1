"""What of a reply is kept: its form, its words, what it gives away, what it contradicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinvl.data.example import Facts
from skinvl.sources.asking.request import Reply, Request
from skinvl.sources.reading import screening
from skinvl.sources.reading.leakage import ASKS
from skinvl.sources.reading.replies import QAPair
from skinvl.sources.reading.screening import LEAST, SCREENS, Screened, fault, screen

HER = Facts("clinical", "melanoma", "malignant", "II", 54.0, "female", "forearm")
CLOSE = Facts("dermoscopy", "melanoma", "malignant", "II", 54.0, "female", "forearm")
SAY = "An asymmetric brown patch with a notched border, three colours and a dull surface, on skin with fine hair."
ASK = "What does this image show?"


def asked(
    kind: str = "overview",
    question: str | None = ASK,
    image: str | None = "images/1.jpg",
    context: Mapping[str, str] | None = None,
) -> Request:
    names = ["answer"] if question else ["pairs"]
    schema: dict[str, Any] = {"type": "object", "properties": {name: {} for name in names}}
    return Request("1" * 32, "images/1.jpg", image, "general", kind, "", "", schema, question, context or {})


def reply(text: str, finish: str = "stop") -> Reply:
    return Reply(text, "m", finish, 900, 80, 0.0)


def one(answer: str, facts: Facts = HER, kind: str = "overview", question: str | None = None) -> Screened:
    """What came of the answer to a fixed question, or of a pair that the model wrote where a question is given."""
    if question is None:
        (found,) = screen(asked(kind), reply(json.dumps({"answer": answer})), facts)
    else:
        said = {"pairs": [{"question": question, "answer": answer}]}
        (found,) = screen(asked(kind, None), reply(json.dumps(said)), facts)
    assert found.rule is None or found.rule in SCREENS
    assert len(found.detail) <= 120
    return found


def test_what_is_sound_is_kept_as_it_is() -> None:
    assert one(SAY) == Screened(QAPair(ASK, SAY))
    assert one(SAY, question="Which colours are seen?") == Screened(QAPair("Which colours are seen?", SAY))


@pytest.mark.parametrize(
    ("text", "finish", "rule", "detail"),
    [
        ("The patch is brown.", "stop", "unparsable", "The patch is brown."),
        ("", "stop", "unparsable", "an empty reply"),
        ('{"answer": "An asym', "length", "unparsable", 'cut off after 80 tokens: {"answer": "An asym'),
        ("I\u2019m sorry, but I can\u2019t help with that.", "stop", "refusal", "answer: i'm sorry"),
        ("As an AI language model, I cannot judge this.", "stop", "refusal", "answer: as an ai"),
        (json.dumps({"answer": SAY}), "content_filter", "refusal", "finish reason: content_filter"),
    ],
)
def test_a_reply_that_is_none(text: str, finish: str, rule: str, detail: str) -> None:
    (found,) = screen(asked(), reply(text, finish), HER)
    assert (found.rule, found.detail) == (rule, detail)


def test_pairs_are_judged_one_by_one() -> None:
    pairs = [
        {"question": "Which colours are seen?", "answer": SAY},
        {"question": "What are the signs of melanoma here?", "answer": SAY},
        {"question": "How old is the patient?", "answer": "She is 54 years old."},
    ]
    found = screen(asked("open", None), reply(json.dumps({"pairs": pairs})), HER)
    assert [each.rule for each in found] == [None, "leaks-context", "leaks-context"]
    assert screen(asked("open", None), reply('{"pairs": []}'), HER) == [
        Screened(QAPair("", ""), "no-pairs", "an empty list")
    ]


def test_one_pair_is_one_where_one_was_asked_for() -> None:
    request = Request(
        "1" * 32, "u", "i.jpg", "s", "creativity", "", "", {"properties": {"question": 1, "answer": 1}}, None
    )
    twice = json.dumps({"question": "Which colours?", "answer": "Two."}) + json.dumps(
        {"question": "Which colours are seen?", "answer": SAY}
    )
    assert screen(request, reply(twice), HER) == [Screened(QAPair("Which colours are seen?", SAY))]


@pytest.mark.parametrize(
    ("answer", "rule", "words"),
    [
        ("n/a", "sentinel", "n/a"),
        ("", "sentinel", "answer"),
        ("I'm sorry, I cannot tell what this shows.", "refusal", "i'm sorry"),
        (f"Sure, here is the description: {SAY}", "chatter", "sure, here"),
        (f"{SAY} Let me know if you need more.", "chatter", "let me know"),
        (f"According to the provided context, {SAY}", "caption-leak", "context"),
        (f"As mentioned in the caption, {SAY}", "caption-leak", "caption"),
        ("It cannot be determined from this image what the finding is, nor how it came about.", "ungrounded", "cannot"),
        (f"{SAY}</s>", "special-token", "</s>"),
        (f"<|im_start|>{SAY}", "special-token", "<|im_start|>"),
        ("A brown patch.", "too-short", "3 of 15 words"),
        (f"{SAY} " * 30, "too-long", "words, at most 400"),
        ("Una mancha asimétrica de color marrón con un borde irregular y tres colores, que es muy llamativa.",
         "language", "Spanish"),
        (f"{SAY} She should have it removed.", "leaks-context", "answer: sex: she"),
        (f"{SAY} At 54 years of age it deserves a biopsy.", "leaks-context", "answer: age: 54 years of age"),
        (f"{SAY} He should have it removed.", "invents-context", "answer: sex: he"),
        (f"{SAY} In a 20-year-old it deserves a biopsy.", "invents-context", "answer: age: 20-year-old"),
        (f"{SAY} This is most consistent with a seborrheic keratosis.", "contradicts-label", "asserts seborrheic"),
        (f"{SAY} This is not a melanoma.", "contradicts-label", "denies melanoma"),
    ],
)  # fmt: skip
def test_every_rule_that_drops(answer: str, rule: str, words: str) -> None:
    found = one(answer)
    assert found.rule == rule
    assert words in found.detail
    assert found.tags == ()


def test_lengths_are_counted_to_the_word() -> None:
    words = f"{SAY} {SAY}".split()
    for kind, least in (("overview", 15), ("anatomy", 4), ("of your own", 3)):
        for count in (least - 1, least):
            found = one(" ".join(words[:count]).strip(",.") + ".", kind=kind)
            assert found.rule == ("too-short" if count < least else None), (kind, count)
    assert one("the brown " * 200, kind="features").rule is None
    assert one("the brown " * 200 + "patch", kind="features").rule == "too-long"


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        ("What are the features of this melanoma?", "leaks-context"),
        ("What should this 54-year-old do?", "leaks-context"),
        ("What should she do next?", "leaks-context"),
        ("What should he do next?", "invents-context"),
        ("Why does this malignant patch look uneven?", "leaks-context"),
        ("¿Qué se ve en la imagen de la piel?", "language"),
        ("Colours?", "too-short"),
        ("What does the caption say about it?", "caption-leak"),
        ("What is seen on the leg?", None),
        ("Is this a melanoma or a nevus?", None),
    ],
)
def test_questions_that_a_model_wrote(question: str, rule: str | None) -> None:
    assert one(SAY, kind="creativity", question=question).rule == rule


def test_the_wording_of_the_programme_is_not_judged_as_a_leak() -> None:
    request = asked(question="Is there a melanoma on the forearm of this woman?")
    (found,) = screen(request, reply(json.dumps({"answer": SAY})), HER)
    assert found.rule is None


@pytest.mark.parametrize(
    ("kind", "facts", "answer", "rule", "tags"),
    [
        ("diagnosis", HER, "The notched border favours a melanoma.", None, ("label-conditioned",)),
        ("diagnosis", HER, "A biopsy is needed to rule out melanoma.", None, ()),
        ("differential", HER, "Melanoma, dysplastic nevus and pigmented basal cell carcinoma.", None,
         ("label-conditioned",)),
        ("malignancy", HER, "Three colours make it look malignant.", None, ("label-conditioned",)),
        ("malignancy", HER, "Even colours make it look benign.", "contradicts-label", ()),
        ("overview", HER, "Even colours make it look benign, yet the border on the left side is uneven.", None, ()),
        ("features", HER, f"{SAY} Together they suggest a melanoma.", "leaks-context", ()),
        ("anatomy", HER, "Fine hair and skin lines fit the forearm.", None, ()),
        ("anatomy", CLOSE, "Fine hair and skin lines fit the forearm.", None, ("site-conditioned",)),
        ("diagnosis", HER, "A brown patch on the forearm, of uneven colour.", None, ("site-conditioned",)),
        ("diagnosis", CLOSE, "A brown patch on the forearm, of uneven colour.", "leaks-context", ()),
        ("diagnosis", HER, "A melanoma of the forearm, by its border.", None,
         ("site-conditioned", "label-conditioned")),
        ("anatomy", CLOSE, "The body site cannot be determined from this image alone.", None, ()),
        ("diagnosis", CLOSE, "The diagnosis cannot be determined from this image alone.", "ungrounded", ()),
        ("of your own", CLOSE, "A melanoma of the forearm.", None, ("site-conditioned", "label-conditioned")),
    ],
)  # fmt: skip
def test_what_was_asked_for_is_tagged_and_what_is_seen_is_kept(
    kind: str, facts: Facts, answer: str, rule: str | None, tags: tuple[str, ...]
) -> None:
    found = one(answer, facts, kind)
    assert (found.rule, found.tags) == (rule, tags)


def test_a_task_of_text_alone_may_tell_of_a_patient() -> None:
    said = {"pairs": [{"question": "A 54-year-old woman has a melanoma. What next?", "answer": "Excision."}]}
    (found,) = screen(asked("task", None, image=None), reply(json.dumps(said)), Facts())
    assert found.rule is None


def test_the_caption_that_was_hidden_is_found_again() -> None:
    request = asked("open", None, context={"caption": "Lichen planus of the wrist in a 40-year-old."})
    said = {
        "pairs": [
            {"question": "Which signs of lichen planus are seen?", "answer": "Flat-topped papules with fine lines."}
        ]
    }
    (found,) = screen(request, reply(json.dumps(said)), Facts(modality="clinical"))
    assert (found.rule, found.detail) == ("leaks-context", "question: diagnosis: lichen planus")


def test_unknown_facts_are_no_fault() -> None:
    assert one(f"{SAY} This is a melanoma of the forearm.", Facts()).rule is None


def test_a_repair_is_asked_for_where_it_can_help() -> None:
    assert fault(asked(), json.dumps({"answer": SAY})) is None
    assert fault(asked(), "I'm sorry, I cannot help.") is None
    assert "JSON" in str(fault(asked(), SAY))
    assert "JSON" in str(fault(asked(), '{"answer": "A'))
    assert fault(asked(question=None), '{"pairs": []}') is None


def test_half_of_a_pair_of_surrogates_is_no_text() -> None:
    (found,) = screen(asked(), reply('{"answer": "A macule \\ud83d of even colour."}'), HER)
    assert found.rule == "unparsable"
    assert "surrogate" in found.detail


@given(st.text(max_size=80), st.text(alphabet="he she 54-year old of man melanoma not or back arm?.,", max_size=80))
def test_no_text_is_too_strange(question: str, answer: str) -> None:
    for said in ({"question": question, "answer": answer}, {"question": answer, "answer": question}):
        for found in screen(asked("open", None), reply(json.dumps({"pairs": [said]})), HER):
            assert found.rule is None or SCREENS[found.rule].drops


def test_rules_are_told_with_their_reasons() -> None:
    for name, rule in SCREENS.items():
        assert rule.name == name
        assert rule.reason.endswith(".")
    assert [name for name, rule in SCREENS.items() if not rule.drops] == ["label-conditioned", "site-conditioned"]
    assert set(LEAST) <= {*ASKS, "task"}
    assert max(LEAST.values()) < screening.MOST
