"""SigLIP and SigLIP2: a ViT read by attention, and a text tower read at its last position, of 64, padding and all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from skinvl.model.towers import TinyTowers, TowerFamily

PAD, END = "<pad>", "<eos>"


class Siglip(TowerFamily):
    """The towers of transformers.SiglipModel and, on square images, Siglip2Model, without the text tower's head."""

    model_type = "siglip"
    image_types = ("siglip_vision_model", "siglip2_vision_model")
    text_types = ("siglip_text_model", "siglip2_text_model")
    published: ClassVar[dict[str, type[PreTrainedModel]]] = {"siglip": SiglipModel, "siglip2": Siglip2Model}
    names: ClassVar[dict[str, str]] = {
        "vision_model.": "image_tower.",
        "text_model.": "text_tower.",
        "text_model.head.": "text_head.projection.",
        "logit_scale": "scale.log",
        "logit_bias": "scale.bias",
    }
    before = 0
    pools = ("head",)
    trims = False
    lower_case = True
    cleans = False

    def side(self, config: PretrainedConfig) -> int:
        """Of SigLIP2, which has no one size, that of its positions."""
        if isinstance(config, Siglip2VisionConfig):
            return int(config.num_patches**0.5) * _patch(config)
        return super().side(config)

    def image_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """The vision model, its attention over the patches included."""
        if isinstance(config, Siglip2VisionConfig):
            return Siglip2VisionModel(config)
        assert isinstance(config, SiglipVisionConfig)
        return SiglipVisionModel(config)

    def text_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """The text model without its head."""
        tower: Any
        if isinstance(config, Siglip2TextConfig):
            tower = Siglip2TextModel(config)
        else:
            assert isinstance(config, SiglipTextConfig)
            tower = SiglipTextModel(config)
        tower.head = nn.Identity()
        text_tower: PreTrainedModel = tower
        return text_tower

    def read_images(
        self, tower: PreTrainedModel, pixels: torch.Tensor, *, pool: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The patches, normed, and what the attention makes of them."""
        if isinstance(tower.config, Siglip2VisionConfig):
            images, _, height, width = pixels.shape
            patch = _patch(tower.config)
            grid = torch.tensor([[height // patch, width // patch]], device=pixels.device).expand(images, -1)
            # As its image processor lays patches out: rows of pixels, and the colours of each together.
            cut = (
                pixels.unfold(2, patch, patch)
                .unfold(3, patch, patch)
                .permute(0, 2, 3, 4, 5, 1)
                .flatten(3)
                .flatten(1, 2)
            )
            there = torch.ones(cut.shape[:2], dtype=torch.int32, device=pixels.device)
            output = tower(cut, pixel_attention_mask=there, spatial_shapes=grid)
        else:
            side = tower.config.image_size
            output = tower(pixels, interpolate_pos_encoding=tuple(pixels.shape[2:]) != (side, side))
        return output.last_hidden_state, output.pooler_output

    def pool(self, tower: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """What the attention makes of the positions."""
        head: Any = tower.head
        pooled: torch.Tensor = head(hidden)
        return pooled

    def settings(self, config: PretrainedConfig) -> dict[str, Any]:
        """The image's pooled feature is its embedding; the text's has a linear head with a bias."""
        text = config.text_config
        return {
            "image_config": config.vision_config.to_dict(),
            "text_config": text.to_dict(),
            "image_head": "none",
            "text_head": "linear-bias",
            "text_pooling": "last",
            "projection_dim": text.projection_size,
            "text_length": text.max_position_embeddings,
            "eos_token_id": None,
            "logit_bias": True,
        }


def _patch(config: Siglip2VisionConfig) -> int:
    assert isinstance(config.patch_size, int)
    return config.patch_size


class TinySiglip(TinyTowers):
    """Two transformers of about a million parameters in all."""

    mean = std = (0.5, 0.5, 0.5)
    crops = False

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Bytes in pairs, lower case, with an end behind them."""
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=1000,
                special_tokens=[PAD, END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        self.bounded(backend, f"$A {END}", END)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD, model_max_length=64)

    def settings(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Patches of 16 px, three layers each."""
        image = SiglipVisionConfig(**self.SIZE, **self.SQUARE)
        text = SiglipTextConfig(
            **self.SIZE,
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return FAMILY.settings(SiglipConfig(vision_config=image.to_dict(), text_config=text.to_dict()))


FAMILY = Siglip()
FAMILY.tiny = TinySiglip()
