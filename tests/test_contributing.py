"""The examples of CONTRIBUTING.md are finished: each, put where it says, does what it is for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import pictures

ROOT = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^`(?P<path>\S+)`:\n\n```(?:python|yaml)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
METRIC = """
from skinvl.score import metrics
from skinvl.score.predictions import Answer
texts = ("A brown nevus.", "a scar"), ("Melanoma.", "melanoma"), ("No.", "yes")
rows = [Answer("1", "s", "1", (), "?", reference, {}, answer, "stop", "", 1, 0) for answer, reference in texts]
print(metrics.measure(rows, [metrics.load("first_word")]))
"""
BASE = """
from skinvl.recipe import recipe
from skinvl.data import licences
base = recipe.load("tiny", ["base=qwen2.5-vl-3b"]).base
assert "qwen2.5-vl-3b" in recipe.bases()
print(base.name, base.model, licences.read(base.licence).known)
"""
FAMILY = """
import torch
from PIL import Image
from helpers import tiny
from skinvl.model import families
from skinvl.model.chat import Chat
family = families.load("qwen3_vl_moe")
model = tiny.model("qwen3_vl_moe")
assert model.config.model_type == family.model_type
assert {family.part_of(name) for name, _ in model.named_parameters()} == set(families.PARTS)
processor = tiny.processor("qwen3_vl_moe")
arguments = family.image_arguments(processor, 16)
def logits(colour):
    image = Image.new("RGB", (112, 112), colour)
    picture = family.picture(processor, (112, 112), arguments)
    image_id = processor.tokenizer.convert_tokens_to_ids(family.image_token)
    ids = torch.tensor([[5, 6] + [image_id] * picture.text_tokens + [7, 8]])
    inputs = family.batch(processor, ids, [[image]], arguments)
    positions = family.positions(processor, ids[0].tolist(), [picture])[:, None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, **inputs).logits[0, -1]
red, blue = logits("red"), logits("blue")
assert torch.isfinite(red).all()
assert (red - blue).abs().max() > 1e-3
assert torch.equal(red, logits("red"))
print("an image changes the logits")
"""


def examples() -> dict[str, str]:
    """The files that CONTRIBUTING.md shows, by their paths."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {example["path"]: example["text"] for example in EXAMPLE.finditer(text)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what runs, with the examples in it."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("skinvl", "data_prep", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in examples().items():
        assert not (root / path).exists(), path
        (root / path).write_text(text, encoding="utf-8")
    return root


def python(tree: Path, *words: str) -> str:
    """What Python prints with the tree before all else on its path."""
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_thing_to_add_has_its_example() -> None:
    folders = [str(Path(path).parent) for path in examples()]
    assert folders == ["data_prep", "recipes/bases", "skinvl/model/families", "skinvl/score/metrics"]


def test_the_dataset_becomes_a_source(tree: Path) -> None:
    raw = tree / "raw"
    raw.mkdir()
    (raw / "photos.csv").write_text("file,patient,diagnosis\na.jpg,7,Nevus\nb.jpg,8,\n")
    (raw / "a.jpg").write_bytes(pictures.photograph("JPEG"))
    python(tree, "-m", "doctest", "data_prep/clinic.py")
    assert "rows in 2 = Examples out 1 + ledger 1" in python(
        tree, "-m", "skinvl", "prep", "clinic", "raw", "data/clinic"
    )
    (line,) = (tree / "data" / "clinic" / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["rule"] == "unknown-value"


def test_the_base_is_one_of_a_recipe(tree: Path) -> None:
    assert python(tree, "-c", BASE).split() == ["qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "True"]


def test_the_family_reads_images(tree: Path) -> None:
    assert "an image changes the logits" in python(tree, "-c", FAMILY)


def test_the_metric_computes(tree: Path) -> None:
    assert python(tree, "-c", METRIC).strip() == "{'first_word': 0.6666666666666666}"
