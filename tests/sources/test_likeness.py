"""Which tasks repeat earlier ones; what counts as one was judged by hand on pairs of our own."""

from __future__ import annotations

import numpy as np
import pytest

from skinvl.sources.reading import likeness
from skinvl.sources.reading.likeness import repeats

# Each the same task twice, said a little differently.
SAME = [
    ("Explain to a patient what actinic keratoses are.", "Explain to a patient what an actinic keratosis is."),
    ("List three red flags of a changing mole.", "List 3 red flags of changing moles!"),
    ("Describe how a biopsy of the skin is taken.", "Describe how a skin biopsy is taken."),
    ("What does the ABCDE rule stand for?", "What does the ABCDE rule stand for, and why?"),
    ("Compare psoriasis with atopic dermatitis.", "Compare atopic dermatitis with psoriasis."),
    (
        "Write a short note to a colleague about a suspicious mole.",
        "Write a short note about a suspicious mole to a colleague.",
    ),
]
# Each two tasks that share much.
OTHER = [
    ("Explain to a patient what actinic keratoses are.", "Explain to a student how actinic keratoses are treated."),
    ("List three red flags of a changing mole.", "List three benign causes of a changing nail."),
    ("Describe how a biopsy of the skin is taken.", "Describe how a photograph of the skin is taken."),
    ("What does the ABCDE rule stand for?", "Where does the ABCDE rule fail?"),
    ("Compare psoriasis with atopic dermatitis.", "Compare psoriasis with tinea corporis."),
    ("Is a lesion without pigment ever a melanoma?", "Is a lesion with milia-like cysts ever a melanoma?"),
    ("Which questions matter in a rash with fever?", "Which questions matter in a rash without fever?"),
]


def test_the_same_task_said_differently_is_found() -> None:
    texts = [text for pair in SAME for text in pair]
    found = repeats(texts)
    assert found[::2] == [None] * len(SAME)
    assert [place == 2 * number for number, place in enumerate(found[1::2])].count(True) >= len(SAME) - 1


def test_other_tasks_stay() -> None:
    texts = list(dict.fromkeys(text for pair in OTHER for text in pair))
    assert repeats(texts) == [None] * len(texts)


def test_vectors_decide_where_they_are_given() -> None:
    texts = ["one", "two", "three", "four"]
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [0.0, 0.0]])
    assert repeats(texts, vectors) == [None, None, 0, None]
    assert repeats(texts, vectors, least=0.9999) == [None] * 4
    with pytest.raises(ValueError, match="2 vectors of 4 texts"):
        repeats(texts, vectors[:2])
    assert repeats([]) == []
    assert repeats(["", "?!", ""])[1:] == [0, 0]


def test_a_chain_of_small_changes_is_not_one() -> None:
    angles = np.deg2rad(np.arange(0, 90, 15))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert repeats(list("abcdef"), vectors, least=np.cos(np.deg2rad(20))) == [None, 0, None, 2, None, 4]


def test_blocks_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 4))
    texts = [str(number) for number in range(300)]
    whole = repeats(texts, vectors, least=0.9)
    assert 50 < sum(place is not None for place in whole) < 290
    monkeypatch.setattr(likeness, "BLOCK", 7)
    assert repeats(texts, vectors, least=0.9) == whole
    for place, other in enumerate(whole):
        if other is not None:
            assert other < place
            assert whole[other] is None
            cosine = vectors[place] @ vectors[other] / np.linalg.norm(vectors[place]) / np.linalg.norm(vectors[other])
            assert cosine >= 0.9
