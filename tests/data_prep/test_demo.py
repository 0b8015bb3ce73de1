from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from data_prep import PrepError, demo
from helpers.converted import outcomes
from skinvl.data.example import Example, words


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "raw"
    demo.rows(folder, "all")
    return folder


@pytest.fixture(scope="module")
def made(raw: Path) -> list[Example]:
    rows = outcomes(demo, raw, "all")
    assert len(rows) == demo.IMAGES * 5 + demo.IMAGES // 2
    return [row for row in rows if isinstance(row, Example)]


def test_it_is_the_same_everywhere(raw: Path, made: list[Example], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()  # an empty folder is filled as well
    assert list(demo.convert(again, "all")) == made
    assert (again / "index.json").read_bytes() == (raw / "index.json").read_bytes()
    for name in ("images/000.png", "images/479.png"):
        assert (again / name).read_bytes() == (raw / name).read_bytes()


def test_a_drawn_folder_is_used_again(raw: Path) -> None:
    before = (raw / "images/000.png").stat().st_mtime_ns
    demo.rows(raw, "all")
    assert (raw / "images/000.png").stat().st_mtime_ns == before


def test_no_image_is_in_both_splits(made: list[Example]) -> None:
    images = {
        split: {image for row in made if row.split == split for image in row.images} for split in demo.CARD.splits
    }
    groups = {split: {row.group for row in made if row.split == split} for split in demo.CARD.splits}
    assert not images["train"] & images["test"]
    assert not groups["train"] & groups["test"]
    assert len(images["test"]) == demo.IMAGES / 5


def test_no_kind_is_answered_by_its_most_frequent_answer(made: list[Example]) -> None:
    kinds = {row.facts.kind for row in made}
    assert kinds == set(demo.QUESTIONS)
    for split, most in (("train", 0.55), ("test", 0.62)):
        for kind in kinds:
            answers = Counter(words(row.messages[1]) for row in made if (row.facts.kind, row.split) == (kind, split))
            assert max(answers.values()) / answers.total() < most, (split, kind, answers)


def test_a_question_says_nothing_of_its_answer(made: list[Example]) -> None:
    for kind, options in demo.OPTIONS.items():
        asked = {words(row.messages[0]) for row in made if row.facts.kind == kind}
        assert len(asked) == len(demo.QUESTIONS[kind])
        assert all(option in question for question in asked for option in options)
    open_ = {words(row.messages[0]) for row in made if row.facts.kind == "description"}
    assert not any(
        option in question.split() for question in open_ for kind in demo.OPTIONS.values() for option in kind
    )


def test_comparisons_have_two_images_and_the_truth(raw: Path, made: list[Example]) -> None:
    size = {drawing.file: drawing.size for drawing in demo._drawings(raw, "all")}
    pairs = [row for row in made if row.facts.kind == "comparison"]
    assert len(pairs) == demo.IMAGES // 2
    for row in pairs:
        first, second = (size[image] for image in row.images)
        assert words(row.messages[1]) == {("large", "small"): "first", ("small", "large"): "second"}[first, second]


def test_the_features_are_in_the_pixels(raw: Path) -> None:
    """Each lesion's pixels are counted: sizes must not overlap, and the tag has the colour of its site."""
    areas: dict[str, list[float]] = {"small": [], "large": []}
    for drawing in demo._drawings(raw, "all")[:60]:
        with Image.open(raw / drawing.file) as picture:
            assert picture.size == (demo.SIDE, demo.SIDE)
            tag = ImageStat.Stat(picture.crop((10, 10, 35, 35))).mean
            assert max(abs(a - b) for a, b in zip(tag, demo.TAGS[drawing.site], strict=True)) < 3
            ink = demo.INKS[drawing.colour]
            near = [max(abs(a - b) for a, b in zip(pixel, ink, strict=True)) < 20 for pixel in _pixels(picture)]
        areas[drawing.size].append(sum(near) / demo.COUNTS[drawing.count])
    assert max(areas["small"]) < min(areas["large"])


def _pixels(picture: Image.Image) -> list[tuple[int, ...]]:
    data = picture.tobytes()
    return [tuple(data[at : at + 3]) for at in range(0, len(data), 3)]


def test_its_images_lie_in_raw_and_share_a_style(raw: Path, made: list[Example]) -> None:
    assert all((raw / image).is_file() for row in made for image in row.images)
    assert (demo.CARD.released, demo.CARD.alike) == ("sound", False)


def test_two_processes_may_fill_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = demo._plan

    def late(part: str) -> list[demo.Drawing]:
        monkeypatch.setattr(demo, "_plan", plan)
        demo.rows(tmp_path / "raw", part)  # the other one is done first
        return plan(part)

    monkeypatch.setattr(demo, "_plan", late)
    assert demo.rows(tmp_path / "raw", "all") == demo.IMAGES * 5 + demo.IMAGES // 2
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").touch()
    with pytest.raises(PrepError, match=r"no index\.json.*new or empty RAW"):
        demo.rows(tmp_path, "all")
    (tmp_path / "index.json").write_text('[{"file": "a"}]')
    with pytest.raises(PrepError, match="not the index of this version's drawings"):
        demo.rows(tmp_path, "all")
