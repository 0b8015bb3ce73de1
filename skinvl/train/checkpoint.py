"""Checkpoints that are whole or not there, and what has to be the same for a run to go on from one."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skinvl.recipe import provenance, run
from skinvl.recipe.files import MANIFEST, appear, clear, file_facts, partial_folder, read_json
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe

# Keys of a recipe that change what is written or shown, or how fast; any other would make it another training.
FREE = (
    *(
        "run",
        "resume",
        "cache_gb",
        "batch.at_once",
        "train.logging_",
        "train.save_",
        "train.eval_",
        "train.dataloader_",
    ),
    *("train.report_to", "train.disable_tqdm", "train.per_device_eval_batch_size", "train.load_best_model_at_end"),
    *("evaluate.batch_size", "evaluate.classify", "evaluate.control_rows", "evaluate.engine", "evaluate.prompted"),
    *("evaluate.prompts", "evaluate.synonyms"),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or that a run cannot go on from."""


def complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints of a folder, by step."""
    return sorted((path.parent for path in checkpoints.glob(f"checkpoint-*[0-9]/{MANIFEST}")), key=step_of)


def last(checkpoints: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next(reversed(complete(checkpoints)), None)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def verify(checkpoint: Path) -> None:
    """Checks that every file is as it was written.

    Raises:
        CheckpointError: one is not; the message names the checkpoint before it.
    """
    before = [path for path in complete(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    back = f"to go on from {before[-1].name}" if before else "to begin anew"
    files = read_json(checkpoint / MANIFEST, f"remove {checkpoint} {back}", CheckpointError, ["files"])["files"]
    shape = {"bytes": int, "xxh3_128": str}
    if not isinstance(files, dict) or any(
        not isinstance(facts, dict) or {key: type(value) for key, value in facts.items()} != shape
        for facts in files.values()
    ):
        raise CheckpointError(
            f"{checkpoint / MANIFEST}: damaged; expected bytes and xxh3_128 of each file; remove {checkpoint} {back}"
        )
    now = {name: file_facts(checkpoint / name) if (checkpoint / name).is_file() else None for name in files}
    for name, facts in now.items():
        if facts != files[name]:
            what = (
                "missing" if facts is None else f"damaged ({facts['bytes']:,} bytes; written {files[name]['bytes']:,})"
            )
            raise CheckpointError(f"{checkpoint / name}: {what}; remove {checkpoint} {back}")


def save(trainer: Trainer) -> None:
    """Writes `checkpoint-<step>` into the output folder, whole, and removes those beyond `save_total_limit`.

    It holds what trains and not the base: the adapter, optimizer, scheduler, random states and the trainer's state.

    Raises:
        CheckpointError: it cannot be written; the message names the last one that was.
    """
    folder = Path(str(trainer.args.output_dir))
    path = folder / f"checkpoint-{trainer.state.global_step}"
    partial = partial_folder(path)
    with written(path, folder):
        if trainer.is_world_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.store_flos()
        trainer.save_model(str(partial), _internal_call=True)
        if trainer.state.best_global_step:
            best = folder / f"checkpoint-{trainer.state.best_global_step}"
            if best == path or best.is_dir():
                trainer.state.best_model_checkpoint = str(best)
        trainer._save_optimizer_and_scheduler(str(partial))
        trainer._save_scaler(str(partial))
        trainer._save_rng_state(str(partial))
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(partial / "trainer_state.json"))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            appear(partial, path)
            _rotate(folder, trainer.args.save_total_limit, trainer.state.best_model_checkpoint)
        trainer.accelerator.wait_for_everyone()


def sweep(checkpoints: Path) -> None:
    """Removes what a killed process had not finished writing or removing."""
    for name in (".*.partial", ".*.gone"):
        for path in checkpoints.glob(name):
            shutil.rmtree(path)


def sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of a checkpoint by what they are for: the adapter or the model, the optimizer, and the rest."""
    counts = dict.fromkeys(
        ("model" if (checkpoint / "model.safetensors").is_file() else "adapter", "optimizer", "rest"), 0
    )
    for name, facts in read_json(checkpoint / MANIFEST, "remove the checkpoint")["files"].items():
        optimizer = name == "optimizer.pt" or name.startswith("global_step")
        weights = "adapter" if name.startswith("adapter_model") else "model" if name.startswith("model") else "rest"
        counts["optimizer" if optimizer else weights] += facts["bytes"]
    return counts


def same(path: Path, recipe: Recipe | PretrainRecipe, data: Mapping[str, str], ranks: int | None) -> None:
    """Checks that the run in the folder was begun with this recipe, these data (their digests) and as many ranks.

    Args:
        ranks: None where their number is not known yet.

    Raises:
        CheckpointError: it was begun otherwise; the message names what differs.
        RunError: its records are not as this version writes them.
    """
    if not (path / provenance.FILE).is_file():  # killed before it began
        return
    begun = run.begun(path)
    then, now = (_flat(each.model_dump()) for each in (begun.recipe, recipe))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key) and not key.startswith(FREE)]
    differences = [f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed]
    before = begun.provenance
    differences += [f"{name} is another file" for name, digest in before.data.items() if data.get(name) != digest]
    if ranks is not None and before.ranks != ranks:
        differences.append(
            f"ranks were {before.ranks} and are {ranks}, which would draw other batches or random numbers"
        )
    if differences:
        raise CheckpointError(
            f"{path}: resume=auto goes on with the same training, but {'; '.join(differences[:3])}. Give it what it "
            f"began with, or start another run with run=NAME, from its weights with init_adapter={path}/checkpoints/…"
        )


class Preemption(TrainerCallback):
    """After SIGTERM a checkpoint is saved at the end of the step under way, the same on every rank; then training ends.

    `happened` tells whether it did.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = self.happened = False
        self._before: Any = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        asked = torch.tensor(float(self.asked), device=args.device)  # the signal may find ranks in different steps
        if self.accelerator.reduce(asked, "sum").item():
            self.happened = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    return {
        key: value for own, node in tree.items() for key, value in _flat(node, f"{name}.{own}" if name else own).items()
    }


@contextmanager
def written(path: Path, checkpoints: Path) -> Iterator[None]:
    """A block that writes the folder `path`: what goes wrong in it becomes one message.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        before = last(checkpoints)
        kept = f"{before} is whole: go on from it with resume=auto" if before else "No checkpoint was written before"
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free space or permit the folder. {kept}"
        ) from error


def _rotate(folder: Path, limit: int | None, best: str | None) -> None:
    whole = complete(folder)
    spared = {whole[-1], Path(best) if best else whole[-1]}
    rest = [path for path in whole if path not in spared]
    for path in rest[: max(len(whole) - max(limit or len(whole), len(spared)), 0)]:
        clear(path)
