"""Two towers and their heads in one model: images and texts → embeddings of one space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.generic import ModelOutput

from skinvl.model import towers

MOST = math.log(100)  # of the logit scale's logarithm


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """What the image side makes of B images."""

    embeddings: torch.Tensor  # float32[B, D], of length one
    patches: torch.Tensor | None  # float32[B, P, D], each through the same head, of length one; None if not asked for


class DualEncoderConfig(PretrainedConfig):
    """Two towers of transformers, how the positions of each become one feature, and how that becomes an embedding.

    `image_pooling`: what the tower itself has for it (pooler: CLIP's norm of CLS, SigLIP's attention), CLS (cls), or a
    norm, the mean of the patches without CLS, and the same norm again (mean-norm, PanDerm's).
    `text_pooling`: the first EOS (eos), the last position whatever stands there (last), the mean of the tokens that are
    no padding (mean), or the first token (cls).
    `image_head`, `text_head`: a linear layer without or with bias, or from width to the mean of both widths to D by two
    without biases and GELU between them (mlp, as open_clip has it); none where the pooled feature is the embedding.
    """

    model_type = "skinvl_dual_encoder"
    sub_configs_defaults = {  # noqa: RUF012 - transformers' own declaration
        "image_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_text_model"),
    }

    image_config: PretrainedConfig | dict[str, Any] | None = None
    text_config: PretrainedConfig | dict[str, Any] | None = None
    image_pooling: Literal["pooler", "cls", "mean-norm"] = "pooler"
    text_pooling: Literal["eos", "last", "mean", "cls"] = "eos"
    image_head: Literal["none", "linear", "linear-bias", "mlp"] = "linear"
    text_head: Literal["none", "linear", "linear-bias", "mlp"] = "linear"
    projection_dim: int = 512
    text_length: int = 77  # positions of the longest text
    eos_token_id: int | None = 49407  # at whose first place "eos" pools
    logit_bias: bool = False  # whether the logits have a bias, as SigLIP's do

    @property
    def image_and_text(self) -> tuple[PretrainedConfig, PretrainedConfig]:
        """The configs of the image tower and the text tower."""
        assert isinstance(self.image_config, PretrainedConfig)
        assert isinstance(self.text_config, PretrainedConfig)
        return self.image_config, self.text_config

    def to_diff_dict(self) -> dict[str, Any]:
        """All fields, as they are saved, but where they were read from.

        transformers leaves out what a tower has by default, and makes a default config to see it: that of SigLIP's
        texts has tokens beyond its own vocabulary, which it warns about.
        """
        fields = self.to_dict()
        for part in (fields, fields["image_config"], fields["text_config"]):
            part.pop("_name_or_path", None)  # a folder of this machine
        return fields


@dataclass
class DualEncoderOutput(ModelOutput):
    """What both sides make of what they are given; what was not asked for is None."""

    image_embeds: torch.Tensor | None = None  # float32[B, D]
    patch_embeds: torch.Tensor | None = None  # float32[B, P, D]
    text_embeds: torch.Tensor | None = None  # float32[n, D]
    scale: torch.Tensor | None = None  # float32[], what cosines are multiplied by
    bias: torch.Tensor | None = None  # float32[], and what is added


class Head(nn.Module):
    """From what a tower made of an image or text to its place in the shared space."""

    def __init__(self, kind: str, width: int, dim: int, norm_eps: float | None) -> None:
        super().__init__()
        self.norm = None if norm_eps is None else nn.LayerNorm(width, eps=norm_eps)
        self.projection: nn.Module
        if kind == "none":
            self.projection = nn.Identity()
        elif kind == "mlp":
            middle = (width + dim) // 2
            self.projection = nn.Sequential(
                nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, dim, bias=False)
            )
        else:
            self.projection = nn.Linear(width, dim, bias=kind == "linear-bias")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float[n, D] of pooled features float[n, W], or, where the head pools, of positions float[n, T, W]."""
        if self.norm is not None:
            features = self.norm(self.norm(features).mean(1))
        projected: torch.Tensor = self.projection(features)
        return projected


class Scale(nn.Module):
    """What cosines are multiplied by, as its logarithm, and what is added; both fp32, since PEFT saves modules."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32)) if bias else None
        self.start()

    def start(self) -> None:
        """Sets the values that CLIP, and with a bias SigLIP, start from."""
        init.constant_(self.log, math.log(1 / 0.07) if self.bias is None else math.log(10))
        if self.bias is not None:
            init.constant_(self.bias, -10.0)

    def value(self) -> torch.Tensor:
        """float32[], the scale itself."""
        return self.log.float().exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keeps the scale between 1 and 100, as CLIP does after every step; under ZeRO-3 the caller gathers first."""
        self.log.clamp_(0, MOST)


class DualEncoder(PreTrainedModel):
    """An image tower and a text tower, a head on each, and the scale of the logits."""

    config_class = DualEncoderConfig
    base_model_prefix = "dual_encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        image, text = config.image_and_text
        self.images, self.texts = towers.of_image(image.model_type), towers.of_text(text.model_type)
        self.image_tower = self.images.image_tower(image)
        self.text_tower = self.texts.text_tower(text)
        norm = image.layer_norm_eps if config.image_pooling == "mean-norm" else None
        self.image_head = Head(config.image_head, image.hidden_size, config.projection_dim, norm)
        self.text_head = Head(config.text_head, text.hidden_size, config.projection_dim, None)
        self.scale = Scale(config.logit_bias)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Those of the towers are their own models' business.
        if isinstance(module, Scale):
            module.start()
        elif isinstance(module, Head):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, std=layer.in_features**-0.5)
                    if layer.bias is not None:
                        init.zeros_(layer.bias)
                elif isinstance(layer, nn.LayerNorm):
                    init.ones_(layer.weight)
                    init.zeros_(layer.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the text tower."""
        embeddings: nn.Module = self.text_tower.get_input_embeddings()
        return embeddings

    def encode_images(self, pixel_values: torch.Tensor, *, patches: bool = False) -> ImageEmbeddings:
        """The embeddings of normalised pixels float[B, 3, H, W], and of their P patches if asked for.

        A patch's embedding is what pooling and head would make of it if the image had no other. Pixels of another side
        than the tower's have its patch positions interpolated.
        """
        pooling = self.config.image_pooling
        hidden, pooled = self._read_images(pixel_values)
        embeddings = of_length_one(self.image_head(pooled))
        if not patches:
            return ImageEmbeddings(embeddings, None)

        alone = hidden[:, self.images.before :].flatten(0, 1)[:, None]  # each the only position of its image
        if pooling == "pooler":
            alone = self.images.pool(self.image_tower, alone)
        elif pooling == "cls":
            alone = alone[:, 0]
        local = of_length_one(self.image_head(alone))
        return ImageEmbeddings(embeddings, local.view(len(hidden), -1, local.shape[-1]))

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float32[B, W], what the image tower makes of normalised pixels float[B, 3, H, W], before the projection."""
        _, pooled = self._read_images(pixel_values)
        if self.config.image_pooling == "mean-norm":
            norm: Any = self.image_head.norm
            pooled = norm(norm(pooled).mean(1))
        return pooled.float()

    def _read_images(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tower's positions float[B, T, W], and what of them the head is given: float[B, W], or all patches."""
        pooling = self.config.image_pooling
        hidden, pooled = self.images.read_images(self.image_tower, pixel_values, pool=pooling == "pooler")
        if pooling == "mean-norm":
            pooled = hidden[:, self.images.before :]
        elif pooling == "cls":
            pooled = hidden[:, 0]
        assert pooled is not None
        return hidden, pooled

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """float32[n, D], the embeddings of token ids int64[n, L] with padding where the mask int64[n, L] is 0."""
        pooling = self.config.text_pooling
        # Under causal attention EOS sees no padding, and SigLIP's tower is used to seeing it.
        mask = attention_mask if pooling in ("mean", "cls") else None
        hidden = self.text_tower(input_ids, attention_mask=mask).last_hidden_state
        if pooling == "eos":
            first = (input_ids == self.config.eos_token_id).int().argmax(1)
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), first]
        elif pooling == "mean":
            weights = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden[:, 0 if pooling == "cls" else -1]
        return of_length_one(self.text_head(pooled))

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        patches: bool = False,
        **_: Any,
    ) -> DualEncoderOutput:
        """What both sides make of what is given, with the scale and bias of the logits."""
        images = None if pixel_values is None else self.encode_images(pixel_values, patches=patches)
        texts = None
        if input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            texts = self.encode_texts(input_ids, mask)
        return DualEncoderOutput(
            image_embeds=None if images is None else images.embeddings,
            patch_embeds=None if images is None else images.patches,
            text_embeds=texts,
            scale=self.scale.value(),
            bias=self.scale.bias,
        )


def of_length_one(features: torch.Tensor) -> torch.Tensor:
    """float32[…, D], each of length one."""
    # In bf16 a feature would be of length one to three digits only.
    return nn.functional.normalize(features.float(), dim=-1)


AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoder)
