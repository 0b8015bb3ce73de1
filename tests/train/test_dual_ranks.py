"""One, two and four gloo ranks have one loss and the same gradient, weight by weight; runs of them are one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import batches, towers_ranks, two_towers

pytestmark = [pytest.mark.alone, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(ranks: int, *words: str, cwd: Path) -> str:
    """What a launcher prints."""
    done = subprocess.run(
        [*TORCHRUN, str(ranks), *words], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def difference(first: torch.Tensor, second: torch.Tensor, least: float) -> float:
    return float((first - second).norm() / first.norm().clamp(min=least))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_the_gradient_of_one_process(tmp_path: Path, ranks: int) -> None:
    """With batches of uneven sizes, of four ranks one without an image."""
    for family, _ in towers_ranks.CASES:
        shutil.copytree(two_towers.base(family), tmp_path / family, dirs_exist_ok=True)
    torchrun(ranks, str(ROOT / "tests" / "helpers" / "towers_ranks.py"), str(tmp_path), cwd=tmp_path)
    for family, objective in towers_ranks.CASES:
        made, given = towers_ranks.towers(family, objective)
        loss = float(made.gradients(given, 0.3).loss)
        expected = {name: weight.grad for name, weight in made.model.named_parameters() if weight.grad is not None}
        least = 1e-2 * max(float(gradient.norm()) for gradient in expected.values())
        for rank in (0, ranks - 1):
            for at_once in (2, 64):
                seen = torch.load(tmp_path / f"{objective}-{ranks}-{rank}-{at_once}.pt", weights_only=True)
                assert float(seen.pop("loss")) == pytest.approx(loss, rel=1e-6)
                assert seen.keys() == expected.keys()
                for name, gradient in expected.items():
                    assert difference(gradient, seen[name], least) < 1e-5, (objective, rank, name)
        assert float(expected["scale.log"]) != 0

        # Twins: without the gather, and with every rank's gradient of the scale.
        made.model.zero_grad()
        for start, stop in ((0, 3), (3, 7)):
            made.gradients(batches.rows(given, start, stop), 0.3)
        name = max(expected, key=lambda name: "image_tower" in name and float(expected[name].norm()))
        alone = made.model.get_parameter(name).grad
        assert alone is not None
        assert difference(expected[name], alone / 2, least) > 1e-2
        assert difference(expected["scale.log"], expected["scale.log"] * 2, 0.0) > 0.5


def make(tmp_path: Path, **changes: Any) -> None:
    """`towers.yaml`, of twelve images."""
    two_towers.source(tmp_path / "lesions", images=12)
    settings = {
        "batch": {"images": 5, "at_once": 2},
        "train__max_steps": 4,
        "train__learning_rate": 1e-3,
        "train__logging_steps": 1,
        "train__eval_strategy": "steps",
        "train__eval_steps": 2,
        "train__save_strategy": "steps",
        "train__save_steps": 2,
        "train__disable_tqdm": True,
        "data__augmentation": "mild",
        **changes,
    }
    two_towers.recipe(tmp_path, **settings)


def log_of(tmp_path: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]


def test_a_run_of_two_ranks_is_one_of_one_and_goes_on(tmp_path: Path) -> None:
    make(tmp_path)
    for name, ranks, words in (
        ("one", 1, []),
        ("two", 2, []),
        ("cut", 2, ["train.max_steps=4", "resume=auto"]),
    ):
        if name == "cut":  # as two was after its second step
            shutil.copytree(tmp_path / "runs" / "two", tmp_path / "runs" / "cut")
            shutil.rmtree(tmp_path / "runs" / "cut" / "checkpoints" / "checkpoint-4")
            shutil.rmtree(tmp_path / "runs" / "cut" / "model")
        torchrun(ranks, "-m", "skinvl", "pretrain", "towers.yaml", f"run={name}", *words, cwd=tmp_path)
    one, two, cut = (log_of(tmp_path, name) for name in ("one", "two", "cut"))
    seen = 0
    for first, second, third in zip(one, two, cut, strict=True):
        for key in ("loss", "grad_norm", "scale", "eval_lesions_loss", "eval_lesions_R@1", "same_group_ignore"):
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=2e-4), (first["step"], key)
                assert third[key] == second[key]
                seen += 1
    assert seen == 4 * 4 + 3 * 2
    weights = [load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("one", "two", "cut")]
    for key, weight in weights[0].items():  # AdamW amplifies rounding where a gradient is nearly zero
        assert (weight - weights[1][key]).norm() <= 0.01 * weight.norm() + 1e-4, key
        assert torch.equal(weights[1][key], weights[2][key])


def test_masked_latents_on_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    """Five images a step, so that the ranks have uneven shares, and other ones in the chunks of two."""
    objective = {"name": "latent", "teacher": str(two_towers.base("siglip")), "regressor_layers": 1}
    make(tmp_path, objective=objective, train__save_strategy="no")
    for name, ranks, words in (("one", 1, []), ("two", 2, []), ("other", 1, ["train.seed=5"])):
        torchrun(ranks, "-m", "skinvl", "pretrain", "towers.yaml", f"run={name}", *words, cwd=tmp_path)
    one, two, other = (log_of(tmp_path, name) for name in ("one", "two", "other"))
    keys = ("loss", "grad_norm", "masked", "visible", "cls", "eval_lesions_loss", "eval_lesions_masked")
    seen = 0
    for first, second, third in zip(one, two, other, strict=True):
        for key in keys:
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=2e-4), (first["step"], key)
                assert third[key] != pytest.approx(first[key], rel=2e-4)  # other images, masked otherwise
                seen += 1
    assert seen == 4 * 5 + 3 * 2
    first, second, third = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("one", "two", "other")
    )
    moved = [key for key, weight in first.items() if (weight - third[key]).norm() > 0.02 * weight.norm() + 1e-4]
    assert moved
    for key, weight in first.items():
        assert (weight - second[key]).norm() <= 0.01 * weight.norm() + 1e-4, key


def test_sigterm_to_one_rank_stops_both_at_one_step(tmp_path: Path) -> None:
    make(tmp_path, train__max_steps=400, train__save_strategy="no", train__eval_strategy="no")
    with (tmp_path / "said").open("w") as said:
        words = [*TORCHRUN, "2", "-m", "skinvl", "pretrain", "towers.yaml", "run=one"]
        process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=said, stderr=said)
    log, deadline = tmp_path / "runs" / "one" / "log.jsonl", time.monotonic() + 100
    while not (log.is_file() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, (tmp_path / "said").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if "skinvl" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(ranks[0], signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "said").read_text()[-6000:]
    assert "stopped by SIGTERM; runs/one/checkpoints/checkpoint-" in " ".join((tmp_path / "said").read_text().split())
    assert len(list((tmp_path / "runs" / "one" / "checkpoints").glob("checkpoint-*/complete.json"))) == 1
