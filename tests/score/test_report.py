"""The report of a run: what it holds, that it needs nothing else, and that data stays text in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import pictures
from helpers.pages import HOSTILE, Page, brightness, browser, console, contrast, palettes, picture, visible
from skinvl.data.example import Facts
from skinvl.score import charts, report, samples
from skinvl.score.predictions import Answer, Classified, PredictionError, PredictionJournal, key
from skinvl.score.report import ReportError

CLASSES = ["Nevus", "Melanoma", "Basal Cell Carcinoma", "Benign Keratosis", "Dermatofibroma"]
VARIED = {"mean": 0.7, "sd": 0.031, "min": 0.612, "max": 0.744, "values": [0.612, 0.744]}
SPREAD = {"templates": {"accuracy": VARIED}, "names": {"balanced_accuracy": VARIED}}


def number(value: float | None, wide: float = 0.03, n: int = 180) -> dict[str, Any]:
    """A Number of scores.json."""
    low, high = (None, None) if value is None else (round(value - wide, 4), round(value + wide, 4))
    method = None if value is None else "Wilson"
    return {"value": value, "low": low, "high": high, "method": method, "n": n, "groups": n // 3, "unscored": 2}


def answers(folder: Path, word: str, rows: int = 180) -> list[Answer]:
    generator = random.Random(3)
    kinds, types = ["diagnosis", "colour", "site", word], ["I", "II", "III", "IV", "V", None]
    found = []
    for index in range(rows):
        kind, right = kinds[index % len(kinds)], generator.random()
        wanted = generator.choice(["It is a brown macule.", "Melanoma", "On the back of the left hand.", "Yes."])
        said = wanted if right < 0.6 else f"{wanted.split()[0]} and {word}" if right < 0.8 else word
        found.append(
            Answer(
                id=f"row-{index}{word if index == 0 else ''}",
                source="demo" if index % 2 else f"other {word}",
                group=f"patient-{index // 3}{word}",
                images=(picture(folder / "images" / f"lesion-{index % 9}.png", index % 9),) * (index % 7 > 0),
                question=f"What does the image show? {word if index % 5 == 0 else ''}",
                reference=wanted,
                facts=Facts(kind=kind, skin_type=types[index % 6], sex=["female", "male"][index % 2], age=41.0),
                answer=None if index == 7 else said,
                finish_reason="refused" if index == 7 else "stop",
                detail=f"missing-image: {folder}/images/gone.png: no such file {word}" if index == 7 else "",
                tokens=7,
                seed=0,
            )
        )
    return found


def classified(folder: Path, names: list[str], word: str, rows: int = 120) -> list[Classified]:
    generator = random.Random(4)
    found = []
    for index in range(rows):
        label = generator.choice(names)
        scores = tuple(generator.gauss(2.5 * (name == label), 1) - 9 for name in names)
        image = picture(folder / "images" / f"case-{index % 8}.jpg", index % 8)
        facts = Facts(modality="dermoscopy", diagnosis=label, skin_type=["II", "V"][index % 2], sex=None)
        told = (f"A {label}. {word}", "matched", label)
        found.append(Classified(f"c{index}", "ham10000", f"l{index}", (image,), facts, label, scores, "", *told))
    image = str(folder / "images" / "gone.jpg")
    found.append(Classified("gone", "ham10000", "g", (image,), Facts(), names[0], (-9.0,) * len(names), ""))
    found.append(Classified("none", "ham10000", "g", (image,), Facts(), None, None, f"no class {word}"))
    return found


def write(path: Path, rows: list[Any], settings: dict[str, Any]) -> None:
    journal = PredictionJournal(path, settings, type(rows[0]))
    journal.begin()
    journal.write(rows, 0)
    journal.finish([key(row) for row in rows])


def slices(word: str) -> dict[str, Any]:
    values = {"I": number(0.91), "II": number(0.88), "V": number(0.63), "VI": None, "unknown": number(0.8), word: None}
    only = {"metric": "accuracy", "values": {"unknown": number(0.8)}, "worst": None, "gap": None}
    few = {"metric": "accuracy", "values": {"female": number(0.8), "male": None}, "worst": None, "gap": None}
    skin = {"metric": "accuracy", "values": values, "worst": "V", "gap": number(0.28, 0.09)}
    return {"skin_type": skin, "sex": few, "site": only}


def block(word: str, settings: dict[str, Any], folder: Path, better: float = 0.0) -> dict[str, Any]:
    """A Block of scores.json."""
    names = ["closed_accuracy", "exact_match", "token_f1", "token_recall", "bleu-1", "bleu-4", "rouge-1", "rouge-l"]
    found = {name: number(round(0.42 + better + 0.01 * place, 4)) for place, name in enumerate(names)}
    found["bleu-4"] = number(None)
    by = {"kind": {"diagnosis": found, word: found}, "modality": {}, "source": {"demo": found}}
    reasons = {f"missing-image: {folder}/images/gone.png: no such file": 1, word: 1}
    return {"rows": 180, "unscored": 2, "reasons": reasons, "valid": number(0.983), "metrics": found,
            "majority": number(0.4), "by": by, "slices": slices(word), "settings": settings}  # fmt: skip


def class_block(names: list[str], word: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A ClassBlock of scores.json."""
    generator, count = random.Random(5), len(names)
    metrics = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece", "brier")
    variants = ("sum", "mean", "prior", "calibrated", "prompted")
    found = {v: {m: number(0.71 + 0.02 * i - 0.03 * j) for i, m in enumerate(metrics)} for j, v in enumerate(variants)}
    matrix = [[generator.randint(0, 9) + 60 * (row == column) for column in range(count)] for row in range(count)]
    bins = [{"low": i / 10, "high": (i + 1) / 10, "confidence": i / 10 + 0.05, "accuracy": (i / 10 + 0.05) ** 1.3,
             "n": 3 + 5 * i} for i in range(3, 10)]  # fmt: skip
    bins.insert(0, {"low": 0.0, "high": 0.3, "confidence": None, "accuracy": None, "n": 0})
    return {
        "rows": 122, "unscored": 1, "reasons": {f"no class {word}": 1}, "classes": names, "benchmark": "ham10000",
        "headline": "sum", "variants": found, "spread": SPREAD, "valid": number(0.97), "majority": number(0.41),
        "outcomes": {"matched": 118, "none": 2, "ambiguous": 1},
        "confusion": {"sum": matrix, "prompted": [[*row, 2] for row in matrix]},
        "reliability": {"sum": {"temperature": None, "bins": bins}, "calibrated": {"temperature": 1.42, "bins": bins}},
        "operating": None, "decision": None, "calibration": None, "institutions": None,
        "risk_coverage": [{"coverage": i / 1000, "risk": 0.29 * (i / 1000) ** 2, "threshold": 1 - i / 1000}
                          for i in range(1, 1001)],
        "threshold": {"value": 0.62, "coverage": 0.7, "risk": 0.142},
        "per_class": {name: {m: number(0.7, n=24) for m in ("precision", "recall", "f1", "auroc")} for name in names},
        "slices": slices(word), "settings": settings,
    }  # fmt: skip


def scored(folder: Path, word: str = "plain", full: bool = True) -> Path:
    """A run folder with scores and predictions; `word` stands wherever data can bring words of its own."""
    run = folder / "runs" / "tiny--base"
    names = [*CLASSES[:-1], word]
    own = {"engine": "transformers", "adapter": f"{folder}/adapters/one", "word": word}
    settings = {"classes": names, "label_tokens": [2] * 5, "prior": [-9.0] * 5, "malignant": None,
                "benchmark": "ham10000", "question": f"Which? {word}"}  # fmt: skip
    write(run / "eval/answers/demo.jsonl", answers(folder, word), own)
    write(run / "eval/classes/ham10000.jsonl", classified(folder, names, word), settings)
    sets: dict[str, Any] = {"demo": {"answers": block(word, own, folder, 0.5)}}
    scores = {"run": run.name, "resamples": 1000, "seed": 0, "level": 0.95, "sets": sets, "seeds": None,
              "replicates": None, "comparison": None, "untrained": None}  # fmt: skip
    (run / "recipe.yaml").write_text(f"name: tiny\nnote: {word}\n")
    if full:
        sets["demo"]["permuted"] = block(word, own, folder)
        sets["ham10000"] = {"classes": class_block(names, word, settings)}
        test = {"set": "demo", "what": "answers", "metric": "closed_accuracy", "n": 178, "groups": 59, "ours": 0.92,
                "theirs": 0.81, "difference": number(0.11) | {"method": "expanded percentile"}, "p": 0.0004,
                "p_holm": 0.0008, "test": "McNemar"}  # fmt: skip
        same = {**test, "what": "classes", "set": "ham10000", "metric": "accuracy", "difference": number(-0.01),
                "p": 0.41, "p_holm": 0.41}  # fmt: skip
        scores["comparison"] = {"against": f"base {word}", "tests": [test, same]}
        spread = {"mean": 0.915, "sd": 0.0123, "min": 0.9, "max": 0.931, "values": [0.9, 0.914, 0.931]}
        runs = {"runs": ["tiny-1", "tiny-2", word], "sets": {"demo": {"answers": {"closed_accuracy": spread}}}}
        scores["replicates"] = runs
        log = [
            {"step": s, "loss": 3.4 * 0.985**s + 0.1, "learning_rate": 1e-4, "epoch": s / 66} for s in range(0, 331, 3)
        ]
        log += [{"step": s, "eval_loss": 2 * 0.99**s + 0.2, "eval_demo_loss": 2 * 0.99**s + 0.2, "eval_runtime": 3.0}
                for s in range(66, 331, 66)]  # fmt: skip
        log.append({"step": 331, "loss": float("nan")})
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 332, "lo')
        facts = {"base": {"model": f"{folder}/bases/tiny", "commit": None}, "allow_leak": True, "leaking": 12,
                 "moved": 0, "dropped": 5, "libraries": {"torch": "2.15.0"}, "command": ["sft", f"run={folder}/x"],
                 "data": {f"{folder}/data/demo/train.parquet": "9a"}}  # fmt: skip
        (run / "env.json").write_text(json.dumps(facts))
        (run / "summary.json").write_text(json.dumps({"train_loss": 0.61, "speed": {"steps": 330}}))
        rows = [{"row": f"r{i}", "rule": "too-long", "detail": f"300 tokens {word}"} for i in range(4)]
        rows.append({"row": f"{folder}/x.csv:7", "rule": f"unknown-value {word}", "detail": ""})
        (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "scores.json").write_text(json.dumps(scores))
    return run


def read(run: Path) -> Page:
    return Page(report.page(run))


def change(run: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """The run with its scores edited."""
    scores = json.loads((run / "scores.json").read_text())
    edit(scores)
    (run / "scores.json").write_text(json.dumps(scores))
    return run


def test_the_page_holds_every_section_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = scored(tmp_path)
    assert report.main([str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert not list(run.glob("*.partial"))
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    for heading in ("Headline", "Comparison with base plain", "Replicates", "demo", "ham10000", "Training"):
        assert heading in page.within("h2"), heading
    for text in (
        "closed accuracy 0.920 [0.890, 0.950] W 0.420 [0.390, 0.450] W 0.400 [0.370, 0.430] W "
        "above permuted, above majority 180 60 2",
        "W: a share, by Wilson's interval",
        "sensitivity (malignant) not known which classes are malignant",
        "closed accuracy 0.920 0.810 0.110 [0.080, 0.140] E <0.001 <0.001 higher McNemar 178 59",
        "accuracy 0.920 0.810 −0.010 [−0.040, 0.020] W 0.410 0.410 no difference shown",
        "closed accuracy 0.915 0.012 0.900 0.931 0.900, 0.914, 0.931",
        "skin type accuracy; gap from best to worst 0.280 [0.190, 0.370] W",
        "V worst 0.630",
        "VI too few cases",
        "No worst slice: fewer than two values have enough cases.",
        "Not known for any row: site.",
        "variant calibrated, temperature 1.420",
        "answering from confidence 0.620 on, fitted on validation, covers 0.700 at risk 0.142",
        "12 eval conversations share a group or an image with the train set, which allow_leak allowed",
        "too-long 4 r0: 300 tokens plain",
        "118 matched, 2 none, 1 ambiguous",
        "Accuracy over 2 templates of prompts: 0.612 to 0.744, mean 0.700, standard deviation 0.031.",
        "Balanced accuracy over 2 choices of one name for each class: 0.612 to 0.744",
        "image not found: gone.jpg",
        "missing-image: …/gone.png: no such file",
        "libraries.torch 2.15.0",
        "name: tiny",
    ):
        assert text in page.text, text
    matrix = [text.strip() for tag, text in page.texts if tag == "td" and text.strip().isdigit()]
    assert "69" in matrix  # of the confusion matrix
    assert "BLEU-4 – – 180 60 2" in page.text  # what cannot be had is no zero


def test_the_page_needs_nothing_else_and_may_load_nothing(tmp_path: Path) -> None:
    text = report.page(scored(tmp_path))
    page = Page(text)
    assert "://" not in text
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    policies = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    hashes = [
        base64.b64encode(hashlib.sha256(page.within(tag).encode()).digest()).decode() for tag in ("style", "script")
    ]
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    ]
    places = [tag for tag, _ in page.elements]
    assert places.index("meta") < places.index("style")
    assert len(page.all("style")) == len(page.all("script")) == 1


def test_the_page_can_be_read_by_ear_and_used_by_keyboard(tmp_path: Path) -> None:
    page = read(scored(tmp_path))
    assert all(one.get("scope") in ("col", "row", "rowgroup") for one in page.all("th"))
    assert all("alt" in one for one in page.all("img"))
    names = [one["id"] for _, one in page.elements if "id" in one]
    assert len(names) == len(set(names))
    links = [one["href"][1:] for one in page.all("a")]
    assert set(links) <= set(names)
    assert links[0] == "main"  # the first that the keyboard reaches
    pictures = [one for one in page.all("svg") if "aria-hidden" not in one]
    assert len(pictures) == 5  # the flow, two of reliability, one of risk, one of loss
    assert all(one["role"] == "img" for one in pictures)
    titles = page.within("title")
    assert "Reliability of ham10000, variant sum" in titles
    assert "Loss over the steps" in titles
    boxes = [one for one in page.all("div") if one.get("class") == "box"]
    assert len(boxes) >= len(page.all("table"))  # what is too wide scrolls in a box that takes the focus
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in boxes)
    assert "hidden" in page.all("form")[0]  # until the script shows it


@pytest.mark.parametrize("word", HOSTILE)
def test_what_data_says_stays_text(tmp_path: Path, word: str) -> None:
    run = scored(tmp_path, word)
    page, plain = read(run), read(scored(tmp_path / "plain"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    shape = [sorted(attributes) for _, attributes in page.elements]
    assert shape == [sorted(attributes) for _, attributes in plain.elements]
    assert page.within("script") == plain.within("script")
    assert page.within("style") == plain.within("style")
    assert page.text.count(" ".join(word.split())) > 100
    assert word in [one["data-kind"] for one in page.all("article")]
    assert f"other {word}" in [one["value"] for one in page.all("option")]
    assert f"predicted {word}" in [one.get("aria-label") for one in page.all("th")]


def test_table_1_counts_the_evaluated_patients_by_set(tmp_path: Path) -> None:
    page = read(scored(tmp_path))
    # 180 answers about 60 patients of either source; 120 lesions of unknown sex, and a group of two rows without facts.
    assert "groups, n (%) demo ham10000 (classes) all SMD all 120 121 241" in page.text
    assert "sex – female 60 (50.0) 0 (0.0) 60 (24.9) male 60 (50.0) 0 (0.0) 60 (24.9) not known 0 (0.0)" in page.text
    assert "several values 30 (25.0) 0 (0.0) 30 (12.4)" in page.text  # skin types that differ from row to row
    assert "age, years – mean (SD) 41.0 (0.0) – 41.0 (0.0)" in page.text
    assert "#table1" in [link["href"] for link in page.all("a")]


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    run = scored(tmp_path, full=False)
    name = 'a" onerror="alert(3)" <b>.png'
    rows = answers(tmp_path, "plain")
    rows[1] = Answer(**{**plain(rows[1]), "images": (picture(tmp_path / name, 1), str(tmp_path / "sub" / f"no{name}"))})
    write_again(run / "eval/answers/demo.jsonl", [rows[1]] * 1)
    page = read(change(run, lambda scores: scores["sets"]["demo"]["answers"].update(rows=1)))
    assert [one["alt"] for one in page.all("img")] == [f"image {name}"]
    assert f"image not found: no{name}" in page.text


def plain(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in type(row).__dataclass_fields__}


def write_again(path: Path, rows: list[Any]) -> None:
    path.unlink()
    path.with_suffix(".json").unlink()
    write(path, rows, {"classes": CLASSES} if isinstance(rows[0], Classified) else {})


def test_no_path_of_the_machine_is_told(tmp_path: Path) -> None:
    page = read(scored(tmp_path))
    told = [page.text, *(value for _, attributes in page.elements for value in attributes.values())]
    assert not [text for text in told if str(tmp_path) in text or str(Path.home()) in text]
    assert "lesion-0.png" in page.text


def test_the_page_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    run = scored(tmp_path)
    assert report.page(run) == report.page(run)


def test_a_missing_piece_leaves_out_its_section(tmp_path: Path) -> None:
    run = scored(tmp_path, full=False)
    page = read(run)
    headings = page.within("h2")
    assert "Headline" in headings
    for absent in ("Comparison", "Replicates", "Training", "Leaks", "Environment", "ham10000"):
        assert absent not in headings, absent
    assert "Predictions" in headings
    shutil.rmtree(run / "eval")
    (run / "recipe.yaml").unlink()
    page = read(run)
    assert "Predictions" not in page.within("h2")
    assert "Table 1" not in page.within("h2")
    assert "Recipe" not in page.within("h2")
    assert page.all("form") == []


def test_a_set_may_have_nothing_that_could_be_scored(tmp_path: Path) -> None:
    def empty(scores: dict[str, Any]) -> None:
        scores["sets"]["ham10000"]["classes"] |= {
            "headline": None, "variants": {}, "spread": {}, "valid": None, "outcomes": None, "majority": number(None),
            "confusion": {}, "reliability": {}, "risk_coverage": [], "threshold": None, "per_class": {}, "slices": {},
            "operating": None, "decision": None, "calibration": None, "institutions": None,
        }  # fmt: skip
        del scores["sets"]["demo"]["answers"]

    page = read(change(scored(tmp_path), empty))
    assert "no row could be scored" in page.text
    assert "there are no answers with the own images" in page.text


def test_what_was_moved_away_from_the_eval_sets_is_told(tmp_path: Path) -> None:
    run = scored(tmp_path)
    (run / "env.json").write_text(json.dumps({"allow_leak": False, "leaking": 0, "moved": 3, "dropped": 1_005}))
    text = read(run).text
    assert "Warning" not in text
    assert "No eval conversation shares a group or an image with the train set: 3 that did were moved" in text
    assert "1,005 conversations were left out for other reasons" in text


def test_a_threshold_may_answer_nothing(tmp_path: Path) -> None:
    run = scored(tmp_path)
    change(run, lambda scores: scores["sets"]["ham10000"]["classes"]["threshold"].update(coverage=0.0, risk=None))
    assert "covers 0.000 at risk –" in read(run).text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; make it with skinvl score .*, or all of it with make eval RUN="),
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "holds no sets"),
        ('{"sets": {"a": {"answers": {}}}, "seed": 0}', "not as this version writes it .* skinvl score"),
    ],
)
def test_without_usable_scores_one_message_says_what_to_do(tmp_path: Path, content: str | None, said: str) -> None:
    run = scored(tmp_path, full=False)
    (run / "scores.json").unlink()
    if content is not None:
        (run / "scores.json").write_text(content)
    with pytest.raises(ReportError, match=said):
        report.main([str(run)])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("log.jsonl", "{", "log.jsonl:2: not JSON"),
        ("ledger.jsonl", '{"row": 1}', "ledger.jsonl:2: .* row, rule, detail"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, line: str, said: str) -> None:
    run = scored(tmp_path)
    first = (run / name).read_text().splitlines()[0]
    (run / name).write_text(f"{first}\n{line}\n")
    with pytest.raises(ReportError, match=said):
        report.page(run)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such folder"):
        report.page(tmp_path / "nothing")


def test_predictions_that_were_not_scored_are_refused(tmp_path: Path) -> None:
    run = scored(tmp_path, full=False)
    change(run, lambda scores: scores["sets"]["demo"]["answers"].update(rows=179))
    with pytest.raises(PredictionError, match=r"180 rows, but scores.json counts 179; score the run again"):
        report.page(run)


def test_a_sample_has_the_worst_the_best_and_some_others_each_once(tmp_path: Path) -> None:
    run = scored(tmp_path)
    sets = json.loads((run / "scores.json").read_text())["sets"]
    shown = list(samples.sample(samples.scored(run / "eval", sets), 0))
    for name, rows in (("demo", 180), ("ham10000 (classes)", 122)):
        mine = [one for one in shown if one.set == name]
        assert len(mine) == 60 < rows
        assert len({one.id for one in mine}) == 60
        parts = {pick: [one.text.score for one in mine if one.pick == pick] for pick in ("worst", "best", "random")}
        assert parts["worst"] == sorted(parts["worst"])
        assert parts["best"] == sorted(parts["best"], reverse=True)
        between = [score for score in parts["random"] if score is not None]
        assert max(parts["worst"]) <= min(between) <= max(between) <= min(parts["best"])
    assert [one.id for one in samples.sample(samples.scored(run / "eval", sets), 1)] != [one.id for one in shown]
    few = run / "eval/answers/demo.jsonl"
    write_again(few, answers(tmp_path, "plain")[:9])
    found = list(samples.sample(samples.scored(run / "eval", {"demo": {"answers": {"rows": 9}}}), 0))
    assert sorted(one.id for one in found) == sorted(f"row-{i}plain" if i == 0 else f"row-{i}" for i in range(9))
    refused = next(one for one in found if one.id == "row-7")
    assert (refused.pick, refused.text.outcome, refused.text.score) == ("random", "no answer", None)


@pytest.mark.parametrize(
    ("said", "reference", "outcome", "score"),
    [
        ("a Melanoma.", "Melanoma", "partly right", 2 / 3),
        ("melanoma!", "Melanoma", "right", 1.0),
        ("nevus", "Melanoma", "wrong", 0.0),
        (" ", "Melanoma", "no answer", 0.0),
        ("melanoma", "…", "not scored", None),
    ],
)
def test_an_answer_is_judged_by_its_words(said: str, reference: str, outcome: str, score: float | None) -> None:
    row = Answer("1", "s", "g", (), "What?", reference, Facts(), said, "stop", "", 3, 0)
    told = samples._answered(row)
    assert told.outcome == outcome
    assert told.score == pytest.approx(score)
    assert ("Answer", said) in told.lines


def test_a_class_is_judged_by_its_probability_or_else_by_the_prompt() -> None:
    row = Classified("1", "s", "g", (), Facts(), "b", (-1.0, -1.0 + float(np.log(3))), "")
    told = samples._classified(row, ["a", "b"], "")
    assert (told.outcome, told.score) == ("right", pytest.approx(0.75))
    assert ("Probability", "b 0.750, a 0.250") in told.lines
    tied = Classified("1", "s", "g", (), Facts(), "b", (-1.0, -1.0), "")
    assert samples._classified(tied, ["a", "b"], "").outcome == "wrong"  # as score counts it
    prompted = Classified("1", "s", "g", (), Facts(), "b", None, "", "It is a", "matched", "a")
    assert samples._classified(prompted, ["a", "b"], "").outcome == "wrong"
    unscored = Classified("1", "s", "g", (), Facts(), None, (-1.0, -2.0), "no class")
    assert samples._classified(unscored, ["a", "b"], "").score is None


def test_images_are_upright_small_and_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (800, 400), "red").save(path, exif=pictures.exif(6, private=True), comment=b"Ada Patient")
    found = samples.thumbnail(str(path))
    assert found.uri is not None
    data = base64.b64decode(found.uri.removeprefix("data:image/jpeg;base64,"))
    assert not [secret for secret in (*pictures.SECRETS, b"Exif") if secret in data]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (120, 240))
    path.write_bytes(b"no image")
    assert samples.thumbnail(str(path)).why == "image unreadable"


def test_losses_are_the_last_of_each_step_and_finite(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 3.0}, {"step": 2, "loss": float("inf")}, {"step": 2, "eval_loss": 2.0, "eval_a_loss": 2.0},
        {"step": 2, "eval_loss": 1.5, "eval_a_loss": 1.5, "eval_runtime": 0.5, "eval_token_f1": 0.4},
    ]  # fmt: skip
    assert report._losses(log) == {"train": [(1, 3.0)], "eval a": [(2, 1.5)]}
    assert report._during(log) == {"eval token F1": [(2, 0.4)]}
    two = [*log, {"step": 2, "eval_b_loss": 1.0}]
    assert set(report._losses(two)) == {"train", "eval", "eval a", "eval b"}


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 3.4, [0.0, 1.0, 2.0, 3.0]),
        (0.0, 331.0, [0, 100, 200, 300]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(found)


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    line = [(float(step), (step % 7) / 7) for step in range(100_000)]
    thin = charts.thinned(line)
    assert len(thin) == charts.POINTS
    assert (thin[0], thin[-1]) == (line[0], line[-1])
    assert all(0.3 < y < 0.6 for _, y in thin[1:-1])  # the mean of a stretch
    assert charts.thinned(line[:300]) == line[:300]


def test_points_lie_where_their_numbers_say() -> None:
    plot = charts.Plot(100, 100, (0, 10), (0, 1), left=10, top=10, right=10, bottom=10)
    assert plot.at(0, 0) == (10, 90)
    assert plot.at(10, 1) == (90, 10)
    assert plot.at(5, 0.25) == (50, 70)
    flat = charts.curves({"train": [(0, 0.0)]}, "t", ("step", "loss"))  # one point, and nothing to span
    assert "nan" not in flat


def test_a_confusion_matrix_is_shaded_by_the_share_of_its_row() -> None:
    table = charts.confusion([[8, 2, 0], [0, 0, 0]], ["a", "b"], "c")
    assert '<td class="q8 hit">8</td><td class="q2">2</td><td class="q0">0</td><td>10</td><td>0.800</td>' in table
    assert "none" in table
    assert '<td class="q0">0</td><td class="q0 hit">0</td><td class="q0">0</td><td>0</td><td>–</td>' in table


def test_an_interval_is_drawn_only_between_0_and_1() -> None:
    assert charts.whisker(number(0.5), number(0.4), 0.3).count("<path") == 6
    assert charts.whisker({**number(1.2), "high": 1.4}, None, None) == ""
    assert charts.whisker(number(None), None, None) == ""


def test_numbers_are_written_for_reading() -> None:
    assert [report.digits(value) for value in (None, 0.12345, -0.5, 1234.5)] == ["–", "0.123", "−0.500", "1,234.5"]
    assert report.label("bleu-4") == "BLEU-4"
    assert report.label("ece") == "ECE (lower is better)"
    assert report.label("skin_type") == "skin type"


def test_intervals_that_touch_overlap() -> None:
    def one(low: float | None, value: float, high: float | None) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high}

    assert report._apart(one(0.5, 0.6, 0.7), one(0.3, 0.4, 0.49), "x") == "above x"
    assert report._apart(one(0.5, 0.6, 0.7), one(0.3, 0.4, 0.5), "x") == "overlaps x"
    assert report._apart(one(0.5, 0.6, 0.7), one(None, 0.8, None), "x") == "not known beside x"
    assert report._apart(one(None, 0.8, None), one(0.5, 0.6, 0.7), "x") == "not known beside x"


def test_a_number_of_too_few_groups_says_so_in_place_of_an_interval(tmp_path: Path) -> None:
    few = {"value": 1.0, "low": None, "high": None, "method": "too few groups (3)", "n": 9, "groups": 3, "unscored": 0}

    def edit(scores: dict[str, Any]) -> None:
        scores["sets"]["demo"]["answers"]["metrics"]["closed_accuracy"] = few

    text = read(change(scored(tmp_path, full=False), edit)).text
    assert "closed accuracy 1.000 too few groups (3) 0.400 [0.370, 0.430] W n 180, groups 60" in text
    assert "not known beside majority 9 3 0" in text


def test_colours_differ_enough_in_light_and_dark(tmp_path: Path) -> None:
    """WCAG 2.2, 1.4.3: text has a contrast of 4.5 to its ground; and 1.4.11: what is drawn one of 3."""
    light, dark = palettes(read(scored(tmp_path, full=False)).within("style"))
    for colours in (light, dark):
        for ground in ("paper", "panel", "mark"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5
        for text in ("muted", "link", "good", "bad", "warn"):
            assert contrast(colours[text], colours["paper"]) >= 4.5, text
        assert contrast(colours["muted"], colours["panel"]) >= 4.5
        assert contrast(colours["link"], colours["mark"]) >= 4.5
        for shade in range(1, 11):
            assert contrast(colours["ink"], colours[f"q{shade}"]) >= 4.5, shade
        for line in range(6):
            assert contrast(colours[f"s{line}"], colours["paper"]) >= 3, line


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose data tries to run scripts and to break out of its column."""
    word = f'<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">{"x" * 200}'
    run = scored(tmp_path_factory.mktemp("browser"), word)
    report.main([str(run)])
    return run / "report.html"


@pytest.mark.slow
def test_in_a_browser_filters_work_by_keyboard_and_nothing_else_runs(written: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    with browser(written, 1280) as driver:
        assert driver.execute_script("return window.hacked") is None
        assert len(visible(driver)) == 120

        def press(*keys: str) -> Any:
            driver.switch_to.active_element.send_keys(*keys)
            return driver.switch_to.active_element

        def reach(name: str) -> Any:
            for _ in range(200):
                if (there := press(Keys.TAB)).get_attribute("name") == name or there.text == name:
                    return there
            raise AssertionError(f"{name}: not reached by the tab key")

        assert press(Keys.TAB).text == "Skip to the results"
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert driver.execute_script(outline) == "solid"
        assert press(Keys.ENTER).get_attribute("id") == "main"
        reach("outcome")
        press("wrong")
        wrong = visible(driver)
        assert 0 < len(wrong) < 120
        assert {one.get_attribute("data-outcome") for one in wrong} == {"wrong"}
        assert driver.find_element("css selector", "output").text == f"{len(wrong)} of 120 shown"
        reach("words")
        press("MELANOMA")
        both = visible(driver)
        assert 0 < len(both) < len(wrong)
        assert all("melanoma" in one.text.lower() for one in both)
        press("?!")
        assert visible(driver) == []
        assert driver.find_element("css selector", ".nothing").is_displayed()
        reach("Show all")
        press(Keys.ENTER)
        driver.execute_async_script("setTimeout(arguments[0], 50)")
        assert len(visible(driver)) == 120
        assert console(driver) == []


@pytest.mark.slow
def test_in_a_browser_the_page_fits_a_phone_and_the_dark(written: Path) -> None:
    with browser(written, 390) as driver:
        driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        wide = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert max(driver.execute_script(wide)) <= 390
        boxes = (
            "return [...document.querySelectorAll('.box')].filter((one) => one.scrollWidth > one.clientWidth).length"
        )
        assert driver.execute_script(boxes) > 3  # they scroll by themselves
        light = brightness(driver)
        assert console(driver) == []
    with browser(written, 390, dark=True) as driver:
        assert brightness(driver) < 80 < 200 < light
        assert console(driver) == []


@pytest.mark.slow
def test_in_a_browser_all_is_shown_without_scripts(written: Path) -> None:
    with browser(written, 1280, scripts=False) as driver:
        assert not driver.find_element("id", "filters").is_displayed()
        assert len(visible(driver)) == 120
        assert driver.find_element("id", "recipe").is_displayed()


@pytest.mark.slow
def test_in_a_browser_the_policy_stops_what_is_not_the_pages_own(written: Path) -> None:
    """That the tests above would see it: the same page with a style and a script of somebody else."""
    foreign = written.with_name("foreign.html")
    body = '<body><p style="color: red">x</p><script>window.hacked = 1</script><img src="https://localhost/x.png">'
    foreign.write_text(written.read_text(encoding="utf-8").replace("<body>", body), encoding="utf-8")
    with browser(foreign, 1280) as driver:
        assert driver.execute_script("return window.hacked") is None
        assert len([text for text in console(driver) if "Content Security Policy" in text]) == 3
