"""What to run: the typed tree that mirrors a recipe's YAML, loaded strictly, overridden, and written out resolved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from skinvl.recipe import loading, sections, strict
from skinvl.recipe.base import Base as Base
from skinvl.recipe.base import Name as Name
from skinvl.recipe.base import Text as Text
from skinvl.recipe.base import bases as bases
from skinvl.recipe.base import load_base as load_base
from skinvl.recipe.files import read_json
from skinvl.recipe.loading import recipes as recipes
from skinvl.recipe.shipped import find
from skinvl.recipe.shipped import shipped as shipped
from skinvl.recipe.strict import Fault, StrictModel
from skinvl.recipe.strict import RecipeError as RecipeError

# The facts of data.example that are single values.
Fact = Literal[
    "modality",
    "diagnosis",
    "malignancy",
    "skin_type",
    "age",
    "sex",
    "site",
    "kind",
    "institution",
    "confirmed",
    "tone",
]


ImageChange = Literal["blank", "rotate", "crop", "recompress", "darken"]  # see data.changes
QUESTION = "{q}"  # where a question stands in a template of `evaluate.paraphrases`


class SourceSpec(StrictModel):
    """One split of one prepared source."""

    source: Text
    """Name of a folder in data/, or a path."""
    split: Text
    """Split of the source: a Parquet file of that name."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often an epoch shows the source, in copies; 0.5 is half of its groups, drawn anew each epoch."""


class Data(StrictModel):
    """What is trained and evaluated on, and how long a conversation may be."""

    train: list[SourceSpec] = Field(min_length=1)
    """Sources to train on."""
    eval: list[SourceSpec] = []
    """Sources to evaluate on, each on its own."""
    image_tokens: int = Field(gt=0)
    """Budget for one image, in positions of the language model; each family turns it into pixels or tiles.

    One whose tower reads images of one size says what an image takes."""
    max_tokens: int = Field(gt=0)
    """Longest conversation, in tokens with its images."""
    too_long: Literal["ledger", "drop_turns"] = "ledger"
    """What happens to a longer one: left out and recorded, or cut by whole question-answer turns from its end."""
    balance: Fact | None = None
    """Field of an Example's facts whose values are to be equally frequent in training; null leaves them as they are."""
    references: Literal["first", "drawn"] = "first"
    """Which answer is trained where an Example has several right ones: the first, or one drawn by weight each epoch."""
    thoughts: Literal["dropped", "shown", "trained"] = "dropped"
    """What becomes of a thought before an answer: left out, read but not trained, or trained with the answer."""
    profiles: Literal["srgb", "ignore"] = "srgb"
    """How images tagged with a colour profile are read: converted to sRGB, or as their values stand."""
    without: dict[Fact, Text] = {}
    """Values of facts whose rows are not trained on, such as {institution: X}, for a run that is tested on them."""
    allow_leak: bool = False
    """Whether to go on when evaluation data shares groups or images with training data."""

    @field_validator("balance", mode="before")
    @classmethod
    def _a_fact(cls, value: str | None) -> str | None:
        if value is not None and value not in get_args(Fact):
            raise ValueError(strict.unknown(str(value), get_args(Fact)))
        return value

    @property
    def budget(self) -> dict[str, Any]:
        """The three limits on a conversation, by name."""
        return {"image_tokens": self.image_tokens, "max_tokens": self.max_tokens, "too_long": self.too_long}


class PartSpec(StrictModel):
    """How one part of the model trains."""

    train: Literal["frozen", "lora", "full"] = "frozen"
    """Not at all, through LoRA on its linear layers, or all of its weights."""
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate of this part, per step; null is train.learning_rate."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.train == "frozen" and self.learning_rate is not None:
            raise ValueError("a frozen part has no learning_rate; leave it out, or set train to lora or full")
        return self


class VisionSpec(PartSpec):
    """How the vision tower trains, and what it starts from."""

    init: Text | None = None
    """A run of skinvl pretrain whose image tower it starts as, of the same architecture; null is as published."""


class Parts(StrictModel):
    """What trains: the language model, the projector between image and language, the vision tower."""

    language: PartSpec = PartSpec()
    """The language model without its embeddings and lm_head."""
    projector: PartSpec = PartSpec()
    """The layers that turn image features into positions of the language model."""
    vision: VisionSpec = VisionSpec()
    """The vision tower."""

    @model_validator(mode="after")
    def _an_adapter(self) -> Self:
        if "lora" not in (self.language.train, self.projector.train, self.vision.train):
            raise ValueError("no part trains with lora, and a run makes an adapter; set parts.language.train=lora")
        return self


class EarlyStopping(StrictModel):
    """When training ends before its last step: the fields of transformers.EarlyStoppingCallback."""

    early_stopping_patience: int = Field(gt=0)
    """Evaluations in a row without a better train.metric_for_best_model after which training ends."""
    early_stopping_threshold: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """By how much the metric must be better to count, in its own unit."""


class Generation(StrictModel):
    """How answers are generated: fields of transformers.GenerationConfig, greedy unless `do_sample`."""

    max_new_tokens: int = Field(default=256, gt=0)
    """Longest answer, in tokens; one that reaches it has finish_reason length."""
    do_sample: bool = False
    """Whether each token is drawn; else it is the most likely one."""
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Divides the logits before drawing; null is 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of the probability that is drawn from; null is all of it."""
    seed: int = Field(default=0, ge=0)
    """Seed of drawing: each row has its own from this and its id, whatever stands beside it in a batch."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not self.do_sample and (self.temperature is not None or self.top_p is not None):
            raise ValueError(
                "temperature and top_p change nothing in greedy decoding; set do_sample=true, or leave out"
            )
        return self


class ClassSpec(StrictModel):
    """One classification: rows, their true classes, and what is asked."""

    source: Text
    """Name of a folder in data/, or a path; or a CSV of classification sets as released (MM-Skin's, zero-shot ones)."""
    split: Text = "test"
    """Split of the source."""
    images: Text | None = None
    """Of a CSV: the folder that its image paths start from."""
    benchmark: Text | None = None
    """Name of a class list in skinvl/data/labels.py; null is the source's own name, if that is one."""
    label: Text = "diagnosis"
    """Field of an Example's facts that holds the true class; `answer` is the last answer itself, `concept:NAME` whether
    an expert sees that concept, and `concepts` one set for each concept of skinvl/data/labels.py."""
    classes: list[Text] | None = Field(default=None, min_length=2)
    """The classes, where no benchmark names them; null without a benchmark is every value that the rows have."""
    class_file: Text | None = None
    """The classes as a file: one on each line, or a list in JSON, FILE.json#KEY; of a CSV of label numbers in their
    order."""
    blind: bool = False
    """Whether no true class is known: the rows are classified for `skinvl score --submission`, and not scored."""
    where: dict[str, str] = {}
    """Only rows whose facts have these values."""
    question: Text | None = None
    """What is asked of each image; null is the row's own question where label is `answer`, else a fixed one."""
    validation: Text | None = None
    """Split of the source on which temperature and threshold are fitted; null fits none."""


class Probe(StrictModel):
    """How a linear probe of frozen features is fitted."""

    shares: list[Annotated[int, Field(ge=1, le=100)]] = Field(default=[10, 30, 50, 100], min_length=1)
    """Per cent of the labels that it learns from, a probe each; a larger share holds the smaller ones."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Of which groups belong to a share, and to a fold: a probe each, whose spread the scores show."""


class Evaluate(StrictModel):
    """What a finished run is asked, and how that is scored."""

    metrics: list[Text] = [
        *("bleu", "closed_accuracy", "exact_match", "json_fields", "multiple_choice", "option_f1", "option_set"),
        *("rouge", "tokens"),
    ]
    """Modules of skinvl/score/metrics; bertscore and meteor need data of their own, delta_bleu references' weights."""
    generation: Generation = Generation()
    """How answers are generated."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates; vllm where it is installed."""
    batch_size: int = Field(default=16, gt=0)
    """Conversations generated at a time."""
    control_rows: int = Field(default=512, ge=0)
    """Most questions asked again with the images permuted among them, as a control; 0 asks none."""
    image_order: Literal["given", "reversed"] = "given"
    """Whether questions about several images are also asked with those of each turn in reverse order."""
    robustness: list[ImageChange | Literal["paraphrase"]] = []
    """Ways in which all questions are asked once more: with their images changed, or in other words; none if empty."""
    paraphrases: dict[Name, Text] = {}
    """Templates of robustness: paraphrase, each by a name, with {q} where the question stands."""
    classify: list[ClassSpec] = []
    """Sets to classify by likelihood."""
    text_sets: dict[Name, Text] = {}
    """Files of multiple choice without images, by name, in MedQA's or MMLU's form; asked of adapter and base."""
    prompted: bool = True
    """Whether classification also asks with the classes listed and matches the free answer."""
    probe: Probe = Probe()
    """How skinvl probe fits a linear classifier to the features of the frozen vision tower."""
    during: int = Field(default=0, ge=0)
    """Questions of the eval sets, a fixed sample, answered and scored at every evaluation of a training; 0 is none."""

    @model_validator(mode="after")
    def _paraphrased(self) -> Self:
        if len(set(self.robustness)) < len(self.robustness):
            raise ValueError("robustness names a way twice, and each has answers in a folder of its name")
        if ("paraphrase" in self.robustness) != bool(self.paraphrases):
            raise ValueError(
                "robustness: paraphrase and paraphrases go together; give both, such as paraphrases: "
                '{polite: "Please tell me: {q}"}, or neither'
            )
        for name, template in self.paraphrases.items():
            if template.count(QUESTION) != 1:
                raise ValueError(f"paraphrases.{name}: {template!r}; expected {QUESTION} in it once, for the question")
        return self


class Recipe(StrictModel):
    """One training, complete: everything that decides its result is in here."""

    name: Name
    """Name of the recipe: the stem of its file."""
    base: Base
    """The model it starts from: a name in recipes/bases/, or any model id or local folder."""
    data: Data
    """Sources and lengths."""
    parts: Parts
    """What trains."""
    lora: dict[str, Any] = {}
    """Fields of peft.LoraConfig."""
    quantization: dict[str, Any] | None = None
    """Fields of transformers.BitsAndBytesConfig for a 4-bit base; null is bf16."""
    train: dict[str, Any] = {}
    """Fields of trl.SFTConfig."""
    evaluate: Evaluate = Evaluate()
    """What a finished run is asked, and how that is scored."""
    early_stopping: EarlyStopping | None = None
    """When training ends early; null trains to the last step."""
    attention: Literal["auto", "flash_attention_2", "flash_attention_3", "sdpa", "eager"] = "auto"
    """Attention kernel; auto is the fastest that is installed and that the family supports."""
    share_images: bool = True
    """Whether a batch computes once what its conversations about one image have in common; false shuffles all alike."""
    cache_gb: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Most GB of disk for the images' features under a frozen vision tower, computed once; 0 has the tower run in every
    step, null is half of the free disk where the family's features are small and the run sees its images twice."""
    init_adapter: Text | None = None
    """Adapter to continue from, a folder or a model id; null starts a new one."""
    run: Name | None = None
    """Folder under runs/; null is <recipe>--<base>."""
    resume: Literal["auto"] | None = None
    """auto goes on from the last checkpoint of the run's folder, if there is one."""

    @property
    def precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """What the base is in; in 16 bits it runs under autocast. What trains is fp32 in any case."""
        if self.train.get("fp16"):
            return "fp16"
        return "bf16" if self.train.get("bf16", True) else "fp32"


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML file, with `key=value` overrides laid over it.

    Raises:
        RecipeError: a recipe of two towers, or every fault with its line, key and what was expected.
        FileNotFoundError: no such recipe.
    """
    return loading.load(Recipe, "sft", name_or_path, overrides, _faults)


def dump(recipe: Recipe) -> str:
    """The resolved YAML, from which `load` makes an equal recipe."""
    return strict.write(recipe.model_dump())


def deepspeed_config(name: str) -> Path:
    """The file of a `train.deepspeed` value: a name in ds_configs/ or a path.

    Raises:
        FileNotFoundError: neither.
    """
    return find(name, "ds_configs", ".json")


def shards_weights(recipe: Recipe) -> bool:
    """Whether DeepSpeed shards the weights of the base in a recipe's training (ZeRO-3)."""
    name = recipe.train.get("deepspeed")
    if name is None:
        return False
    section = read_json(deepspeed_config(name), "mend it or name another").get("zero_optimization", {})
    return bool(section.get("stage") == 3)


def _faults(data: dict[str, Any]) -> list[Fault]:
    """What pydantic does not see: Hugging Face's own fields, and settings that hold only with others or with files."""
    faults = []
    for section in ("lora", "quantization", "train"):
        if isinstance(data.get(section), dict):
            faults += sections.check(section, data[section])
    train, parts = (data.get(section) for section in ("train", "parts"))
    if isinstance(train, dict) and isinstance(train.get("deepspeed"), str):
        try:
            deepspeed_config(train["deepspeed"])
        except FileNotFoundError as error:
            faults.append(Fault(("train", "deepspeed"), str(error)))
    if isinstance(train, dict) and train.get("fp16") is True:
        if train.get("bf16"):
            faults.append(Fault(("train", "fp16"), "train.bf16 is true as well; set one of them to false"))
        if "deepspeed" in train:
            faults.append(Fault(("train", "fp16"), "untested under DeepSpeed; leave train.deepspeed out"))
    vision = parts.get("vision") if isinstance(parts, dict) else None
    if data.get("cache_gb") and isinstance(vision, dict) and vision.get("train", "frozen") != "frozen":
        faults.append(
            Fault(("cache_gb",), "parts.vision trains, so that its features change with every step; leave cache_gb out")
        )
    if isinstance(vision, dict) and vision.get("init") is not None:
        faults += _of_vision_init(data, vision)
    return faults + loading.of_training(data, during=0)


def _of_vision_init(data: dict[str, Any], vision: dict[str, Any]) -> list[Fault]:
    """Faults of a vision tower that starts as another: one that would be lost, or that nothing was fitted to."""
    faults = []
    if vision.get("train", "frozen") != "full":
        why = "an adapter holds a tower whole where it trains in full, and would lose this one; set it to full"
        faults.append(Fault(("parts", "vision", "train"), why))
    projector = data["parts"].get("projector")
    if not isinstance(projector, dict) or projector.get("train", "frozen") == "frozen":
        why = "fitted to the tower that parts.vision.init replaces; set it to full"
        faults.append(Fault(("parts", "projector", "train"), why))
    if data.get("init_adapter") is not None:
        faults.append(Fault(("parts", "vision", "init"), "init_adapter has a tower of its own; leave one of them out"))
    return faults
