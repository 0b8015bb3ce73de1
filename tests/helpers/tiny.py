"""Tiny bases for tests: one of each family, built once per run, and the real processors on request."""

from __future__ import annotations

import random
import tempfile
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast, ProcessorMixin

from skinvl.model import families
from skinvl.model.tiny import build

FAMILIES = (
    "gemma3",
    "gemma4",
    "internvl",
    "llava",
    "mistral3",
    "mllama",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
)
FEW = ("mllama", "qwen2_5_vl", "qwen2_vl", "qwen3_vl")
# Where a test trains, or takes its time, the other families wait for the slow ones.
SOME = [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES]
TEXTS = (
    "What is the colour of this lesion?",
    "It is brown with a lighter rim.",
    "How many lesions are there? One, two or three?",
    "Is the border smooth or jagged?",
    "Compare the two images: the first is larger.",
    "You are a dermatology assistant. Answer briefly.",
)
TRL = Path(trl.__file__).parent / "chat_templates"  # published ones, as they are
TEMPLATES = {
    "qwen2_vl": "qwen2_vl_and_qwen2_5_vl/chat_template.jinja",
    "qwen2_5_vl": "qwen2_vl_and_qwen2_5_vl/chat_template.jinja",
    "qwen3_vl": "qwen3_vl/chat_template.jinja",
    "mllama": "llama3.2-vision/v2_current.jinja",
    "qwen3_5": str(TRL / "qwen3_5_think.jinja"),
    "gemma3": str(TRL / "gemma3.jinja"),
    "gemma4": "gemma4/google-gemma-4-31B-it.jinja",
    "llava": str(TRL / "llava_next.jinja"),
    "mistral3": "ministral3/mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "internvl": str(Path(__file__).parents[1] / "data" / "internvl.jinja"),  # from its description: see there
}
TOKENIZERS = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_5": "qwen3-vl",  # its own has the same control tokens
    "mllama": "llama3.2-vision",
}
# Bases whose configs are not at hand.
UNSEEN = frozenset({"llava-med-7b", "qwen3-vl-32b"}) | {
    f"{family}-{size}"
    for family, sizes in {
        "gemma4": ("e2b", "e4b", "31b"),
        "internvl3.5": ("1b", "2b", "4b", "8b", "14b"),
        "lingshu": ("7b", "32b"),
        "medgemma": ("4b", "1.5-4b", "27b"),
        "ministral3": ("3b", "8b", "14b"),
        "qwen3.5": ("0.8b", "2b", "4b", "9b", "27b"),
        "qwen3.6": ("27b",),
        "qwen3.8": ("27b",),
    }.items()
    for size in sizes
}
_ROOT = tempfile.TemporaryDirectory(prefix="skinvl-tiny-")


@cache
def base(family: str) -> Path:
    """The folder of a tiny base; shared by all tests, so nothing may write into it."""
    return build(family, Path(_ROOT.name) / family, texts=TEXTS)


def processor(family: str) -> ProcessorMixin:
    """A fresh processor of the tiny base."""
    loaded: ProcessorMixin = AutoProcessor.from_pretrained(base(family))
    return loaded


def model(family: str, dtype: torch.dtype = torch.float32, prepared: bool = True) -> Any:
    """A fresh model of the tiny base, in eval mode; as training and inference see it, unless not `prepared`."""
    loaded = AutoModelForImageTextToText.from_pretrained(base(family), dtype=dtype).eval()
    if prepared:
        families.load(family).prepare(loaded)
    return loaded


def real_processor(shared: Path, family: str, template: str | None = None) -> ProcessorMixin:
    """The family's processor with a published tokenizer and chat template; `template` is a path in chat_templates.

    The tokenizer is that of its tiny base, where no published one is at hand.
    """
    tokenizer: Any = processor(family).tokenizer
    if family in TOKENIZERS:
        tokenizer = copy(_real_tokenizer(shared, family))  # a Chat pins its template in the tokenizer
    text = (shared / "chat_templates" / (template or TEMPLATES[family])).read_text(encoding="utf-8")
    return families.load(family).tiny.processor(tokenizer, text)


@cache
def _real_tokenizer(shared: Path, family: str) -> PreTrainedTokenizerFast:
    path = shared / "tokenizers" / "derived" / f"tokenizer.{TOKENIZERS[family]}.json"
    roles = {f"{role}_token": token for role, token in families.load(family).tiny.roles.items()}
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **roles)


def picture(seed: int = 0, size: tuple[int, int] = (112, 112)) -> Image.Image:
    """A drawn picture of (height, width) pixels; another seed, another picture."""
    draw = random.Random(seed)
    height, width = size
    image = Image.new("RGB", (width, height), tuple(draw.randrange(256) for _ in range(3)))
    canvas = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = draw.randrange(width), draw.randrange(height)
        canvas.ellipse((x, y, x + width // 2, y + height // 2), fill=tuple(draw.randrange(256) for _ in range(3)))
    return image
