"""Features computed once give what pixels give, bit for bit; what is stale, cut short or flipped is computed again."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from helpers import colours, runs, tiny
from skinvl import __main__
from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.model import adapter, precompute
from skinvl.model.base import ModelError, blank_model, count_parameters, load_base, read_config
from skinvl.model.families import Picture
from skinvl.model.feature_cache import Cache, CacheError
from skinvl.model.loaded import open_base
from skinvl.model.pack import Collator
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.strict import RecipeError
from skinvl.train import cache, sft
from skinvl.train.trainer import token_losses


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(one: Recipe) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The losses and gradient norms of a run, and what it trained."""
    sft.train(one)
    run = Path("runs") / str(one.run)
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [{key: one[key] for key in one if key.endswith("loss") or key == "grad_norm"} for one in entries]
    return kept, load_file(run / "adapter" / "adapter_model.safetensors")


def rows(one: Recipe) -> list[Row]:
    sets = mixture.load(one.data)
    return [*sets.train, *(row for some in sets.evaluation.values() for row in some)]


def once(one: Recipe, passes: float = math.inf, some: Sequence[Row] | None = None) -> tuple[Cache | None, str]:
    """The cache of a recipe's images, or of those of some rows, and what was printed."""
    say = Console(record=True, width=500)
    kept = precompute.once(open_base(one), rows(one) if some is None else some, passes, say)
    return kept.cache if kept else None, say.export_text()


def filled(tmp_path: Path, family: str = "qwen2_vl", **changes: Any) -> tuple[Recipe, Cache]:
    one = runs.make(tmp_path, family, **{"cache_gb": 1, **changes})
    kept, _ = once(one)
    assert kept is not None
    return one, kept


def pictures(one: Recipe) -> dict[Path, Any]:
    chat = runs.chat(one)
    found = {}
    for row in rows(one):
        for name in row.example.images:
            with Image.open(row.root / name) as image:
                found[row.root / name] = chat.picture((image.height, image.width))
    return found


SETTINGS = {"train__eval_strategy": "steps", "train__eval_steps": 1, "data__max_tokens": 200}


@pytest.mark.parametrize("family", tiny.SOME)
def test_features_give_what_pixels_give(tmp_path: Path, family: str) -> None:
    computed = result(runs.make(tmp_path, family, run="pixels", cache_gb=0, **SETTINGS))
    one = runs.make(tmp_path, family, run="features", cache_gb=1, **SETTINGS)
    kept = result(one)
    assert json.loads(Path("runs/features/env.json").read_text())["features"]["computed"] == 11
    assert json.loads(Path("runs/pixels/env.json").read_text())["features"] is None
    assert kept[1].keys() == computed[1].keys()
    # The tower of mistral3 reads the images of a batch as one sequence, that of gemma4 pads them, and both sum in
    # another order then.
    if family in ("gemma4", "mistral3"):
        for ours, theirs in zip(kept[0], computed[0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        moved = sum(float((weight - computed[1][name]).norm() ** 2) for name, weight in kept[1].items()) ** 0.5
        assert moved < 1e-3 * sum(float(weight.norm() ** 2) for weight in computed[1].values()) ** 0.5
    else:
        assert kept[0] == computed[0]
        assert all(torch.equal(weight, computed[1][name]) for name, weight in kept[1].items())
    # The twin: every image under the features of another of its size.
    found, _ = once(one)
    assert found is not None
    files = {path: found.file(path) for path in pictures(one)}
    for first, second in [
        ("train-0", "train-2"),
        ("train-4", "train-6"),
        ("train-1", "train-3"),
        ("train-5", "train-7"),
    ]:
        a, b = (next(file for path, file in files.items() if path.stem == name) for name in (first, second))
        held = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(held)
    wrong = result(runs.make(tmp_path, family, run="swapped", cache_gb=1, **SETTINGS))
    assert abs(wrong[0][0]["loss"] - kept[0][0]["loss"]) > 1e-3


def test_features_of_fewer_tiles_than_the_tower_is_built_for(tmp_path: Path) -> None:
    changes = {**SETTINGS, "data__image_tokens": 8}
    computed, kept = (result(runs.make(tmp_path, "mllama", run=f"keep{gb}", cache_gb=gb, **changes)) for gb in (0, 1))
    assert {picture.grid for picture in pictures(runs.make(tmp_path, "mllama", **changes)).values()} < {
        (1, 1),
        (1, 2),
        (2, 1),
    }
    assert kept[0] == computed[0]


@pytest.mark.parametrize("changes", [{"quantization": {"load_in_4bit": True}}, {"train__bf16": True}], ids=str)
def test_features_of_a_4_bit_and_of_a_bf16_base(tmp_path: Path, changes: dict[str, Any]) -> None:
    computed, kept = (
        result(runs.make(tmp_path, "qwen3_vl", run=f"keep{gb}", cache_gb=gb, **SETTINGS, **changes)) for gb in (0, 1)
    )
    assert kept[0] == computed[0]


def test_checkpointed_layers_and_a_projector_with_lora_read_features_too(tmp_path: Path) -> None:
    changes = {"train__activation_checkpointing": True, "parts__projector": {"train": "lora"}, **SETTINGS}
    computed, kept = (result(runs.make(tmp_path, "qwen3_vl", run=f"keep{gb}", cache_gb=gb, **changes)) for gb in (0, 1))
    assert kept[0] == computed[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tower_is_not_loaded(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    path = Path(one.base.location)
    config, kind = read_config(path)
    whole, less = load_base(path, kind, one), load_base(path, kind, one, config=kind.without_tower(config))
    saved = count_parameters(whole) - count_parameters(less)
    assert saved == precompute.tower_size(config, kind)
    tower = sum(p.numel() for name, p in whole.named_parameters() if kind.part_of(name) == "vision")
    assert 0.5 * tower < saved <= tower
    # What is loaded is what it was.
    names = dict(whole.named_parameters())
    assert all(torch.equal(weight, names[name]) for name, weight in less.named_parameters())
    assert count_parameters(blank_model(config)) == count_parameters(whole)  # the config is as it was


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_estimate_is_what_lies_on_disk(tmp_path: Path, family: str) -> None:
    one, kept = filled(tmp_path, family)
    files = list(kept.folder.glob("*/*.safetensors"))
    assert len(files) == len(pictures(one)) == 11
    found = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    expected = sum(kept.blank(picture).nbytes for picture in pictures(one).values())
    assert found == expected
    assert f"{found / 1e6:,.1f} MB" in once(one)[1]
    about = json.loads((kept.folder / "about.json").read_text())
    assert about["dtype"] == "torch.float32"
    assert about["image_processor"].items() >= runs.chat(one).image_arguments.items()


def test_no_flipped_bit_and_no_cut_gives_other_features(tmp_path: Path) -> None:
    one, kept = filled(tmp_path)
    path, picture = next(iter(pictures(one).items()))
    file = kept.file(path)
    good, right = file.read_bytes(), kept.get(path, picture).clone()
    chance = random.Random(0)
    header = 8 + int.from_bytes(good[:8], "little")
    bits = [*range(8 * header), *(chance.randrange(8 * header, 8 * len(good)) for _ in range(400))]
    noticed = 0
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        found = kept.read(path, picture)
        assert found is None or torch.equal(found, right), bit
        noticed += found is None
    assert noticed > 0.9 * len(bits)  # the others are in the padding of the header
    for length in (0, 7, header - 1, header, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:length])
        assert kept.read(path, picture) is None
    file.write_bytes(good + b"\0")
    assert kept.read(path, picture) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_missing_or_of_another_shape_is_computed_again(tmp_path: Path, workers: int) -> None:
    one, kept = filled(tmp_path, train__dataloader_num_workers=workers)
    files = sorted(kept.folder.glob("*/*.safetensors"))
    good = [file.read_bytes() for file in files]
    assert "0 of them computed now" in once(one)[1]
    files[0].unlink()
    files[1].write_bytes(good[1][:-100])
    files[2].write_bytes(good[2][:-1] + bytes([good[2][-1] ^ 1]))
    save_file({"features": torch.zeros(3, 3)}, files[3])
    image = {kept.file(path): path for path in pictures(one)}
    kept.write(image[files[4]], torch.zeros(3, 3))  # whole, with its digest, but of another shape or type
    kept.write(image[files[5]], load_file(files[5])["features"].double())
    abandoned, alive = (files[0].with_name(f"{name}.partial") for name in ("abandoned", "alive"))
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    alive.touch()
    assert "6 of them computed now" in once(one)[1]
    assert [file.read_bytes() for file in files] == good
    assert not abandoned.exists()
    assert alive.exists()


def test_a_broken_off_filling_goes_on(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", cache_gb=1)
    some = [row for row in rows(one) if row.example.images[0] in ("images/train-1.png", "images/test-0.png")]
    assert "2 of them computed now" in once(one, some=some)[1]
    assert "9 of them computed now" in once(one)[1]


def test_features_are_those_of_the_very_tower_image_and_budget(tmp_path: Path) -> None:
    one, kept = filled(tmp_path)
    path, picture = next(iter(pictures(one).items()))
    copy = path.with_name("another name.png")
    shutil.copy(path, copy)
    assert kept.file(copy) == kept.file(path)
    tiny.picture(77, (112, 84)).save(path)  # another image under the old name
    assert kept.file(copy) != kept.file(path)
    assert kept.read(path, picture) is None

    folders = {kept.folder}
    for change in ({"data__image_tokens": 32}, {"train__bf16": True}, {"attention": "eager"}):
        folders.add(filled(tmp_path, **change)[1].folder)
    other = tmp_path / "other"
    shutil.copytree(one.base.location, other)
    weights = load_file(other / "model.safetensors")
    weights["visual.blocks.0.attn.qkv.bias"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    folders.add(filled(tmp_path, base=str(other))[1].folder)
    assert len(folders) == 5
    weights["model.norm.weight"][0] += 1  # not the tower's
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert filled(tmp_path, base=str(other))[1].folder in folders


def test_features_lost_in_a_run_stop_it_with_the_way_on(tmp_path: Path) -> None:
    one, kept = filled(tmp_path)
    collate = Collator(runs.chat(one), cache=kept)
    given = [{"row": row} for row in rows(one)[:3]]
    assert collate(given).inputs["pixel_values"].shape[1] == 96
    kept.file(rows(one)[0].root / rows(one)[0].example.images[0]).unlink()
    with pytest.raises(CacheError, match=r"gone or damaged since the run began.*resume=auto"):
        collate(given)


def test_a_batch_without_images_gets_zeros_for_its_blank(tmp_path: Path) -> None:
    one, kept = filled(tmp_path)
    batch = Collator(runs.chat(one), filler=True, cache=kept)([])
    assert batch.filler
    assert not batch.inputs["pixel_values"].any()
    assert batch.inputs["pixel_values"].shape == (int(batch.inputs["image_grid_thw"].prod()), 96)
    with torch.no_grad():
        path = Path(one.base.location)
        config, kind = read_config(path)
        loaded = adapter.attach(load_base(path, kind, one, config=kind.without_tower(config)), kind, one, cached=True)
        assert len(token_losses(loaded, batch)[0]) == 0


@pytest.mark.parametrize(
    ("family", "changes", "passes", "reason"),
    [
        ("qwen2_vl", {"cache_gb": 0.0002}, math.inf, "cache_gb=0.0002 is less"),
        ("qwen2_vl", {}, 1.9, "the run sees an image 1.9 times (cache_gb=1 would keep them)"),
        ("mllama", {}, math.inf, "mllama keeps them only when asked (cache_gb=1 would keep them)"),
    ],
)
def test_why_features_are_not_kept_is_said(
    tmp_path: Path, family: str, changes: dict[str, Any], passes: float, reason: str
) -> None:
    kept, said = once(runs.make(tmp_path, family, **changes), passes)
    assert kept is None
    assert reason in said
    assert not Path("cache").exists()


def test_a_disk_that_cannot_hold_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(count: int) -> None:
        monkeypatch.setattr(precompute.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, count))

    one = runs.make(tmp_path, "qwen2_vl")  # 0.233 MB
    free(300_000)
    kept, said = once(one)
    assert kept is None
    assert "more than half of the 0.3 MB that cache/vision has room for" in said
    free(100_000)
    with pytest.raises(CacheError, match=r"cache/vision has room for 0.1 MB. Make some"):
        once(runs.make(tmp_path, "qwen2_vl", cache_gb=1))
    assert not Path("cache").exists()
    free(500_000)
    assert once(one)[0] is not None
    free(270_000)  # what is left of it: a full cache goes on to be read
    assert once(one)[0] is not None


def test_features_are_kept_by_default_where_images_are_seen_twice(tmp_path: Path) -> None:
    assert once(runs.make(tmp_path, "qwen2_vl"), 2)[0] is not None
    assert once(runs.make(tmp_path, "qwen2_vl", cache_gb=0), 2) == (None, "")
    full = runs.make(tmp_path, "qwen2_vl", parts__vision={"train": "full"})
    assert once(full, 2) == (None, "")


def test_features_of_a_tower_that_trains_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"cache_gb.*parts.vision trains"):
        runs.make(tmp_path, "qwen2_vl", cache_gb=1, parts__vision={"train": "lora"})
    runs.make(tmp_path, "qwen2_vl", parts__vision={"train": "lora"})
    assert __main__.main(["cache", "small.yaml"]) == 2
    assert "parts.vision trains" in capsys.readouterr().err
    assert __main__.main(["cache", "small.yaml", "parts.vision.train=frozen", "cache_gb=0"]) == 2
    assert "cache_gb=0 keeps no features" in capsys.readouterr().err


def test_skinvl_cache_computes_ahead_what_sft_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs.make(tmp_path, "mllama")
    cache.fill(one)
    assert "11 of them computed now" in capsys.readouterr().out
    assert __main__.main(["cache", "small.yaml", "cache_gb=0.0001"]) == 2
    assert "nothing was computed" in capsys.readouterr().err
    sft.train(recipe.load("small.yaml", ["cache_gb=1"]))
    assert "0 of them computed now" in capsys.readouterr().out


def test_a_base_without_weights_for_its_tower_is_refused(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", cache_gb=1)
    bare = tmp_path / "bare"
    shutil.copytree(one.base.location, bare)
    weights = load_file(bare / "model.safetensors")
    cut = {name: weight for name, weight in weights.items() if "blocks.1" not in name}
    save_file(cut, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"12 weights of Qwen2Vision.* are not in its files .first: blocks.1"):
        filled(tmp_path, base=str(bare))
    none = {name: weight for name, weight in weights.items() if not name.startswith("visual.")}
    save_file(none, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CacheError, match="no weight of a vision tower"):
        filled(tmp_path, base=str(bare))
    with pytest.raises(ModelError, match="not in its files"):
        sft.train(runs.make(tmp_path, "qwen2_vl", base=str(bare)))


def test_a_run_that_is_resumed_computes_lost_features_again_and_ends_the_same(tmp_path: Path) -> None:
    saved = {"train__save_strategy": "steps", "train__save_steps": 1, "train__max_steps": 3, "cache_gb": 1}
    _, whole = result(runs.make(tmp_path, "qwen3_vl", run="one", **saved))
    shutil.rmtree("runs/one/adapter")
    shutil.rmtree("runs/one/checkpoints/checkpoint-3")
    for file in sorted(Path("cache/vision").glob("*/*/*.safetensors"))[::2]:
        file.write_bytes(file.read_bytes()[:-1])
    _, again = result(runs.make(tmp_path, "qwen3_vl", run="one", resume="auto", **saved))
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())


def test_another_reading_of_colours_has_features_of_its_own(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", cache_gb=1)
    tagged, plain = (tmp_path / "drawn" / "images" / f"train-{number}.png" for number in (0, 2))
    with Image.open(tagged) as image:
        image.save(tagged, icc_profile=colours.ICC["Display P3"])
    other = one.model_copy(update={"data": one.data.model_copy(update={"profiles": "ignore"})})
    (kept, _), (ignoring, _) = once(one), once(other)
    assert kept is not None
    assert ignoring is not None
    assert kept.folder != ignoring.folder
    of = pictures(one)
    assert torch.equal(kept.get(plain, of[plain]), ignoring.get(plain, of[plain]))
    assert not torch.equal(kept.get(tagged, of[tagged]), ignoring.get(tagged, of[tagged]))
    facts = [open_base(each).facts["profiles"] for each in (one, other)]  # which stand beside every prediction
    assert facts == ["srgb", "ignore"]


@pytest.mark.parametrize(
    ("base", "picture", "size", "tower"),
    [  # MB an image, as the README has them, and the billions of parameters that are not loaded
        ("qwen2-vl-7b-instruct", Picture((1, 32, 64), 512, 2048), 5.2, 0.6),
        ("qwen2.5-vl-7b-instruct", Picture((1, 32, 64), 512, 2048), 5.2, 0.6),
        ("qwen3-vl-8b-instruct", Picture((1, 32, 64), 512, 2048), 18.9, 0.4),
        ("llama-3.2-11b-vision-instruct", Picture((1, 1), 1, 6432), 98.4, 0.8),
    ],
)
def test_what_released_bases_take(shared: Path, base: str, picture: Picture, size: float, tower: float) -> None:
    config, kind = read_config(shared / "configs" / base)
    assert 2 * math.prod(kind.features(config, picture)) / 1e6 == pytest.approx(size, abs=0.05)
    assert precompute.tower_size(config, kind) / 1e9 == pytest.approx(tower, abs=0.05)
