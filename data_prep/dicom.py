"""DICOM files of photographs and dermoscopic images, one or a folder of a PACS export → questions in our own words.

RAW is a file, or a folder with files at any depth, whatever they are called. Of each file nothing is read but the tags
of TAGS and the pixels. Names, dates, numbers and texts of the patient, the physician and the clinic stay where they
are: a patient, a series of images and an image are known by a keyed digest alone. Its key is made at random the first
time, lies beside RAW as `<RAW>.key`, and is needed to give the same patient the same name another time.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep import NOBODY, SEXES, Card, PrepError, Shard, known, split_of, taken
from skinvl.data import dicom_pixels, questions
from skinvl.data.example import Dropped, Example, Facts, inside
from skinvl.data.questions import PICTURES, DatasetRecord, Missing

CARD = Card(
    title="DICOM objects of photography and dermoscopy, as a PACS exports them",
    address="https://www.dicomstandard.org",
    licence="none stated (research only)",
    terms="What the clinic, the patients' consent and the law allow. Text that is burned into the pixels is not looked "
    "for: look at the images before you give them away.",
    citation="The clinic that took the images",
    obtain="RAW is a DICOM file or a folder of them, at any depth. It needs the extra: pip install 'skinvl[dicom]'.",
    splits=("train", "test"),
    parts=("images",),
    use="research",
)

# All that is read of a file beside its pixels. A patient's and an object's own ids leave it as keyed digests alone.
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "Modality"),
    *("PatientAge", "PatientSex", "AnatomicRegionSequence", "BodyPartExamined", "ImageLaterality", "Laterality"),
    *("BurnedInAnnotation", "Rows"),
)
MODALITIES = {"XC": "clinical", "DMS": "dermoscopy", "SM": "pathology", "GM": "pathology"}
# Dermoscopic and VL Photographic Image Storage; others may say their modality all the same.
CLASSES = {"1.2.840.10008.5.1.4.1.1.77.1.7": "dermoscopy", "1.2.840.10008.5.1.4.1.1.77.1.4": "clinical"}
SCHEMES = {"SCT", "SRT", "SNM3", "99SDM", "DCM", "FMA"}  # of codes, whose meanings name body parts and nobody
# Of the defined terms of BodyPartExamined (PS3.16, annex L) those that have skin; anything else could be free text.
BODY_PARTS = {
    *("abdomen", "ankle", "arm", "axilla", "back", "breast", "buttock", "calf", "cheek", "chest", "chin", "ear"),
    *("elbow", "eye", "eyelid", "face", "finger", "foot", "forearm", "forehead", "groin", "hand", "head", "heel"),
    *("hip", "jaw", "knee", "leg", "lip", "mouth", "nail", "neck", "nose", "palm", "penis", "perineum", "scalp"),
    *("scrotum", "shoulder", "skin", "sole", "thigh", "thumb", "toe", "tongue", "trunk", "vulva", "wrist"),
}
SIDES = {"R": "right", "L": "left"}
YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}  # how many of a unit of an age make one
OLDEST = 90.0  # years; who is older is 90 here, as few are
ANONYMOUS = NOBODY | {"anonymous", "anonymized", "anonymised", "anon", "0"}  # in place of a patient's id
KINDS = {"modality": questions.modality("Modality"), "site": questions.site("AnatomicRegionSequence")}


def rows(raw: Path, part: str) -> int:
    """Files times the kinds of question."""
    return len(_files(raw)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per file and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "export").mkdir()
    ...     _ = (Path(folder) / "export" / "README.txt").write_text("no image")
    ...     made = list(convert(Path(folder) / "export", "images"))
    >>> made[0]
    Dropped(row='file 1 by path modality', rule='not-dicom', detail='no DICOM file')
    """
    return questions.converse("dicom", KINDS, _records(raw, shard))


def _files(raw: Path) -> list[Path]:
    if raw.is_file():
        return [raw]
    return sorted(path for path in raw.rglob("*") if path.is_file())


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    """What each file says; the ledger knows it by its number, since paths of an export can hold a patient's name."""
    root = raw.parent if raw.is_file() else raw
    key = _key(raw)
    for number, path in taken(enumerate(_files(raw), 1), shard):
        where, image = f"file {number} by path", path.relative_to(root).as_posix()
        header = _header(root, path)
        if isinstance(header, Missing):
            nobody = dict.fromkeys(KINDS, header)
            yield DatasetRecord(where, where, (), (where,), "train", CARD.licence, Facts(), nobody)
            continue

        # The names of the image and of what it belongs to, none of them as the file has them.
        id_ = _digest(key, "image", _text(header, "SOPInstanceUID") or image)
        patient = _text(header, "PatientID")
        owner: tuple[str, ...] = ("patient", _text(header, "IssuerOfPatientID"), patient)
        if patient.casefold() in ANONYMOUS:
            owner = ("study", _text(header, "StudyInstanceUID") or image)
        names = (f"{owner[0]} {_digest(key, *owner)}", f"image {id_}")

        modality = CLASSES.get(_text(header, "SOPClassUID"), MODALITIES.get(_text(header, "Modality")))
        site = _site(header)
        answers: dict[str, str | Missing] = {
            "modality": PICTURES[modality] if modality else Missing(_other(header)),
            "site": site or Missing("no AnatomicRegionSequence or BodyPartExamined of a known scheme"),
        }
        if reason := _unfit(header, modality):
            answers = dict.fromkeys(KINDS, reason)
        facts = Facts(
            modality=modality,
            age=_age(_text(header, "PatientAge")),
            sex=SEXES.get(_text(header, "PatientSex").casefold()),
            site=known(answers["site"]),
        )
        yield DatasetRecord(where, id_, (image,), names, split_of(names[0]), CARD.licence, facts, answers)


def _unfit(header: Any, modality: str | None) -> Missing | None:
    """Why an object is no image of skin that can be shown; None where it may be one."""
    if "Rows" not in header:
        return Missing("an object without pixels, such as a report or a DICOMDIR", "no-pixels")
    if modality is None and _text(header, "Modality") not in ("", "OT", "DOC"):
        return Missing(f"{_other(header)}; expected {', '.join(MODALITIES)}", "other-modality")
    if _text(header, "BurnedInAnnotation").upper() == "YES":
        return Missing("BurnedInAnnotation is YES: its pixels may name the patient", "burned-in")
    return None


def _other(header: Any) -> str:
    """What is said of a modality that is none of ours: its code where it looks like one, and no other words."""
    code = _text(header, "Modality")
    return f"Modality is {code}" if re.fullmatch("[A-Z]{2,3}", code) else "Modality is empty, or no code"


def _header(root: Path, path: Path) -> Any:
    """The tags of TAGS that a file has, or why it has none, which does not name it."""
    name = path.relative_to(root).as_posix()
    if not inside(name) or len(name) > 1024 or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        return Missing("a path with backslashes or control characters, or too long; rename it", "unsafe-path")
    if not path.resolve().is_relative_to(root.resolve()):
        return Missing("a link that leads out of RAW", "unsafe-path")
    try:
        if path.stat().st_size > dicom_pixels.MAX_BYTES:
            return Missing(
                f"{path.stat().st_size:,} bytes; at most {dicom_pixels.MAX_BYTES:,} are read", "unreadable-image"
            )
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        return Missing(f"cannot be opened: {error.strerror}", "unreadable-image")
    if not dicom_pixels.is_dicom(start):
        return Missing("no DICOM file", "not-dicom")
    header = dicom_pixels.header(path, TAGS)
    return Missing("damaged DICOM", "malformed") if header is None else header


def _text(header: Any, tag: str) -> str:
    """The value of a tag as text, empty where there is none."""
    value = header.get(tag)
    return "" if value is None else str(value).strip()


def _site(header: Any) -> str | None:
    """The body site with its side: the meaning of a code, else the word of BodyPartExamined."""
    codes = header.get("AnatomicRegionSequence") or []
    meanings = [str(code.get("CodeMeaning") or "") for code in codes if code.get("CodingSchemeDesignator") in SCHEMES]
    part = _text(header, "BodyPartExamined").casefold()
    name = [*meanings, part if part in BODY_PARTS else ""][0].strip().casefold()
    if not re.fullmatch(r"[a-z][a-z ,/-]{1,60}", name):
        return None
    side = SIDES.get(_text(header, "ImageLaterality") or _text(header, "Laterality"))
    return f"{side} {name}" if side and side not in name.split() else name


def _age(text: str) -> float | None:
    """Years, of an age such as 045Y or 006M; at most OLDEST."""
    age = re.fullmatch(r"(\d{1,3})([DWMY])", text)
    return min(round(int(age[1]) / YEAR[age[2]], 2), OLDEST) if age else None


def _digest(key: bytes, *words: str) -> str:
    return hmac.new(key, "\0".join(words).encode(), "sha256").hexdigest()[:20]


def _key(raw: Path) -> bytes:
    """The key of RAW's digests, made if there is none; it appears whole or not at all, whoever makes it first."""
    path = raw.resolve().with_name(f"{raw.resolve().name}.key")
    try:
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.touch(mode=0o600)
            partial.write_bytes(secrets.token_bytes(32))
            try:
                os.link(partial, path)
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        key = path.read_bytes()
    except OSError as error:
        raise PrepError(
            f"{path}: {error.strerror}; the key of the patients' digests lies beside RAW: put RAW into a folder of "
            "yours that can be written"
        ) from error
    if len(key) != 32:
        raise PrepError(f"{path}: {len(key)} bytes; expected the 32 of a key that skinvl prep dicom made")
    return key
