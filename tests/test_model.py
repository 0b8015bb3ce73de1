"""What trains is what the recipe says: parts, patterns, fp32 masters, quantised layers, adapters that load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from peft import PeftModel
from transformers import AutoConfig

from skinvl import families, mixture, model
from skinvl.model import ModelError

PARTS = [(part, mode) for part in families.PARTS for mode in ("lora", "full", "frozen")]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(("part", "mode"), PARTS)
def test_a_part_trains_as_told_and_no_other(tmp_path: Path, family: str, part: str, mode: str) -> None:
    other = "projector" if part == "language" else "language"
    parts = {name: {"train": "frozen"} for name in families.PARTS} | {part: {"train": mode}}
    if mode != "lora":
        parts[other] = {"train": "lora"}
    one = runs.make(tmp_path, family, parts=parts)
    kind = runs.family_of(one)
    peft_model = runs.attached(one)
    counts = model.check(peft_model, kind, one)
    for name, (trainable, every) in counts.items():
        assert (trainable > 0) == (parts[name]["train"] != "frozen"), name
        if parts[name]["train"] == "full" and name != "language":
            assert trainable == every - trainable  # the copy, beside the frozen original
    trained = {n for n, p in peft_model.named_parameters() if p.requires_grad}
    assert not any("embed_tokens" in name or name.endswith("lm_head.weight") for name in trained)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patterns_are_anchored_and_hit_one_part(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    kind = runs.family_of(one)
    bare = model.blank(AutoConfig.from_pretrained(one.base.location))
    hits = model.plan(bare, kind, one)
    assert set(hits["language"].patterns.values()) <= set(range(1, 7))
    assert sum(hits["language"].patterns.values()) >= 28
    assert not hits["vision"].patterns
    assert hits["projector"].full
    assert all(pattern.startswith(r"model\.language_model\.") for pattern in hits["language"].patterns)


def test_a_check_sees_an_adapter_in_the_wrong_part_and_a_bf16_master(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    kind = runs.family_of(one)
    peft_model = runs.attached(one)
    wrong = one.model_copy(update={"parts": one.parts.model_copy(update={"language": one.parts.vision})})
    with pytest.raises(ModelError, match="a LoRA layer in the part language"):
        model.check(peft_model, kind, wrong)
    parameter = next(p for p in peft_model.parameters() if p.requires_grad)
    parameter.data = parameter.data.bfloat16()
    with pytest.raises(ModelError, match="without an fp32 master"):
        model.check(peft_model, kind, one)


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_the_language_part_is_quantised(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family, quantization=NF4)
    kind = runs.family_of(one)
    peft_model = runs.attached(one)
    model.check(peft_model, kind, one)
    quantised = [n for n, m in peft_model.named_modules() if type(m).__name__ == "Linear4bit"]
    assert quantised
    assert all("language_model" in name for name in quantised)


def test_a_quantised_tower_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl", quantization=NF4)
    kind = runs.family_of(one)
    monkeypatch.setattr(type(kind), "parts", {**kind.parts, "vision": ("visual",)})
    loaded = model.load(Path(one.base.location), kind, one)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="quantised, but vision must not be"):
        model.check(model.attach(loaded, kind, one), kind, one)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_frozen_tower_runs_without_grad_and_its_projector_with(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    peft_model = runs.attached(one)
    peft_model.enable_input_require_grads()
    peft_model.gradient_checkpointing_enable()
    peft_model.train()
    seen: dict[str, bool] = {}
    kind = runs.family_of(one)
    tower = peft_model.get_base_model().get_submodule(kind.parts["vision"][0])
    block = next(m for n, m in tower.named_modules() if n.endswith(("blocks.1", "transformer.layers.1")))
    block.register_forward_hook(lambda m, i, o: seen.update(tower=torch.is_grad_enabled()))
    rows, _ = mixture.load(one.data)
    inputs = runs.batch(one, rows[:4])
    labels = inputs.pop("labels")
    inputs.pop("shift_labels")
    peft_model(**inputs, labels=labels).loss.backward()
    assert seen == {"tower": False}
    projector = [p for n, p in peft_model.named_parameters() if p.requires_grad and "lora" not in n]
    assert projector
    assert all(p.grad is not None and p.grad.any() for p in projector)
    with torch.no_grad():
        assert not peft_model(**inputs).logits.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True, "init_lora_weights": "pissa"}])
def test_a_saved_adapter_loads_with_peft_alone(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    one = runs.make(tmp_path, family, lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **settings})
    peft_model = runs.attached(one)
    torch.manual_seed(0)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    rows, _ = mixture.load(one.data)
    inputs = runs.batch(one, rows[:3])
    for key in ("labels", "shift_labels"):
        inputs.pop(key)
    peft_model.eval()
    with torch.no_grad():
        expected = peft_model(**inputs).logits
    peft_model.save_pretrained(tmp_path / "adapter")
    fresh = tiny.model(family)
    with torch.no_grad():
        bare = fresh(**inputs).logits
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
        found = loaded(**inputs).logits
    assert not torch.allclose(bare, expected, atol=1e-2)  # the adapter does something
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_earlier_adapter_is_continued_or_refused(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    first = runs.attached(one)
    for parameter in first.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    adapter = tmp_path / "adapter"
    first.save_pretrained(adapter)
    again = runs.attached(one.model_copy(update={"init_adapter": str(adapter)}))
    before = {n: p for n, p in first.named_parameters() if p.requires_grad}
    after = {n: p for n, p in again.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name

    def refused(changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            runs.attached(runs.make(tmp_path, "qwen2_vl", init_adapter=str(adapter), **changes))

    refused({"lora__r": 8}, r"shape .* the recipe makes .*lora\.r")
    refused({"parts__projector": {"train": "frozen"}}, "are not trained by this recipe")
    with pytest.raises(ModelError, match=r"no adapter_config\.json there"):
        runs.attached(one.model_copy(update={"init_adapter": str(tmp_path)}))


def test_an_adapter_of_the_language_part_alone_leaves_the_projector_as_it_is(tmp_path: Path) -> None:
    lean = runs.make(tmp_path, "qwen2_vl", parts__projector={"train": "frozen"})
    runs.attached(lean).save_pretrained(tmp_path / "adapter")
    both = runs.attached(runs.make(tmp_path, "qwen2_vl", init_adapter=str(tmp_path / "adapter")))
    assert any(p.requires_grad for n, p in both.named_parameters() if "merger" in n)


def test_parameter_counts_are_the_published_ones(shared: Path) -> None:
    golden = json.loads((shared / "configs" / "golden_parameter_counts.json").read_text())
    for name, expected in golden.items():
        assert model.count_parameters(model.blank(AutoConfig.from_pretrained(shared / "configs" / name))) == expected


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flash_attention_3"])
def test_a_kernel_that_is_not_there_is_refused(wanted: str) -> None:
    for name, reason in {"mllama": "no flash-attention path", "qwen2_vl": "no CUDA device"}.items():
        with pytest.raises(ModelError, match=rf"attention={wanted}: .*{reason}.*attention=auto"):
            model.attention_kernel(wanted, families.load(name))
    assert model.attention_kernel("auto", families.load("qwen2_vl")) == "sdpa"
    assert model.attention_kernel("eager", families.load("mllama")) == "eager"


def test_a_family_without_a_file_says_which_to_write(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match=r"write skinvl/families/llava\.py"):
        model.config(tmp_path)
