"""How an adapter is made, on which machine, of what and with what: what a training writes into env.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping

import torch

from skinvl.data.mixture import Sets
from skinvl.model import attention, hub
from skinvl.model.loaded import OpenBase
from skinvl.model.precompute import Kept
from skinvl.plan.rows import CheckedRows
from skinvl.recipe.provenance import PrecomputedFeatures, Provenance, TrainedBase
from skinvl.recipe.run import adapter_digest
from skinvl.train.trainer import Trainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "skinvl")


def provenance(
    trainer: Trainer, base: OpenBase, sets: Sets, rows: CheckedRows, features: Kept | None, data: Mapping[str, str]
) -> Provenance:
    """How the adapter of this trainer is made, on this machine."""
    args, recipe, sharing = trainer.args, base.recipe, trainer.data_collator.share
    return Provenance(
        python=platform.python_version(),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        platform=platform.platform(),
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        command=sys.argv[1:],
        base=TrainedBase(
            model=recipe.base.location,
            commit=base.files.commit,
            fingerprint=base.files.fingerprint(),
            model_type=base.config.model_type,
        ),
        init_adapter=adapter_digest(hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter").path)
        if recipe.init_adapter
        else None,
        attention=attention.kernel_of(trainer.model.get_base_model()),
        shared="once a batch" if sharing else f"for each{'' if base.family.shares else ', as the family needs'}",
        features=PrecomputedFeatures(
            folder=str(features.cache.folder), computed=features.computed, seconds=features.seconds
        )
        if features
        else None,
        precision="bf16" if recipe.bf16 else "fp32",
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
