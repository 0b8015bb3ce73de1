"""How an adapter was made, as a run's env.json has it: the machine, the base, the data, and what was done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skinvl.recipe.files import write_json
from skinvl.recipe.strict import StrictModel

FILE = "env.json"  # in the folder of a run


class TrainedBase(StrictModel):
    """The base that an adapter was trained on, so that it can be told from any other."""

    model: str
    """Model id on the Hugging Face hub, or the local folder."""
    commit: str | None
    """Commit on the hub; null for a local folder."""
    fingerprint: str
    """The commit, or of a local folder a digest of its config and weights."""
    model_type: str
    """Its architecture, as its config names it; a family of skinvl."""


class PrecomputedFeatures(StrictModel):
    """The vision features that stood in for a frozen tower."""

    folder: str
    """Where they lie."""
    computed: int
    """Images that went through the tower on the first rank before this training; of all others they were there."""
    seconds: float
    """What computing them, and checking those that were there, took."""


class Provenance(StrictModel):
    """How an adapter was made: with recipe.yaml, what it takes to make it again."""

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
    """What the adapter was trained on."""
    init_adapter: str | None = None
    """Digest of the config and weights of the adapter that it went on from; null where it began anew."""
    attention: str
    """The attention kernel that ran."""
    shared: str
    """How often what conversations about one image have in common is computed."""
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
    """Conversations of a step, over all ranks and accumulated batches."""
    allow_leak: bool
    """Whether eval conversations that share a group or an image with the train set were kept."""
    leaking: int
    """Eval conversations that share one, and were kept."""
    moved: int
    """Eval conversations that share one, and were moved to the train set or left out."""
    rows: dict[str, int]
    """Conversations that were trained on, and those of each eval set."""
    dropped: int
    """Conversations that cannot be used; ledger.jsonl has the reason of each."""

    def write(self, run: Path) -> None:
        """Writes env.json into the folder of a run."""
        write_json(run / FILE, self.model_dump())
