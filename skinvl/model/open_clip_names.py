"""The tensors of an open_clip checkpoint under their names in a DualEncoder: each once, and none that is not there.

Joint matrices of queries, keys and values are cut in thirds, and projections that open_clip multiplies from the right
are transposed. What has no place is left over, which the converter refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

# Names of layers, open_clip's and then a tower's; what follows (weight or bias) stays.
_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CAE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

# Names of tensors.
_SCALE = {"logit_scale": "scale.log", "logit_bias": "scale.bias"}
_CLIP_IMAGE = {
    "class_embedding": "image_tower.embeddings.class_embedding",
    "positional_embedding": "image_tower.embeddings.position_embedding.weight",
    "conv1.weight": "image_tower.embeddings.patch_embedding.weight",
    "ln_pre.weight": "image_tower.pre_layrnorm.weight",
    "ln_pre.bias": "image_tower.pre_layrnorm.bias",
    "ln_post.weight": "image_tower.post_layernorm.weight",
    "ln_post.bias": "image_tower.post_layernorm.bias",
}
_CLIP_TEXT = {
    "token_embedding.weight": "text_tower.embeddings.token_embedding.weight",
    "positional_embedding": "text_tower.embeddings.position_embedding.weight",
    "ln_final.weight": "text_tower.final_layer_norm.weight",
    "ln_final.bias": "text_tower.final_layer_norm.bias",
}
_CAE = {
    "cls_token": "image_tower.embeddings.cls_token",
    "pos_embed": "image_tower.embeddings.position_embeddings",
    "patch_embed.proj.weight": "image_tower.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "image_tower.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "image_head.norm.weight",
    "norm.bias": "image_head.norm.bias",
    "head.weight": "image_head.projection.weight",
    "head.bias": "image_head.projection.bias",
}


def converted(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by their names in a DualEncoder, and the names of those that have no place in it.

    Args:
        tensors: of a CLIP, with the text tower's beside the others or under `text.`, or of CAE with BERT.
    """
    placed: dict[str, torch.Tensor] = {}
    left_over = []
    for name, tensor in tensors.items():
        parts = dict(_placed(name, tensor))
        if placed.keys() & parts or not (parts or _is_counter(name, tensor)):
            left_over.append(name)
        else:
            placed.update(parts)
    return placed, left_over


def _placed(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor, or its thirds, with the name of each; nothing where it has no place."""
    image, text = name.removeprefix("visual."), name.removeprefix("text.")
    if name in _SCALE and tensor.numel() == 1:
        yield _SCALE[name], tensor.reshape(())
    elif name == "visual.proj" and tensor.ndim == 2:
        yield "image_head.projection.weight", tensor.T
    elif text == "text_projection" and tensor.ndim == 2:
        yield "text_head.projection.weight", tensor.T
    elif name.startswith("visual.transformer.resblocks."):
        yield from _clip_block("image_tower", image, tensor)
    elif name.startswith("visual.blocks."):
        yield from _cae_block(image, tensor)
    elif name.startswith("visual."):
        if image in _CLIP_IMAGE or image in _CAE:
            yield {**_CLIP_IMAGE, **_CAE}[image], tensor
    elif text in _CLIP_TEXT:
        yield _CLIP_TEXT[text], tensor
    elif text.startswith("transformer.resblocks."):
        yield from _clip_block("text_tower", text, tensor)
    elif re.fullmatch(r"proj\.[02]\.weight", text) and text != name:
        yield f"text_head.projection.{text.removeprefix('proj.')}", tensor
    elif re.match(r"text\.transformer\.(embeddings|encoder)\.", name) and not _is_counter(name, tensor):
        yield f"text_tower.{text.removeprefix('transformer.')}", tensor


def _clip_block(tower: str, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    _, _, layer, rest = name.split(".", 3)
    block = f"{tower}.encoder.layers.{layer}"
    if joint := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        for part, third in zip("qkv", tensor.tensor_split(3), strict=True):
            yield f"{block}.self_attn.{part}_proj.{joint[1]}", third
    else:
        yield from _layer(_CLIP_BLOCK, block, rest, tensor)


def _cae_block(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    _, layer, rest = name.split(".", 2)
    block = f"image_tower.layers.{layer}"
    if rest == "attn.qkv.weight":
        for part, third in zip("qkv", tensor.tensor_split(3), strict=True):
            yield f"{block}.attention.{part}_proj.weight", third
    elif bias := re.fullmatch(r"attn\.([qv])_bias", rest):
        yield f"{block}.attention.{bias[1]}_proj.bias", tensor
    elif scale := re.fullmatch(r"gamma_([12])", rest):
        yield f"{block}.lambda_{scale[1]}", tensor
    else:
        yield from _layer(_CAE_BLOCK, block, rest, tensor)


def _layer(names: Mapping[str, str], block: str, rest: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    layer, _, kind = rest.rpartition(".")
    if layer in names and kind in ("weight", "bias"):
        yield f"{block}.{names[layer]}.{kind}", tensor


def _is_counter(name: str, tensor: torch.Tensor) -> bool:
    """Whether it is no weight but 0, 1, 2, …, which older versions of transformers kept as positions."""
    counts = torch.arange(tensor.numel(), dtype=tensor.dtype)
    return name == "text.transformer.embeddings.position_ids" and torch.equal(tensor.flatten(), counts)
