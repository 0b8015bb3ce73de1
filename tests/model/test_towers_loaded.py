"""Two towers are opened wherever they come from, and refused by name where they would mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from helpers import tiny, two_towers
from skinvl.model.base import ModelError
from skinvl.model.dual_inputs import PixelFormat
from skinvl.model.hub import BaseError
from skinvl.model.towers_loaded import load_towers, open_towers
from skinvl.recipe.recipe import Base
from skinvl.recipe.towers import PretrainRecipe

CPU = torch.device("cpu")


def recipe(tmp_path: Path, model: Path, **changes: Any) -> PretrainRecipe:
    """A recipe whose base is a folder."""
    base = Base(name="base", kind="dual", model=str(model))
    return two_towers.recipe(tmp_path, **changes).model_copy(update={"base": base})


def clip(folder: Path, *, pickled: bool = False, **text: Any) -> CLIPModel:
    """A pair as transformers saves it, with a tokenizer and an image processor beside it."""
    words = AutoTokenizer.from_pretrained(two_towers.base("clip"))
    same = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(**same, image_size=32, patch_size=8).to_dict(),
        text_config=CLIPTextConfig(**{**same, **ends, "pad_token_id": words.pad_token_id, **text}).to_dict(),
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    words.save_pretrained(folder)
    PixelFormat(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save(folder)
    return model


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_of_transformers_is_read_as_it_is(pickled: bool, tmp_path: Path) -> None:
    model = clip(tmp_path / "clip", pickled=pickled)

    loaded = load_towers(recipe(tmp_path, tmp_path / "clip"), CPU)

    pixels = torch.randn(2, 3, 32, 32)
    ids, mask = loaded.tokenizer.pad(loaded.tokenizer(["A nevus.", "A melanoma on the back"]))
    with torch.no_grad():
        images = normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        texts = normalize(model.get_text_features(ids, mask).pooler_output, dim=-1)
        dual: Any = loaded.model
        torch.testing.assert_close(dual.encode_images(pixels).embeddings, images, rtol=0, atol=1e-6)
        torch.testing.assert_close(dual.encode_texts(ids, mask), texts, rtol=0, atol=1e-6)
    assert not any(buffer.is_meta for buffer in loaded.model.buffers())
    assert (loaded.pixels.side, loaded.tokenizer.length) == (32, 77)
    assert loaded.facts["base"]["model_type"] == "clip_vision_model + clip_text_model"
    assert loaded.facts["adapter"] is None
    assert loaded.tokenizer(["a “ﬁrm” nodule &amp; scale"]) == loaded.tokenizer(['a "firm" nodule & scale'])


def test_a_tiny_base_is_built_on_the_texts_of_the_recipe_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = two_towers.recipe(tmp_path).model_copy(
        update={"base": Base(name="tiny-siglip", kind="dual", random="siglip")}
    )
    opened = open_towers(built)
    assert opened.path == Path("bases/tiny-siglip")
    written = (opened.path / "model.safetensors").stat().st_mtime_ns
    words = opened.tokenizer.tokenizer.get_vocab()
    assert any("melanoma" in word for word in words)  # of the source, whose word it is
    assert open_towers(built).path == opened.path
    assert (opened.path / "model.safetensors").stat().st_mtime_ns == written


def test_what_is_no_pair_of_towers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BaseError, match=r"qwen2_vl: a vision-language model .* base=\{name: qwen2_vl, kind: vlm, model"
    ):
        open_towers(recipe(tmp_path, tiny.base("qwen2_vl")))


def test_a_base_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    model = clip(tmp_path / "clip", pickled=True)
    state = {name: value for name, value in model.state_dict().items() if name != "text_projection.weight"}
    torch.save(state, tmp_path / "clip/pytorch_model.bin")
    with pytest.raises(BaseError, match=r"1 weights are not in its files \(first: text_projection\.weight\)"):
        load_towers(recipe(tmp_path, tmp_path / "clip"), CPU)


def test_a_tokenizer_that_is_not_the_towers_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "eos", eos_token_id=3)
    with pytest.raises(BaseError, match=r"ends a text with \d+, and its text tower is read at the end-of-text token 3"):
        open_towers(recipe(tmp_path, tmp_path / "eos"))
    clip(tmp_path / "small")
    words = AutoTokenizer.from_pretrained(tmp_path / "small")
    words.add_tokens(["erythema"])
    words.save_pretrained(tmp_path / "small")
    with pytest.raises(BaseError, match=r"its tokenizer has \d+ tokens, its text tower \d+; give a base with"):
        open_towers(recipe(tmp_path, tmp_path / "small"))


def test_a_kernel_that_a_tower_or_the_machine_lacks_is_refused(tmp_path: Path) -> None:
    for family, reason in (("beit_bert", "family beit_bert has no flash-attention path"), ("clip", "no CUDA device")):
        wanted = two_towers.recipe(tmp_path, family, attention="flash_attention_2")
        if family == "clip" and torch.cuda.is_available():
            continue
        with pytest.raises(ModelError, match=reason):
            load_towers(wanted, CPU)
    assert load_towers(two_towers.recipe(tmp_path, attention="eager"), CPU).facts["attention"] == "eager"
    assert load_towers(two_towers.recipe(tmp_path), CPU).facts["attention"] == "sdpa"


def test_a_recipe_in_bf16_is_asked_in_bf16_over_weights_in_fp32(tmp_path: Path) -> None:
    loaded = load_towers(two_towers.recipe(tmp_path, train__bf16=True), CPU)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    with loaded.autocast():
        assert torch.is_autocast_enabled("cpu")
    with load_towers(two_towers.recipe(tmp_path), CPU).autocast():
        assert not torch.is_autocast_enabled("cpu")
    assert loaded.facts["precision"] == "bf16"
