from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_prep import PrepError, dicom
from helpers import dicoms
from helpers.converted import converted
from helpers.raws import prepared
from skinvl.data.example import Dropped, Facts
from skinvl.data.pixels import upright

SECRET = "DOE^JANE"


def photo(**tags: Any) -> Dataset:
    """A dermoscopic photograph of a patient, as a PACS keeps it, with these tags besides."""
    made = dicoms.dataset("RGB", dicoms.patch())
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "14975008", "SCT", "Forearm"
    made.AnatomicRegionSequence = Sequence([region])
    made.Modality, made.PatientAge, made.PatientSex = "DMS", "045Y", "F"
    made.PatientID, made.PatientName = "4711", SECRET
    made.ImageLaterality, made.InstitutionName, made.StudyDate = "L", f"Clinic of {SECRET}", "20240102"
    made.ImageComments, made.PatientBirthDate = f"{SECRET} at home", "19790101"
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def test_an_export(tmp_path: Path) -> None:
    raw = tmp_path / "export"
    dicoms.write(raw / SECRET / "IM1", photo())
    dicoms.write(raw / SECRET / "IM2", photo(SOPClassUID=dicoms.PHOTOGRAPHIC, Modality="XC", ImageLaterality=""))
    other = photo(PatientID="0815", AnatomicRegionSequence=Sequence(), BodyPartExamined="HAND")
    other.PixelData = np.ascontiguousarray(255 - dicoms.patch()[::-1, ::-1]).tobytes()  # or prep joins the two patients
    dicoms.write(raw / "b" / "IM3", other)
    (raw / "README.txt").write_text(f"Images of {SECRET}")
    total, examples, ledger = prepared("dicom", raw)
    assert (total, len(examples), len(ledger)) == (8, 6, 2)
    assert ledger[0].rule == "not-dicom"

    # What is known of each, under names that say nothing.
    rows = {(row.facts.kind, row.facts.modality, row.facts.site): row for row in examples.values()}
    first = rows["site", "dermoscopy", "left forearm"]
    assert first.facts == Facts("dermoscopy", age=45.0, sex="female", site="left forearm", kind="site")
    second = rows["modality", "clinical", "forearm"]
    assert first.group == second.group != rows["site", "dermoscopy", "left hand"].group

    # The pixels are those of the objects, and nothing of the patient is anywhere in the source.
    out = raw.parent / f"{raw.name}-out"
    assert (np.asarray(upright(out / first.images[0])) == dicoms.patch()).all()
    for path in (path for path in out.rglob("*") if path.is_file()):
        for secret in (SECRET, "DOE", "4711", "0815", "Clinic", "19790101", "20240102"):
            assert secret not in str(path.relative_to(out))
            assert secret.encode() not in path.read_bytes(), path


def test_the_key_lies_beside_raw_and_gives_the_same_names_again(tmp_path: Path) -> None:
    raw = tmp_path / "export"
    dicoms.write(raw / "a.dcm", photo())
    first, _ = converted(dicom, raw, "images")
    key = tmp_path / "export.key"
    assert len(key.read_bytes()) == 32
    assert key.stat().st_mode & 0o077 == 0
    again, _ = converted(dicom, raw, "images")
    assert first == again
    key.unlink()
    other, _ = converted(dicom, raw, "images")
    assert not first.keys() & other.keys()
    key.write_bytes(b"short")
    with pytest.raises(PrepError, match="expected the 32"):
        converted(dicom, raw, "images")


def test_a_single_file_is_raw_too(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "one.dcm", photo())
    _, examples, _ = prepared("dicom", tmp_path / "one.dcm")
    assert len(examples) == 2


def outcome(tmp_path: Path, **tags: Any) -> tuple[Facts | None, str]:
    """The facts and the group of a photograph with these tags; None and the rule where it gave no row."""
    dicoms.write(tmp_path / "export" / "a.dcm", photo(**tags))
    examples, ledger = converted(dicom, tmp_path / "export", "images")
    if not examples:
        return None, ledger[0].rule
    row = next(iter(examples.values()))
    return row.facts, row.group


@pytest.mark.parametrize(
    ("age", "years"), [("045Y", 45), ("006M", 0.5), ("002W", 0.04), ("010D", 0.03), ("099Y", 90), ("", None)]
)
def test_ages(tmp_path: Path, age: str, years: float | None) -> None:
    facts, _ = outcome(tmp_path, PatientAge=age)
    assert facts is not None
    assert facts.age == years


def test_what_is_no_photograph_of_skin(tmp_path: Path) -> None:
    generic = "1.2.840.10008.5.1.4.1.1.7"
    assert outcome(tmp_path, Modality="CT", SOPClassUID=generic) == (None, "other-modality")
    assert outcome(tmp_path, BurnedInAnnotation="YES") == (None, "burned-in")
    assert outcome(tmp_path, BurnedInAnnotation="NO")[0] is not None
    facts, _ = outcome(tmp_path, Modality="OT", SOPClassUID=generic)
    assert facts is not None
    assert facts.modality is None  # a secondary capture may be a photograph: its site can be asked

    report = photo()
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    dicoms.write(tmp_path / "export" / "a.dcm", report)
    _, ledger = converted(dicom, tmp_path / "export", "images")
    assert {row.rule for row in ledger} == {"no-pixels"}


def test_patients_without_an_id_are_not_one_patient(tmp_path: Path) -> None:
    groups = {outcome(tmp_path, PatientID=name)[1] for name in ("", "ANONYMOUS", "unknown")}
    assert len(groups) == 3  # each object has a study of its own
    for name in ("", "ANONYMOUS"):
        first, second = (outcome(tmp_path, PatientID=name)[1] for _ in range(2))
        assert first != second
    same = {outcome(tmp_path, PatientID="7", IssuerOfPatientID=issuer)[1] for issuer in ("A", "B")}
    assert len(same) == 2


def test_a_site_of_an_unknown_scheme_is_not_taken(tmp_path: Path) -> None:
    region = Dataset()
    region.CodingSchemeDesignator, region.CodeMeaning = "99CLINIC", SECRET
    facts, _ = outcome(tmp_path, AnatomicRegionSequence=Sequence([region]), BodyPartExamined="DOE JANE")
    assert facts is not None
    assert facts.site is None


def test_a_damaged_object_is_told_by_its_number(tmp_path: Path) -> None:
    raw = tmp_path / "export"
    broken = dicoms.data(photo(PatientID="7"))
    (raw / SECRET).mkdir(parents=True)
    (raw / SECRET / "IM1").write_bytes(broken[:-600])
    _, examples, ledger = prepared("dicom", raw)
    assert not examples
    assert {row.rule for row in ledger} == {"unreadable-image"}
    assert SECRET not in str(ledger)


def test_no_path_or_text_of_a_refused_object_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "export"
    generic = "1.2.840.10008.5.1.4.1.1.7"
    dicoms.write(raw / "DOE\\JANE", photo())
    dicoms.write(raw / "DOE\x01JANE", photo())
    dicoms.write(raw / SECRET / "modality", photo(Modality=SECRET, SOPClassUID=generic))
    dicoms.write(raw / SECRET / "none", photo(Modality="doctor", SOPClassUID=generic))
    dicoms.write(raw / SECRET / "photometric", photo(PhotometricInterpretation=SECRET))
    dicoms.write(tmp_path / SECRET / "outside", photo())
    (raw / f"{SECRET}.link").symlink_to(tmp_path / SECRET / "outside")
    (raw / SECRET / "large").write_bytes(bytes(20_000))
    monkeypatch.setattr(dicom.dicom_pixels, "MAX_BYTES", 19_999)
    _, examples, ledger = prepared("dicom", raw)
    assert not examples
    rules = Counter(row.rule for row in ledger)
    assert rules == {"unsafe-path": 6, "other-modality": 4, "unreadable-image": 4}
    assert "DOE" not in str(ledger)
    assert "doctor" not in str(ledger)
    assert "Modality is CT; expected XC" in str(
        converted_ledger(raw.with_name("other"), photo(Modality="CT", SOPClassUID=generic))
    )


def converted_ledger(raw: Path, made: Dataset) -> list[Dropped]:
    dicoms.write(raw / "a", made)
    return converted(dicom, raw, "images")[1]


def test_a_row_of_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "x").write_bytes(b"")
    _, ledger = converted(dicom, tmp_path / "export", "images")
    assert ledger[0] == Dropped("file 1 by path modality", "not-dicom", "no DICOM file")
