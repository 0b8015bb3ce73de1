"""Real photos with real tokenizers, from the raw folder to an adapter that reloads; and the package as users get it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATES = {
    "qwen2_vl": ("qwen2-vl", "qwen2_vl_and_qwen2_5_vl/chat_template.jinja"),
    "mllama": ("llama3.2-vision", "llama3.2-vision/v2_current.jinja"),
}
RELOAD = """
import json
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from skinvl.data import mixture
from skinvl.model import families
from skinvl.recipe import recipe
from skinvl.model.chat import Chat
from skinvl.train.trainer import token_losses
from helpers import runs
run, base, kind = sys.argv[1:]
one = recipe.load(run + "/recipe.yaml")
family = families.load(kind)
model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
family.prepare(model)
model = PeftModel.from_pretrained(model, run + "/adapter").eval()
chat = Chat(AutoProcessor.from_pretrained(run + "/adapter"), family, **one.data.budget)
rows = mixture.load(one.data).evaluation["pad"]
total = count = 0
for row in rows:
    with torch.no_grad():
        losses, _ = token_losses(model, runs.alone(chat, row))
    total, count = total + float(losses.sum()), count + len(losses)
print(json.dumps(total / count))
"""


def skinvl(folder: Path, *words: str) -> str:
    """What `skinvl` prints in a folder; fails where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "skinvl", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("family", TEMPLATES)
def test_real_photos_and_a_real_tokenizer_make_an_adapter_that_reloads(
    family: str, shared: Path, tmp_path: Path
) -> None:
    tokenizer, template = TEMPLATES[family]
    shown = skinvl(tmp_path, "prep", "pad_ufes_20", str(shared / "pad_ufes_20"), "pad")
    assert "rows in 22,980 = Examples out" in shown
    files = ["--tokenizer", str(shared / "tokenizers" / "derived" / f"tokenizer.{tokenizer}.json")]
    files += ["--template", str(shared / "chat_templates" / template)]
    skinvl(tmp_path, "bases", "build", family, "base", *files)
    (tmp_path / "pad.yaml").write_text(
        "base: ./base\n"
        "data:\n"
        "  train: [{source: ./pad, split: train}]\n"
        "  eval: [{source: ./pad, split: test}]\n"
        "  image_tokens: 64\n"
        "  max_tokens: 512\n"
        "parts: {language: {train: lora}, projector: {train: full, learning_rate: 1.0e-3}}\n"
        "lora: {r: 8, lora_alpha: 16}\n"
        "train: {bf16: false, activation_checkpointing: false, per_device_train_batch_size: 4, max_steps: 30,\n"
        "        learning_rate: 5.0e-3, logging_steps: 5, save_strategy: 'no', disable_tqdm: true}\n"
    )
    skinvl(tmp_path, "sft", "./pad.yaml")
    path = tmp_path / "runs" / "pad--base"
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(path), "base", family],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    summary = json.loads((path / "summary.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(summary["eval_pad_loss"], rel=1e-4)
    assert "trained" in skinvl(tmp_path, "show", "./pad.yaml", "-n", "1")


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("skinvl/recipes/tiny.yaml", "skinvl/recipes/bases/tiny-mllama.yaml", "skinvl/ds_configs/zero2.json"):
        assert name in names
    assert "data_prep/demo.py" in names
    assert not any(name.startswith(("recipes/", "tests/", "ds_configs/")) for name in names)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import skinvl, sys; assert skinvl.__file__.startswith(sys.argv[1])\n"
        "from skinvl.recipe import recipe, shipped\n"
        "assert str(shipped.shipped('recipes')).startswith(sys.argv[1])\n"
        "from skinvl import __main__ as cli\n"
        "sys.exit(cli.main(['prep', 'demo', 'raw', 'demo']) or cli.main(['sft', 'tiny', '--dry-run']))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
