"""Several images in one conversation: what is shared, cached and planned for the same ones in the same order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from helpers import runs, sources
from skinvl.data import example, mixture
from skinvl.data.example import text, words
from skinvl.data.mixture import Row
from skinvl.data.sampler import alike
from skinvl.model import precompute
from skinvl.model.base import read_config
from skinvl.model.loaded import open_base
from skinvl.model.pack import Collator
from skinvl.model.row import encode_row
from skinvl.plan import workload
from skinvl.recipe.recipe import Recipe
from skinvl.train.trainer import token_losses

SIZE = (112, 112)  # of the images with odd numbers


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def paired(tmp_path: Path, family: str) -> tuple[Recipe, list[Row]]:
    """A recipe whose Examples show two images of one size, and three of them: twice in one order, then in the other."""
    one = runs.make(tmp_path, family, cache_gb=1)
    rows = example.read(tmp_path / "drawn", "train")
    first, second, other = rows[3].images[0], rows[9].images[0], rows[15].images[0]
    pairs = [(first, second), (first, second), (second, first)] + [(first, other)] * (len(rows) - 3)
    examples = [
        replace(row, images=pair, group="g", messages=(text("user", words(row.messages[0]), 2), row.messages[1]))
        for row, pair in zip(rows, pairs, strict=True)
    ]
    example.write(tmp_path / "drawn", "train", examples)
    sources.fingerprint(tmp_path / "drawn", alike=False)
    return one, mixture.load(one.data).train


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_the_same_images_share_in_the_same_order_alone(tmp_path: Path, family: str) -> None:
    one, rows = paired(tmp_path, family)
    rows, chat, model = rows[:3], runs.chat(one), runs.attached(one).eval()
    assert alike(rows) == [0, 0, 1]
    conversations = [encode_row(chat, row) for row in rows]
    groups = [group for row in Collator(chat).groups(conversations) for group in row]
    assert [group.members for group in groups] == [(0, 1), (2,)]
    shown = conversations[0].encoded.ids[: groups[0].prefix]
    assert shown.count(chat.image_id) == conversations[0].encoded.ids.count(chat.image_id)  # both images are shared

    # Whatever is shared, each conversation's losses are those that it has alone.
    packed = Collator(chat)([{"row": row} for row in rows])
    with torch.no_grad():
        losses, _ = token_losses(model, packed)
        apart = [token_losses(model, runs.batch(one, [row]))[0] for row in rows]
        turned = replace(rows[0], example=replace(rows[0].example, images=rows[0].example.images[::-1]))
        other, _ = token_losses(model, runs.batch(one, [turned]))
    torch.testing.assert_close(losses.sort().values, torch.cat(apart).sort().values, rtol=1e-4, atol=1e-5)
    assert float((other - apart[0]).abs().max()) > 1e-3  # the twin: the order is seen


def test_each_image_is_cached_and_planned_once_in_whatever_order(tmp_path: Path) -> None:
    one, rows = paired(tmp_path, "qwen2_vl")
    kept = precompute.once(open_base(one), rows, 2, Console(quiet=True))
    assert kept is not None
    assert kept.computed == 3
    chat = runs.chat(one)
    cached = Collator(chat, cache=kept.cache)([{"row": row} for row in rows[:3]])
    fresh = Collator(chat)([{"row": row} for row in rows[:3]])
    assert cached.ids.equal(fresh.ids)
    # Two images that two conversations share, and the same two in another order: four, as they stand in the row.
    first, second = (kept.cache.get(rows[0].root / name, chat.picture(SIZE)) for name in rows[0].example.images)
    expected = torch.cat([first, second, second, first])
    assert torch.equal(cached.inputs["pixel_values"].reshape(-1), expected.reshape(-1))
    config, _ = read_config(Path(one.base.location))
    assert workload.features(chat, config, workload.rows_of(chat, one))[0] == 3
    shared, separate = (workload.drawn(one, chat, rows, 1, share).load for share in (True, False))
    assert shared.tokens == separate.tokens
    assert shared.positions < 0.7 * separate.positions
    assert shared.images < separate.images
