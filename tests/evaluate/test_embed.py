"""Embeddings of images and texts: as each alone, each different one once, whatever the batches and workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import two_towers
from skinvl.evaluate import embed
from skinvl.model.towers_loaded import LoadedTowers, load_towers

CPU = torch.device("cpu")
SAID = ["A nevus.", "A brown melanoma on the back, with a jagged border.", "a", "A nevus."]


def loaded(tmp_path: Path, family: str = "clip", **changes: Any) -> LoadedTowers:
    return load_towers(two_towers.recipe(tmp_path, family, **changes), CPU)


def counting(one: LoadedTowers, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images or texts each call of the towers is given."""
    model: Any = one.model
    sizes: list[int] = []

    def counted(encode: Callable[..., Any], first: torch.Tensor, *rest: torch.Tensor) -> Any:
        sizes.append(len(first))
        return encode(first, *rest)

    for name in ("encode_images", "encode_texts"):
        monkeypatch.setattr(model, name, partial(counted, getattr(model, name)))
    return sizes


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_embeddings_are_those_of_each_alone(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded(tmp_path, family)
    folder = tmp_path / "lesions"
    shown = [(folder, f"images/test-{number}.png") for number in (0, 3, 1, 0, 2, 4)]
    expected = torch.stack([two_towers.image_alone(one, root / path) for root, path in shown])
    expected_texts = torch.stack([two_towers.text_alone(one, text) for text in SAID])
    sizes = counting(one, monkeypatch)

    images = embed.images(one, shown)
    assert images.dtype == np.float32
    assert sizes == [2, 2, 1]  # the first comes twice, and is encoded once
    np.testing.assert_allclose(images, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 1e-3  # another image is another embedding
    sizes.clear()
    texts = embed.texts(one, SAID)
    assert sizes == [2, 1]
    np.testing.assert_allclose(texts, expected_texts, atol=2e-6)
    assert (texts[0] == texts[3]).all()
    assert np.abs(texts[0] - texts[1]).max() > 1e-3
    assert len(embed.images(one, [])) == len(embed.texts(one, [])) == 0


def test_workers_decode_the_same_and_what_cannot_be_read_is_no_number(tmp_path: Path) -> None:
    shown = [(tmp_path / "lesions", f"images/test-{number}.png") for number in range(4)]
    alone = loaded(tmp_path)
    broken = tmp_path / "lesions" / "images" / "test-2.png"
    broken.write_bytes(broken.read_bytes()[:-300])
    with_workers = loaded(tmp_path, train__dataloader_num_workers=2)
    images = embed.images(with_workers, shown)
    assert np.isnan(images).any(axis=1).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(images, embed.images(alone, shown))
    assert np.isnan(embed.images(alone, [shown[2]])).all()
    why = next(embed.streamed(alone, [[broken]]))[broken]
    assert isinstance(why, str)
    assert why.startswith("unreadable-image: ")


def test_towers_that_make_no_numbers_are_refused_and_not_their_images(tmp_path: Path) -> None:
    one = loaded(tmp_path)
    model: Any = one.model
    for head in (model.image_head, model.text_head):
        with torch.no_grad():
            head.projection.weight[0, 0] = torch.nan
    with pytest.raises(embed.EmbedError, match=r"of .*test-0\.png, or of what .* are no finite numbers: the weights"):
        embed.images(one, [(tmp_path / "lesions", f"images/test-{number}.png") for number in range(2)])
    with pytest.raises(embed.EmbedError, match="embeddings of 'a', or of what"):
        embed.texts(one, SAID)


def test_the_precision_is_that_of_the_training_and_no_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [(tmp_path / "lesions", f"images/test-{number}.png") for number in range(3)]
    single, half = loaded(tmp_path), loaded(tmp_path, train__bf16=True)
    exact, rounded = embed.images(single, shown), embed.images(half, shown)
    assert 1e-5 < np.abs(exact - rounded).max() < 0.05

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    model: Any = single.model
    seen = []
    encode = model.encode_texts

    def looking(*inputs: torch.Tensor) -> torch.Tensor:
        seen.append((matmul.allow_tf32, cudnn.allow_tf32, torch.is_grad_enabled(), model.training))
        made: torch.Tensor = encode(*inputs)
        return made

    monkeypatch.setattr(model, "encode_texts", looking)
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        embed.texts(single, SAID)
        assert {*seen} == {(False, False, False, False)}
        assert matmul.allow_tf32
        assert cudnn.allow_tf32
    finally:
        matmul.allow_tf32 = before
