"""How an adapter or two towers are made, on which machine, of what and with what: what goes into env.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skinvl.data.mixture import Sets
from skinvl.data.texts import TextedSets
from skinvl.model import attention, hub, open_clip
from skinvl.model.loaded import OpenBase
from skinvl.model.precompute import Kept
from skinvl.model.tower_init import ImageTower
from skinvl.model.towers_loaded import OpenTowers
from skinvl.plan.rows import MOVED, CheckedRows
from skinvl.plan.texts import CheckedTexts
from skinvl.recipe.files import read_json
from skinvl.recipe.provenance import Conversion, PrecomputedFeatures, Provenance, TowersData, TrainedBase
from skinvl.recipe.run import adapter_digest
from skinvl.train.dual_trainer import TowersTrainer
from skinvl.train.trainer import Trainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "skinvl")


def provenance(
    trainer: Trainer,
    base: OpenBase,
    sets: Sets,
    rows: CheckedRows,
    features: Kept | None,
    data: Mapping[str, str],
    tower: ImageTower | None = None,
) -> Provenance:
    """How the adapter of this trainer is made, on this machine."""
    args, recipe, sharing = trainer.args, base.recipe, trainer.data_collator.share
    return Provenance(
        **_machine(),
        base=TrainedBase(
            model=recipe.base.location,
            commit=base.files.commit,
            fingerprint=base.files.fingerprint(),
            model_type=base.config.model_type,
        ),
        init_adapter=adapter_digest(hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter").path)
        if recipe.init_adapter
        else None,
        vision_init=tower.digest if tower else None,
        attention=attention.kernel_of(trainer.model.get_base_model()),
        shared="once a batch" if sharing else "for each",
        features=PrecomputedFeatures(
            folder=str(features.cache.folder), computed=features.computed, seconds=features.seconds
        )
        if features
        else None,
        precision=recipe.precision,
        quantization=recipe.quantization,
        engine="deepspeed" if trainer.is_deepspeed_enabled else "ddp" if args.world_size > 1 else "one process",
        ranks=args.world_size,
        data=dict(data),
        effective_batch=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        allow_leak=recipe.data.allow_leak,
        leaking=sets.leaking,
        moved=len(sets.moved),
        rows={"train": len(rows.train), **{name: len(of_set) for name, of_set in rows.evaluation.items()}},
        dropped=len(rows.dropped),
    )


def towers_provenance(
    trainer: TowersTrainer,
    opened: OpenTowers[Any],
    sets: TextedSets,
    texts: CheckedTexts,
    data: Mapping[str, str],
    teacher: str | None,
) -> Provenance:
    """How the towers of this trainer are made, on this machine."""
    args, recipe = trainer.args, opened.recipe
    moved = sum(row.rule in MOVED for row in sets.ledger)
    conversion = opened.path / open_clip.FILE
    return Provenance(
        **_machine(),
        base=TrainedBase(
            model=recipe.base.location,
            commit=opened.files.commit,
            fingerprint=opened.files.fingerprint(),
            model_type=opened.facts["base"]["model_type"],
        ),
        init_adapter=adapter_digest(opened.trained) if opened.trained else None,
        attention=trainer.attention,
        shared="once a batch",
        features=None,
        precision="bf16" if recipe.bf16 else "fp32",
        quantization=None,
        engine="chunk by chunk"
        if teacher is not None
        else "cached gradients"
        if recipe.batch.at_once * args.world_size < recipe.batch.images
        else "one pass",
        ranks=args.world_size,
        data=dict(data),
        effective_batch=recipe.batch.images,
        allow_leak=recipe.data.allow_leak,
        leaking=sets.leaking,
        moved=moved,
        rows={"train": len(texts.train), **{name: len(images) for name, images in texts.evaluation.items()}},
        dropped=len(texts.ledger) - moved,
        towers=TowersData(
            texts=dict(texts.aspects),
            distinct=texts.distinct,
            text_length=opened.tokenizer.length,
            too_long=texts.too_long,
            conversion=_conversion(conversion) if conversion.is_file() else None,
            teacher=teacher,
            text_base=opened.facts.get("text_base"),
        ),
    )


def _machine() -> dict[str, Any]:
    """The fields of a Provenance that say with what, and where."""
    return {
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv[1:],
    }


def _conversion(file: Path) -> Conversion:
    facts = read_json(file, "remove the folder, so that the base is converted again")
    return Conversion(**facts["differences"])
