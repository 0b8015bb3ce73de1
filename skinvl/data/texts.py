"""The texts of an image: captions, ontology paths, concepts and sentences, made of the Examples that show it.

What becomes a text is told by an Example's `facts.kind`, which is all that a prepared source says of its answers:

| kind | where it occurs | text |
| --- | --- | --- |
| description, caption, overview | derm1m and mm_skin caption, demo, synth | caption: the answer |
| hierarchy | derm1m hierarchy | ontology: "Skin condition: infectious, fungal, tinea corporis." |
| diagnosis | derm1m, mm_skin classification, ham10000, isic, … | ontology: "Skin condition: tinea corporis." |
| concept | derm1m concept | concepts: "Visible features: erythema and scale." |
| open, closed, colour, site, malignancy, category, … | mm_skin, dermasynth, demo, … | by a template alone |
| unknown, where an Example states none | llava | by a template alone |

`data.texts` has a template for each further kind. What it says around a value, "a {answer} lesion", is of the concepts:
images share it, where a caption tells an image from others; "{answer}" alone takes answers that are captions. Where a
kind above has a template, this goes before the table and the aspect stays. The sentences are those of the captions.
Placeholders of a missing value ("nan", "No visual concepts") and what a tokenizer has left ("</s>") never come here:
data_prep and `skinvl prep` keep them out.

Nothing is lost: each Example gave a text, said again what another one had, or is a row of the ledger: `no-image`,
`several-images`, `kind-without-text`, `aspect-left-out` (of objective.aspects), `long-answer` (sentences where a
template or the name of a disease takes a value), `empty-text`, or why its image cannot be read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import xxhash

from skinvl.data import labels, mixture, questions
from skinvl.data.example import Dropped, Example, Facts, words
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError, size
from skinvl.data.sentences import sentences
from skinvl.recipe.towers import Objective, PretrainData

Aspect = Literal["caption", "ontology", "concepts", "sentence"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
KINDS: Mapping[str, Aspect] = {
    **dict.fromkeys(("description", "caption", "overview"), "caption"),
    **dict.fromkeys(("hierarchy", "diagnosis"), "ontology"),
    "concept": "concepts",
}
OF_IMAGE = ("modality", "skin_type", "age", "sex", "site")  # the Facts that are kept of an image: slices are by them
UNKNOWN = "unknown"  # the kind of an Example that states none
ONTOLOGY, CONCEPTS = "Skin condition: {}.", "Visible features: {}."
LONG = 12  # words; a longer answer is no value that a template, or the name of a disease, could hold
_LETTER = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class ImageText:
    """One text of an image."""

    text: str
    aspect: Aspect
    key: int  # the same for texts that read the same, case and spaces apart


@dataclass(frozen=True, slots=True)
class TextedImage:
    """One image with all its texts, and what tells whose it is."""

    root: Path  # the folder that its path starts from
    path: str
    source: str
    texts: tuple[ImageText, ...]  # each once, in the order caption, ontology, concepts, sentences
    image: int  # the same for one photograph: bytes, archive id or perceptual hash
    group: int  # the same for one patient, lesion, figure, over all sources
    diagnosis: str | None  # canonical
    path_of_diagnosis: tuple[str, ...] = ()  # from the broadest class to the disease, where an Example says it
    facts: Facts = field(default_factory=Facts)  # each as the first of its Examples that gave a text and knows it says
    weight: float = 1.0

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"{self.source}:{self.path}"


@dataclass(frozen=True, slots=True)
class TextedSets:
    """The images of a recipe with their texts, apart in training and evaluation; their numbers mean the same in all."""

    train: list[TextedImage]
    evaluation: dict[str, list[TextedImage]]  # by label
    ledger: list[Dropped]  # what the mixture moved, and what became no text
    used: int  # Examples that became texts
    leaking: int = 0  # eval conversations that share something with the train set, where that is allowed
    idle: tuple[str, ...] = ()  # kinds that data.texts has a template for, and no Example is of


class TextsError(ValueError):
    """A source whose answers are no texts."""


def load(data: PretrainData, objective: Objective) -> TextedSets:
    """The images of a recipe with the texts that its objective asks for, no group and no image in two sets.

    A caption may be in both: its `key` tells.

    Raises:
        FileNotFoundError, ValueError: see `mixture.load`.
        TextsError: a source of which no image has a text, or a template whose texts the objective leaves out.
    """
    for kind, template in data.texts.items():
        if not _wanted(aspect := _aspect(kind, template), objective):
            raise TextsError(
                f"data.texts.{kind}: its texts are of the aspect {aspect}, which objective.aspects does not name; "
                f"found {', '.join(objective.aspects)}; add {aspect} there, or leave the template out"
            )
    sets = mixture.load(data)
    every = [*sets.train, *(row for rows in sets.evaluation.values() for row in rows)]
    images, groups = (numbers.tolist() for numbers in mixture.keys(every))
    ledger, used, start = [*sets.moved, *sets.without], 0, 0

    texted: dict[str, list[TextedImage]] = {}
    for label, rows in (("", sets.train), *sets.evaluation.items()):
        numbers = images[start : start + len(rows)], groups[start : start + len(rows)]
        gathered, dropped = _gather(rows, *numbers, data.texts, objective)
        texted[label] = gathered
        ledger += dropped
        used += len(rows) - len(dropped)
        start += len(rows)
        _require_texts(f"data.eval: {label}" if label else "data.train", rows, gathered, data.texts)
    kinds = {row.example.facts.kind or UNKNOWN for row in every}
    idle = tuple(kind for kind in data.texts if kind not in kinds)
    return TextedSets(texted.pop(""), texted, ledger, used, sets.leaking, idle)


def images_alone(data: PretrainData) -> TextedSets:
    """The images of a recipe without any text, each once in a set, no group and no image in two of them.

    Raises:
        FileNotFoundError, ValueError: see `mixture.load`.
    """
    sets = mixture.load(data)
    every = [*sets.train, *(row for rows in sets.evaluation.values() for row in rows)]
    numbers = iter(zip(*(each.tolist() for each in mixture.keys(every)), strict=True))
    ledger = list(sets.moved)
    shown: dict[str, list[TextedImage]] = {}
    for label, rows in (("", sets.train), *sets.evaluation.items()):
        by_path: dict[tuple[Path, str, float], TextedImage] = {}
        for row in rows:
            image, group = next(numbers)
            example = row.example
            if not example.images:
                ledger.append(Dropped(f"{example.source}:{example.id}", "no-image", "no images, and none to look at"))
            for path in example.images:
                facts = Facts(**{name: getattr(example.facts, name) for name in OF_IMAGE})
                own = (
                    image if len(example.images) == 1 else xxhash.xxh3_64_intdigest(f"{row.root}/{path}".encode()) >> 1
                )
                alone = TextedImage(
                    row.root, path, example.source, (), own, group, None, facts=facts, weight=row.weight
                )
                by_path.setdefault((row.root, path, row.weight), alone)
        shown[label] = []
        for alone in by_path.values():
            if (fault := _unreadable(alone.root / alone.path)) is not None:
                ledger.append(Dropped(alone.name, *fault))
            else:
                shown[label].append(alone)
    return TextedSets(shown.pop(""), shown, ledger, len(every), sets.leaking)


def _unreadable(path: Path) -> tuple[str, str] | None:
    """The rule and the detail of why an image cannot be read; None if it can."""
    try:
        size(path)
    except ImageError as error:
        return error.rule, error.detail
    return None


def text_key(text: str) -> int:
    """A number from 0 to 2^63 − 1, the same for texts that read the same, case and spaces apart.

    >>> text_key("A  red\\npatch") == text_key("a red patch"), text_key("a red patch.") == text_key("a red patch")
    (True, False)
    """
    return xxhash.xxh3_64_intdigest(" ".join(text.split()).casefold().encode()) >> 1


@dataclass(slots=True)
class _Gathered:
    """What the Examples of one image say, in their order."""

    row: Row
    image: int
    group: int
    texts: dict[Aspect, dict[str, None]] = field(default_factory=lambda: {aspect: {} for aspect in ASPECTS})
    diagnosis: str | None = None
    path: tuple[str, ...] = ()
    facts: Facts = field(default_factory=Facts)
    examples: list[str] = field(default_factory=list)  # that gave its texts


def _gather(
    rows: Sequence[Row],
    images: Sequence[int],
    groups: Sequence[int],
    templates: Mapping[str, str],
    objective: Objective,
) -> tuple[list[TextedImage], list[Dropped]]:
    """The images of a set, in the order of their first Examples, and the Examples that gave no text."""
    by_image: dict[tuple[Path, str, float], _Gathered] = {}
    dropped = []
    for row, image, group in zip(rows, images, groups, strict=True):
        example, name = row.example, f"{row.example.source}:{row.example.id}"
        if len(example.images) != 1:
            rule = "several-images" if example.images else "no-image"
            dropped.append(Dropped(name, rule, f"{len(example.images)} images, and a text is of one"))
            continue
        key = row.root, example.images[0], row.weight
        gathered = by_image.get(key) or by_image.setdefault(key, _Gathered(row, image, group))
        fault = _add(gathered, example, templates, objective)
        if fault is not None:
            dropped.append(Dropped(name, *fault))
        else:
            gathered.examples.append(name)
            unknown = {each for each in OF_IMAGE if getattr(gathered.facts, each) is None}
            gathered.facts = replace(gathered.facts, **{each: getattr(example.facts, each) for each in unknown})

    # A disease has the way that was said of it elsewhere in the set, where its own Examples do not say it.
    ways: dict[str, tuple[str, ...]] = {}
    for gathered in by_image.values():
        if gathered.path and gathered.diagnosis:
            ways.setdefault(gathered.diagnosis, gathered.path)

    texted = []
    for gathered in by_image.values():
        if not gathered.examples:
            continue
        row = gathered.row
        if (fault := _unreadable(row.root / row.example.images[0])) is not None:
            dropped += [Dropped(name, *fault) for name in gathered.examples]
            continue
        texted.append(_texted(gathered, ways, objective))
    return texted, dropped


def _add(
    gathered: _Gathered, example: Example, templates: Mapping[str, str], objective: Objective
) -> tuple[str, str] | None:
    """What the answers of an Example add to its image; or the rule and the detail of why that is no text."""
    kind = example.facts.kind or UNKNOWN
    spoken = [words(message) for message in example.messages if message["role"] == "assistant"]
    answers = [answer for answer in spoken if _LETTER.search(answer)]
    if not answers:
        return "empty-text", f"{kind}: {spoken[0]!r:.80}"
    template, aspect = templates.get(kind), KINDS.get(kind)

    # What is known of the image, whether or not it becomes a text.
    values = [questions.value(kind, answer) for answer in answers]
    named = values[-1] if aspect == "ontology" and not _long(values[-1]) else None
    if (diagnosis := example.facts.diagnosis or named) is not None:
        gathered.diagnosis = gathered.diagnosis or labels.diagnosis(diagnosis)
    if kind == "hierarchy" and not any(map(_long, values)):
        gathered.path = gathered.path or (*(level.casefold() for level in values[:-1]), labels.diagnosis(values[-1]))

    # The texts themselves.
    if template is not None:
        whole, aspect = _whole(template), _aspect(kind, template)
        if not whole and any(map(_long, values)):
            return "long-answer", f"{kind}: {answers[0]!r:.120}, and data.texts.{kind} takes a value"
        made = answers if whole else [template.format(answer=value) for value in values]
    elif aspect is None:
        return "kind-without-text", f"{kind}: no template in data.texts"
    elif aspect == "ontology":
        name = named or example.facts.diagnosis
        if name is None or (kind == "hierarchy" and any(map(_long, values))):
            return "long-answer", f"{kind}: {answers[-1]!r:.120}, and no name of a disease"
        levels = [value.casefold() for value in values[:-1]] if kind == "hierarchy" else []
        made = [ONTOLOGY.format(", ".join([*levels, labels.diagnosis(name)]))]
    else:
        made = [CONCEPTS.format(value) for value in values] if aspect == "concepts" else answers
    if not _wanted(aspect, objective):
        return "aspect-left-out", f"{kind}: {aspect}, which objective.aspects does not name"
    gathered.texts[aspect] |= dict.fromkeys(" ".join(text.split()) for text in made)
    return None


def _whole(template: str) -> bool:
    return template.strip() == "{answer}"


def _aspect(kind: str, template: str) -> Aspect:
    """What a template makes of the answers of a kind."""
    return KINDS.get(kind, "caption" if _whole(template) else "concepts")


def _wanted(aspect: Aspect, objective: Objective) -> bool:
    """Whether an objective has use for such a text: a caption for its sentences too."""
    return aspect in objective.aspects or (aspect == "caption" and "sentences" in objective.aspects)


def _long(value: str) -> bool:
    return len(value.split()) > LONG or len(sentences(value)) > 1


def _texted(gathered: _Gathered, ways: Mapping[str, tuple[str, ...]], objective: Objective) -> TextedImage:
    """The image with its texts, each once."""
    row, texts = gathered.row, gathered.texts
    if "sentences" in objective.aspects:
        split = (sentence for caption in texts["caption"] for sentence in sentences(caption))
        captions = {text_key(caption) for caption in texts["caption"]} if "caption" in objective.aspects else set()
        own = dict.fromkeys(sentence for sentence in split if text_key(sentence) not in captions)
        texts["sentence"] = dict.fromkeys(list(own)[: objective.sentences])
    if "caption" not in objective.aspects:
        texts["caption"] = {}

    # A disease alone is no text of its own beside the way to it.
    ends = {text: f", {text.removeprefix(ONTOLOGY.partition('{')[0])}" for text in texts["ontology"]}
    for text, end in ends.items():
        if any(other.endswith(end) for other in ends):
            del texts["ontology"][text]

    once: dict[int, ImageText] = {}
    for aspect in ASPECTS:
        for text in texts[aspect]:
            key = text_key(text)
            once.setdefault(key, ImageText(text, aspect, key))
    return TextedImage(
        root=row.root,
        path=row.example.images[0],
        source=row.example.source,
        texts=tuple(once.values()),
        image=gathered.image,
        group=gathered.group,
        diagnosis=gathered.diagnosis,
        path_of_diagnosis=gathered.path or ways.get(gathered.diagnosis or "", ()),
        facts=gathered.facts,
        weight=row.weight,
    )


def _require_texts(
    where: str, rows: Sequence[Row], texted: Sequence[TextedImage], templates: Mapping[str, str]
) -> None:
    """Checks that of each source some image has a text.

    Raises:
        TextsError: one has none; the message names its kinds of question.
    """
    useful = {image.root for image in texted}
    for root in dict.fromkeys(row.root for row in rows):
        if root in useful:
            continue
        kinds = Counter(row.example.facts.kind or UNKNOWN for row in rows if row.root == root)
        other = next((kind for kind in kinds if kind not in KINDS), "site")
        listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        raise TextsError(
            f"{where}: no image of {root} has a text. Its kinds of question: {listed}. Of these texts are "
            f"{', '.join(KINDS)}, where objective.aspects names their aspect; make texts of another's short answers "
            f"with data.texts={{{other}: 'a photo of {{answer}}'}} and concepts in objective.aspects"
        )
