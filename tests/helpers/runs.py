"""A small prepared source and recipes over it, for tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from helpers import sources, tiny
from skinvl.data.example import Example, Facts, text, write
from skinvl.data.mixture import Row
from skinvl.data.pixels import upright
from skinvl.model import adapter, families
from skinvl.model.attention import Span
from skinvl.model.base import load_base, read_config
from skinvl.model.chat import UNTRAINED, Chat
from skinvl.model.lengths import sizes
from skinvl.model.loaded import open_base
from skinvl.model.pack import Batch, Collator
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Recipe

QUESTIONS = (
    ("What is the colour?", ("Brown.", "Red.", "Black.")),
    ("Is the border smooth or jagged?", ("It is jagged all the way round.", "Smooth.")),
    ("How many lesions are there?", ("One.", "Two.")),
)


def source(folder: Path, images: int = 8, split: str = "train", text_only: int = 0) -> Path:
    """A prepared source: three questions about each image, and some conversations without an image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    examples = []
    for index in range(images):
        name = f"images/{split}-{index}.png"
        tiny.picture(index + 100 * (split == "test"), (112, 112 if index % 2 else 84)).save(folder / name)
        for number, (question, answers) in enumerate(QUESTIONS):
            answer = answers[index % len(answers)]
            examples.append(_example(f"{split}-{index}-{number}", (name,), question, answer, split))
    examples += [
        _example(f"{split}-text-{index}", (), "Which colour has a lesion?", "Brown.", split)
        for index in range(text_only)
    ]
    write(folder, split, examples)
    return sources.fingerprint(folder, alike=False)


def _example(name: str, images: tuple[str, ...], question: str, answer: str, split: str) -> Example:
    messages = (text("user", question, images=len(images)), text("assistant", answer))
    group = images[0] if images else name
    return Example(name, "drawn", images, messages, group, split, "CC0-1.0", Facts(kind="colour"))


def make(tmp_path: Path, family: str, **changes: Any) -> Recipe:
    """A recipe of a tiny base over a drawn source, trained in fp32; changes are `section__key=value`."""
    data = source(tmp_path / "drawn")
    source(data, images=3, split="test")
    tree: dict[str, Any] = {
        "base": str(tiny.base(family)),
        "data": {
            "train": [{"source": str(data), "split": "train"}],
            "eval": [{"source": str(data), "split": "test"}],
            "image_tokens": 16,
            "max_tokens": 256,
        },
        "parts": {"language": {"train": "lora"}, "projector": {"train": "full", "learning_rate": 1e-3}},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "train": {
            "bf16": False,
            "activation_checkpointing": False,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(tree))
    return recipe.load(str(file))


def chat(one: Recipe) -> Chat:
    """The chat of a recipe's base."""
    return open_base(one).chat


def attached(one: Recipe) -> Any:
    """The base of a recipe with a fresh adapter."""
    path = Path(one.base.location)
    _, family = read_config(path)
    return adapter.attach(load_base(path, family, one), family, one)


def batch(one: Recipe, rows: list[Row]) -> Batch:
    """The rows as one batch of the recipe's base."""
    return Collator(chat(one))([{"row": row} for row in rows])


def alone(chat: Chat, row: Row) -> Batch:
    """A conversation as Hugging Face's own model takes it: one row of its own, without spans or given positions."""
    encoded = chat.encode(row.example, sizes(row.root, row.example))
    ids = torch.tensor([encoded.ids])
    images = [[upright(row.root / name) for name in row.example.images[: len(encoded.pictures)]]]
    inputs = {"input_ids": ids, **chat.family.batch(chat.processor, ids, images, chat.image_arguments)}
    targets = torch.tensor([[*encoded.labels[1:], UNTRAINED]])
    return Batch(inputs, targets, (Span(0, 0, len(encoded.ids)),), len(encoded.ids), (row.example.id,))


def family_of(one: Recipe) -> families.Family:
    """The family of a recipe's base."""
    return read_config(Path(one.base.location))[1]
