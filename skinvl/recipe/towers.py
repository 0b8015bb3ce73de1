"""What `skinvl pretrain` runs: a recipe of two towers, which has the sections of `skinvl sft` and a few of its own."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from skinvl.recipe import loading, sections, strict
from skinvl.recipe.base import load_base
from skinvl.recipe.recipe import Base, ClassSpec, EarlyStopping, Fact, Name, PartSpec, Probe, SourceSpec, Text
from skinvl.recipe.strict import Fault, StrictModel

AspectName = Literal["caption", "ontology", "concepts", "sentences"]


class TowerSpec(PartSpec):
    """How one tower, or the heads, trains."""

    train: Literal["frozen", "lora", "full"] = "full"
    """Not at all, through LoRA on its linear layers, or all of its weights."""


class Towers(StrictModel):
    """What trains: the image tower, the text tower, and the heads with the scale of the logits."""

    image: TowerSpec = TowerSpec()
    """The image tower up to its pooled features."""
    text: TowerSpec = TowerSpec()
    """The text tower up to its pooled features."""
    heads: TowerSpec = TowerSpec()
    """The projections into the shared space, and the logit scale (of siglip its bias too); never lora."""

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.heads.train == "lora":
            raise ValueError("the heads are two small layers; set towers.heads.train to full or frozen")
        if {self.image.train, self.text.train, self.heads.train} == {"frozen"}:
            raise ValueError("nothing trains; set towers.image.train to lora or full")
        return self


class Objective(StrictModel):
    """What is minimised: a file in skinvl/model/objectives/ and its settings, or skinvl/model/latent.py."""

    name: Literal["clip", "siglip", "make", "make-ontology", "latent"]
    """clip: symmetric InfoNCE. siglip: a sigmoid for each pair. make: multi-aspect texts, diagnosis-guided weights,
    local alignment. make-ontology: make with soft targets by the tree of diagnoses. latent: no texts; the image tower
    sees a part of the patches, and is to know what a teacher makes of all."""
    aspects: list[AspectName] = Field(default=["caption"], min_length=1)
    """Which texts of an image are trained on."""
    sentences: int = Field(default=8, gt=0)
    """Most sentences of its captions that an image has as texts of their own."""
    weights: Literal["diagnosis", "none"] = "diagnosis"
    """Of make: sentences weigh by their likeness to the image's diagnosis, or all alike."""
    local: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """Of make: weight of the alignment of patches with texts; 0 leaves it out."""
    sigma: float = Field(default=0.0, ge=-1, le=1)
    """Of make: cosine below which a patch has no part in a text's local feature."""
    soft: float = Field(default=0.5, ge=0, le=1)
    """Of make-ontology: share of the target that goes by the ontology at the start; it falls to 0 by a cosine."""
    released: bool = False
    """Whether to compute what the released code computes, faults included, for comparison; all negatives are kept."""

    teacher: Text | None = None
    """Of latent: a run of pretrain, or a base of two towers, whose image tower is the teacher."""
    masked_share: float = Field(default=0.5, gt=0, lt=1)
    """Of latent: share of the patches that the tower does not see."""
    regressor_layers: int = Field(default=4, gt=0)
    """Of latent: layers of cross-attention that predict what is masked."""
    masked_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of latent: weight of the masked patches' mean."""
    visible_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of latent: weight of the visible patches' mean."""
    cls_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of latent: weight of the image as a whole."""

    @field_validator("aspects")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("an aspect is named twice; keep each once")
        return value


OF_LATENT = (
    *("teacher", "masked_share", "regressor_layers"),
    *("masked_weight", "visible_weight", "cls_weight"),
)


class Negatives(StrictModel):
    """What a pair that is not the image's own counts as: a positive, left out, or a negative (keep)."""

    same_text: Literal["positive", "ignore", "keep"] = "positive"
    """Another image's text that reads the same, case and spaces apart."""
    same_image: Literal["positive", "ignore", "keep"] = "positive"
    """A text of the same photograph, found by its bytes, archive id or perceptual hash."""
    same_group: Literal["ignore", "keep"] = "ignore"
    """A text of the same patient, lesion or figure."""
    same_diagnosis: Literal["positive", "ignore", "keep"] = "keep"
    """A text of an image with the same diagnosis."""


class Batch(StrictModel):
    """How many images the loss compares, and how many of them are in memory at a time."""

    images: int = Field(gt=1)
    """Images of a step, over all ranks: each is compared with the texts of all others."""
    at_once: int = Field(default=64, gt=0)
    """Images, and as many texts, whose activations a rank keeps at a time: memory and speed, never the result."""


class PretrainData(StrictModel):
    """What is trained and evaluated on, and what becomes a text."""

    train: list[SourceSpec] = Field(min_length=1)
    """Sources to train on."""
    eval: list[SourceSpec] = []
    """Sources to retrieve in, each on its own."""
    texts: dict[str, Text] = {}
    """Kind of question → template with {answer} that makes a text of its short answer."""
    too_long: Literal["cut", "split", "ledger"] = "cut"
    """What happens to a text beyond the text tower's length: cut and counted, split by sentences, or left out."""
    augmentation: Literal["mild", "released", "none"] = "mild"
    """mild: crops and brightness, nothing that contradicts a caption. released: DermLIP's, hue and greys included."""
    image_tokens: int | None = Field(default=None, gt=0)
    """Of a generative base: budget for one image, in positions of its language model, as of skinvl sft; null is 256."""
    profiles: Literal["srgb", "ignore"] = "srgb"
    """How images tagged with a colour profile are read: converted to sRGB, or as their values stand."""
    permuted: bool = False
    """Whether each training image has the texts of another of its source: the control, of which no number may be better
    than chance."""
    without: dict[Fact, Text] = {}
    """Values of facts whose rows are not trained on, such as {institution: X}, for a run that is tested on them."""
    allow_leak: bool = False
    """Whether to go on when evaluation data shares groups or images with training data."""

    @field_validator("texts")
    @classmethod
    def _templates(cls, value: dict[str, str]) -> dict[str, str]:
        for kind, template in value.items():
            if _fields(template) != ["answer"]:
                raise ValueError(f"{kind}: found {template!r}; expected a template with {{answer}} once, and no other")
        return value


class TowersProbe(Probe):
    """How a linear probe of an image tower is fitted, and to what of it."""

    features: Literal["tower", "embedding"] = "tower"
    """tower: what the image tower pools, before the projection; embedding: what texts are compared with."""


class PretrainEvaluate(StrictModel):
    """What a finished run is asked, and how that is scored."""

    classify: list[ClassSpec] = []
    """Sets to classify by prompts, without having trained on them."""
    prompts: Text = "neutral"
    """Templates of a prompt: neutral (ours), or a file of one a line, or of JSON, with {c} for the class."""
    synonyms: bool = True
    """Whether a class is also called by its synonyms and narrower names, else by its own name alone."""
    batch_size: int = Field(default=64, gt=0)
    """Images, or texts, encoded at a time."""
    probe: TowersProbe = TowersProbe()
    """How skinvl probe fits a linear classifier to images of the sets of `classify`."""
    during: int = Field(default=1024, gt=1)
    """Images of each eval set, a fixed sample, that an evaluation within the training compares."""


class PretrainRecipe(StrictModel):
    """One training of two towers, complete: everything that decides its result is in here."""

    name: Name
    """Name of the recipe: the stem of its file."""
    base: Base
    """The two towers it starts from: a name in recipes/bases/ of kind dual, or any model id or local folder; or a
    generative base, of kind vlm, whose own vision tower trains."""
    text_base: Text | None = None
    """Of a generative base: the two towers whose text tower and head its images are compared with, a name or id as of
    `base`; null is clip-b16, of a tiny base tiny-clip."""
    data: PretrainData
    """Sources, and what becomes a text."""
    towers: Towers = Towers()
    """What trains."""
    objective: Objective
    """What is minimised."""
    negatives: Negatives = Negatives()
    """What a pair that is not the image's own counts as."""
    batch: Batch
    """How many images the loss compares, and how many are in memory at a time."""
    lora: dict[str, Any] = {}
    """Fields of peft.LoraConfig."""
    train: dict[str, Any] = {}
    """Fields of transformers.TrainingArguments."""
    evaluate: PretrainEvaluate = PretrainEvaluate()
    """What a finished run is asked, and how that is scored."""
    early_stopping: EarlyStopping | None = None
    """When training ends early; null trains to the last step."""
    attention: Literal["auto", "flash_attention_2", "flash_attention_3", "sdpa", "eager"] = "auto"
    """Attention kernel; auto is the fastest that is installed and that the towers support."""
    init_adapter: Text | None = None
    """What a run has trained, to evaluate or go on from: a folder; null starts from the base as it is."""
    run: Name | None = None
    """Folder under runs/; null is <recipe>--<base>."""
    resume: Literal["auto"] | None = None
    """auto goes on from the last checkpoint of the run's folder, if there is one."""

    @property
    def bf16(self) -> bool:
        """Whether the towers run under autocast in bf16; their weights that train are fp32 in any case."""
        return bool(self.train.get("bf16", True))

    @property
    def reads_texts(self) -> bool:
        """Whether images are compared with texts."""
        return self.objective.name != "latent"

    @property
    def generative(self) -> bool:
        """Whether the image tower is that of a vision-language model, for which it trains."""
        return self.base.kind == "vlm"

    @property
    def makes_adapter(self) -> bool:
        """Whether LoRA trains, so that the model lies under PEFT's wrapper."""
        return "lora" in (self.towers.image.train, self.towers.text.train)

    @property
    def leaves_adapter(self) -> bool:
        """Whether the run leaves an adapter; else it leaves a whole model."""
        return self.makes_adapter or self.generative


def load(name_or_path: str, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """The recipe of a shipped name or a YAML file, with `key=value` overrides laid over it.

    Raises:
        RecipeError: a recipe of a vision-language model, or every fault with its line, key and what was expected.
        FileNotFoundError: no such recipe.
    """
    return loading.load(PretrainRecipe, "pretrain", name_or_path, overrides, _faults)


def dump(recipe: PretrainRecipe) -> str:
    """The resolved YAML, from which `load` makes an equal recipe."""
    return strict.write(recipe.model_dump())


def _faults(data: dict[str, Any]) -> list[Fault]:
    """What pydantic does not see: Hugging Face's own fields, and settings that hold only with others."""
    faults = []
    for section in ("lora", "train"):
        if isinstance(data.get(section), dict):
            faults += sections.check(section, data[section], "pretrain")
    if isinstance(data.get("objective"), dict) and data["objective"].get("name") == "latent":
        faults += _of_latent(data)
    towers, objective = (data.get(section) or {} for section in ("towers", "objective"))
    if isinstance(towers, dict) and data.get("lora"):
        parts = [spec.get("train") for spec in towers.values() if isinstance(spec, dict)]
        if "lora" not in parts:
            faults.append(Fault(("lora",), "no tower trains with it; set towers.image.train=lora, or leave lora out"))
    if isinstance(objective, dict):
        faults += _of_objective(objective, data)
    faults += _of_base(data)
    return faults + loading.of_training(data, PretrainEvaluate().during)


def _of_objective(objective: dict[str, Any], data: dict[str, Any]) -> list[Fault]:
    """Faults of an objective: what its name, its aspects or another of its settings leaves without an effect.

    A resolved recipe names every setting, so that one at its default is none.
    """
    name, aspects = objective.get("name"), objective.get("aspects") or ["caption"]
    if not isinstance(aspects, list):
        return []
    make, local = name in ("make", "make-ontology"), objective.get("local", 0.7)
    faults = []

    def refuse(key: str, why: str) -> None:
        if key in objective and objective[key] != Objective.model_fields[key].get_default(call_default_factory=True):
            faults.append(Fault(("objective", key), why))

    # Of an objective that has no such setting, or lacks the texts for it.
    if name == "latent":
        for key in ("aspects", "sentences", "weights", "local", "sigma", "soft", "released"):
            refuse(key, "latent reads no texts; leave it out")
        return faults
    for key in OF_LATENT:
        refuse(key, f"{name} has none; set objective.name to latent, or leave it out")
    if name in ("clip", "siglip"):
        for key in ("weights", "local", "sigma"):
            refuse(key, f"{name} has none; set objective.name to make or make-ontology, or leave it out")
    if name in ("clip", "siglip", "make"):
        refuse("soft", f"{name} has no soft targets; set objective.name to make-ontology, or leave it out")
    if "sentences" not in aspects:
        refuse("sentences", "no sentences are trained on; add them to objective.aspects, or leave it out")
    if make and local == 0:
        refuse("sigma", "objective.local is 0, so that no patch is compared with a text; leave it out")
    if make and isinstance(local, int | float) and local > 0 and aspects == ["caption"]:
        faults.append(
            Fault(("objective",), "captions are not aligned with patches; set local to 0, or add to objective.aspects")
        )

    # The released code compares every pair.
    negatives = data.setdefault("negatives", {})
    if objective.get("released") is True and isinstance(negatives, dict):
        for key in Negatives.model_fields:
            if negatives.setdefault(key, "keep") != "keep":
                faults.append(Fault(("negatives", key), "objective.released keeps all negatives; set it to keep"))
        if make and (set(aspects) != set(get_args(AspectName)) or objective.get("sentences", 8) != 8):
            faults.append(
                Fault(
                    ("objective", "released"),
                    "the released code has a caption, an ontology text, concepts and 8 sentences an image; name all "
                    "four in objective.aspects, and leave sentences at 8",
                )
            )
    return faults


def _of_latent(data: dict[str, Any]) -> list[Fault]:
    """Faults of a recipe with the objective latent, whose towers are settled where it does not say them."""
    faults = []
    if not data["objective"].get("teacher"):
        faults.append(Fault(("objective", "teacher"), "latent needs one: a run of pretrain, or a base of two towers"))
    towers = data.setdefault("towers", {})
    if isinstance(towers, dict):
        for part, mode in (("image", "full"), ("text", "frozen"), ("heads", "frozen")):
            spec = towers.setdefault(part, {})
            if isinstance(spec, dict) and spec.setdefault("train", mode) != mode:
                faults.append(
                    Fault(("towers", part, "train"), f"latent trains the image tower alone; set it to {mode}")
                )
    of_texts = {"data": ("texts", "too_long", "permuted"), "negatives": tuple(Negatives.model_fields)}
    fields = {"data": PretrainData.model_fields, "negatives": Negatives.model_fields}
    for section, keys in of_texts.items():
        stated = data.get(section)
        if not isinstance(stated, dict):
            continue
        for key in keys:
            default = fields[section][key].get_default(call_default_factory=True)
            if stated.get(key, default) != default:
                faults.append(Fault((section, key), "latent reads no texts; leave it out"))
    return faults


def _of_base(data: dict[str, Any]) -> list[Fault]:
    """Faults of what holds for a generative base alone, or not for one; what it needs is settled where it is left out.

    A run on one leaves nothing but what has trained of its vision tower.
    """
    base, images = (section if isinstance(section, dict) else {} for section in (data.get("base"), data.get("data")))
    faults = []
    if base.get("kind") != "vlm":
        for key, section in ((("text_base",), data), (("data", "image_tokens"), images)):
            if section.get(key[-1]) is not None:
                faults.append(Fault(key, "of a generative base alone, and this is one of two towers; leave it out"))
        return faults
    if images.get("image_tokens") is None:
        images["image_tokens"] = 256
    if data.get("text_base") is None:
        data["text_base"] = "tiny-clip" if base.get("random") else "clip-b16"
    try:
        if load_base(str(data["text_base"]), "dual").kind != "dual":
            faults.append(Fault(("text_base",), "a vision-language model; give two towers, such as clip-b16"))
    except FileNotFoundError as error:
        faults.append(Fault(("text_base",), str(error)))
    towers, objective = (
        section if isinstance(section, dict) else {} for section in (data.get("towers"), data.get("objective"))
    )
    for part, why in (("image", "all that a run on a generative base leaves"), ("heads", "new on a generative base")):
        spec = towers.get(part)
        if isinstance(spec, dict) and spec.get("train") == "frozen":
            faults.append(Fault(("towers", part, "train"), f"{why}, so that it cannot be frozen; set it to full"))
    if objective.get("name") == "latent":
        faults.append(Fault(("objective", "name"), "latent trains a tower of squares; give a base of two towers"))
    if objective.get("released") is True:
        faults.append(
            Fault(("objective", "released"), "that code reads images of one size; give a base of two towers, or false")
        )
    if data.get("init_adapter") is not None:
        faults.append(
            Fault(("init_adapter",), "a run on a generative base starts from it as it is published; leave it out")
        )
    return faults


def _fields(template: str) -> list[str]:
    """The names in braces of a template; of text with a stray brace, that brace."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        return ["{"]
