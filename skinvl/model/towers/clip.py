"""CLIP: a ViT read at CLS, and a causal text tower read at its first EOS, of 77 positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from skinvl.model.towers import TinyTowers, TowerFamily

START, END = "<|startoftext|>", "<|endoftext|>"
EOS = 49407  # of all published vocabularies


class Clip(TowerFamily):
    """The towers of transformers.CLIPModel."""

    model_type = "clip"
    image_types = ("clip_vision_model",)
    text_types = ("clip_text_model",)
    published: ClassVar[dict[str, type[PreTrainedModel]]] = {"clip": CLIPModel}
    names: ClassVar[dict[str, str]] = {
        "vision_model.": "image_tower.",
        "text_model.": "text_tower.",
        "visual_projection.": "image_head.projection.",
        "text_projection.": "text_head.projection.",
        "logit_scale": "scale.log",
    }
    before = 1  # CLS
    pools = ("post_layernorm",)

    def image_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """A CLIPVisionModel."""
        assert isinstance(config, CLIPVisionConfig)
        return CLIPVisionModel(config)

    def text_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """A CLIPTextModel, of which only the positions are read."""
        assert isinstance(config, CLIPTextConfig)
        return CLIPTextModel(config)

    def read_images(
        self, tower: PreTrainedModel, pixels: torch.Tensor, *, pool: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """CLS and the patches, and the norm of CLS."""
        side = tower.config.image_size
        other = tuple(pixels.shape[2:]) != (side, side)
        output = tower(pixels, interpolate_pos_encoding=other)
        return output.last_hidden_state, output.pooler_output

    def pool(self, tower: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """The norm of the first position."""
        norm: Any = tower.post_layernorm
        pooled: torch.Tensor = norm(hidden[:, 0])
        return pooled

    def settings(self, config: PretrainedConfig) -> dict[str, Any]:
        """Two linear heads without biases; an old config's EOS of 2, which stood for "the highest id", is put right."""
        text = config.text_config
        eos = EOS if text.eos_token_id == 2 else text.eos_token_id
        return {
            "image_config": config.vision_config.to_dict(),
            "text_config": {**text.to_dict(), "eos_token_id": eos},
            "projection_dim": config.projection_dim,
            "text_length": text.max_position_embeddings,
            "eos_token_id": eos,
        }


class TinyClip(TinyTowers):
    """Two transformers of about a million parameters in all."""

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Bytes in pairs, lower case, between a start and an end that pads too."""
        backend = Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=998, initial_alphabet=alphabet, show_progress=False)
        )
        backend.add_special_tokens([START, END])
        self.bounded(backend, f"{START} $A {END}", START, END)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=END, model_max_length=77
        )

    def settings(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Patches of 16 px, three layers each."""
        image = CLIPVisionConfig(**self.SIZE, **self.SQUARE)
        text = CLIPTextConfig(
            **self.SIZE,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        parts: dict[str, Any] = {"vision_config": image.to_dict(), "text_config": text.to_dict()}
        return FAMILY.settings(CLIPConfig(**parts, projection_dim=64))


FAMILY = Clip()
FAMILY.tiny = TinyClip()
