"""What `skinvl pretrain` runs: a recipe of two towers, which has the sections of `skinvl sft` and a few of its own."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from skinvl.recipe.recipe import Base, ClassSpec, EarlyStopping, Name, SourceSpec, Text
from skinvl.recipe.strict import StrictModel


class TowerSpec(StrictModel):
    """How one tower, or the heads, trains."""

    train: Literal["frozen", "lora", "full"] = "full"
    """Not at all, through LoRA on its linear layers, or all of its weights."""
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate, per step; null is train.learning_rate."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.train == "frozen" and self.learning_rate is not None:
            raise ValueError("what is frozen has no learning_rate; leave it out, or set train to lora or full")
        return self


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
    """What is minimised: a file in skinvl/model/objectives/ and its settings."""

    name: Literal["clip", "siglip", "make", "make-ontology"]
    """clip: symmetric InfoNCE. siglip: a sigmoid for each pair. make: multi-aspect texts, diagnosis-guided weights,
    local alignment. make-ontology: make with soft targets by the tree of diagnoses."""
    aspects: list[Literal["caption", "ontology", "concepts", "sentences"]] = Field(default=["caption"], min_length=1)
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
    """Whether to compute what the released code computes, its faults included, for comparison."""


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
    allow_leak: bool = False
    """Whether to go on when evaluation data shares groups or images with training data."""


class PretrainEvaluate(StrictModel):
    """What a finished run is asked, and how that is scored."""

    classify: list[ClassSpec] = []
    """Sets to classify by prompts, without having trained on them."""
    prompts: Text = "neutral"
    """Templates of a prompt: neutral (ours), or a file of one a line, or of JSON, with {c} for the class."""
    batch_size: int = Field(default=64, gt=0)
    """Images, or texts, encoded at a time."""
    during: int = Field(default=1024, gt=1)
    """Images of each eval set, a fixed sample, that an evaluation within the training compares."""


class PretrainRecipe(StrictModel):
    """One training of two towers, complete: everything that decides its result is in here."""

    name: Name
    """Name of the recipe: the stem of its file."""
    base: Base
    """The two towers it starts from: a name in recipes/bases/ of kind dual, or any model id or local folder."""
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
