"""How an adapter was made, by hand: env.json for runs that were not trained."""

from __future__ import annotations

from typing import Any

from skinvl.recipe.provenance import Provenance

BASE = {"model": "Qwen/Qwen2-VL-2B-Instruct", "commit": None, "fingerprint": "f" * 32, "model_type": "qwen2_vl"}


def made(*, base: dict[str, Any] | None = None, **changes: Any) -> Provenance:
    """The provenance of a small run; what is given takes the place of its fields, and of those of its base."""
    fields = {
        "python": "3.11.7",
        "libraries": {"torch": "2.15.0", "skinvl": "0.1.0"},
        "platform": "Linux",
        "cpus": 2,
        "threads": 1,
        "gpus": ["NVIDIA H100"],
        "command": ["sft", "small.yaml"],
        "base": {**BASE, **(base or {})},
        "attention": "sdpa",
        "shared": "once a batch",
        "features": None,
        "precision": "bf16",
        "quantization": None,
        "engine": "one process",
        "ranks": 1,
        "data": {},
        "effective_batch": 32,
        "allow_leak": False,
        "leaking": 0,
        "moved": 2,
        "rows": {"train": 2345},
        "dropped": 0,
    }
    return Provenance.model_validate({**fields, **changes})
