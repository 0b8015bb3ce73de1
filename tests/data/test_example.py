"""The record: refused where it breaks its contract, and of use to other libraries as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest

from helpers import tiny
from skinvl.data.example import (
    LISTS,
    SCALARS,
    SCHEMA,
    Dropped,
    Example,
    ExampleError,
    Facts,
    read,
    text,
    validate,
    write,
    write_jsonl,
)
from skinvl.model import families
from skinvl.model.chat import DATE, Chat
from skinvl.recipe.recipe import Fact

GOOD = Example(
    id="1",
    source="drawn",
    images=("images/a.png",),
    messages=(text("user", "Which colour?", images=1), text("assistant", "Brown.")),
    group="patient-1",
    split="train",
    licence="CC0-1.0",
    facts=Facts(modality="clinical", age=54.0, kind="colour"),
)
FOLLOW_UP = (*GOOD.messages, text("user", "And its border?"), text("assistant", "Smooth."))
ROWS = [
    GOOD,
    replace(GOOD, id="2", messages=FOLLOW_UP),
    replace(GOOD, id="3", images=(), messages=(text("user", "What is a nevus?"), text("assistant", "A mole."))),
    replace(
        GOOD, id="4", images=("a.png", "b.png"), messages=(text("user", "Compare.", 2), text("assistant", "Same."))
    ),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    system = replace(GOOD, id="5", messages=(text("system", "Be brief."), *GOOD.messages))
    assert write(tmp_path, "train", [*ROWS, system]) == 5
    assert read(tmp_path, "train") == [*ROWS, system]
    assert [file.name for file in tmp_path.iterdir()] == ["train.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "an empty id"),
        ({"group": ""}, "an empty group"),
        ({"images": ("../a.png",)}, "image path '../a.png'; expected a relative path inside"),
        ({"images": ("/a.png",)}, "image path '/a.png'"),
        ({"images": ("a\\b.png",)}, "image path"),
        ({"images": ()}, "1 image parts and 0 images"),
        ({"messages": GOOD.messages[:1]}, r"roles \['user'\]; expected"),
        ({"messages": GOOD.messages[::-1]}, "roles"),
        ({"messages": ()}, "roles"),
        ({"messages": (GOOD.messages[0], text("assistant", "  "))}, "a assistant turn without words"),
        ({"messages": (text("user", "x"), text("assistant", "y", images=1))}, "an image in a assistant turn"),
        (
            {"messages": (text("user", "x"), {"role": "assistant", "content": [{"type": "text", "image": "a"}]})},
            "content part",
        ),
        (
            {"messages": (text("user", "x"), {"role": "assistant", "content": [{"type": "image", "text": "a"}]})},
            "content part",
        ),
    ],
)
def test_what_breaks_the_contract_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad = replace(GOOD, **change)
    with pytest.raises(ExampleError, match=message):
        validate(bad)
    with pytest.raises(ExampleError, match="Example '"):
        write(tmp_path, "train", [GOOD, bad])
    assert list(tmp_path.iterdir()) == []


def test_the_columns_are_those_that_the_datasets_library_would_write() -> None:
    word, number = datasets.Value("string"), datasets.Value("float64")
    features = datasets.Features(
        {
            **dict.fromkeys(("id", "source"), word),
            "images": datasets.List(datasets.Image(decode=False)),
            "messages": datasets.List({"role": word, "content": datasets.List({"type": word, "text": word})}),
            **dict.fromkeys(("group", "split", "licence"), word),
            "facts": {
                **dict.fromkeys(SCALARS, word),
                "age": datasets.Value("float64"),
                **dict.fromkeys(LISTS, datasets.List(word)),
            },
            "tags": datasets.List(word),
            "identities": datasets.List(word),
            "references": datasets.List({"text": word, "weight": number, "author": word, "completeness": number}),
            "options": datasets.List(word),
            "right": datasets.List(datasets.Value("int64")),
            "schema": word,
            "thoughts": datasets.List(word),
        }
    )
    assert SCHEMA.equals(features.arrow_schema, check_metadata=True)


def test_a_ledger_is_json_lines(tmp_path: Path) -> None:
    assert write_jsonl(tmp_path / "ledger.jsonl", [Dropped("a.csv:3", "empty", "no answer: é")]) == 1
    assert (tmp_path / "ledger.jsonl").read_text(encoding="utf-8") == (
        '{"row": "a.csv:3", "rule": "empty", "detail": "no answer: é"}\n'
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_prepared_source_renders_without_skinvl(tmp_path: Path, shared: Path, family: str) -> None:
    write(tmp_path, "train", ROWS)
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    processor = tiny.real_processor(shared, family)
    plain = processor.tokenizer.apply_chat_template
    chat = Chat(processor, families.load(family), 64, 512)
    for row, one in zip(table, ROWS, strict=True):
        shown = plain(row["messages"], chat_template=processor.chat_template, tokenize=False, date_string=DATE)
        assert shown == chat.render(one.messages)
        assert shown.count(families.load(family).image_token) == len(one.images)


def test_a_recipe_balances_by_any_fact_of_an_example_and_by_no_other() -> None:
    assert get_args(Fact) == SCALARS
