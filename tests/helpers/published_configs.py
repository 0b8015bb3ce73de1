"""The configs of the shipped bases of two towers, from the sizes that are published, as `--configs` reads them."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPConfig, PretrainedConfig, SiglipConfig

from skinvl.model.open_clip_layout import Layout
from skinvl.recipe import recipe

B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
CLIP_TEXT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# Of each base, all parameters: those of CLIP as published; the others counted from the sizes.
PARAMETERS = {"clip-b16": 149_620_737, "clip-l14-336": 427_944_193, "dermlip-b16": 149_620_737, "monet": 427_616_513}


def clip(width: int, image: dict[str, int], text: dict[str, int]) -> CLIPConfig:
    return CLIPConfig(projection_dim=width, vision_config=image, text_config={**text, "eos_token_id": 2})


def panderm() -> PretrainedConfig:
    image = {
        **B16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,
        "layer_scale_init_value": 0.1,
    }
    text = {**B16, "vocab_size": 30522, "max_position_embeddings": 512}
    layout = Layout("cae", "bert", 12, 12, 224, 256, 0, image, text, dim=512, eos=None, logit_bias=False)
    return layout.config(quick_gelu=False)


def write(folder: Path) -> Path:
    """A folder with the config of each shipped base that is not random."""
    b16, l14 = {**B16, "image_size": 224, "patch_size": 16}, {**L14, "patch_size": 14}
    siglip_text = {**B16, "vocab_size": 256_000, "max_position_embeddings": 64, "projection_size": 768}
    configs: dict[str, PretrainedConfig] = {
        **dict.fromkeys(("clip-b16", "dermlip-b16", "make"), clip(512, b16, CLIP_TEXT)),
        "clip-l14-336": clip(768, {**l14, "image_size": 336}, CLIP_TEXT_L),
        "monet": clip(768, {**l14, "image_size": 224}, CLIP_TEXT_L),
        "siglip2-b16": SiglipConfig(vision_config=b16, text_config=siglip_text),
        "dermlip-panderm": panderm(),
    }
    for name, config in configs.items():
        config.save_pretrained(folder / recipe.load_base(name).location.rpartition("/")[2].lower())
    return folder
