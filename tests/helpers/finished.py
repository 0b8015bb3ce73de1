"""A run that has ended, by hand: every file that a training and an evaluation leave, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from helpers import pictures, provenances
from skinvl.data.example import Example, text, write
from skinvl.recipe.files import digest
from skinvl.recipe.run import adapter_digest
from skinvl.score.stats import LEVEL

CARD = {
    "source": "ham10000",
    "title": "HAM|10000 <b>",
    "address": "https://doi.org/10.7910/DVN/DBW86T",
    "licence": "CC0-1.0",
    "terms": "Any use.",
    "citation": "Tschandl et al., The *HAM10000* dataset, 2018",
    "split": "group",
    "examples": {"test": 1, "train": 2},
    "ledger": {"refusal": 3},
}


def source(folder: Path, licence: str = "CC0-1.0", **card: Any) -> Path:
    """A prepared source with two conversations to train on, which carry the licence, and one to test on."""
    folder.mkdir(parents=True)
    for split, count in (("train", 2), ("test", 1)):
        turns = (text("user", "What is it?"), text("assistant", "A nevus."))
        write(folder, split, [Example(str(i), folder.name, (), turns, f"{i}", split, licence) for i in range(count)])
    (folder / "card.json").write_text(json.dumps({**CARD, "licence": licence, **card}))
    return folder


def number(value: float | None, wide: float = 0.05) -> dict[str, Any]:
    low, high = (None, None) if value is None else (round(value - wide, 3), round(value + wide, 3))
    method = None if value is None else "Wilson"
    return {"value": value, "low": low, "high": high, "method": method, "n": 123, "groups": 41, "unscored": 4}


def scores(adapter: str) -> dict[str, Any]:
    """What skinvl score writes, with the numbers that matter to a card."""
    settings = {"adapter": adapter, "data": {"/home/ada/data/ham/test.parquet": "0" * 32}}
    skin = {"metric": "closed_accuracy", "values": {"I": number(0.812), "VI": number(0.437)}, "worst": "VI"}
    few = "too few groups (3)"
    bare = {"value": 0.3, "low": None, "high": None, "method": few, "n": 3, "groups": 3, "unscored": 0}
    unknown = {"metric": "closed_accuracy", "values": {"unknown": number(0.7)}, "worst": None, "gap": None}
    answers = {
        "rows": 127,
        "unscored": 4,
        "reasons": {"missing-image": 4},
        "valid": number(0.99),
        "metrics": {"closed_accuracy": number(0.701), "bleu-4": number(None), "rouge-l": bare},
        "majority": number(0.402),
        "by": {},
        "slices": {"skin_type": {**skin, "gap": number(0.375)}, "sex": unknown},
        "settings": settings,
    }
    permuted = {**answers, "metrics": {"closed_accuracy": number(0.411)}, "slices": {}, "reasons": {}}
    classes = {
        "rows": 127,
        "unscored": 0,
        "reasons": {},
        "headline": "sum",
        "variants": {"sum": {"accuracy": number(0.613), "sensitivity": number(0.287), "specificity": number(0.934)}},
        "spread": {},
        "valid": None,
        "majority": number(0.5),
        "slices": {},
        "settings": {**settings, "source": "ham", "split": "test"},
    }
    sets = {"ham": {"answers": answers, "permuted": permuted}, "ham-classes": {"classes": classes}}
    found = {"run": "ham--qwen", "resamples": 1000, "seed": 0, "level": LEVEL, "sets": sets}
    return {**found, "seeds": None, "replicates": None, "comparison": None, "untrained": None}


def run(
    root: Path,
    *,
    licence: str = "CC0-1.0",
    base: dict[str, Any] | None = None,
    commit: str | None = "c" * 40,
    scored: bool = True,
    recipe: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    **card: Any,
) -> Path:
    """The folder of a run on the source `root/data/ham`; the source is written where it is absent."""
    data = root / "data" / "ham"
    if not data.exists():
        source(data, licence, **card)
    path = root / "runs" / "ham--qwen"
    (path / "adapter").mkdir(parents=True)
    qwen = {"name": "qwen2-vl-2b", "model": "Qwen/Qwen2-VL-2B-Instruct", "licence": "Apache-2.0"}
    tree = {
        "name": "ham",
        "base": base or qwen,
        "data": {
            "train": [{"source": str(data), "split": "train"}],
            "eval": [{"source": str(data), "split": "test"}],
            "image_tokens": 64,
            "max_tokens": 256,
        },
        "parts": {"language": {"train": "lora"}, "projector": {"train": "full", "learning_rate": 2e-5}},
        "lora": {"r": 16},
        "train": {"learning_rate": 1e-4, "deepspeed": "/home/ada/zero2.json"},
        **(recipe or {}),
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    changes = {
        "command": ["sft", "/home/ada/ham.yaml", "data.train=[{source: /home/ada/data/ham, split: train}]"],
        "data": {str(data / "train.parquet"): digest(data / "train.parquet")},
        "rows": {"train": 2345, "ham": 127},
        **(environment or {}),
    }
    trained = {"model": tree["base"].get("model") or f"bases/{tree['base']['name']}", "commit": commit}
    provenances.made(**{**changes, "base": {**trained, **changes.get("base", {})}}).write(path)
    (path / "summary.json").write_text(json.dumps({"train_loss": 0.61276, "eval_loss": 0.10008}))
    (path / "log.jsonl").write_text('{"step": 10, "loss": 2.0}\n{"step": 678, "train_runtime": 9.0}\n')
    rules = ["moved-to-train", "left-out-of-eval", "too-long", "too-long"]
    (path / "ledger.jsonl").write_text("".join(f'{{"row": "1", "rule": "{rule}", "detail": ""}}\n' for rule in rules))
    (path / "loss.png").write_bytes(pictures.photograph("PNG"))
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": "/home/ada/bases/qwen", "revision": None}
    (path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file({"lora_A": np.arange(2000, dtype=np.float32)}, path / "adapter" / "adapter_model.safetensors")
    processor = {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "min_pixels": 3136}}
    (path / "adapter" / "processor_config.json").write_text(json.dumps(processor))
    (path / "adapter" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (path / "adapter" / "tokenizer_config.json").write_text('{"name_or_path": "/home/ada/bases/qwen"}')
    (path / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    (path / "adapter" / "complete.json").write_text("{}")
    (path / "adapter" / "README.md").write_text("PEFT's own")
    if scored:
        found = scores(adapter_digest(path / "adapter"))
        (path / "scores.json").write_text(json.dumps(found))
    return path


def merged(path: Path) -> Path:
    """RUN/merged, as skinvl merge leaves it."""
    out = path / "merged"
    out.mkdir()
    save_file({"model.weight": np.zeros(2000, np.float32)}, out / "model.safetensors")
    (out / "config.json").write_text('{"model_type": "qwen2_vl", "_name_or_path": "/home/ada/bases/qwen"}')
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((path / "adapter" / name).read_bytes())
    check = {"max": 3e-6, "mean": 4e-7, "argmax_agreement": 0.998, "examples": 17, "tolerance": 1e-3, "positions": 90}
    facts = {
        "base": {"model": "/home/ada/bases/qwen", "commit": None, "fingerprint": "f"},
        "adapter": adapter_digest(path / "adapter"),
        "onto": "bf16",
        "check": check,
        "drift": {},
        "libraries": {"skinvl": "0.1.0"},
    }
    (out / "merge.json").write_text(json.dumps(facts))
    return out
