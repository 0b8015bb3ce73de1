"""Perceptual hashes of real photos, mirrored and turned ones too, and the clusters of links."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from helpers.sources import phash
from skinvl.data import fingerprints
from skinvl.data.fingerprints import AGREE, THRESHOLD, archive_id, clusters, links, looks
from skinvl.data.hamming import near
from skinvl.data.source import IMAGES_SCHEMA, read_images


@pytest.fixture(scope="module")
def photos(shared: Path) -> dict[str, Image.Image]:
    """By lesion, one photo of each of 60 lesions."""
    table = csv.DictReader((shared / "pad_ufes_20" / "metadata.csv").open(encoding="utf-8"))
    lesions = {Path(row["img_id"]).stem: f"{row['patient_id']} {row['lesion_id']}" for row in table}
    files = sorted((shared / "pad_ufes_20" / "img").iterdir())
    found = {lesions[file.stem]: file for file in files}
    return {lesion: Image.open(file).convert("RGB") for lesion, file in list(found.items())[:60]}


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(picture: Image.Image, share: float) -> Image.Image:
    return picture.resize((round(picture.width * share), round(picture.height * share)))


def cropped(picture: Image.Image, share: float) -> Image.Image:
    cut = round(picture.width * share)
    return picture.crop((cut, cut, picture.width - cut, picture.height - cut))


COPIES: dict[str, tuple[Any, float]] = {  # and the share that must be found
    "jpeg 50": (lambda picture: jpeg(picture, 50), 1.0),
    "half": (lambda picture: resized(picture, 0.5), 1.0),
    "quarter, jpeg 50": (lambda picture: jpeg(resized(picture, 0.25), 50), 0.97),
    "square": (lambda picture: picture.resize((336, 336)), 1.0),
    "brighter": (lambda picture: ImageEnhance.Brightness(picture).enhance(1.1), 1.0),
    "cropped": (lambda picture: cropped(picture, 0.01), 0.9),
}


def hashes(pictures: list[Image.Image]) -> NDArray[np.uint64]:
    return np.array([phash(picture) for picture in pictures], np.uint64)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_real_photo_is_near_it(photos: dict[str, Image.Image], name: str) -> None:
    change, share = COPIES[name]
    pictures = list(photos.values())
    apart = np.bitwise_count(hashes(pictures) ^ hashes([change(picture) for picture in pictures]))
    assert np.mean(apart <= THRESHOLD) >= share, sorted(apart.tolist())


def test_real_photos_of_different_lesions_are_not_near(photos: dict[str, Image.Image]) -> None:
    """With room for 400,000 images: of the 1,770 pairs none is within twice the threshold."""
    found = hashes(list(photos.values()))
    assert len(near(found, 2 * THRESHOLD)) == 0
    assert len(near(np.concatenate([found, found[:3]]), THRESHOLD)) == 3


def pictured(*pictures: Image.Image) -> pa.Table:
    """The table of images that shows the pictures."""
    rows = [{"path": str(n), "sha256": str(n), **looks(picture)} for n, picture in enumerate(pictures)]
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


@pytest.mark.parametrize("name", COPIES)
def test_a_mirrored_or_turned_copy_is_linked_and_no_other(photos: dict[str, Image.Image], name: str) -> None:
    """All seven positions, of photos each in another one, compressed, resized and cropped as upright copies are."""
    change, share = COPIES[name]
    pictures = list(photos.values())
    turns = list(Image.Transpose)
    copies = [change(picture.transpose(turns[n % 7])) for n, picture in enumerate(pictures)]
    table = pictured(*pictures, *copies)
    pairs = {tuple(pair) for pair in fingerprints.shared(table, "turned").tolist()}
    expected = {(n, n + len(pictures)) for n in range(len(pictures))}
    assert pairs <= expected
    assert len(pairs) >= (share - 0.02) * len(expected)
    assert not len(fingerprints.shared(table.slice(0, len(pictures)), "turned"))
    assert {tuple(pair) for pair in links(table).tolist()} >= pairs
    assert not len(links(table, alike=False))


def test_the_hashes_of_the_other_positions_are_those_of_the_turned_picture(photos: dict[str, Image.Image]) -> None:
    """Bit by bit: of cells that are turned themselves nothing is lost by sampling."""
    for picture in list(photos.values())[:20]:
        cells = picture.resize((32, 32), Image.Resampling.LANCZOS).convert("L")
        turned = {phash(cells.transpose(turn)) for turn in Image.Transpose}
        assert set(looks(cells)["turned"] or []) == turned
        assert len(turned | {phash(cells)}) == 8


def test_a_turned_pair_needs_the_second_look(photos: dict[str, Image.Image]) -> None:
    """And is evidence where it is not near as it stands; the signs of a mirrored copy may differ in AGREE bits."""
    picture = next(iter(photos.values()))
    table = pictured(picture, picture.transpose(Image.Transpose.ROTATE_90))
    apart = fingerprints.second_look(*signs(table), np.arange(7))
    assert (apart <= 8).sum() == 1
    for bits, linked in ((AGREE - 8, True), (AGREE + 9, False)):
        first, second = (bytearray(value) for value in table["signs"].to_pylist())
        for bit in range(60, 60 + bits):
            second[bit // 8] ^= 128 >> bit % 8
        changed = table.set_column(table.column_names.index("signs"), "signs",
                                   pa.array([bytes(first), bytes(second)], pa.binary(32)))  # fmt: skip
        assert len(fingerprints.shared(changed, "turned")) == linked
        assert (fingerprints.turned_bits(changed, np.array([[0, 1], [1, 0]])) <= THRESHOLD).tolist() == [linked] * 2
    assert fingerprints.turned_bits(table, np.array([[0, 0]])).tolist() == [65]
    assert not len(fingerprints.shared(pictured(picture, picture), "turned"))


def signs(table: pa.Table) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The signs of the first image seven times, and those of the second."""
    rows = [np.frombuffer(value, np.uint8) for value in table["signs"].to_pylist()]
    return np.stack([rows[0]] * 7), np.stack([rows[1]] * 7)


def test_equal_turned_pictures_cost_one_pair(photos: dict[str, Image.Image]) -> None:
    picture = next(iter(photos.values()))
    two = pictured(picture, picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    many = pa.concat_tables([two] * 20_000)
    assert fingerprints.shared(many, "turned").tolist() == [[0, 1]]
    assert not clusters(len(many), links(many)).any()


def test_the_hash_of_a_large_picture_is_that_of_its_smaller_copy(photos: dict[str, Image.Image]) -> None:
    large = resized(next(iter(photos.values())), 5.3)
    one, other = phash(large), phash(resized(large, 0.083))  # the one is thinned first, the other is not
    assert one is not None
    assert other is not None
    assert (one ^ other).bit_count() <= THRESHOLD


def test_the_hash_is_that_of_the_imagehash_library(photos: dict[str, Image.Image]) -> None:
    for picture in photos.values():
        cells = picture.resize((32, 32), Image.Resampling.LANCZOS).convert("L")
        assert phash(cells) == int(str(imagehash.phash(cells)), 16)


def test_a_flat_picture_has_no_hash_and_a_pale_one_has() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(200, 8, (300, 300, 3)).clip(0, 255).astype(np.uint8)
    assert phash(Image.new("RGB", (300, 300), (230, 200, 190))) is None
    assert phash(Image.new("RGB", (1, 1))) is None
    assert phash(jpeg(Image.fromarray(noise), 75)) is None
    pale = np.full((300, 300, 3), 200, np.uint8)
    pale[100:180, 60:200] -= 20
    assert phash(Image.fromarray(pale)) is not None
    assert phash(Image.fromarray(pale).convert("L")) == phash(Image.fromarray(pale))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("images/ISIC_0024306.jpg", "ISIC_0024306"),
        ("ISIC_0024306_downsampled.JPG", "ISIC_0024306"),
        ("a/b\\isic_0024306.PNG", "ISIC_0024306"),
        ("train-ISIC_0024306", "ISIC_0024306"),
        ("ISIC_00243061.jpg", None),
        ("ISIC_0024306/photo.jpg", None),
        ("MISIC_0024306.jpg", None),
        ("PAT_1516_1765_530.png", None),
    ],
)
def test_archive_ids_are_read_from_names(path: str, name: str | None) -> None:
    assert archive_id(path) == name


def test_a_source_without_fingerprints_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images\.parquet: no such file.*skinvl prep"):
        read_images(tmp_path)
    pq.write_table(pa.table({"path": ["images/a.png"]}), tmp_path / "images.parquet")
    with pytest.raises(ValueError, match=r"images\.parquet: not a table of images .*skinvl prep"):
        read_images(tmp_path)
    before = [field for field in IMAGES_SCHEMA if field.name not in ("turned", "signs")]  # prepared without turns
    pq.write_table(pa.schema(before).empty_table(), tmp_path / "images.parquet")
    with pytest.raises(ValueError, match=r"\(no column turned, signs\); prepare the source again with: skinvl prep"):
        read_images(tmp_path)
    (tmp_path / "images.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="not a table of images"):
        read_images(tmp_path)
    table = pictured(Image.linear_gradient("L"), Image.new("L", (9, 9)))
    pq.write_table(table, tmp_path / "images.parquet")
    assert read_images(tmp_path).equals(table)


def test_a_cluster_is_named_by_its_lowest_member() -> None:
    assert clusters(6, np.array([[1, 0], [5, 4], [4, 2]])).tolist() == [0, 0, 2, 3, 2, 2]


def images(*rows: tuple[str, int | None, str | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"path": f"images/{n}.png", "sha256": sha, "phash": hash_, "archive": name, "width": 9, "height": 9}
            for n, (sha, hash_, name) in enumerate(rows)
        ],
        schema=IMAGES_SCHEMA,
    )


def test_each_kind_of_evidence_links_its_own_rows_and_nulls_none() -> None:
    one, other, far = 0xF0F0F0F0F0F0F0F0, 0xF0F0F0F0F0F0F0FF, 0x123456789ABCDEF0
    table = images(
        ("a", None, None), ("b", one, "ISIC_1"), ("c", far, None), ("a", None, None), ("d", other, None),
        ("e", far ^ 0xFFFFFF, "ISIC_1"),
    )  # fmt: skip
    assert fingerprints.shared(table, "sha256").tolist() == [[0, 3]]
    assert fingerprints.shared(table, "archive").tolist() == [[1, 5]]
    assert fingerprints.shared(table, "phash").tolist() == [[1, 4]]
    assert fingerprints.shared(table, "phash", 3).tolist() == []
    assert sorted(links(table).tolist()) == [[0, 3], [1, 4], [1, 5]]
    assert sorted(links(table, alike=False).tolist()) == [[0, 3], [1, 5]]
    assert fingerprints.shared(pa.concat_tables([table, table]), "archive").tolist() == [[1, 5], [5, 7], [7, 11]]
    assert links(images()).shape == (0, 2)
