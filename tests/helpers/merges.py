"""Runs that were not trained, for tests that merge: a random adapter on a tiny base, with the records of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from helpers import provenances, runs, tiny
from skinvl.model.base import blank_model
from skinvl.model.hub import Snapshot
from skinvl.recipe import run
from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import Recipe, dump
from skinvl.release import merging
from skinvl.release.merging import Merging

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
CPU = torch.device("cpu")


def everywhere(family: str) -> dict[str, Any]:
    """Parts that all train by LoRA; a projector without a linear layer in full."""
    projector = "full" if family == "gemma3" else "lora"
    return {"language": {"train": "lora"}, "projector": {"train": projector}, "vision": {"train": "lora"}}


def made(tmp_path: Path, family: str, base: Path | None = None, name: str = "one", **changes: Any) -> Path:
    """The folder of a run: as `skinvl sft` leaves it, but for its adapter, which is random."""
    one = runs.make(tmp_path, family, **({"base": str(base)} if base else {}), **changes)
    path = tmp_path / "runs" / name
    torch.manual_seed(0)
    peft_model = runs.attached(one)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    peft_model.save_pretrained(path / "adapter")
    tiny.processor(family).save_pretrained(path / "adapter")
    write_text(path / "recipe.yaml", dump(one))
    there = Path(one.base.location)
    fingerprint = Snapshot(there, None).fingerprint()
    provenances.made(base={"model": str(there), "fingerprint": fingerprint, "model_type": family}).write(path)
    return path


def asked(path: Path) -> Recipe:
    """The recipe of a run with its adapter."""
    return run.evaluated(str(path), ())[0]


def prepared(path: Path) -> Merging:
    """What a merge of the run would write."""
    one = asked(path)
    return Merging(Path(one.base.location), path / "adapter", one, CPU)


def sharded(base: Path, out: Path, shards: int = 3, new_names: bool = False, dtype: Any = None) -> Path:
    """A copy of a base in several shards, with an index; with the names that its model has in memory if so wished."""
    shutil.copytree(base, out)
    (out / "model.safetensors").unlink()
    tensors = load_file(base / "model.safetensors")
    if new_names:
        stored = merging.stored(base, blank_model(AutoConfig.from_pretrained(base)))
        tensors = {one.parameter or one.name: tensors[one.name] for one in stored}
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    named = {name: f"model-{place % shards + 1:05}-of-{shards:05}.safetensors" for place, name in enumerate(tensors)}
    for file in set(named.values()):
        save_file({name: tensors[name] for name in tensors if named[name] == file}, out / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(named.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out
