"""SCIN: photos that people took of their own skin, one to three a case → questions in our own words.

Expected: scin_cases.csv (case_id, age_group, sex_at_birth, fitzpatrick_skin_type, textures_*, body_parts_*,
condition_symptoms_*, image_1_path to image_3_path), scin_labels.csv (case_id, weighted_skin_condition_label: conditions
and their weights), and the photos at any depth, found by name. The diagnosis is the condition of the greatest weight,
and unknown where two share it. Site, texture and symptoms are what the person ticked.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep import Card, Photos, Shard, count_csv, find, known, lookup, read_csv, split_of
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import diagnosis, is_known, malignancy
from skinvl.data.questions import PICTURES, DatasetRecord, Kind, Missing

CARD = Card(
    title="SCIN (Skin Condition Image Network)",
    address="https://github.com/google-research-datasets/scin",
    licence="CC-BY-4.0",
    terms="Any use, with attribution; never try to identify a contributor.",
    citation="Ward et al., Creating an Empirical Dermatology Dataset Through Crowdsourcing With Web Search "
    "Advertisements, JAMA Network Open 7, 2024",
    obtain="copy the folder dataset of the bucket named at the address; RAW holds scin_cases.csv, scin_labels.csv, and "
    "the photos at any depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
    archive="scin",
    by_name=True,
    published="10,408",
    use="any",
)

CASES, LABELS = "scin_cases.csv", "scin_labels.csv"
LONGEST = 10_000  # characters of a label; a real one has some hundreds
IMAGES = ("image_1_path", "image_2_path", "image_3_path")
TEXTURES = {
    "textures_raised_or_bumpy": "raised or bumpy",
    "textures_flat": "flat",
    "textures_rough_or_flaky": "rough or flaky",
    "textures_fluid_filled": "filled with fluid",
}
SITES = {
    "body_parts_head_or_neck": "head or neck",
    "body_parts_arm": "arm",
    "body_parts_palm": "palm",
    "body_parts_back_of_hand": "back of the hand",
    "body_parts_torso_front": "front of the torso",
    "body_parts_torso_back": "back of the torso",
    "body_parts_genitalia_or_groin": "genitals or groin",
    "body_parts_buttocks": "buttocks",
    "body_parts_leg": "leg",
    "body_parts_foot_top_or_side": "top or side of the foot",
    "body_parts_foot_sole": "sole of the foot",
}
SYMPTOMS = {
    "condition_symptoms_bothersome_appearance": "a bothersome appearance",
    "condition_symptoms_bleeding": "bleeding",
    "condition_symptoms_increasing_size": "growth",
    "condition_symptoms_darkening": "darkening",
    "condition_symptoms_itching": "itching",
    "condition_symptoms_burning": "burning",
    "condition_symptoms_pain": "pain",
    "condition_symptoms_no_relevant_experience": "no symptoms",
}
BOOLEANS = {
    **dict.fromkeys(("YES", "True", "TRUE", "true", "1", "1.0"), "yes"),
    **dict.fromkeys(("", "NO", "False", "FALSE", "false", "0", "0.0"), "no"),
}
SKIN_TYPES = {f"FST{number}": name for number, name in enumerate(("I", "II", "III", "IV", "V", "VI"), 1)}
KINDS = {
    "diagnosis": questions.diagnosis("weighted_skin_condition_label"),
    "modality": questions.modality(),
    "site": questions.site(),
    "skin_type": questions.skin_type("fitzpatrick_skin_type", SKIN_TYPES),
    "texture": Kind(
        "attribute",
        "",
        {},
        ("What is the texture of the affected skin?", "How would the affected skin feel to the touch?"),
        (),
        ("The affected skin is {value}.", "Its texture is {value}."),
    ),
    "symptom": Kind(
        "symptom",
        "",
        {},
        ("Which symptoms does the person report?", "What does the person say about symptoms?"),
        (),
        ("The person reports {value}.", "Reported: {value}."),
    ),
}
COLUMNS = (
    *("case_id", "age_group", "sex_at_birth", "fitzpatrick_skin_type", *TEXTURES, *SITES, *SYMPTOMS),
    *IMAGES,
)


def rows(raw: Path, part: str) -> int:
    """Cases times the kinds of question."""
    return count_csv(find(raw, CASES, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per case and kind of question, with all photos of the case.

    >>> import tempfile
    >>> row = dict.fromkeys(COLUMNS, "") | {"case_id": "-7", "image_1_path": "dataset/images/1.png"}
    >>> row |= {"image_3_path": "dataset/images/3.png", "body_parts_arm": "YES", "body_parts_leg": "YES"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / CASES).write_text(",".join(row) + "\\n" + ",".join(row.values()) + "\\n")
    ...     label = "case_id,weighted_skin_condition_label\\n-7,\\"{'Eczema': 0.7, 'Psoriasis': 0.3}\\"\\n"
    ...     _ = (Path(folder) / LABELS).write_text(label)
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].group, made[0].facts.diagnosis, made[0].facts.site
    ('-7-diagnosis', ('dataset/images/1.png', 'dataset/images/3.png'), '-7', 'eczema', 'arm and leg')
    >>> made[3]
    Dropped(row='scin_cases.csv:2 skin_type', rule='unknown-value', detail="fitzpatrick_skin_type is ''")
    """
    return questions.converse("scin", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    named = {
        row["case_id"]: row for _, row in read_csv(find(raw, LABELS, CARD), ("case_id", KINDS["diagnosis"].column))
    }
    for where, row in read_csv(find(raw, CASES, CARD), COLUMNS, shard):
        images, tags = photos.shown(*(row[column] for column in IMAGES if row[column]))
        answers: dict[str, str | Missing] = {
            "diagnosis": _heaviest(named.get(row["case_id"], {}).get(KINDS["diagnosis"].column, "")),
            "modality": PICTURES["clinical"],
            "site": _ticked(where, row, SITES),
            "skin_type": lookup(where, row, "fitzpatrick_skin_type", SKIN_TYPES, ("", "NONE_SELECTED")),
            "texture": _ticked(where, row, TEXTURES),
            "symptom": _ticked(where, row, SYMPTOMS),
        }
        disease = known(answers["diagnosis"])
        sexes = {"FEMALE": "female", "MALE": "male"}
        facts = Facts(
            modality="clinical",
            diagnosis=disease,
            malignancy=malignancy(disease) if disease and is_known(disease) else None,
            skin_type=known(answers["skin_type"]),
            sex=known(lookup(where, row, "sex_at_birth", sexes, ("", "OTHER_OR_UNSPECIFIED"))),
            site=known(answers["site"]),
        )
        if not images:
            answers = dict.fromkeys(KINDS, Missing("the case names no photo", "missing-image"))
        group = row["case_id"]
        yield DatasetRecord(where, group, images, (group,), split_of(group), CARD.licence, facts, answers, tags)


def _ticked(where: str, row: Mapping[str, str], columns: Mapping[str, str]) -> str | Missing:
    """What the person ticked, read out: `a, b and c`."""
    names = [name for column, name in columns.items() if lookup(where, row, column, BOOLEANS, ()) == "yes"]
    if not names:
        return Missing(f"nothing is ticked in {next(iter(columns)).rpartition('_')[0]} and its neighbours")
    return questions.together(names)


def _heaviest(label: str) -> str | Missing:
    """The condition of the greatest weight."""
    unclear = Missing(f"weighted_skin_condition_label is {label[:80]!r}", "malformed")
    if len(label) > LONGEST:
        return unclear
    try:
        weights = ast.literal_eval(label.strip() or "{}")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return unclear
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and name.strip() and name.isprintable() and isinstance(weight, int | float)
        for name, weight in weights.items()
    ):
        return unclear
    greatest = max(weights.values(), default=0)
    top = [name for name, weight in weights.items() if weight == greatest]
    if len(top) != 1:
        return Missing(
            f"{len(top)} conditions have the greatest weight" if top else "weighted_skin_condition_label is ''"
        )
    return diagnosis(top[0])
