"""How a run was made, as its env.json has it: the machine, the base, the data, and what was done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skinvl.recipe.files import write_json
from skinvl.recipe.strict import StrictModel

FILE = "env.json"  # in the folder of a run


class TrainedBase(StrictModel):
    """The base that a run was trained on, so that it can be told from any other."""

    model: str
    """Model id on the Hugging Face hub, or the local folder."""
    commit: str | None
    """Commit on the hub; null for a local folder."""
    fingerprint: str
    """The commit, or of a local folder a digest of its config and weights."""
    model_type: str
    """Its architecture, as its config names it."""


class PrecomputedFeatures(StrictModel):
    """The vision features that stood in for a frozen tower."""

    folder: str
    """Where they lie."""
    computed: int
    """Images that went through the tower on the first rank before this training; of all others they were there."""
    seconds: float
    """What computing them, and checking those that were there, took."""


class Conversion(StrictModel):
    """How far the features of converted towers are from those of the checkpoint they were made of, on probe inputs."""

    images: float
    """Largest difference of an image's features, which have length one."""
    texts: float
    """Largest difference of a text's features, which have length one."""


class TowersData(StrictModel):
    """What two towers were trained on, and from."""

    texts: dict[str, int]
    """Texts of the training images, by aspect."""
    distinct: int
    """How many of them read differently, case and spaces apart."""
    text_length: int
    """Most tokens that the text tower reads."""
    too_long: int
    """Texts beyond that; data.too_long in the recipe says what happened to them."""
    conversion: Conversion | None
    """Of a base that was converted from open_clip's format; null where it was not."""
    teacher: str | None = None
    """Digest of the weights of objective.teacher; null where there is none."""
    text_base: str | None = None
    """Digest of the weights of text_base; null where the base has a text tower."""


class Provenance(StrictModel):
    """How a run was made: with recipe.yaml, what it takes to make it again."""

    python: str
    """Version of Python."""
    libraries: dict[str, str]
    """Versions of the libraries that decide what comes out, by name."""
    platform: str
    """Operating system and processor."""
    cpus: int | None
    """CPU cores of the machine; null is unknown."""
    threads: int
    """Threads of each process."""
    gpus: list[str]
    """The machine's GPUs, by name."""
    command: list[str]
    """The words after `skinvl`."""
    base: TrainedBase
    """What it was trained on."""
    init_adapter: str | None = None
    """Digest of the config and weights of what it went on from; null where it began anew."""
    vision_init: str | None = None
    """Digest of the weights of parts.vision.init; null where the vision tower began as published."""
    attention: str
    """The attention kernel that ran."""
    shared: str
    """How often what texts of one image have in common is computed."""
    features: PrecomputedFeatures | None
    """Features that were computed ahead; null where the tower ran in every step."""
    precision: str
    """bf16 or fp32."""
    quantization: dict[str, Any] | None
    """Arguments of BitsAndBytesConfig; null where the base was not quantised."""
    engine: str
    """One process, ddp or deepspeed."""
    ranks: int
    """Processes that trained together."""
    data: dict[str, str]
    """Digests of the files that were trained and evaluated on, by path."""
    effective_batch: int
    """Conversations of a step, over all ranks and accumulated batches; of two towers images."""
    allow_leak: bool
    """Whether eval rows that share a group or an image with the train set were kept."""
    leaking: int
    """Eval rows that share one, and were kept."""
    moved: int
    """Eval rows that share one, and were moved to the train set or left out."""
    rows: dict[str, int]
    """Conversations that were trained on, and those of each eval set; of two towers images with their texts."""
    dropped: int
    """Conversations or texts that cannot be used; ledger.jsonl has the reason of each."""
    towers: TowersData | None = None
    """What a run of two towers adds; null is of a vision-language model."""

    def write(self, run: Path) -> None:
        """Writes env.json into the folder of a run."""
        write_json(run / FILE, self.model_dump())
