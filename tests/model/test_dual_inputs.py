"""Texts as ids and images as pixels are what transformers' own tokenizers and image processors make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Siglip2Tokenizer

from helpers import tiny, two_towers
from skinvl.model import towers
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_inputs import PixelFormat, TextTokenizer

FAMILIES = towers.names()
LONG = "A brown macule with a jagged border on the back. " * 40


def tokenizer(family: str) -> TextTokenizer:
    """That of a tiny base."""
    length = {"clip": 77, "siglip": 64, "beit_bert": 256}[family]
    return TextTokenizer.read(two_towers.base(family), length, towers.load(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers_and_end_as_they_should_when_cut(family: str) -> None:
    ours = tokenizer(family)
    plain = AutoTokenizer.from_pretrained(two_towers.base(family))
    texts = ["A nevus.", "On the back: a NEVUS, 2.5 cm", LONG, ""]

    ids = ours(texts)

    assert ids == plain(texts, truncation=True, max_length=ours.length)["input_ids"]
    assert [ours.cut(text) for text in texts] == [False, False, True, False]
    assert len(ids[2]) == ours.length
    assert {row[-1] for row in ids} == {ids[0][-1]}  # each with its end, the empty one too
    assert ours.lengths(texts)[:2] == [len(row) for row in ids[:2]]
    assert ours.lengths(texts)[2] > ours.length
    assert ours([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_that_of_transformers(family: str) -> None:
    ours = tokenizer(family)
    texts = ["A nevus.", "On the back: a nevus, 2.5 cm"]
    ids, mask = ours.pad(ours(texts))
    how = "longest" if ours.trims else "max_length"
    plain = ours.tokenizer(texts, padding=how, max_length=ours.length, truncation=True, return_tensors="pt")
    assert torch.equal(ids, plain["input_ids"])
    assert torch.equal(mask, plain["attention_mask"])
    assert ids.shape[1] == (max(map(len, ours(texts))) if ours.trims else 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_give_the_same_alone_in_a_batch_and_at_full_length_unless_refused(family: str) -> None:
    model = DualEncoder.from_pretrained(two_towers.base(family)).eval()
    ours = tokenizer(family)
    ids = ours(["A nevus.", "On the back: a nevus, 2.5 cm wide, with a jagged border"])
    whole = TextTokenizer(ours.tokenizer, ours.length, trims=False)
    with torch.no_grad():
        together = model.encode_texts(*ours.pad(ids))
        alone = torch.cat([model.encode_texts(*ours.pad([row])) for row in ids])
        full = model.encode_texts(*whole.pad(ids))
        trimmed = model.encode_texts(*TextTokenizer(ours.tokenizer, ours.length, trims=True).pad(ids))
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(full, together, rtol=0, atol=1e-6)
    assert ((trimmed - full).abs().max() > 1e-3) == (not ours.trims)


def test_siglips_texts_are_in_lower_case_whatever_its_tokenizer_does() -> None:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "▁": 7}
    lowers, keeps = Siglip2Tokenizer(vocabulary, []), Siglip2Tokenizer(vocabulary | {"A": 8, "B": 9}, [])
    keeps.backend_tokenizer.normalizer = None
    for plain in (lowers, keeps):
        ours = TextTokenizer(plain, 64, trims=False, lower_case=True)
        assert ours(["AB"]) == ours(["ab"]) == [[5, 6]]
    assert TextTokenizer(keeps, 64, trims=False)(["AB"]) == [[8, 9]]


def test_a_tokenizer_that_pads_to_the_left_is_padded_so_where_padding_is_read() -> None:
    ours = tokenizer("siglip")
    ours.tokenizer.padding_side = "left"
    ids, mask = ours.pad([[5, 6, 1]])
    assert ids[0].tolist() == [0] * 61 + [5, 6, 1]
    assert mask[0].tolist() == [0] * 61 + [1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(112, 112), (90, 200), (301, 160), (113, 112)])
def test_pixels_are_those_of_the_image_processor(family: str, size: tuple[int, int]) -> None:
    image = tiny.picture(3, size)
    processor = AutoImageProcessor.from_pretrained(two_towers.base(family), backend="pil")
    pixels = PixelFormat.read(two_towers.base(family), 112)

    square = torch.from_numpy(np.array(pixels.square(image))).permute(2, 0, 1)[None]
    ours = pixels.normalised(square)

    plain = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels.normalised(square / 255), ours, rtol=0, atol=1e-6)


def test_a_pixel_format_is_saved_for_transformers_and_read_again(tmp_path: Path) -> None:
    for number, pixels in enumerate(
        (
            PixelFormat(224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
            PixelFormat(384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Image.Resampling.BILINEAR, crops=False),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        pixels.save(folder)
        assert PixelFormat.read(folder, pixels.side) == pixels
