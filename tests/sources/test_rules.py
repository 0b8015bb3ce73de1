from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import data_prep
from skinvl.data import questions
from skinvl.data.example import Example, Facts, Message, Part, text
from skinvl.data.questions import Kind
from skinvl.sources import rules
from skinvl.sources.rules import RULES, broken, find, judge, sameness, words

ROOT = Path(__file__).parents[2]
ASK, SAY = "What does this image show?", "A brown macule with a sharp border."


def row(*turns: str, images: tuple[str, ...] = ("a.png",), facts: Facts | None = None) -> Example:
    spoken = [text("assistant" if at % 2 else "user", turn, 0 if at else len(images)) for at, turn in enumerate(turns)]
    return Example("1", "s", images, tuple(spoken), "g", "train", "l", facts or Facts())


def names(*turns: str, images: tuple[str, ...] = ("a.png",), facts: Facts | None = None) -> list[str]:
    return [name for name, _ in broken(row(*turns, images=images, facts=facts))]


BREAKING = {
    "control-character": [
        *(
            (ASK, "5 \times 5 mm"),
            (ASK, "\x08eta cells"),
            (ASK, "\x0crac12"),
            ("The \theta wave?", SAY),
            (ASK, "a\x00b"),
        ),
        *((ASK, "a\nabla"), (ASK, "a \rightarrow b"), (ASK, "a\x85b"), (ASK, "a \textbf{b}"), (ASK, "\x1b[1mBold")),
    ],
    "sentinel": [
        *((ASK, "nan"), (ASK, " N/A. "), (ASK, "-"), (ASK, "<NA>"), (ASK, "No definitive diagnosis"), ("NaN", SAY)),
        *((ASK, "Not applicable."), ("What is the diagnosis?", "None"), ("Where is the lesion?", "unknown")),
    ],
    "refusal": [
        (ASK, "I\u2019m sorry, but I can\u2019t help with this."),
        *((ASK, "Sorry, no."), (ASK, "I am very sorry."), (ASK, "I apologise for that."), (ASK, "My apologies.")),
        (ASK, "As an AI, I do not give diagnoses."),
        (ASK, "I am a language model. However, I recommend that you see a doctor."),
        (ASK, "Unfortunately, I am unable to answer this."),
        (ASK, "I cannot make a definitive diagnosis from afar. However, please see a dermatologist."),
        (ASK, "While I cannot give medical advice, it is best to see a dermatologist."),
    ],
    "chatter": [
        *(("Thank you for the help!", SAY), ("Is there anything else you would like to know?", SAY)),
        *(("Is there anything else I can help you with?", SAY), ("Q: What is it?", SAY), (ASK, "Answer: a macule.")),
        *((ASK, "A: It is a macule."), (ASK, "A macule.\nQ1: Is it flat?\nYes."), (ASK, "A macule in a Q&A.")),
        *((ASK, "These are two question-answer pairs."), (ASK, "Note: the questions follow the image.")),
        *((ASK, "The generated caption is short."), (ASK, "Sure, here is what I see: a macule.")),
        *((ASK, "Here are three questions on the macule."), (ASK, "Please provide me with the image.")),
        *((ASK, "A macule. Feel free to ask more."), (ASK, "A macule. Let me know what you think.")),
        *((ASK, "You're welcome."), (ASK, "I am happy to help you."), (ASK, "A macule. I hope this helps.")),
        *((ASK, "A macule. Thank you for asking."), (ASK, "I'm satisfied with this.")),
        *((ASK, "I've covered all of it."), (ASK, "That covers everything."), (ASK, "That's all I see.")),
    ],
    "caption-leak": [
        *(
            (ASK, "The caption tells of a macule."),
            (ASK, "It is a macule, as in captions."),
            (ASK, "See figure legend."),
        ),
        *((ASK, "According to the authors it is a macule."), (ASK, "It is described briefly in the metadata.")),
        *((ASK, "This description does not mention a macule."), (ASK, "Given the context, it is a macule.")),
        *((ASK, "In the given text it is a macule."), ("What is the topic of this article?", SAY)),
        *(("How many people were in this study?", SAY), (ASK, "It bears the title of a macule.")),
        *(("What did the author report?", SAY), (ASK, 'It is described as "brown".')),
        *((ASK, "The image was taken by Dr. Jones."), (ASK, "The photo was taken at the Royal Skin Hospital.")),
        *((ASK, "Based on the given information, it is a macule."), (ASK, "From the details provided, a macule.")),
        *((ASK, "As stated above, it is a macule."), (ASK, "It has previously been discussed.")),
        *((ASK, "The macule is only mentioned."), (ASK, "There is a brief mention of a macule.")),
        *((ASK, "The image mentions a macule."), ("What was in the previous question?", SAY)),
    ],
    "ungrounded": [
        *(
            (ASK, "The age cannot be reliably determined from the picture."),
            (ASK, "Age in the image cannot be inferred."),
        ),
        *((ASK, "The place of the photo is unknown."), (ASK, "It is hard to tell from the photo.")),
        (ASK, "Based solely on the image, it is difficult to say."),
        *((ASK, "The site is not explicitly stated."), (ASK, "No other details on its age are given.")),
        *((ASK, "That is all the information."), (ASK, "There is no further information.")),
        *((ASK, "There isn't enough context."), (ASK, "A lack of clear details.")),
    ],
    "special-token": [(ASK, "A macule.</s>"), ("<image> What is this?", SAY), (ASK, "A <|im_end|> macule.")],
}

# The other words that make a rule be tried, each in an answer of its own.
ANSWERS = {
    "refusal": [
        *("I can't answer.", "I cannot answer.", "I won't answer.", "I am not able to answer.", "I apologize for it."),
        *("I am not qualified to answer.", "I am an artificial intelligence.", "I'm an AI.", "Apologies."),
    ],
    "chatter": [
        *("Sure, I will.", "Certainly! I'll look.", "Of course, I will.", "Absolutely, I'll look.", "Okay, I'll look."),
        *("OK, I will.", "Here's one short caption.", "It is a question-answer pair."),
    ],
    "caption-leak": [
        *(f"It is reported in the {text_}." for text_ in ("abstract", "document", "excerpt", "metadata", "passage")),
        *(f"It is reported in the {text_}s." for text_ in ("abstract", "document", "excerpt", "paragraph", "passage")),
        *(f"It is reported in the {text_}." for text_ in ("book", "chapter", "articles", "description", "contexts")),
        *(f"The photo was taken at the {place}." for place in ("Skin Institute", "Open University")),
        *("The photo was taken by Prof. Lee.", "The photo was taken by Professor Lee.", "It is told in photo legends."),
        *(f"From the available {told}, a macule." for told in ("context", "data", "description", "text")),
        *("According to the texts, a macule.", "As noted earlier, a macule.", "It has already been covered."),
        *(
            "It was already discussed.",
            "Stated in the descriptions.",
            "Given in the paragraph.",
            "Given by the information.",
            "It was in my last answer.",
            "As noted previously, a macule.",
        ),
    ],
    "ungrounded": [
        *(f"It cannot be {told} from the image." for told in ("ascertained", "inferred", "answered", "assessed")),
        *(f"It cannot be {told} from the image." for told in ("confirmed", "identified", "estimated", "determined")),
        *(f"It is {hard} to say from the image." for hard in ("difficult", "hard", "impossible", "challenging")),
        *(f"The age is not {told}." for told in ("specified", "mentioned", "stated", "disclosed")),
        *("The place of the photo is unclear.", "No detail is given."),
    ],
}
for _name, _answers in ANSWERS.items():
    BREAKING[_name] += [(ASK, answer) for answer in _answers]
BREAKING["chatter"].append(("Thanks for it.", SAY))

HONEST = [
    # refusals and lacks that are findings
    *((ASK, "The patient refused biopsy."), (ASK, "None of the lesions are ulcerated."), (ASK, "No.")),
    *(("How many lesions are there?", "None"), ("Which symptoms are there, if any?", "none")),
    *(("Is it benign, malignant or unknown?", "unknown"), ("What is the cause?", "Unknown.")),
    *((ASK, "It cannot be distinguished clinically from melanoma."), (ASK, "A shave gives no information on depth.")),
    *((ASK, "The cause is unknown."), (ASK, "It cannot be cured."), (ASK, "The margin could not be assessed.")),
    *((ASK, "There is insufficient blood flow."), (ASK, "Surgery is not indicated."), (ASK, "KOH: +")),
    *((ASK, "No, I cannot see any ulcer."), (ASK, "Unfortunately, there is no cure.")),
    *((ASK, "While I cannot give a diagnosis, the border suggests melanoma."),),
    *((ASK, "I am sorry to disagree, but the border suggests melanoma."),),
    *((ASK, "As an AI I can err; however, the border suggests melanoma."),),
    # what is said in spite of a doubt
    *((ASK, "The size cannot be determined from the image, but it seems small."),),
    *((ASK, "There are several, though it is hard to tell from the image how many."),),
    *((ASK, "Three. It is hard to tell from the image whether there are more."),),
    # captions and texts that are asked for, or a part of the image
    *(("Write the caption for this image.", SAY), ("Suggest the caption for it.", SAY), ("Write a caption.", SAY)),
    *((ASK, "In the context of eczema it is common."), (ASK, "The text in the image is a ruler's.")),
    *((ASK, "Based on the scale bar provided, it is 5 mm."), (ASK, "It is often described as a \"herald\" patch.")),
    *((ASK, "It has been mentioned in the literature."), (ASK, "She mentioned pain."), (ASK, "Note the scale.")),
    *((ASK, "A: clinical view. B: dermoscopy."), (ASK, "Hepatitis B: itch."), (ASK, "Of course it is red.")),
    *((ASK, "If it grows, please consult a doctor."), (ASK, "Here is a macule."), (ASK, "They feel free of pain.")),
    *((ASK, "The picture was taken at a magnification of 40."), (ASK, "5 < 6 and <b>bold</b>")),
    *(("Is there anything else you notice?", "A scale."), ("Is there anything else I need to know?", "It may itch.")),
    *((ASK, "A list:\ne. scale\r\n\r\nu-shaped,\na tumor:\tan ulcer\textra\nnot red\r"), (ASK, r"5 \times 5 \mu m")),
    ("A 60-year-old farmer has had a slowly growing, painless, pearly nodule on the left side of his nose for two "
     "years; it bled twice after shaving. No other findings. Which lesion is likely?",
     "Based on the information provided, a basal cell carcinoma."),
]  # fmt: skip


def breaking() -> list[tuple[str, str, str]]:
    return [(name, question, answer) for name, pairs in BREAKING.items() for question, answer in pairs]


@pytest.mark.parametrize(("name", "question", "answer"), breaking())
def test_what_each_rule_finds(name: str, question: str, answer: str) -> None:
    assert names(question, answer) == [name]


@pytest.mark.parametrize(("question", "answer"), HONEST)
def test_honest_words_break_nothing(question: str, answer: str) -> None:
    assert broken(row(question, answer)) == []


def test_rules_say_what_they_do() -> None:
    judged = ["oversized", *BREAKING, "label-conditioned", "near-duplicate"]
    assert [name for name in RULES if name in judged] == judged
    assert {name for name in judged if not RULES[name].drops} == {"special-token", "label-conditioned"}
    assert all(rule.name == name and rule.reason.endswith(".") for name, rule in RULES.items())


def test_details_say_where_and_are_short() -> None:
    long = "The macule" + " and the macule" * 40 + " are mentioned in the caption, sorry. Let me know. </s>"
    found = broken(row(long, "I'm sorry. It is hard to say from the image."))
    assert [name for name, _ in found] == ["refusal", "caption-leak", "special-token"]
    assert found[0] == ("refusal", "answer: i'm sorry")
    assert found[1] == ("caption-leak", "question: the caption")
    assert [len(detail) for _, detail in broken(row(ASK, "Hard to say" + " very" * 35 + " well: image"))] == [120]


def test_a_turn_may_be_long_but_not_a_file() -> None:
    assert names(ASK, "A" * 100_000) == names(ASK, "A." * 50_000) == []
    assert broken(row(ASK, "A" * 100_001 + " caption </s>")) == [("oversized", "a turn of 100,014 characters")]
    assert names(ASK, "A" * 60_000, ASK, "B" * 60_000) == []


def test_a_control_character_is_shown_with_its_neighbours() -> None:
    assert broken(row(ASK, "A macule of 5 \times 5 mm.")) == [
        ("control-character", r"answer: 'A macule of 5 \times 5 mm.'")
    ]
    system = text("system", "Be brief.\x07")
    example = row(ASK, SAY)
    assert broken(dataclasses.replace(example, messages=(system, *example.messages))) == [
        ("control-character", r"system: 'Be brief.\x07'")
    ]


def test_every_pair_of_turns_is_judged() -> None:
    clean = (ASK, SAY)
    assert names(*clean, *clean) == []
    assert names(*clean, ASK, "nan") == ["sentinel"]
    assert names(*clean, "Thanks!", SAY) == ["chatter"]
    assert names(*clean, ASK, "The caption says so. I'm sorry.") == ["refusal", "caption-leak"]
    assert names(*clean, ASK, "It is hard to say from the image.") == ["ungrounded"]
    assert names(ASK, "As mentioned above, a macule.", *clean) == ["caption-leak"]
    assert names(*clean, ASK, "As mentioned above, a macule.") == []  # here something was said before


def test_text_alone_may_be_about_a_text() -> None:
    for name, question, answer in breaking():
        expected = [] if name in ("caption-leak", "ungrounded") else [name]
        assert names(question, answer, images=()) == expected, (question, answer)


def test_what_metadata_told_is_tagged() -> None:
    woman = Facts(age=45.0, sex="female", diagnosis="melanoma")
    about = "It is seen in a 45-year-old."
    assert broken(row(ASK, about, facts=woman)) == [("label-conditioned", "answer: 45-year-old")]
    assert names("She is aged 45. What is it?", SAY, facts=woman) == ["label-conditioned"]
    assert names(ASK, "The leg of a woman.", facts=woman) == ["label-conditioned"]
    assert names(ASK, "The leg of a man, 46 years old; 145-year-old tree.", facts=woman) == []
    assert (
        names(ASK, about, facts=Facts(age=46.0)) == names(ASK, about, facts=Facts(age=45.2)) == names(ASK, about) == []
    )
    assert names(ASK, "The leg of a man.", facts=Facts(sex="male")) == ["label-conditioned"]
    assert names(ASK, about, facts=Facts(age=45.0)) == ["label-conditioned"]
    assert names("Why is it a nevus?", "It is quite even.", facts=Facts(diagnosis="nevus")) == ["label-conditioned"]
    assert broken(row("Why is this melanoma?", "It has an irregular border.", facts=woman)) == [
        ("label-conditioned", "question: melanoma")
    ]
    assert names("Is it melanoma?", "Yes.", facts=woman) == []
    assert names("Which is it: nevus, superficial spreading melanoma or a scar?", "Melanoma.", facts=woman) == []
    listed = "Which is it?\nA. A common blue nevus\nB. A thin pink melanoma"
    assert names(listed, "B. A thin pink melanoma", facts=woman) == []
    assert names("Are melanomas common here?", "They are in this country.", facts=woman) == []


def wordings(value: object) -> Iterator[str]:
    """Every sentence or form of one in a constant."""
    if isinstance(value, Kind):
        yield from wordings((value.open, value.closed, value.sentences))
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from wordings(each)
    elif isinstance(value, dict):
        yield from wordings(tuple(value.values()))
    elif isinstance(value, str) and " " in value and (value.endswith((".", "?")) or "{" in value):
        yield value


def own_wordings() -> dict[str, set[str]]:
    kinds = [make() for make in (questions.diagnosis, questions.malignancy, questions.modality, questions.site)]
    found = {"questions": set(wordings([*kinds, questions.skin_type()]))}
    for name in data_prep.names():
        constants = [value for key, value in vars(data_prep.load(name)).items() if key.isupper() and key != "CARD"]
        found[name] = set(wordings(constants))
    return found


def test_wordings_of_our_own_break_no_rule() -> None:
    found = own_wordings()
    assert sum(map(len, found.values())) > 200
    assert {"derm1m", "mm_skin", "demo", "scin", "pad_ufes_20"} <= {
        name for name, forms in found.items() if len(forms) > 5
    }
    for name, forms in found.items():
        for form in forms:
            for turns in ((form, "Melanoma."), (ASK, form), (form, form)):
                assert broken(row(*turns)) == [], (name, turns)
    planted = (Kind("k", "", {}, ("What does the caption say?",), (), {"no": ("Let me know.",)}), {"a": ["A {value}"]})
    assert list(wordings(planted)) == ["What does the caption say?", "Let me know.", "A {value}"]


def test_questions_of_two_kinds_are_never_one() -> None:
    compared = 0
    for name in data_prep.names():
        kinds = getattr(data_prep.load(name), "KINDS", {})
        kinds = (
            {kind: form for kind, form in kinds.items() if isinstance(form, Kind)} if isinstance(kinds, dict) else {}
        )
        asked = {
            kind: {sameness(row(words_, "Yes.")) for words_ in form.open + form.closed} for kind, form in kinds.items()
        }
        for one, other in itertools.combinations(asked, 2):
            same = set(kinds[one].open + kinds[one].closed) & set(kinds[other].open + kinds[other].closed)
            assert len(asked[one] & asked[other]) == len(same), (name, one, other)
            compared += 1
    assert compared > 50


def unsieved(example: Example) -> list[str]:
    """The rules that are broken, each of them tried."""
    turns = ["".join(part["text"] or "" for part in message["content"]) for message in example.messages]
    question, answer = (turn.lower().translate(words.CURLY) for turn in turns)
    talk = find.Talk(example, turns, set(rules._SIGNS), [(question, answer)])
    return [rule.name for rule in RULES.values() if rule.find and rule.find(talk)]


def test_no_pattern_needs_a_word_that_is_no_sign() -> None:
    assert [unsieved(row(question, answer)) for _, question, answer in breaking()] == [[each[0]] for each in breaking()]


BASE = ("Which patches are on the arm?", "Two scaly patches of 1.5 cm, CD30+, no biopsies.")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (BASE[0].upper(), BASE[1]),
        ("Which patch is there on this arm", "of 1.5 cm, two scaly patch \u2014 no biopsy (CD30+)"),
        ("Please, which arm: patches?", "Two \u201cscaly\u201d patches, 1.5-cm / CD30+; no biopsies"),
    ],
)
def test_what_does_not_count(question: str, answer: str) -> None:
    assert sameness(row(question, answer)) == sameness(row(*BASE))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What patches are on the arm?", BASE[1]),
        (BASE[0], BASE[1].replace("no", "")),
        (BASE[0], BASE[1].replace("1.5", "5.1")),
        (BASE[0], BASE[1].replace("CD30+", "CD30")),
        (BASE[0], BASE[1].replace("Two", "Two two")),
        (BASE[0], BASE[1].replace("scaly", "")),
        (BASE[1], BASE[0]),
    ],
)
def test_what_counts(question: str, answer: str) -> None:
    assert sameness(row(question, answer)) != sameness(row(*BASE)) != sameness(row(*BASE, *BASE))


def test_what_is_asked_again_and_again_is_not_one() -> None:
    """An image with several captions under one instruction, and its choice among one list, keep all of their rows."""
    captions = ("A red patch.", "A scaly red patch.", "A patch of psoriasis.", "Red patches on the arm, scaly.")
    assert len({sameness(row("Describe this image.", caption)) for caption in captions}) == len(captions)
    assert sameness(row(*BASE)) != sameness(row(*BASE, images=("b.png",))) != sameness(row(*BASE, images=()))
    assert sameness(row(*BASE, images=("a.png", "b.png"))) != sameness(row(*BASE, images=("b.png", "a.png")))
    assert sameness(row(*BASE, images=())) == sameness(row(BASE[0], BASE[1].lower(), images=()))


def test_plurals_are_one_word_and_other_endings_are_not() -> None:
    def key(word: str) -> int:
        return sameness(row(ASK, word))

    for one, many in (("mole", "moles"), ("biopsy", "biopsies"), ("patch", "patches"), ("rash", "rashes"),
                      ("abscess", "abscesses"), ("box", "boxes"), ("disease", "diseases")):  # fmt: skip
        assert key(one) == key(many), one
    for one, other in (
        ("nevu", "nevus"),
        ("psoriasi", "psoriasis"),
        ("pus", "pu"),
        ("mas", "mass"),
        ("has", "ha"),
        ("cafe", "caf\u00e9"),
    ):
        assert key(one) != key(other), one
    assert key("CAF\u00c9") == key("caf\u00e9")


def test_keys_are_the_same_in_every_process_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sameness(row(*BASE))
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/sources']; from test_rules import *; print(sameness(row(*BASE)))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        assert int(ran.stdout) == here
    assert 0 <= here < 2**64
    monkeypatch.setattr(words, "KNOWN_WORDS", 5)
    weights = words.WordWeights(frozenset())
    monkeypatch.setattr(rules, "_WEIGHTS", weights)
    for _ in range(3):
        assert sameness(row(*BASE)) == here
        assert 0 < len(weights) <= 5


def test_a_turn_is_all_of_its_parts() -> None:
    def parts(*pieces: str | None) -> Example:
        content: list[Part] = [{"type": "image" if piece is None else "text", "text": piece} for piece in pieces]
        question: Message = {"role": "user", "content": content}
        return dataclasses.replace(row(ASK, SAY), messages=(question, text("assistant", SAY)))

    for pieces in ((None, "See the caption."), ("See the ", None, "caption."), ("See the caption.", None)):
        assert [name for name, _ in broken(parts(*pieces))] == ["caption-leak"]
    assert (
        sameness(parts(None, "Is it", " red?")) == sameness(parts("Is it red", None)) != sameness(parts(None, "Is it"))
    )


def test_odd_texts_are_judged() -> None:
    with pytest.raises(UnicodeEncodeError):  # which skinvl.sources.prepare.blocks turns into a ledger row
        names("\ud800 x", ASK)
    odd = ("\0", "\u202e\u0130", "\x85", "\u4e00", " ", "???", "\ufeff")
    for words_ in odd:
        controls = ["control-character"] if words_ in ("\0", "\x85") else []
        assert [name for name in names(words_, words_) if name != "sentinel"] == controls
    assert names(ASK, "???") == ["sentinel"]
    assert judge(Example("1", "s", (), (), "g", "train", "l")) == ([], 0)


def released(shared: Path) -> dict[int, Example]:
    """The conversations of the released file by the line where they start."""
    found = {}
    with (shared / "mm_skin" / "MM-Skin_test.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header, last = next(lines), lines.line_num
        for values in lines:
            record = dict(zip(header, values, strict=True))
            found[last + 1] = row(record["question"], record["answer"], images=(record["image"],))
            last = lines.line_num
    return found


def test_the_released_file(shared: Path) -> None:
    examples = released(shared)
    assert len(examples) == 5452
    found = {line: [name for name, _ in broken(example)] for line, example in examples.items()}
    assert found == {line: unsieved(example) for line, example in examples.items()}
    counts = Counter(name for each in found.values() for name in each)
    bands = {"caption-leak": (90, 110), "chatter": (75, 95), "ungrounded": (40, 55), "refusal": (18, 24)}
    assert set(counts) == set(bands)
    for name, (least, most) in bands.items():
        assert least <= counts[name] <= most, counts
    assert 195 <= sum(map(bool, found.values())) <= 225
    # what is known of this file: 39 rows speak of a caption, 39 are chatter or a refusal, 17 say that it cannot be told
    spoken = {line: " ".join(part["text"] or "" for turn in each.messages for part in turn["content"])
              for line, each in examples.items()}  # fmt: skip
    captions = [line for line, words_ in spoken.items() if "caption" in words_.lower()]
    assert len(captions) == 39
    assert all("caption-leak" in found[line] for line in captions)
    assert sum(bool({"chatter", "refusal"} & set(each)) for each in found.values()) >= 39
    assert sum("cannot be determined" in spoken[line] or "ungrounded" in each for line, each in found.items()) >= 17
    assert counts["ungrounded"] >= 17
    # all definitions of sameness find the three exact repetitions of this file, and no other row
    assert len({sameness(example) for example in examples.values()}) == 5449


def test_clean_rows_give_nothing() -> None:
    """The twin of the test above: made rows of the same kind and number break nothing."""
    things, colours, sites = ("macule", "plaque", "nodule", "cyst"), ("red", "brown", "pale"), ("arm", "leg", "scalp")
    made = [
        row(f"What is the colour of the {thing} on the {site}?", f"The {thing} on the {site} is {colour}, mark {mark}.")
        for thing in things
        for colour in colours
        for site in sites
        for mark in range(150)
    ]
    assert len(made) == 5400
    assert not any(broken(example) for example in made)
    assert len({sameness(example) for example in made}) == len(made)
