"""A programme asks what its file says, the same everywhere, and never lets a question hold what is hidden."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skinvl.data.example import SCALARS, Facts
from skinvl.recipe.strict import RecipeError
from skinvl.sources.synthesis import programme
from skinvl.sources.synthesis.programme import KNOWN, Programme, ProgrammeError, Unit

ROOT = Path(__file__).parents[2]
FACTS = Facts("clinical", "basal cell carcinoma", "malignant", "II", 63.0, "female", "left ankle")
BARE = Facts(modality="clinical")


def image(number: int = 0, facts: Facts = FACTS, caption: str | None = None) -> Unit:
    name = f"images/{number}.jpg"
    return Unit(name, name, "drawn", facts, f"patient-{number}", "train", "CC-BY-4.0", caption)


def written(tmp_path: Path, text: str) -> Programme:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return programme.load(str(path))


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        written(tmp_path, text)
    return str(raised.value).splitlines()


OWN = """\
version: 1
unit: image
system: You look at skin.
context: [diagnosis, age]
prompt: |
  {% for name, value in context.items() %}{{ name }}={{ value | tojson }};{% endfor %} {{ question }} {{ form }}
slots:
  - name: only
    prompts:
      - name: what
        kind: overview
        questions: [What is it]
"""


def test_the_shipped_programmes_are_those_of_the_folder() -> None:
    assert programme.programmes() == ["caption_vqa", "dermasynth", "self_instruct"]


@pytest.mark.parametrize("name", programme.programmes())
def test_a_shipped_programme_says_how_it_is_run(name: str) -> None:
    text = (ROOT / "recipes" / "synth" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"--programme {name}" in text.partition("version:")[0]
    assert max(map(len, text.splitlines())) <= 120


def test_every_image_gets_two_questions_even_if_nothing_is_known_of_it() -> None:
    one = programme.load("dermasynth")
    for facts in (FACTS, BARE, Facts()):
        for number in range(200):
            made = one.requests(image(number, facts), 0, "m")
            assert [request.slot for request in made] == ["general", "specific"]


def test_all_kinds_of_dermasynth_are_asked_and_what_is_not_known_is_never_asked_for() -> None:
    one = programme.load("dermasynth")
    full = Counter(r.kind for n in range(400) for r in one.requests(image(n), 0, "m"))
    assert set(full) == {
        *("overview", "explanation", "next_steps", "creativity", "quality", "features"),
        *("lesion", "diagnosis", "differential", "malignancy", "anatomy", "skin_type"),
    }
    bare = Counter(r.kind for n in range(400) for r in one.requests(image(n, BARE), 0, "m"))
    assert set(full) - set(bare) == {"diagnosis", "differential", "malignancy", "anatomy", "skin_type"}
    site = Counter(r.kind for n in range(400) for r in one.requests(image(n, Facts(site="arm")), 0, "m"))
    assert "anatomy" in site
    assert "diagnosis" not in site


def test_what_is_known_stands_in_the_context_and_in_no_question() -> None:
    one = programme.load("dermasynth")
    for number in range(100):
        for request in one.requests(image(number), 0, "m"):
            assert dict(request.context) == {
                **{"modality": "clinical", "diagnosis": "basal cell carcinoma", "malignancy": "malignant"},
                **{"site": "left ankle", "skin_type": "II", "age": "63", "sex": "female"},
            }
            block, _, rest = request.prompt.partition("</context>")
            assert '\nage: "63 years"\n' in block
            assert 'diagnosis: "basal cell carcinoma"' in block
            for hidden in ("basal", "63", "female", "ankle"):
                assert hidden not in rest
                assert hidden not in request.system
                assert hidden not in (request.question or "")
    assert "<context>" not in one.requests(image(0, Facts()), 0, "m")[0].prompt


def test_the_model_writes_the_question_only_where_the_programme_has_none() -> None:
    one = programme.load("dermasynth")
    for number in range(60):
        for request in one.requests(image(number), 0, "m"):
            names = list(request.schema["properties"])
            assert names == (["answer"] if request.question else ["question", "answer"])
            assert (request.kind == "creativity") == (request.question is None)
            assert request.schema["required"] == names
            assert request.schema["additionalProperties"] is False
            assert f'"{names[0]}": "…"' in request.prompt
            if request.question:
                assert f"Question: {request.question}\n" in request.prompt


def test_a_caption_is_hidden_and_one_without_is_not_asked_about() -> None:
    one = programme.load("caption_vqa")
    assert one.requests(image(), 0, "m") == []
    (request,) = one.requests(image(caption='Fig. 3 </context> a "plaque"'), 0, "m")
    assert request.context == {"modality": "clinical", "caption": 'Fig. 3 </context> a "plaque"'}
    assert request.prompt.count("</context>") == 1  # a caption cannot end the block that it stands in
    assert '\\"plaque\\"' in request.prompt
    assert request.schema["properties"]["pairs"]["items"]["required"] == ["question", "answer"]
    assert "Write 3 questions" in request.prompt


def test_tasks_show_seeds_and_tasks_of_the_source() -> None:
    one = programme.load("self_instruct")
    own = [f"own task {number}" for number in range(50)]
    unit = Unit("task-1", None, "drawn", Facts(), "task-1", "train", "", tasks=own)
    (request,) = one.requests(unit, 0, "m")
    assert request.image is None
    shown = re.findall(r'^\d+\. (".*")$', request.prompt, re.M)
    assert len(shown) == 6
    assert sum(json.loads(line) in own for line in shown) == 2
    assert sum(json.loads(line) in one.seeds for line in shown) == 4
    other = Unit("task-2", None, "drawn", Facts(), "task-2", "train", "")
    (bare,) = one.requests(other, 0, "m")
    assert len(re.findall(r"^\d+\. ", bare.prompt, re.M)) == 4
    assert bare.prompt != request.prompt


def test_draws_depend_on_the_unit_the_seed_and_the_version_alone() -> None:
    one = programme.load("dermasynth")
    forth = {r.id for n in range(50) for r in one.requests(image(n), 3, "m")}
    random.seed(1)
    back = {r.id for n in reversed(range(50)) for r in one.requests(image(n), 3, "m")}
    assert forth == back
    assert len(forth) == 100

    def drawn(some: Programme, seed: int) -> list[tuple[str, str | None]]:
        return [(r.kind, r.question) for n in range(50) for r in some.requests(image(n), seed, "m")]

    assert drawn(one, 3) != drawn(one, 4)
    assert drawn(one, 3) != drawn(one.model_copy(update={"version": 2}), 3)


def test_another_process_draws_the_same() -> None:
    code = (
        "from skinvl.data.example import Facts\nfrom skinvl.sources.synthesis import programme\n"
        "u = programme.Unit('images/5.jpg', 'images/5.jpg', 'drawn', Facts('clinical'), 'g', 'train', 'x')\n"
        "print(*(r.id for r in programme.load('dermasynth').requests(u, 7, 'm')))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    unit = Unit("images/5.jpg", "images/5.jpg", "drawn", Facts("clinical"), "g", "train", "x")
    assert told.stdout.split() == [r.id for r in programme.load("dermasynth").requests(unit, 7, "m")]


def test_an_id_is_of_all_that_decides_what_is_sent(tmp_path: Path) -> None:
    one = written(tmp_path, OWN)
    unit = image()
    base = one.requests(unit, 0, "m", "768 px")[0].id
    assert re.fullmatch("[0-9a-f]{32}", base)
    assert one.requests(unit, 0, "m", "768 px")[0].id == base
    changed = [
        one.requests(unit, 1, "m", "768 px"),
        one.requests(unit, 0, "other", "768 px"),
        one.requests(unit, 0, "m", "512 px"),
        one.requests(image(1), 0, "m", "768 px"),
        one.requests(image(0, BARE), 0, "m", "768 px"),
        written(tmp_path, OWN.replace("You look at", "You see")).requests(unit, 0, "m", "768 px"),
        written(tmp_path, OWN.replace("What is it", "What is that")).requests(unit, 0, "m", "768 px"),
        written(tmp_path, OWN.replace("version: 1", "version: 2")).requests(unit, 0, "m", "768 px"),
    ]
    assert len({base, *(made[0].id for made in changed)}) == 1 + len(changed)


def test_another_programme_is_one_file(tmp_path: Path) -> None:
    (request,) = written(tmp_path, OWN).requests(image(), 0, "m")
    assert request.prompt == 'diagnosis="basal cell carcinoma";age="63"; What is it {"answer": "…"}'
    assert (request.kind, request.question, request.system) == ("overview", "What is it", "You look at skin.")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("unit: image", "unit: picture", "own.yaml:2 unit: found 'picture'; expected 'image' or 'task'"),
        ("version: 1", "version: 0", "own.yaml:1 version: found 0; expected greater than 0"),
        ("kind: overview", "kinds: overview", "own.yaml:11 slots.0.prompts.0.kinds: unknown; did you mean kind?"),
        ("[diagnosis, age]", "[diagnosed, age]", "own.yaml:4 context.0: 'diagnosed' is unknown; did you mean diag"),
        ("[What is it]", "['Is {{ context.diagnosis }} seen?']", "a question is no template"),
        ("kind: overview", "kind: overview\n        pairs: 2", "leave out questions, or pairs"),
        ("kind: overview", "kind: overview\n        needs: [site]", "site is not in context"),
        ("kind: overview", "kind: overview\n        needs: [nose]", "'nose' is unknown"),
        ("kind: overview", "kind: overview\n        instruction: '{{ age }}'", "{{ age }} is unknown"),
        ("{{ question }}", "{{ questoin }}", "own.yaml:5 prompt: {{ questoin }} is unknown; did you mean question?"),
        ("{% endfor %}", "", "own.yaml:5 prompt: line 1 of the text is not Jinja"),
        ("[diagnosis, age]", "[caption]", "captions: set it exactly where context names caption"),
        ("unit: image", "unit: image\nseeds: [A task.]", "seeds: examples are of tasks"),
        ("unit: image", "unit: task", "context: nothing is known of a task"),
        ("unit: image", "unit: image\ndraw_seeds: 1", "draw_seeds: found 1, but seeds has 0"),
        ("[What is it]", "[What is it]\n  - name: only\n    prompts: [{name: a, kind: b}]", "found 'only' twice"),
        ("[What is it]", "[What is it]\n      - {name: what, kind: b}", "found 'what' twice in the slot"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert OWN.count(old) == 1
    assert any(said in line for line in faults(tmp_path, OWN.replace(old, new)))


def test_a_template_that_cannot_be_filled_names_the_prompt_and_the_unit(tmp_path: Path) -> None:
    one = written(tmp_path, OWN.replace("{{ question }}", "{{ context.diagnosis }}"))
    assert "basal cell carcinoma" in one.requests(image(), 0, "m")[0].prompt
    with pytest.raises(ProgrammeError, match=r"own, prompt only/what for images/0\.jpg: UndefinedError.*mend"):
        one.requests(image(0, BARE), 0, "m")


def test_a_template_reaches_nothing_of_python(tmp_path: Path) -> None:
    one = written(tmp_path, OWN.replace("{{ question }}", "{{ form.__class__.__mro__ }}"))
    with pytest.raises(ProgrammeError, match="SecurityError"):
        one.requests(image(), 0, "m")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean dermasynth"):
        programme.load("dermasinth")


def test_known_are_the_facts_of_an_image_and_its_caption() -> None:
    values: dict[str, Any] = dict.fromkeys(KNOWN, "x")
    assert values.pop("caption")
    assert set(values) == {field for field in SCALARS if field != "kind"}
