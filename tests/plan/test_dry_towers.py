"""Every recipe of two towers dry-runs on every base of two: exact counts, no weights, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip as oracle
import pytest
from rich.console import Console
from safetensors.torch import save_file

from helpers import printed, published_configs, texted, two_towers
from skinvl.data.draws import BatchError
from skinvl.data.texts import TextedSets
from skinvl.model import towers_loaded
from skinvl.model.hub import BaseError
from skinvl.model.towers import clip
from skinvl.plan import dry_towers, dual_configs
from skinvl.plan.texts import CheckedTexts, checked_texts
from skinvl.recipe import recipe, towers
from skinvl.recipe.run import RunError
from skinvl.train import pretrain

RECIPES = recipe.recipes("pretrain")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return published_configs.write(tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize("base", recipe.bases("dual"))
def test_every_recipe_dry_runs_on_every_base(
    base: str, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in RECIPES:
        dry_towers.show(towers.load(name, [f"base={base}"]), configs)
        shown = capsys.readouterr().out
        assert f"parameters of {base}: " in shown
        assert "(train): not prepared, skipped" in shown
        if base in published_configs.PARAMETERS:
            assert f"parameters of {base}: {published_configs.PARAMETERS[base]:,}\n" in shown
    assert list(tmp_path.iterdir()) == []


def test_lora_shows_where_it_would_lie(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = "towers={image: {train: lora}, text: {train: frozen}}"
    dry_towers.show(towers.load("dermlip", ["base=clip-b16", lora, "lora={r: 8}"]), configs)
    shown = capsys.readouterr().out
    assert r"image: image_tower\." in shown
    assert "\ntext: text_tower" not in shown
    assert "\nheads: image_head" in shown


def test_the_texts_of_prepared_sources_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    two_towers.source(tmp_path / "data" / "demo")
    made = towers.load("tiny-clip", ["batch.images=4"])
    pretrain.require_startable(made)
    dry_towers.show(made, None)
    shown = capsys.readouterr().out
    assert "texts of at most 77 tokens" in shown
    assert "an epoch: " in shown
    with pytest.raises(BatchError, match=r"batch.images: found 512, and an epoch has"):
        dry_towers.show(made.model_copy(update={"batch": towers.Batch(images=512)}), None)
    for purpose in ("train", "eval"):
        slip = towers.load("tiny-clip", [f"data.{purpose}=[{{source: demo, split: tset}}]"])
        with pytest.raises(
            FileNotFoundError, match=r"tset\.parquet: no such split; it has the splits: test, train, valid"
        ):
            dry_towers.show(slip, None)
    two_towers.source(tmp_path / "data" / "alone", images=1)
    alone = towers.load("tiny-clip", ["batch.images=4", "data.eval=[{source: alone, split: test}]"])
    with pytest.raises(BatchError, match=r"^data\.eval, alone: 1 images .* no negative"):
        dry_towers.show(alone, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_what_training_saw_is_left_out_of_what_it_evaluates(tmp_path: Path) -> None:
    train = [texted.image(tmp_path, 1, "A rough plaque"), texted.image(tmp_path, 2, "A smooth nodule")]
    again = [texted.image(tmp_path, 1, "Other words"), texted.image(tmp_path, 5, "a  smooth nodule")]
    own = [texted.image(tmp_path, number, f"Number {number}") for number in (3, 4)]
    sets = TextedSets(train, {"test": [*again, *own]}, [], used=6, idle=("weather",))
    pair = towers.load("tiny-clip", ["data.texts={weather: 'a {answer} day'}"])

    def checked(sets: TextedSets, say: Console) -> CheckedTexts:
        tokenizer: Any = texted.Letters()
        return checked_texts(sets, tokenizer, pair, 1, say)

    said = printed.lines(lambda say: checked(sets, say) and None, 200)
    assert "data.texts: no Example is of the kind weather; skinvl show has the texts there are" in said
    assert "test: 2 images left out, which training saw, or their patient or caption" in said
    rows = checked(sets, Console(quiet=True))
    assert rows.evaluation == {"test": own}
    assert [(row.row, row.rule, row.detail) for row in rows.ledger] == [
        ("drawn:1.png", "trained-on", "of test; training saw its image"),
        ("drawn:5.png", "trained-on", "of test; training saw its caption"),
    ]
    with pytest.raises(ValueError, match=r"data\.eval: of test training saw each of 2 images"):
        checked(replace(sets, evaluation={"test": again}), Console(quiet=True))


def test_a_checkpoint_of_open_clip_is_read_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = clip.FAMILY.tiny.tokenizer(["a b c"])
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 24, "vocab_size": len(tokenizer), "width": 48, "heads": 2, "layers": 2}
    settings = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    state = oracle.CLIP(**settings).state_dict()
    save_file(state, tmp_path / "checkpoint" / "open_clip_model.safetensors")
    (tmp_path / "checkpoint" / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    made = towers.load("tiny-clip", [f"base={{name: x, model: {tmp_path}/checkpoint, quick_gelu: true}}"])
    base, own_tokenizer = dual_configs.open_config(made, None, tmp_path)
    assert own_tokenizer
    free = {"architectures", "_name_or_path", "dtype", "transformers_version"}
    ours, theirs = base.config.to_dict(), towers_loaded.open_towers(made).config.to_dict()
    assert {key: ours[key] for key in ours.keys() - free} == {key: theirs[key] for key in theirs.keys() - free}
    assert sum(weight.numel() for weight in dual_configs.blank(base.config).parameters()) == sum(
        tensor.numel() for tensor in state.values() if tensor.is_floating_point()
    )


def test_a_config_that_is_not_there_is_named(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseError, match=r"no other/config.json for base other; found: clip-vit-base-patch16, .*monet"):
        dry_towers.show(towers.load("make", ["base=some/other"]), configs)


def test_the_verb_refuses_what_a_training_would(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "make--clip-b16").mkdir(parents=True)
    (tmp_path / "runs" / "make--clip-b16" / "x").touch()
    with pytest.raises(RunError, match="not empty; continue that run with resume=auto"):
        pretrain.main(["make", "--dry-run", "--configs", str(configs)])
