"""Two towers in one model: loaded to the bit, pooled where they should be, and of length one in any precision."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, ViTConfig, configuration_utils

from helpers import two_towers
from skinvl.model import towers
from skinvl.model.dual import DualEncoder, DualEncoderConfig, Head, Scale

FAMILIES = towers.names()


@cache
def _loaded(family: str) -> DualEncoder:
    return DualEncoder.from_pretrained(two_towers.base(family)).eval()


def load(family: str) -> DualEncoder:
    """The tiny base of a family, ready to be asked, the test's own."""
    return deepcopy(_loaded(family))


def pixels(images: int = 2, side: int = 112) -> torch.Tensor:
    """float32[B, 3, H, W] of noise."""
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_model_has_these_parts_and_no_others() -> None:
    assert [name for name, _ in load("clip").named_children()] == [
        "image_tower",
        "text_tower",
        "image_head",
        "text_head",
        "scale",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_and_loaded_to_the_bit_and_every_weight_is_loaded(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration_utils.logger, "warning_once", lambda message: pytest.fail(message))
    model = load(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)

    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)

    assert type(again) is DualEncoder
    assert not any(report.values())
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    assert str(two_towers.base(family)) not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_towers_attend_as_asked_and_in_both_ways_alike(family: str) -> None:
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 5, 5]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    outputs = []
    for kernel in ("eager", "sdpa"):
        model = DualEncoder.from_pretrained(two_towers.base(family), attn_implementation=kernel).eval()
        assert {model.image_tower.config._attn_implementation, model.text_tower.config._attn_implementation} == {kernel}
        with torch.no_grad():
            outputs.append((model.encode_images(pixels()).embeddings, model.encode_texts(ids, mask)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_of_length_one_in_fp32_under_autocast_too(family: str) -> None:
    model = load(family)
    with torch.no_grad():
        full = model.encode_images(pixels(), patches=True)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.encode_images(pixels(), patches=True)
            texts = model.encode_texts(torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.int64))
    assert full.patches is not None
    assert half.patches is not None
    assert full.patches.shape == (2, 49, model.config.projection_dim)
    for features in (half.embeddings, half.patches, texts):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]), rtol=0, atol=1e-6)
    assert (half.embeddings * full.embeddings).sum(1).min() > 0.99
    assert not torch.equal(half.embeddings, full.embeddings)


def test_a_text_is_read_at_its_first_eos_however_high_the_ids_of_added_tokens_are() -> None:
    model = load("clip")
    eos = model.config.eos_token_id
    model.text_tower.resize_token_embeddings(eos + 5, mean_resizing=False)
    ids = torch.tensor([[3, eos + 2, 4, eos, eos, eos]])
    with torch.no_grad():
        hidden = model.text_tower(ids).last_hidden_state
        embeddings = model.encode_texts(ids, torch.tensor([[1, 1, 1, 1, 0, 0]]))
        expected, highest = (normalize(model.text_head(hidden[:, place]), dim=-1) for place in (3, 1))
    assert torch.equal(embeddings, expected)
    assert (embeddings - highest).abs().max() > 0.01


@pytest.mark.parametrize("family", ["clip", "beit_bert"])
def test_padding_changes_nothing_whatever_pads(family: str) -> None:
    model = load(family)
    eos = 4 if model.config.eos_token_id is None else model.config.eos_token_id
    short = torch.tensor([[3, 7, eos]])
    with torch.no_grad():
        alone = model.encode_texts(short, torch.ones_like(short))
        for pad in (0, eos):
            ids = torch.cat([short, torch.full((1, 20), pad)], 1)
            mask = (torch.arange(23) < 3).long()[None]
            torch.testing.assert_close(model.encode_texts(ids, mask), alone, rtol=0, atol=1e-6)


def test_siglip_reads_the_last_position_so_that_padding_counts() -> None:
    model = load("siglip")
    short = torch.tensor([[3, 7, 1]])
    padded = torch.cat([short, torch.zeros(1, 61, dtype=torch.int64)], 1)
    with torch.no_grad():
        alone, whole = (model.encode_texts(ids, torch.ones_like(ids)) for ids in (short, padded))
        unmasked = model.encode_texts(padded, (padded != 0).long())
    assert (alone - whole).abs().max() > 0.01
    assert torch.equal(whole, unmasked)


def test_a_mean_between_two_norms_leaves_cls_out() -> None:
    model = load("beit_bert")
    with torch.no_grad():
        hidden = model.image_tower(pixels()).last_hidden_state
        norm, projection = model.image_head.norm, model.image_head.projection
        expected = normalize(projection(norm(norm(hidden)[:, 1:].mean(1))), dim=-1)
        once = normalize(projection(norm(hidden[:, 1:].mean(1))), dim=-1)
        embeddings = model.encode_images(pixels()).embeddings
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-6)
    assert (embeddings - once).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_is_embedded_as_if_its_image_had_no_other(family: str) -> None:
    model = load(family)
    with torch.no_grad():
        hidden = model.image_tower(pixels()).last_hidden_state[:, model.images.before :]
        third = hidden[:, 3:4]
        if family == "beit_bert":
            feature = model.image_head(third)
        elif family == "clip":
            feature = model.image_head(model.image_tower.post_layernorm(third[:, 0]))
        else:
            feature = model.image_head(model.image_tower.head(third))
        patches = model.encode_images(pixels(), patches=True).patches
    assert patches is not None
    torch.testing.assert_close(patches[:, 3], normalize(feature, dim=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_another_side_have_the_positions_of_their_patches_interpolated(family: str) -> None:
    model = load(family)
    with torch.no_grad():
        for name, parameter in model.image_tower.named_parameters():
            if "position" in name:
                parameter.normal_()
        larger = model.encode_images(pixels(side=160), patches=True)
    assert larger.patches is not None
    assert larger.patches.shape[1] == 100

    # By hand: only what belongs to patches is interpolated, CLS keeps its own.
    before = model.images.before
    weights = next(p for name, p in model.image_tower.named_parameters() if "position" in name).view(49 + before, -1)
    grid = weights[before:].T.reshape(1, -1, 7, 7)
    patches = torch.nn.functional.interpolate(grid, (10, 10), mode="bicubic").flatten(2)[0].T
    embeddings = model.image_tower.embeddings
    with torch.no_grad():
        if family == "beit_bert":
            whole = embeddings(pixels(side=160))
            plain = embeddings.patch_embeddings(pixels(side=160))
        else:
            whole = embeddings(pixels(side=160), interpolate_pos_encoding=True)
            plain = embeddings.patch_embedding(pixels(side=160)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole[:, before:], plain + patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = load(family).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)  # of BERT's dropout
        images = model.encode_images(pixels(), patches=True)
        texts = model.encode_texts(torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.int64))
        assert images.patches is not None
        (images.embeddings.sum() + images.patches.sum() + (texts * images.embeddings).sum()).backward()
        gradients.append([p.grad for name, p in model.named_parameters() if not name.startswith("scale.")])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(again, plain)


def test_the_scale_starts_where_the_published_ones_do_and_is_clamped() -> None:
    clip, siglip = Scale(bias=False), Scale(bias=True)
    assert (clip.value().item(), siglip.value().item()) == pytest.approx((1 / 0.07, 10))
    assert clip.bias is None
    assert siglip.bias is not None
    assert siglip.bias.item() == -10
    assert clip.log.shape == ()
    for start, end in ((10.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        clip.log.data.fill_(start)
        clip.clamp_()
        assert clip.log.item() == pytest.approx(end)


def test_a_fresh_model_has_the_scale_of_its_kind_and_not_that_of_transformers() -> None:
    assert load("siglip").scale.value().item() == pytest.approx(10)  # from a base that was made blank
    config = DualEncoderConfig.from_pretrained(two_towers.base("siglip"))
    assert DualEncoder._from_config(config).scale.value().item() == pytest.approx(10)


def test_an_mlp_head_has_the_mean_of_both_widths_between_and_no_biases() -> None:
    assert [tuple(weight.shape) for weight in Head("mlp", 768, 512, None).parameters()] == [(640, 768), (512, 640)]
    assert [tuple(weight.shape) for weight in Head("linear", 8, 4, None).parameters()] == [(4, 8)]
    assert [tuple(weight.shape) for weight in Head("linear-bias", 8, 4, None).parameters()] == [(4, 8), (4,)]
    assert not list(Head("none", 8, 8, None).parameters())


def test_forward_gives_both_sides_and_what_the_logits_are_made_with() -> None:
    model = load("siglip")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        output = model(pixels(), ids)
        assert torch.equal(output["image_embeds"], model.encode_images(pixels()).embeddings)
        assert torch.equal(output["text_embeds"], model.encode_texts(ids, torch.ones_like(ids)))
        assert output["bias"].item() == -10
        assert "text_embeds" not in model(pixels())  # as transformers leaves out what is None


def test_a_tower_without_a_family_is_refused_by_name() -> None:
    config = DualEncoderConfig(image_config=ViTConfig().to_dict())
    with pytest.raises(ValueError, match=r"'vit': not known as image tower; skinvl has beit, clip_vision_model"):
        DualEncoder(config)
