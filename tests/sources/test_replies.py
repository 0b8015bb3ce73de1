"""Replies as models give them: what is read, and that nothing is made up where it cannot be."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinvl.sources.reading.replies import QAPair, pairs, verdict

Q = "What is it?"
ONE = [QAPair(Q, "A macule.")]


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "A macule."}',
        ' {"answer": " A macule. "}\n',
        '```json\n{"answer": "A macule."}\n```',
        '```\n{"answer": "A macule."}\n```',
        'Here it is:\n```JSON {"answer": "A macule."} ```\nI hope that helps {and more}.',
        'Sure! {"answer": "A macule."} Let me know.',
        '{"answer": "A macule.",}',
        '{"Answer": "A macule."}',
        '{"question": "Another?", "answer": "A macule."}',
        '[{"answer": "A macule."}]',
        '{"answer": ["A macule."]}',
        '{"pairs": [{"question": "q", "answer": "A macule."},]}',
        '{"qa_pairs": [{"question_1": "q", "answer_1": "A macule."}]}',
        '<think>Perhaps {"answer": "a nevus"}?</think>{"answer": "A macule."}',
        '{"answer": "…"} {"answer": "A macule."}',
        'No, wait. {"answer": "A papule."} Rather: {"answer": "A macule."}',
        'It is 5" wide, {"answer": "A macule.",}',
    ],
)
def test_an_answer_is_read(text: str) -> None:
    assert pairs(text, Q) == ONE


@pytest.mark.parametrize(
    "text",
    [
        *("", "A macule.", "{}", "[1, 2]", '"A macule."', "null", "{answer: A macule.}", '{"answer": 5}'),
        *('{"answer": "A mac', '{"answer": "A macule."', '```json\n{"answer": "A mac\n```', '{"answer": null}'),
        *('{"reply": "A macule."}', "[" * 5_000, '{"a":' * 5_000, '{"answer": ["a", 1]}', '{"answer": []}'),
        '<think>{"answer": "a nevus"}</think> A nevus.',
    ],
)
def test_what_cannot_be_read_is_not_guessed(text: str) -> None:
    assert pairs(text, Q) is None


def test_questions_are_read_where_the_model_wrote_them() -> None:
    two = [QAPair("What?", "This."), QAPair("Why?", "So.")]
    objects = [{"question": "What?", "answer": "This."}, {"question": "Why?", "answer": "So."}]
    for form in (
        {"pairs": objects},
        objects,
        {"data": {"pairs": objects}},
        {"question_1": "What?", "answer_1": "This.", "question_2": "Why?", "answer_2": "So."},
        {"qa_pairs": [{"question_1": "What?", "answer_1": "This."}, {"question_2": "Why?", "answer_2": "So."}]},
    ):
        assert pairs(json.dumps(form), None) == two
    assert pairs("\n".join(map(json.dumps, objects)), None) == two
    assert pairs('{"instruction": "Sort.", "input": "b a", "output": "a b"}', None) == [QAPair("Sort.\n\nb a", "a b")]
    assert pairs('{"answer": "This."}', None) == [QAPair("", "This.")]
    assert pairs('{"pairs": []}', None) == []
    assert pairs('{"pairs": [{"question": "…", "answer": "…"}, …]}', None) is None
    assert pairs('{"pairs": [{"question": "What?", "answer": "This."}, {"question": "Wh', None) == two[:1]


def test_texts_keep_their_words() -> None:
    said = 'A "patch",} of 5 µm, C:\\x \\(a\\) [,] and\nmore'
    assert pairs(json.dumps({"answer": said}), Q) == [QAPair(Q, said)]
    assert pairs('{"answer": "The \\(x\\) line\nand a tab\there"}', Q) == [
        QAPair(Q, "The \\(x\\) line\nand a tab\there")
    ]
    lines = {"first": "melanoma", "second": "nevus"}
    assert pairs(json.dumps({"answer": lines}), Q) == [QAPair(Q, "first: melanoma\nsecond: nevus")]


@pytest.mark.parametrize(
    "said",
    [
        *(
            r"5 \times 5 mm",
            r"\beta-blockers",
            r"\frac{1}{2}",
            r"\nu and \rho_1",
            r"\textbf{A} \rightarrow B",
            r"a \neq b",
        ),
        *(r"\alpha \pm \upsilon", r"10\times10", r"\bar{x} \not\in", r"\theta, \tau; \nabla."),
    ],
)
def test_latex_with_lone_backslashes_stays_latex(said: str) -> None:
    for written in (said, said.replace("\\", "\\\\")):  # as many models write it, and as JSON wants it
        assert pairs(f'{{"answer": "{written}"}}', Q) == [QAPair(Q, said)]


def test_escapes_that_begin_no_command_stay_escapes() -> None:
    assert pairs(r'{"answer": "a\nbad\ne. five\nu-shaped\n\ni. one\nless\tor \u00e9 \\nu"}', Q) == [
        QAPair(Q, "a\nbad\ne. five\nu-shaped\n\ni. one\nless\tor é \\nu")
    ]


@given(st.text(), st.text(min_size=1).filter(lambda said: said.strip() and said.strip() not in ("…", "...")))
def test_whatever_is_said_comes_back(before: str, said: str) -> None:
    plain = before.translate({ord(char): None for char in '{}[]`<"'})
    assert pairs(f"{plain}\n{json.dumps({'answer': said})}", Q) == [QAPair(Q, said.strip())]


@given(st.text(alphabet='{}[]",:\\`a \n', max_size=60))
def test_no_text_is_too_strange(text: str) -> None:
    found = pairs(text, None)
    assert found is None or all(isinstance(one, QAPair) for one in found)


def test_long_replies_take_little_time() -> None:
    began = time.process_time()
    for text in ("{" * 200_000, '{"a": "' * 20_000, '",' * 100_000, "\\" * 200_000):
        assert pairs(text, Q) is None
    assert time.process_time() - began < 5


def test_a_verdict_is_the_last_object() -> None:
    assert verdict('{"a": 1} then {"supported": "no"}') == {"supported": "no"}
    assert verdict("no") is None
