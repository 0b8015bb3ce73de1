"""PanDerm and PubMedBERT: a BEiT of fixed positions, and a BERT, each read at the mean of its positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from skinvl.model.towers import TinyTowers, TowerFamily


class BeitBert(TowerFamily):
    """The towers that transformers calls BEiT and BERT, each without its pooler."""

    model_type = "beit_bert"
    image_types = ("beit",)
    text_types = ("bert",)
    before = 1  # CLS
    flash_attention = False
    fixed = ("image_tower.embeddings.position_embeddings",)  # sines and cosines

    def image_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """A BeitModel; with `use_mean_pooling` its last norm is left to the head."""
        assert isinstance(config, BeitConfig)
        return BeitModel(config, add_pooling_layer=False)

    def text_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """A BertModel."""
        assert isinstance(config, BertConfig)
        config.use_cache = False  # which only a decoder has, and transformers warns about
        return BertModel(config, add_pooling_layer=False)

    def read_images(
        self, tower: PreTrainedModel, pixels: torch.Tensor, *, pool: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """CLS and the patches."""
        return tower(pixels).last_hidden_state, None


class TinyBeitBert(TinyTowers):
    """Two transformers of about a million parameters in all."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Pieces of words, lower case, between BERT's two ends."""
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.train_from_iterator(
            texts, trainers.WordPieceTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
        )
        self.bounded(backend, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=256,
        )

    def settings(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Patches of 16 px, three layers each."""
        image = BeitConfig(
            **self.SIZE,
            **self.SQUARE,
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
            layer_norm_eps=1e-6,
            layer_scale_init_value=0.1,
            drop_path_rate=0.0,
        )
        text = BertConfig(**self.SIZE, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        return {
            "image_config": image.to_dict(),
            "text_config": text.to_dict(),
            "image_pooling": "mean-norm",
            "text_pooling": "mean",
            "image_head": "linear-bias",
            "text_head": "mlp",
            "projection_dim": 64,
            "text_length": 256,
            "eos_token_id": None,
        }


FAMILY = BeitBert()
FAMILY.tiny = TinyBeitBert()
