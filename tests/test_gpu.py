"""What a CUDA device computes is what a CPU does: rows, adapters, whole trainings. SKINVL_GPU=cpu runs all there."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import runs, tiny, two_towers
from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.evaluate import eval as evaluation
from skinvl.evaluate.embed import exact
from skinvl.model import lora
from skinvl.model.pack import Batch, Collator
from skinvl.recipe.recipe import Recipe
from skinvl.train import pretrain, sft
from skinvl.train.trainer import token_losses

pytestmark = pytest.mark.gpu

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
Found = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device that is tested; exact products, so that it can be held to a CPU's."""
    name = os.environ.get("SKINVL_GPU", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    with exact():
        yield torch.device(name)


def found(model: nn.Module, batches: Sequence[Batch], device: torch.device, half: torch.dtype | None = None) -> Found:
    """The sum of the losses of some batches, and the gradient of each weight that trains, on the CPU."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            losses, _ = token_losses(model, batch.to(device))
        losses.sum().backward()
        total += losses.sum().item()
    grads = {name: one.grad.cpu().clone() for name, one in model.named_parameters() if one.grad is not None}
    return total, grads


def distance(ours: Found, theirs: Found) -> float:
    """The larger of the relative differences of loss and of all gradients together."""
    assert ours[1].keys() == theirs[1].keys()
    difference = sum(float((ours[1][name] - one).norm() ** 2) for name, one in theirs[1].items()) ** 0.5
    size = sum(float(one.norm() ** 2) for one in theirs[1].values()) ** 0.5
    return max(abs(ours[0] - theirs[0]) / abs(theirs[0]), difference / size)


def stirred(one: Recipe) -> nn.Module:
    """The model of a recipe whose adapters do something."""
    model: nn.Module = runs.attached(one).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def rows_of(one: Recipe) -> list[Row]:
    return mixture.load(one.data).train[:7]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_shared_rows_give_a_cpus_losses_and_gradients(tmp_path: Path, device: torch.device, family: str) -> None:
    one = runs.make(tmp_path, family)
    model, rows, chat = stirred(one), rows_of(one), runs.chat(one)
    shared = [Collator(chat)([{"row": row} for row in rows])]
    apart = [Collator(chat, share=False)([{"row": row}]) for row in rows]
    expected = found(model, apart, torch.device("cpu"))
    model.to(device)
    assert distance(found(model, shared, device), expected) < 1e-4
    assert distance(found(model, apart, device), expected) < 1e-4
    assert distance(found(model, apart[:-1], device), expected) > 1e-2  # the twin: a conversation less


@pytest.mark.parametrize("quantization", [None, NF4], ids=["whole", "nf4"])
def test_in_16_bits_it_is_near_to_fp32_and_our_lora_to_pefts(
    tmp_path: Path, device: torch.device, quantization: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = runs.make(tmp_path, "qwen2_vl", train__bf16=True, quantization=quantization)
    model = stirred(one).to(device)
    batches = [Collator(runs.chat(one))([{"row": row} for row in rows_of(one)])]
    ours = found(model, batches, device, torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(lora.Adapted, "takes", lambda *_: False)
        pefts = found(model, batches, device, torch.bfloat16)
    assert distance(ours, pefts) < 0.03
    if quantization is None:
        whole = found(model.float(), batches, device)
        assert distance(ours, whole) < 0.05


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_run_trains_saves_and_answers(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if device.type == "cuda" and half == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this device has no bf16")
    precision = {"train__bf16": half == "bf16", "train__fp16": half == "fp16"}
    one = runs.make(tmp_path, "qwen3_vl", train__use_cpu=device.type == "cpu", train__max_steps=12, **precision)
    sft.train(one)
    path = tmp_path / "runs" / f"{one.name}--{one.base.name}"
    steps = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[-1] < losses[0]
    assert ("loss_scale" in steps[0]) == (half == "fp16" and device.type == "cuda") or device.type == "cpu"
    assert evaluation.main([str(path)]) == 0
    assert (path / "report.html").is_file()


def test_two_towers_train_in_chunks(tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = {"bf16": False, "report_to": "none", "use_cpu": device.type == "cpu", "max_steps": 3, "logging_steps": 1}
    losses = []
    for at_once in (1, 4):
        one = two_towers.recipe(tmp_path, train=train, batch__at_once=at_once, run=f"by-{at_once}")
        pretrain.train(one)
        lines = (tmp_path / "runs" / f"by-{at_once}" / "log.jsonl").read_text().splitlines()
        losses.append([step["loss"] for step in map(json.loads, lines) if "loss" in step])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava"])
def test_flash_attention_is_as_near_to_fp32_as_sdpa(tmp_path: Path, device: torch.device, family: str) -> None:
    if device.type != "cuda":
        pytest.skip("flash-attention needs a CUDA device")
    results = {}
    for attention in ("sdpa", "flash_attention_2"):
        one = runs.make(tmp_path, family, train__bf16=True, attention=attention)
        batches = [Collator(runs.chat(one))([{"row": row} for row in rows_of(one)])]
        results[attention] = found(stirred(one).to(device), batches, device, torch.bfloat16)
    assert distance(results["flash_attention_2"], results["sdpa"]) < 0.05
