"""Two towers whose image side is a generative base's own vision tower, and what trained of that, by the base's names.

    image → the base's processor → its vision tower → positions that leave for the projector → norm, mean, norm → head
    text  → text tower and head of another base, `text_base`

Each image is read in its own shape within `data.image_tokens`, as skinvl sft reads it. The head is new; it and the text
side are thrown away, and what is left is an adapter that `skinvl sft init_adapter=` goes on from. The projector takes
no part: what it makes stands in the language model's row, which no contrastive loss knows anything of.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import save_file
from torch import nn
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers import initialization as init

from skinvl.model import adapter, base, hub, tiny, towers_adapter
from skinvl.model.adapter import AdapterError
from skinvl.model.base import attention_kernel, blank_model
from skinvl.model.dual import DualEncoder, DualEncoderConfig, Head, ImageEmbeddings, of_length_one
from skinvl.model.families import Family
from skinvl.model.hub import Snapshot
from skinvl.model.loaded import LIBRARIES
from skinvl.model.names import WRAPPER
from skinvl.model.pictures import PictureFormat, Pictures
from skinvl.model.towers_loaded import OpenTowers, attention_of, open_towers, read_model
from skinvl.recipe.base import load_base
from skinvl.recipe.run import CONFIG, WEIGHTS
from skinvl.recipe.towers import PretrainRecipe

TOWER = "image_tower."  # what the tower's names in the base begin with here
NORM_EPS = 1e-6
SIZE = (224, 224)  # pixels of an image that is asked for its width


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenGenerative(OpenTowers[PictureFormat]):
    """A generative base and a text side, without their weights."""

    family: Family
    whole: PretrainedConfig  # of the generative base
    text: OpenTowers

    @property
    def facts(self) -> dict[str, Any]:
        """What is recorded of the base and of the text side."""
        location, kind = self.recipe.base.location, self.whole.model_type
        return {
            "base": {"model": location, "commit": self.files.commit, "model_type": kind},
            "text_base": self.text.files.fingerprint(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }


class GenerativeDual(DualEncoder):
    """A generative base's vision tower with a new head, beside text tower, text head and scale of a pair."""

    def __init__(self, config: DualEncoderConfig, family: Family, tower: PreTrainedModel, pair: DualEncoder) -> None:
        PreTrainedModel.__init__(self, config)
        self.images, self.texts = Nothing(), pair.texts  # type: ignore[assignment]
        self.image_tower = Within(family, tower)  # type: ignore[assignment]
        image, _ = config.image_and_text
        self.image_head = Head("linear", image.hidden_size, config.projection_dim, NORM_EPS)
        self.text_tower, self.text_head, self.scale = pair.text_tower, pair.text_head, pair.scale
        with init.no_init_weights():
            self.post_init()  # type: ignore[no-untyped-call]

    def encode_images(self, pixel_values: Any, *, patches: bool = False) -> ImageEmbeddings:
        """The embeddings of Pictures, and of their positions if asked for, zeros where an image has fewer than others.

        A position's embedding is what the head would make of it if the image had no other; one of zeros takes no part
        in MAKE's alignment, whose cosine with any text is 0.
        """
        shown: list[torch.Tensor] = self.image_tower(pixel_values)
        embeddings = of_length_one(torch.cat([self.image_head(each[None]) for each in shown]))
        if not patches:
            return ImageEmbeddings(embeddings, None)
        local = [of_length_one(self.image_head(each[:, None])) for each in shown]
        return ImageEmbeddings(embeddings, nn.utils.rnn.pad_sequence(local, batch_first=True))


class Nothing:
    """What an image side has that no TowerFamily is for: nothing of its architecture is fixed."""

    fixed: tuple[str, ...] = ()


class Within(nn.Module):
    """A vision tower within modules that hold nothing else, so that it is called what it is called in its base."""

    def __init__(self, family: Family, tower: PreTrainedModel) -> None:
        super().__init__()
        self.family = family
        (self.place,) = family.parts["vision"]
        *above, last = self.place.split(".")
        module: nn.Module = self
        for name in above:
            module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.add_module(last, tower)

    def forward(self, pictures: Pictures) -> list[torch.Tensor]:
        """Of each image the positions that leave for the projector, float[P, W]."""
        tower: Any = self.get_submodule(self.place)
        features = self.family.encode_each(tower, pictures.pictures, pictures.pixels)
        return [self.family.shown(picture, each) for picture, each in zip(pictures.pictures, features, strict=True)]


class Passing(nn.Module):
    """Stands where a projector lies within a tower: what arrives there is all that is wanted."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The same."""
        return features


def opened(recipe: PretrainRecipe, *, weights: bool = True) -> OpenGenerative:
    """The generative base of a recipe, and its text side.

    Args:
        weights: whether files of weights are to be there too.

    Raises:
        BaseError: one of them cannot be had.
    """
    files = snapshot(recipe, weights=weights)
    text = open_towers(of_text(recipe), weights=weights)
    return read(recipe, files, text, AutoProcessor.from_pretrained(files.path))


def read(recipe: PretrainRecipe, files: Snapshot, text: OpenTowers, processor: ProcessorMixin) -> OpenGenerative:
    """The generative base in a folder, with the text side of a recipe."""
    whole, family = base.read_config(files.path)
    family.prepare_processor(processor)
    assert recipe.data.image_tokens is not None  # the recipe has settled it
    arguments = family.image_arguments(processor, recipe.data.image_tokens)
    pixels = PictureFormat(family, processor, arguments, recipe.data.profiles)

    # The width is that of all that leaves for the projector, features of earlier layers included.
    vision = whole.vision_config.__class__.from_dict(whole.vision_config.to_dict())
    vision.hidden_size = family.features(whole, pixels.picture(SIZE))[-1]
    _, text_config = text.config.image_and_text
    config = DualEncoderConfig(
        image_config=vision,
        text_config=text_config,
        image_pooling="mean-norm",
        text_pooling=text.config.text_pooling,
        image_head="linear",
        text_head=text.config.text_head,
        projection_dim=text.config.projection_dim,
        text_length=text.config.text_length,
        eos_token_id=text.config.eos_token_id,
        logit_bias=text.config.logit_bias,
    )
    return OpenGenerative(
        recipe=recipe,
        files=files,
        path=files.path,
        config=config,
        tokenizer=text.tokenizer,
        pixels=pixels,
        family=family,
        whole=whole,
        text=text,
    )


def snapshot(recipe: PretrainRecipe, *, weights: bool = True) -> Snapshot:
    """The files of a recipe's generative base, or a tiny one built on the recipe's data."""
    if recipe.base.random is not None:
        return Snapshot(tiny.ensure(recipe), None)
    return hub.fetch(recipe.base.location, recipe.base.revision, weights=weights)


def of_text(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe on the two towers whose text side is taken."""
    pair = load_base(str(recipe.text_base), "dual")
    data = recipe.data.model_copy(update={"image_tokens": None})
    return recipe.model_copy(update={"base": pair, "text_base": None, "data": data})


def load(opened: OpenGenerative) -> GenerativeDual:
    """Both sides with their weights, in fp32, and a head drawn by the recipe's seed.

    Raises:
        BaseError, ModelError: files lack weights, or the wanted attention kernel is not to be had.
    """
    recipe = opened.recipe
    kernel = "sdpa" if recipe.attention == "auto" else attention_kernel(recipe.attention, opened.family)
    tower = base.read_tower(opened.path, opened.family, kernel, torch.float32)
    return joined(opened, tower, read_model(opened.text))


def blank(opened: OpenGenerative, pair: DualEncoder) -> GenerativeDual:
    """The model on the meta device; its text side is that of a pair there.

    Raises:
        ModelError: the wanted attention kernel is not to be had.
    """
    attention_of(opened.text.recipe, opened.text.config)
    (place,) = opened.family.parts["vision"]
    tower: Any = blank_model(opened.whole).get_submodule(place)
    with torch.device("meta"):
        return joined(opened, tower, pair)


def joined(opened: OpenGenerative, tower: PreTrainedModel, pair: DualEncoder) -> GenerativeDual:
    """Both sides in one model, the tower without the projector that may lie within it."""
    for name, module in list(tower.named_modules()):
        if module in opened.family.within(tower):
            tower.set_submodule(name, Passing())
    opened.config._attn_implementation = tower.config._attn_implementation
    model = GenerativeDual(opened.config, opened.family, tower, pair)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(opened.recipe.train.get("seed", 42))
        weight: Any = model.image_head.projection.weight
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


def attach(model: DualEncoder, opened: OpenGenerative) -> PeftModel | DualEncoder:
    """The model with what trains set to train: see `towers_adapter.attach`.

    What nothing that leaves for the projector has gone through stays as it is: no gradient reaches it.
    """
    attached = towers_adapter.attach(model, opened.recipe)
    (place,) = opened.family.parts["vision"]
    unread = tuple(f"{place}.{name}." for name in opened.family.unread(opened.whole.vision_config))
    for name, parameter in attached.named_parameters():
        if unread and in_base(name).startswith(unread):
            parameter.requires_grad_(False)
    return attached


def in_base(name: str) -> str:
    """What a parameter of the tower is called in the generative base, LoRA's by its layer; empty of any other."""
    name = name.removeprefix(WRAPPER).replace("modules_to_save.default.", "", 1)
    return name.removeprefix(TOWER) if name.startswith(TOWER) else ""


def save(model: nn.Module, opened: OpenGenerative, folder: Path) -> None:
    """Writes what trained of the tower into a folder, as the adapter of the generative base that it is.

    Raises:
        AdapterError: it is not what skinvl sft would train of the base's vision part.
    """
    recipe = opened.recipe
    lora = recipe.towers.image.train == "lora"
    whole = blank_model(opened.whole)
    modules = dict(whole.named_modules())
    layers = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and opened.family.part_of(name) == "vision"
    ]

    # By the names that the same parameters have in the base.
    weights: dict[str, torch.Tensor] = {}
    if lora:
        before = WRAPPER + TOWER
        for name, weight in get_peft_model_state_dict(model).items():
            if name.startswith(before):
                weights[WRAPPER + name.removeprefix(before)] = weight
        expected, found = set(layers), {name.removeprefix(WRAPPER).partition(".lora_")[0] for name in weights}
    else:
        for name, weight in model.named_parameters():
            if in_base(name) and ".original_module." not in name:
                weights[WRAPPER + in_base(name)] = weight
        expected = {name for name, _ in whole.named_parameters() if opened.family.part_of(name) == "vision"}
        found = {name.removeprefix(WRAPPER) for name in weights}
    if differing := sorted(expected ^ found):
        raise AdapterError(
            f"{folder}: {len(differing)} modules of the vision part of {recipe.base.name} are not those that trained "
            f"(first: {differing[0]}); please report it"
        )

    settings = LoraConfig(
        **recipe.lora,
        target_modules="|".join(adapter.patterns(layers, modules)) if lora else DUMMY_TARGET_MODULES,
        modules_to_save=None if lora else adapter.whole_modules(whole, opened.family, "vision"),
        task_type="CAUSAL_LM",
    )
    settings.inference_mode = True
    settings.base_model_name_or_path, settings.revision = recipe.base.location, opened.files.commit
    settings.save_pretrained(str(folder))
    assert (folder / CONFIG).is_file()
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
