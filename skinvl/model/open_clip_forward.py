"""What an open_clip checkpoint computes, in float64 straight over its own tensors: the reference of a conversion.

Written from the published arithmetic alone. It shares no code with the converter and none with the towers, so that a
mistake in one of them cannot hide in the other.

Sources: Radford et al. 2021 (CLIP: towers, QuickGELU, pooling at the end-of-text token), Chen et al. 2022 and Zhang et
al. 2023 (CAE: layer scale, biases of queries and values alone), Devlin et al. 2019 (BERT: norms after each sum).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]
Activation = Callable[[torch.Tensor], torch.Tensor]


def images(tensors: Tensors, pixels: torch.Tensor, *, heads: int, quick_gelu: bool) -> torch.Tensor:
    """float64[B, D], the embeddings of float[B, 3, H, W] images, of length one.

    Args:
        heads: of the image tower.
        quick_gelu: whether the feed-forward layers of a CLIP tower use x·σ(1.702 x); else, and in CAE, GELU.
    """
    if "visual.cls_token" in tensors:
        return _unit(_cae(tensors, pixels.double(), heads))
    return _unit(_clip_image(tensors, pixels.double(), heads, _quick_gelu if quick_gelu else _gelu))


def texts(tensors: Tensors, ids: torch.Tensor, *, heads: int, quick_gelu: bool, pad: int = 0) -> torch.Tensor:
    """float64[N, D], the embeddings of int64[N, L] token ids, of length one.

    Args:
        heads: of the text tower.
        quick_gelu: as of `images`; BERT uses GELU.
        pad: the token that fills BERT's rows up and is not read; CLIP pools at the highest id and sees none after it.
    """
    if "text.transformer.embeddings.word_embeddings.weight" in tensors:
        return _unit(_bert(tensors, ids, heads, pad))
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    return _unit(_clip_text(tensors, prefix, ids, heads, _quick_gelu if quick_gelu else _gelu))


def info_nce(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor) -> float:
    """The symmetric InfoNCE of n images and their n texts, which are of length one: ln n where they say nothing."""
    logits = log_scale.double().exp() * images @ texts.T
    own = logits.diagonal()
    rows, columns = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    return float(((rows - own).mean() + (columns - own).mean()) / 2)


def _clip_image(tensors: Tensors, pixels: torch.Tensor, heads: int, activation: Activation) -> torch.Tensor:
    kernel = tensors["visual.conv1.weight"].double()
    states = _with_class_token(_patches(pixels, kernel), tensors["visual.class_embedding"].double())
    states = states + tensors["visual.positional_embedding"].double()

    states = _norm(tensors, "visual.ln_pre", states, 1e-5)
    states = _clip_blocks(tensors, "visual.transformer.resblocks", states, heads, activation, None)

    # The class token alone is normalised and projected.
    pooled = _norm(tensors, "visual.ln_post", states[:, 0], 1e-5)
    return pooled @ tensors["visual.proj"].double()


def _clip_text(tensors: Tensors, prefix: str, ids: torch.Tensor, heads: int, activation: Activation) -> torch.Tensor:
    length = ids.shape[1]
    states = tensors[f"{prefix}token_embedding.weight"].double()[ids]
    states = states + tensors[f"{prefix}positional_embedding"].double()[:length]

    # A position sees those before it and itself.
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    bias = torch.zeros(length, length, dtype=torch.float64).masked_fill(later, -math.inf)
    states = _clip_blocks(tensors, f"{prefix}transformer.resblocks", states, heads, activation, bias)

    states = _norm(tensors, f"{prefix}ln_final", states, 1e-5)
    pooled = states[torch.arange(len(ids)), ids.argmax(dim=1)]
    return pooled @ tensors[f"{prefix}text_projection"].double()


def _clip_blocks(
    tensors: Tensors,
    prefix: str,
    states: torch.Tensor,
    heads: int,
    activation: Activation,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    for layer in range(_depth(tensors, prefix)):
        name = f"{prefix}.{layer}"
        inner = _norm(tensors, f"{name}.ln_1", states, 1e-5)
        joint = (
            inner @ tensors[f"{name}.attn.in_proj_weight"].double().T + tensors[f"{name}.attn.in_proj_bias"].double()
        )
        query, key, value = joint.chunk(3, dim=-1)
        mixed = _attention(query, key, value, heads, bias)
        states = states + _linear(tensors, f"{name}.attn.out_proj", mixed)

        inner = _norm(tensors, f"{name}.ln_2", states, 1e-5)
        inner = activation(_linear(tensors, f"{name}.mlp.c_fc", inner))
        states = states + _linear(tensors, f"{name}.mlp.c_proj", inner)
    return states


def _cae(tensors: Tensors, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    patches = _patches(pixels, tensors["visual.patch_embed.proj.weight"].double())
    patches = patches + tensors["visual.patch_embed.proj.bias"].double()
    states = _with_class_token(patches, tensors["visual.cls_token"].double().flatten())
    states = states + tensors["visual.pos_embed"].double()

    for layer in range(_depth(tensors, "visual.blocks")):
        name = f"visual.blocks.{layer}"
        inner = _norm(tensors, f"{name}.norm1", states, 1e-6)
        query, key, value = (inner @ tensors[f"{name}.attn.qkv.weight"].double().T).chunk(3, dim=-1)
        query = query + tensors[f"{name}.attn.q_bias"].double()
        value = value + tensors[f"{name}.attn.v_bias"].double()
        mixed = _linear(tensors, f"{name}.attn.proj", _attention(query, key, value, heads, None))
        states = states + tensors[f"{name}.gamma_1"].double() * mixed

        inner = _norm(tensors, f"{name}.norm2", states, 1e-6)
        inner = _linear(tensors, f"{name}.mlp.fc2", _gelu(_linear(tensors, f"{name}.mlp.fc1", inner)))
        states = states + tensors[f"{name}.gamma_2"].double() * inner

    # One norm is applied twice, to each position and to the mean of the patches; the class token is left out.
    states = _norm(tensors, "visual.norm", states, 1e-6)
    pooled = _norm(tensors, "visual.norm", states[:, 1:].mean(dim=1), 1e-6)
    return _linear(tensors, "visual.head", pooled)


def _bert(tensors: Tensors, ids: torch.Tensor, heads: int, pad: int) -> torch.Tensor:
    embeddings, read = "text.transformer.embeddings", ids != pad
    states = tensors[f"{embeddings}.word_embeddings.weight"].double()[ids]
    states = states + tensors[f"{embeddings}.position_embeddings.weight"].double()[: ids.shape[1]]
    states = states + tensors[f"{embeddings}.token_type_embeddings.weight"].double()[0]
    states = _norm(tensors, f"{embeddings}.LayerNorm", states, 1e-12)
    bias = torch.zeros(read.shape, dtype=torch.float64).masked_fill(~read, -math.inf)[:, None, None, :]

    for layer in range(_depth(tensors, "text.transformer.encoder.layer")):
        name = f"text.transformer.encoder.layer.{layer}"
        query, key, value = (
            _linear(tensors, f"{name}.attention.self.{part}", states) for part in ("query", "key", "value")
        )
        mixed = _linear(tensors, f"{name}.attention.output.dense", _attention(query, key, value, heads, bias))
        states = _norm(tensors, f"{name}.attention.output.LayerNorm", states + mixed, 1e-12)
        inner = _gelu(_linear(tensors, f"{name}.intermediate.dense", states))
        inner = _linear(tensors, f"{name}.output.dense", inner)
        states = _norm(tensors, f"{name}.output.LayerNorm", states + inner, 1e-12)

    # The mean of what is read, through two layers without biases.
    weights = read.double()[..., None]
    pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
    return _gelu(pooled @ tensors["text.proj.0.weight"].double().T) @ tensors["text.proj.2.weight"].double().T


def _patches(pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """float64[B, P, W]: each square of pixels, times float64[W, 3, S, S]; row by row of the image."""
    side = kernel.shape[-1]
    batch, channels, height, width = pixels.shape
    squares = pixels.reshape(batch, channels, height // side, side, width // side, side)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side) @ kernel.flatten(1).T


def _with_class_token(patches: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    return torch.cat([token.expand(len(patches), 1, -1), patches], dim=1)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """float64[B, T, W]: softmax(q·k / √d + bias)·v in each of the heads, side by side."""
    batch, length, width = query.shape
    query, key, value = (part.reshape(batch, length, heads, -1).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(2, 3) / math.sqrt(width / heads)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width)


def _linear(tensors: Tensors, name: str, states: torch.Tensor) -> torch.Tensor:
    return states @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def _norm(tensors: Tensors, name: str, states: torch.Tensor, epsilon: float) -> torch.Tensor:
    centred = states - states.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
    return centred / deviation * tensors[f"{name}.weight"].double() + tensors[f"{name}.bias"].double()


def _gelu(states: torch.Tensor) -> torch.Tensor:
    return states * (1 + torch.erf(states / math.sqrt(2))) / 2


def _quick_gelu(states: torch.Tensor) -> torch.Tensor:
    return states / (1 + torch.exp(-1.702 * states))


def _unit(states: torch.Tensor) -> torch.Tensor:
    return states / states.square().sum(dim=-1, keepdim=True).sqrt()


def _depth(tensors: Tensors, prefix: str) -> int:
    """How many numbered layers there are under a name."""
    return len({name.removeprefix(f"{prefix}.").split(".")[0] for name in tensors if name.startswith(f"{prefix}.")})
