"""What a checkpoint of open_clip is: its two architectures, read off the shapes of its tensors.

The config beside it is read for what no shape tells (heads, the length of a text), and for what would make it another
architecture, which is refused. Sizes in it are not believed: that of DermFM-Zero, a ViT-L, says ViT-B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    BeitConfig,
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from skinvl.model.dual import DualEncoderConfig

HEAD = 64  # width of an attention head in CLIP, CAE and BERT of any size, where the config does not say another
SIZES = frozenset(
    (  # fields of vision_cfg and text_cfg that a shape tells better, or that no result depends on
        *("image_size", "layers", "width", "patch_size", "mlp_ratio", "context_length", "vocab_size", "heads"),
        *("head_width", "patch_dropout", "pretrain_path", "output_tokens"),
        *("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained"),
        # and of parts that are refused themselves
        *("timm_pool", "timm_proj", "attn_pooler_queries", "attn_pooler_heads"),
    )
)
PLAIN: dict[str, dict[str, Any]] = {  # and those that say how it computes, with the only value that is read
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"},
    "text_cfg": {
        "pool_type": "argmax",
        "eos_id": 2,  # read where pool_type is eos alone
        "proj_type": "linear",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "block_type": "default",
    },
}
OTHER = {  # what begins the names of a layout that is not read → what it is, and what to take instead
    "visual.trunk.": (
        "an image tower of timm, as SigLIP and BiomedCLIP have; for SigLIP give the same model as transformers has it, "
        "google/siglip2-base-patch16-224 say"
    ),
    "visual.layer1.": "a ResNet as image tower; give a base with a vision transformer",
    "visual.attn_pool.": "an image tower with attentional pooling (CoCa); give a CLIP base",
    "text_decoder.": "CoCa, which has a decoder too; give a CLIP base",
}


class OpenClipError(ValueError):
    """A checkpoint of open_clip that cannot be converted exactly; the message says what is in the way."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The architecture of a checkpoint."""

    image: Literal["clip", "cae"]
    text: Literal["clip", "bert"]
    image_heads: int
    text_heads: int
    side: int  # of an image, in pixels
    length: int  # of the longest text, in tokens
    pad: int  # what fills shorter ones up in open_clip
    image_config: dict[str, Any]
    text_config: dict[str, Any]
    dim: int  # of an embedding
    eos: int | None
    logit_bias: bool

    @property
    def has_clip(self) -> bool:
        """Whether a tower is CLIP's, whose activation is one of two."""
        return "clip" in (self.image, self.text)

    def config(self, *, quick_gelu: bool) -> DualEncoderConfig:
        """That of the DualEncoder which computes the same."""
        act = "quick_gelu" if quick_gelu else "gelu"
        image: PretrainedConfig
        text: PretrainedConfig
        if self.image == "clip":
            image = CLIPVisionConfig(**self.image_config, hidden_act=act)
        else:
            image = BeitConfig(**self.image_config)
        if self.text == "clip":
            text = CLIPTextConfig(**self.text_config, hidden_act=act)
        else:
            text = BertConfig(**self.text_config)
        return DualEncoderConfig(
            image_config=image.to_dict(),
            text_config=text.to_dict(),
            image_pooling="pooler" if self.image == "clip" else "mean-norm",
            text_pooling="eos" if self.text == "clip" else "mean",
            image_head="linear" if self.image == "clip" else "linear-bias",
            text_head="linear" if self.text == "clip" else "mlp",
            projection_dim=self.dim,
            text_length=self.length,
            eos_token_id=self.eos,
            logit_bias=self.logit_bias,
        )


def layout(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    bert: Mapping[str, Any],
    where: str,
) -> Layout:
    """The architecture of a checkpoint.

    Args:
        config: model_cfg of open_clip_config.json; empty where there is none.
        tokenizer: the one that its texts are tokenised by.
        bert: config.json beside the tokenizer; empty where there is none.
        where: the file, for the messages.

    Raises:
        OpenClipError: an architecture that is not read, or a tokenizer that is not the checkpoint's.
    """
    for prefix, what in OTHER.items():
        if any(name.startswith(prefix) for name in tensors):
            raise OpenClipError(f"{where}: {what} (its tensors {prefix}*)")
    for section, plain in PLAIN.items():
        for field, value in (config.get(section) or {}).items():
            if value and field not in SIZES and plain.get(field) != value:
                raise OpenClipError(
                    f"{where}: its config has {section}.{field}: {value}, which makes it another architecture; "
                    "expected CLIP's own, or CAE with BERT"
                )

    shapes = _Shapes(tensors, where)
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    image = _clip_image(shapes, vision) if "visual.class_embedding" in tensors else _cae(shapes, vision)
    is_bert = "text.transformer.embeddings.word_embeddings.weight" in tensors
    words = _bert(shapes, text, tokenizer, bert) if is_bert else _clip_text(shapes, text, tokenizer)
    return Layout(**image, **words, logit_bias="logit_bias" in tensors)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The shapes of a checkpoint's tensors."""

    tensors: Mapping[str, torch.Tensor]
    where: str

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor, which has so many dimensions."""
        if name not in self.tensors:
            raise OpenClipError(
                f"{self.where}: no tensor {name}; expected CLIP's layout or that of CAE with BERT (PanDerm)"
            )
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dimensions:
            raise OpenClipError(f"{self.where}: {name} has the shape {list(shape)}; expected {dimensions} dimensions")
        return shape

    def depth(self, prefix: str) -> int:
        """How many numbered layers there are under a name."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})

    def grid(self, positions: int) -> int:
        """How many patches lie side by side where there are so many positions, that of CLS among them."""
        side = math.isqrt(positions - 1)
        if side * side != positions - 1:
            raise OpenClipError(f"{self.where}: {positions - 1} patches; expected those of a square image")
        return side

    def heads(self, width: int, each: int, what: str) -> int:
        """How many heads of a width there are."""
        if width % each:
            raise OpenClipError(f"{self.where}: the {what} tower is {width} wide; expected heads of {each}")
        return width // each


def _clip_image(shapes: _Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, _, patch = shapes.of("visual.conv1.weight", 4)
    positions, _ = shapes.of("visual.positional_embedding", 2)
    hidden, _ = shapes.of("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)
    heads = shapes.heads(width, config.get("head_width") or HEAD, "image")
    side = patch * shapes.grid(positions)
    image = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shapes.depth("visual.transformer.resblocks."),
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
        "layer_norm_eps": 1e-5,
    }
    dim = shapes.of("visual.proj", 2)[1]
    return {"image": "clip", "image_heads": heads, "side": side, "image_config": image, "dim": dim}


def _cae(shapes: _Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    width, _, _, patch = shapes.of("visual.patch_embed.proj.weight", 4)
    _, positions, _ = shapes.of("visual.pos_embed", 3)
    hidden, _ = shapes.of("visual.blocks.0.mlp.fc1.weight", 2)
    heads = shapes.heads(width, config.get("head_width") or HEAD, "image")
    side = patch * shapes.grid(positions)
    image = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shapes.depth("visual.blocks."),
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,  # the norm is the head's, which applies it twice
        "layer_scale_init_value": 0.1,
        "drop_path_rate": 0.0,  # as PanDerm was trained
    }
    dim = shapes.of("visual.head.weight", 2)[0]
    return {"image": "cae", "image_heads": heads, "side": side, "image_config": image, "dim": dim}


def _clip_text(shapes: _Shapes, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    prefix = "text." if "text.token_embedding.weight" in shapes.tensors else ""
    vocabulary, width = shapes.of(f"{prefix}token_embedding.weight", 2)
    length, _ = shapes.of(f"{prefix}positional_embedding", 2)
    hidden, _ = shapes.of(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)
    heads = config.get("heads") or shapes.heads(width, HEAD, "text")

    # open_clip pools at the highest id, whichever it is; a DualEncoder at the first EOS.
    if len(tokenizer) != vocabulary or tokenizer.eos_token_id != vocabulary - 1:
        raise OpenClipError(
            f"{shapes.where}: the tokenizer has {len(tokenizer)} tokens and its EOS is {tokenizer.eos_token_id}; "
            f"expected {vocabulary} tokens, of which EOS is the last; put the checkpoint's own tokenizer beside it"
        )
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shapes.depth(f"{prefix}transformer.resblocks."),
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "layer_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {
        "text": "clip",
        "text_heads": heads,
        "length": length,
        "pad": 0,
        "text_config": text,
        "eos": tokenizer.eos_token_id,
    }


def _bert(
    shapes: _Shapes, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, own: Mapping[str, Any]
) -> dict[str, Any]:
    vocabulary, width = shapes.of("text.transformer.embeddings.word_embeddings.weight", 2)
    positions, _ = shapes.of("text.transformer.embeddings.position_embeddings.weight", 2)
    types, _ = shapes.of("text.transformer.embeddings.token_type_embeddings.weight", 2)
    hidden, _ = shapes.of("text.transformer.encoder.layer.0.intermediate.dense.weight", 2)
    if len(tokenizer) > vocabulary:
        raise OpenClipError(
            f"{shapes.where}: the tokenizer has {len(tokenizer)} tokens; expected at most {vocabulary}; "
            "put the checkpoint's own tokenizer beside it"
        )

    # What no shape tells is BERT's as published, unless its own config says otherwise.
    published = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_size": width}
    if other := {field: own[field] for field, value in published.items() if own.get(field, value) != value}:
        raise OpenClipError(
            f"{shapes.where}: the config beside its tokenizer has {other}; expected BERT as published: {published}"
        )
    heads = own.get("num_attention_heads") or shapes.heads(width, HEAD, "text")
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shapes.depth("text.transformer.encoder.layer."),
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {
        "text": "bert",
        "text_heads": heads,
        "length": min(config.get("context_length") or positions, positions),
        "pad": tokenizer.pad_token_id,
        "text_config": text,
        "eos": None,
    }
