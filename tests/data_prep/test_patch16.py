from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, patch16
from helpers.converted import converted
from helpers.raws import image, said, table
from skinvl.data.example import Facts

ROW = {"file": "data/tiles/tumor_skin_naevus_naevus/tumor_skin_naevus_naevus_ws_4_1.jpg"}
ROW |= {"class": "tumor_skin_naevus_naevus", "set": "Train", "malignicy": "tumor"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    rows = [{**ROW, **change} for change in changes]
    table(folder / "raw" / patch16.FILE, rows)
    for row in rows[:3]:
        image(folder / "raw" / row["file"].removeprefix("data/"))
    return folder / "raw"


def test_the_account(tmp_path: Path) -> None:
    normal = {"file": "data/tiles/n/n_ws_7_1.jpg", "class": "nontumor_skin_dermis_dermis", "malignicy": "nontumor"}
    changes: tuple[dict[str, str], ...] = (
        {},
        {"file": ROW["file"].replace("_1.jpg", "_2.jpg"), "class": ""},
        {**normal, "set": "Validation"},
        {"file": "data/tiles/lost_1.jpg", "set": "Test"},
        {},
    )
    examples, ledger = converted(patch16, raw(tmp_path, *changes))
    assert len(examples) + len(ledger) + 3 == 5 * 3  # one tile comes twice, under the same ids
    assert [row.rule for row in ledger] == ["unknown-value"]
    first, dermis = examples["tumor_skin_naevus_naevus_ws_4_1-tissue"], examples["n_ws_7_1-tumor"]
    assert first.facts == Facts("pathology", "nevus", "benign", kind="tissue")
    assert first.group == examples["tumor_skin_naevus_naevus_ws_4_2-tumor"].group == "tumor_skin_naevus_naevus_ws_4"
    assert dermis.facts == Facts("pathology", kind="tumor")
    assert {row.split for row in examples.values()} == {"train", "validation", "test"}
    assert patch16.CARD.released == "sound"
    assert "nevus" in said(first)[1]
    assert any(word in said(dermis)[1] for word in ("nontumor", "no tumor"))


@pytest.mark.parametrize(("column", "value"), [("class", "x"), ("set", "dev"), ("malignicy", "x"), ("set", "")])
def test_a_value_that_should_not_occur_is_named(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(PrepError, match=rf"tiles-v2\.csv:2 {column}: found ('{value}'|nothing); expected "):
        list(patch16.convert(raw(tmp_path, {column: value}), "vqa"))
