"""Tiny bases: complete model folders with random weights, for tests, demos and dry runs without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from skinvl.data import example
from skinvl.data.source import source_folder
from skinvl.model import families
from skinvl.model.families import Family
from skinvl.recipe.files import whole_folder
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe

VOCABULARY = 2_000  # tokens at most, the family's control tokens included


def build(
    family_name: str,
    out: Path,
    *,
    texts: Iterable[str] | None = None,
    tokenizer_json: Path | None = None,
    chat_template: str | None = None,
    seed: int = 0,
) -> Path:
    """The folder `out`, a complete base of the family with seeded random weights; it appears whole or not at all.

    Args:
        texts: what the tokenizer is trained on, where none is given.
        tokenizer_json: a tokenizers file that has the family's control tokens; its ids are kept.
        chat_template: Jinja text; by default a short template of the family's turn format.

    Raises:
        ValueError: no such family; not exactly one of `texts` and `tokenizer_json`; a tokenizer that does not fit.
        FileExistsError: `out` is there and not empty.
    """
    family = families.load(family_name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: already there and not empty; give another folder, or remove it first")
    if (texts is None) == (tokenizer_json is None):
        raise ValueError(
            "a tokenizer comes either from texts to train it on or from a file; give exactly one of the two"
        )
    backend = _train(family, texts or ()) if tokenizer_json is None else Tokenizer.from_file(str(tokenizer_json))
    tokenizer = _tokenizer(family, backend)
    config = family.tiny.config(tokenizer)
    with whole_folder(out, shared=True) as partial:
        model = _model(family, config, seed)
        model.generation_config = _generation(tokenizer)
        model.save_pretrained(partial)
        family.tiny.processor(tokenizer, chat_template or family.tiny.template).save_pretrained(partial)
    return out


def ensure(recipe: Recipe | PretrainRecipe, build: Callable[..., Path] = build) -> Path:
    """The folder of a recipe's random base, built when it is not there, its tokenizer trained on the recipe's data.

    Args:
        build: what makes it, of a family's name, the folder, and `texts`.

    Raises:
        FileNotFoundError: the folder is not there, and neither is a source to train its tokenizer on.
    """
    assert recipe.base.random is not None
    out = Path(recipe.base.location)
    if not (out / "config.json").is_file():
        build(recipe.base.random, out, texts=texts(source_folder(spec.source) for spec in recipe.data.train))
    return out


def texts(sources: Iterable[Path]) -> Iterator[str]:
    """Every turn of the train splits of some prepared sources."""
    for source in sources:
        for conversation in example.read(source, "train"):
            for message in conversation.messages:
                yield example.words(message)


def _train(family: Family, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if family.prefix_space:
        tokenizer.normalizer = normalizers.Prepend(" ")
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    # Every byte is a token, so that any text can be written; the control tokens come last, as in the real vocabularies.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(family.tiny.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(family.tiny.tokens))
    return tokenizer


def _tokenizer(family: Family, backend: Tokenizer) -> PreTrainedTokenizerFast:
    missing = [token for token in family.tiny.tokens if backend.token_to_id(token) is None]
    if missing:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}; expected one made for {family.model_type}")
    roles = {f"{role}_token": token for role, token in family.tiny.roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8192, **roles)


def _generation(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def _model(family: Family, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for name, module in model.named_modules():
            in_tower = isinstance(module, torch.nn.Linear) and family.part_of(name) == "vision"
            _initialise(module, gain=0.4 if in_tower else 1.0)
        family.tiny.prepare(model)
    rounded: PreTrainedModel = model.to(torch.bfloat16)
    return rounded


def _initialise(module: Any, gain: float) -> None:
    # The usual standard deviation of 0.02 is made for widths in the thousands: at a width of 128 every layer would
    # add next to nothing to its input, and logits would hardly depend on the image. Here a layer keeps the variance of
    # what comes in; but in the tower, which stays random where it is frozen, the layers may not drown the patches.
    if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
        torch.nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
    elif isinstance(module, torch.nn.Embedding):
        torch.nn.init.normal_(module.weight, std=1.0)
