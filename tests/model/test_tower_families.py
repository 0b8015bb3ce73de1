"""Published pairs of towers give here what transformers makes of them, and are refused where nobody knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from skinvl.model import towers
from skinvl.model.dual import DualEncoder, DualEncoderConfig

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-4,
}
EOS = 48
KINDS = ("clip", "siglip", "siglip2")


def published(kind: str, **text: Any) -> PreTrainedModel:
    """A random pair as transformers has it, of images of 32 px and texts of 50 tokens."""
    words: dict[str, Any] = {
        **SIZE,
        "vocab_size": 50,
        "bos_token_id": 47,
        "eos_token_id": EOS,
        "pad_token_id": 1,
        **text,
    }
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "clip":
        image = CLIPVisionConfig(**SIZE, image_size=32, patch_size=8)
        parts = {"vision_config": image.to_dict(), "text_config": CLIPTextConfig(**words).to_dict()}
        model = CLIPModel(CLIPConfig(**parts, projection_dim=24))
    elif kind == "siglip":
        image = SiglipVisionConfig(**SIZE, image_size=32, patch_size=8)
        model = SiglipModel(
            SiglipConfig(vision_config=image.to_dict(), text_config=SiglipTextConfig(**words).to_dict())
        )
    else:
        image = Siglip2VisionConfig(**SIZE, num_patches=16, patch_size=8)
        model = Siglip2Model(
            Siglip2Config(vision_config=image.to_dict(), text_config=Siglip2TextConfig(**words).to_dict())
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ours(model: PreTrainedModel, state: dict[str, torch.Tensor] | None = None) -> DualEncoder:
    """The same as a DualEncoder, from the model's own tensors or others."""
    family = towers.of_published(model.config.model_type)
    dual = DualEncoder(DualEncoderConfig(**family.settings(model.config)))
    dual.load_state_dict(family.renamed(model.state_dict()) if state is None else state, strict=True)
    return dual.eval()


def pixels() -> torch.Tensor:
    """float32[3, 3, 32, 32] of noise."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def texts() -> torch.Tensor:
    """int64[4, 9], texts that end with EOS, one of them padded."""
    ids = torch.randint(3, 47, (4, 9), generator=torch.Generator().manual_seed(2))
    ids[:, -1] = EOS
    ids[0, 5:] = torch.tensor([EOS, 1, 1, 1])
    return ids


def features(model: Any, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers makes of `pixels` and `texts`."""
    if kind == "siglip2":
        patches = torch.stack([convert_image_to_patches(image, 8) for image in pixels()])
        mask, grid = torch.ones(3, 16, dtype=torch.int32), torch.tensor([[4, 4]] * 3)
        images = model.get_image_features(patches, pixel_attention_mask=mask, spatial_shapes=grid).pooler_output
    else:
        images = model.get_image_features(pixels()).pooler_output
    return normalize(images, dim=-1), normalize(model.get_text_features(texts()).pooler_output, dim=-1)


def differences(model: PreTrainedModel, dual: DualEncoder, kind: str) -> tuple[float, float]:
    """The largest by which an image's and a text's embedding differs."""
    ids = texts()
    with torch.no_grad():
        images, words = features(model, kind)
        embeddings = dual.encode_images(pixels(), patches=True).embeddings, dual.encode_texts(ids, torch.ones_like(ids))
    return (embeddings[0] - images).abs().max().item(), (embeddings[1] - words).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_pair_embeds_as_in_transformers_and_each_tensor_is_used_once(kind: str) -> None:
    model = published(kind)
    state = towers.of_published(kind).renamed(model.state_dict())

    dual = ours(model)

    assert len(state) == len(model.state_dict())
    assert state.keys() == dual.state_dict().keys()
    assert max(differences(model, dual, kind)) <= 1e-6
    with torch.no_grad():
        assert dual.scale.value() == model.logit_scale.exp()
        assert (dual.scale.bias is None) == (kind == "clip")
        if dual.scale.bias is not None:
            assert dual.scale.bias == model.logit_bias


@pytest.mark.parametrize("kind", KINDS)
def test_towers_with_two_layers_exchanged_embed_otherwise(kind: str) -> None:
    model = published(kind)
    state = towers.of_published(kind).renamed(model.state_dict())
    for tower in ("image", "text"):
        layers = f"{tower}_tower.encoder.layers"
        first, second = (f"{layers}.{number}.self_attn.q_proj.weight" for number in (0, 1))
        state[first], state[second] = state[second], state[first]

    assert min(differences(model, ours(model, state), kind)) > 1e-3


def test_an_old_config_whose_eos_means_the_highest_id_is_read_at_the_end_of_text() -> None:
    model = published("clip", vocab_size=49408, eos_token_id=2)
    dual = ours(model)
    ids = torch.tensor([[49406, 320, 7, 49407, 49407]])
    with torch.no_grad():
        expected = normalize(model.get_text_features(ids).pooler_output, dim=-1)
        torch.testing.assert_close(dual.encode_texts(ids, torch.ones_like(ids)), expected, rtol=0, atol=1e-6)
    assert dual.config.eos_token_id == dual.text_tower.config.eos_token_id == 49407


def test_a_config_of_added_tokens_keeps_its_own_eos() -> None:
    assert ours(published("clip")).config.eos_token_id == EOS


@pytest.mark.parametrize("family", towers.names())
def test_a_familys_name_is_that_of_its_file(family: str) -> None:
    assert towers.load(family).model_type == family


def test_families_are_found_by_the_types_of_their_towers() -> None:
    assert towers.of_image("beit") is towers.of_text("bert") is towers.load("beit_bert")
    assert towers.of_published("siglip2") is towers.of_image("siglip2_vision_model") is towers.load("siglip")
    with pytest.raises(ValueError, match=r"'blip': not known as pair of towers; skinvl has clip, siglip, siglip2"):
        towers.of_published("blip")
    with pytest.raises(ValueError, match=r"write skinvl/model/towers/align.py with one FAMILY"):
        towers.load("align")


def test_siglip_alone_refuses_to_trim_and_lowers_its_texts_and_the_others_clean_theirs() -> None:
    families = {name: towers.load(name) for name in towers.names()}
    assert {name: (family.trims, family.lower_case, family.cleans) for name, family in families.items()} == {
        "beit_bert": (True, False, True),
        "clip": (True, False, True),
        "siglip": (False, True, False),
    }


def test_the_side_of_siglip2_is_that_of_its_positions() -> None:
    family = towers.load("siglip")
    assert family.side(Siglip2VisionConfig(num_patches=256, patch_size=16)) == 256
    assert family.side(SiglipVisionConfig(image_size=384)) == 384


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_is_saved_as_one_of_ours_and_loaded_alike(kind: str, tmp_path: Path) -> None:
    model = published(kind)
    ours(model).save_pretrained(tmp_path)
    assert max(differences(model, DualEncoder.from_pretrained(tmp_path).eval(), kind)) <= 1e-6
