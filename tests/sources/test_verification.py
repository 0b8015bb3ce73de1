from __future__ import annotations

from dataclasses import replace

import pytest
from test_screening import asked

from skinvl.sources.asking.request import Reply
from skinvl.sources.reading.replies import QAPair
from skinvl.sources.reading.screening import fault
from skinvl.sources.reading.verification import verdict, verification

PAIR = QAPair("What is {it}?", "A %s macule {with} braces.")


def test_it_shows_the_pair_and_not_what_was_hidden() -> None:
    request = asked(context={"diagnosis": "melanoma", "age": "54"})
    found = verification(request, PAIR, "judge")
    assert PAIR.question in found.prompt
    assert PAIR.answer in found.prompt
    assert not any(word in found.prompt + found.system for word in ("melanoma", "54"))
    assert (found.image, found.unit, found.context) == (request.image, request.unit, {})
    assert found.schema["properties"]["supported"]["enum"] == ["yes", "no", "unsure"]
    text = verification(replace(request, image=None), PAIR, "judge")
    assert "image" not in text.prompt


def test_it_is_paid_for_once() -> None:
    request = asked()
    found = verification(request, PAIR, "judge")
    assert len(found.id) == 32
    assert found == verification(request, PAIR, "judge")
    others = [
        verification(request, PAIR, "another"),
        verification(request, QAPair(PAIR.question, "Another."), "judge"),
        verification(replace(request, id="2" * 32), PAIR, "judge"),
    ]
    assert len({request.id, found.id, *(one.id for one in others)}) == 5


@pytest.mark.parametrize(
    ("said", "supported", "reason"),
    [
        ('{"supported": "yes", "reason": " All is seen. "}', "yes", "All is seen."),
        ('```json\n{"supported": "No.", "reason": "No ulcer."}```', "no", "No ulcer."),
        ('{"supported": "UNSURE"}', "unsure", ""),
        ('{"supported": "maybe", "reason": "x"}', "unreadable", '{"supported": "maybe", "reason": "x"}'),
        ('{"supported": true}', "unreadable", '{"supported": true}'),
        ("Yes, it is.", "unreadable", "Yes, it is."),
        ("", "unreadable", ""),
    ],
)
def test_a_verdict_is_read_and_never_guessed(said: str, supported: str, reason: str) -> None:
    found = verdict(Reply(said, "judge", "stop", 1, 1, 0.0))
    assert (found.supported, found.reason) == (supported, reason)
    request = verification(asked(), PAIR, "judge")
    assert (fault(request, said) is not None) == (supported == "unreadable")
