"""The classes whose probabilities a page shows, what is asked for them, and what a run fitted to calibrate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.special import softmax

from skinvl.data import labels
from skinvl.data.questions import choices
from skinvl.evaluate import benchmarks
from skinvl.recipe import strict
from skinvl.recipe.files import read_json
from skinvl.score.stats import Float

LISTED = "Which of these fits the image: {classes}?"  # where a file names the classes


class ClassListError(ValueError):
    """Nothing that names classes."""


@dataclass(frozen=True, slots=True)
class ClassList:
    """Classes that are compared, what is asked of the image, and what was fitted on validation images, if anything was.

    Attributes:
        question: None where each sample of the set asked its own.
        temperature: divides the log-likelihoods, so that probabilities are as often right as they say.
        least: the probability below which the run's scores abstain.
    """

    name: str
    names: tuple[str, ...]
    question: str | None
    temperature: float | None = None
    least: float | None = None


def load(word: str, out: Path | None, facts: Mapping[str, Any]) -> ClassList:
    """The classes that a word names: a file with one on each line, a set that a run classified, or a benchmark.

    Args:
        out: the folder of a run, whose scores.json holds what was fitted.
        facts: those of the model; what was fitted for another one is left out.

    Raises:
        ClassListError: it is none of these.
    """
    if Path(word).is_file():
        lines = [line.strip() for line in Path(word).read_text(encoding="utf-8").splitlines()]
        names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if len({name.casefold() for name in names}) < max(2, len(names)):
            raise ClassListError(f"{word}: {len(names)} classes; expected at least two, one on each line, each once")
        return ClassList(Path(word).stem, names, LISTED.format(classes=choices(names)))

    scored, benchmark = _scored(out), labels.benchmark(word)
    for name, block in scored.items():
        if name == word or (benchmark and block["benchmark"] == benchmark):
            return _fitted(name, block, facts)

    if benchmark not in labels.CLASSES:
        known = [*scored, *labels.CLASSES]
        raise ClassListError(f"--labels {word}: no file, and no list of classes; {strict.unknown(word, known)}")
    names = labels.CLASSES[benchmark]
    kind = "malignancy" if benchmark in labels.GRADES else labels.ASKED.get(benchmark, "diagnosis")
    return ClassList(benchmark, names, benchmarks.QUESTIONS.get(kind, LISTED).format(classes=choices(names)))


def _scored(out: Path | None) -> dict[str, dict[str, Any]]:
    path = out / "scores.json" if out else None
    if path is None or not path.is_file():
        return {}
    sets = read_json(path, "score the run again", ClassListError, ["sets"])["sets"]
    return {name: blocks["classes"] for name, blocks in sets.items() if blocks.get("classes")}


def _fitted(name: str, block: Mapping[str, Any], facts: Mapping[str, Any]) -> ClassList:
    settings = block["settings"]
    class_list = ClassList(name, tuple(block["classes"]), settings["question"])
    calibrated, threshold = block["reliability"].get("calibrated"), block["threshold"]
    if calibrated is None or any(settings[key] != facts[key] for key in ("adapter", "template", "image_tokens")):
        return class_list
    return replace(class_list, temperature=calibrated["temperature"], least=threshold and threshold["value"])


def probabilities(class_list: ClassList, scores: Float, question: str) -> tuple[Float, str]:
    """float[C], and what they are worth in words: calibrated where the question is the one it was fitted for."""
    if class_list.temperature is None or question != class_list.question:
        reason = (
            "its temperature was fitted for another question" if class_list.temperature else "no temperature was fitted"
        )
        return softmax(scores), f"Not calibrated ({reason}): a share among these classes, not a chance of being right."
    shares: Float = softmax(scores / class_list.temperature)
    remark = f"Calibrated on validation images of {class_list.name} (temperature {class_list.temperature:.2f})."
    if class_list.least is not None and shares.max() < class_list.least:
        remark += f" Too unsure to answer: below the threshold of {class_list.least:.2f} that was fitted there."
    return shares, remark
