"""What trains is what the recipe says: parts, patterns, fp32 masters, quantised layers, adapters that load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from helpers import runs, tiny
from skinvl.data import mixture
from skinvl.model import adapter, families
from skinvl.model.adapter import AdapterError
from skinvl.model.base import blank_model, count_parameters, load_base
from skinvl.model.hub import BaseError
from skinvl.model.loaded import load_model
from skinvl.model.names import WRAPPER
from skinvl.recipe.run import adapter_digest
from skinvl.train.trainer import token_losses

PARTS = [(part, mode) for part in families.PARTS for mode in ("lora", "full", "frozen")]


@pytest.mark.parametrize("family", tiny.SOME)
@pytest.mark.parametrize(("part", "mode"), PARTS)
def test_a_part_trains_as_told_and_no_other(tmp_path: Path, family: str, part: str, mode: str) -> None:
    beside = "vision" if family == "gemma3" else "projector"  # whose weight is a bare matrix: no layer for LoRA
    other = beside if part == "language" else "language"
    parts = {name: {"train": "frozen"} for name in families.PARTS} | {part: {"train": mode}}
    if mode != "lora":
        parts[other] = {"train": "lora"}
    recipe = runs.make(tmp_path, family, parts=parts)
    kind = runs.family_of(recipe)
    if (family, part, mode) == ("gemma3", "projector", "lora"):
        with pytest.raises(AdapterError, match=r"parts\.projector: gemma3 has no linear layer there .* full or frozen"):
            runs.attached(recipe)
        return
    peft_model = runs.attached(recipe)
    counts = adapter.check(peft_model, kind, recipe)
    for name, count in counts.items():
        assert (count.trainable > 0) == (parts[name]["train"] != "frozen"), name
        assert bool(count.lora) == (parts[name]["train"] == "lora"), name
        assert bool(count.full) == (parts[name]["train"] == "full"), name
        if count.full and name != "language":
            assert count.trainable == count.parameters
    trained = {n for n, p in peft_model.named_parameters() if p.requires_grad}
    assert not any("embed_tokens" in name or name.endswith("lm_head.weight") for name in trained)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patterns_are_anchored_and_hit_one_part(tmp_path: Path, family: str) -> None:
    recipe = runs.make(tmp_path, family)
    kind = runs.family_of(recipe)
    bare = blank_model(AutoConfig.from_pretrained(recipe.base.location))
    hits = adapter.plan(bare, kind, recipe)
    assert set(hits["language"].patterns.values()) <= set(range(1, 7))
    assert sum(hits["language"].patterns.values()) >= 28
    assert not hits["vision"].patterns
    assert hits["projector"].full
    assert all(pattern.startswith(r"model\.language_model\.") for pattern in hits["language"].patterns)


def test_a_check_sees_an_adapter_in_the_wrong_part_and_a_bf16_master(tmp_path: Path) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl")
    kind = runs.family_of(recipe)
    peft_model = runs.attached(recipe)
    wrong = recipe.model_copy(update={"parts": recipe.parts.model_copy(update={"language": recipe.parts.vision})})
    with pytest.raises(AdapterError, match="a LoRA layer in language"):
        adapter.check(peft_model, kind, wrong)
    parameter = next(p for p in peft_model.parameters() if p.requires_grad)
    parameter.data = parameter.data.bfloat16()
    with pytest.raises(AdapterError, match="without an fp32 master"):
        adapter.check(peft_model, kind, recipe)


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize("family", tiny.SOME)
def test_only_the_language_part_is_quantised(tmp_path: Path, family: str) -> None:
    recipe = runs.make(tmp_path, family, quantization=NF4)
    kind = runs.family_of(recipe)
    peft_model = runs.attached(recipe)
    counts = adapter.check(peft_model, kind, recipe)
    quantised = [n for n, m in peft_model.named_modules() if type(m).__name__ == "Linear4bit"]
    assert quantised
    plain = blank_model(AutoConfig.from_pretrained(recipe.base.location))
    audio = sum(p.numel() for n, p in plain.named_parameters() if kind.part_of(n) not in families.PARTS)
    assert sum(part.parameters for part in counts.values()) + audio == count_parameters(plain)
    assert (audio > 0) == (family == "gemma4")
    assert all("language_model" in name for name in quantised)


def test_a_quantised_tower_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl", quantization=NF4)
    kind = runs.family_of(recipe)
    monkeypatch.setattr(type(kind), "parts", {**kind.parts, "vision": ("visual",)})
    loaded = load_base(Path(recipe.base.location), kind, recipe)
    monkeypatch.undo()
    with pytest.raises(AdapterError, match="quantised, but vision must not be"):
        adapter.check(adapter.attach(loaded, kind, recipe), kind, recipe)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_frozen_tower_runs_without_grad_and_its_projector_with(tmp_path: Path, family: str) -> None:
    recipe = runs.make(tmp_path, family)
    peft_model = runs.attached(recipe)
    peft_model.enable_input_require_grads()
    peft_model.gradient_checkpointing_enable()
    peft_model.train()
    seen: dict[str, bool] = {}
    kind = runs.family_of(recipe)
    tower = peft_model.get_base_model().get_submodule(kind.parts["vision"][0])
    second = ("blocks.1", "transformer.layers.1", "encoder.layers.1", "encoder.layer.1")
    block = next(module for name, module in tower.named_modules() if name.endswith(second))
    block.register_forward_hook(lambda m, i, o: seen.update(tower=torch.is_grad_enabled()))
    rows = mixture.load(recipe.data).train
    inputs = runs.batch(recipe, rows[:4])
    token_losses(peft_model, inputs)[0].mean().backward()
    assert seen == {"tower": False}
    projector = [p for n, p in peft_model.named_parameters() if p.requires_grad and "lora" not in n]
    assert projector
    assert all(p.grad is not None and p.grad.any() for p in projector)
    with torch.no_grad():
        assert not token_losses(peft_model, inputs)[0].requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", tiny.SOME)
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True, "init_lora_weights": "pissa"}])
def test_a_saved_adapter_loads_with_peft_alone(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    recipe = runs.make(tmp_path, family, lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **settings})
    peft_model = runs.attached(recipe)
    torch.manual_seed(0)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    rows = mixture.load(recipe.data).train
    peft_model.eval()
    with torch.no_grad():
        expected, _ = token_losses(peft_model, runs.batch(recipe, rows[:3]))
    peft_model.save_pretrained(tmp_path / "adapter")
    fresh, chat = tiny.model(family), runs.chat(recipe)
    with torch.no_grad():
        bare = torch.cat([token_losses(fresh, runs.alone(chat, row))[0] for row in rows[:3]])
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
        losses = torch.cat([token_losses(loaded, runs.alone(chat, row))[0] for row in rows[:3]])
    assert not torch.allclose(bare, expected, atol=1e-2)  # the adapter does something
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"lora__use_dora": True}, {"lora__init_lora_weights": "pissa"}])
def test_an_earlier_adapter_is_continued(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl", **settings)
    first = runs.attached(recipe)
    for parameter in first.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    first.save_pretrained(tmp_path / "adapter")
    again = runs.attached(recipe.model_copy(update={"init_adapter": str(tmp_path / "adapter")}))
    before = {n: p for n, p in first.named_parameters() if p.requires_grad}
    after = {n: p for n, p in again.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_an_earlier_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl")
    saved = tmp_path / "adapter"
    runs.attached(recipe).save_pretrained(saved)

    def refused(changes: dict[str, Any], message: str) -> None:
        with pytest.raises(AdapterError, match=message):
            runs.attached(runs.make(tmp_path, "qwen2_vl", init_adapter=str(saved), **changes))

    refused({"lora__r": 8}, r"made with r=4, the recipe has 8; set lora\.r")
    refused({"lora__lora_alpha": 16}, "made with lora_alpha=8, the recipe has 16")
    refused({"lora__use_rslora": True}, "made with use_rslora=False, the recipe has True")
    refused({"lora__init_lora_weights": "pissa"}, "PiSSA changes the base")
    refused({"parts__projector": {"train": "frozen"}}, "are not trained by this recipe")
    with pytest.raises(BaseError, match=r"init_adapter .*the folder has no adapter_config\.json"):
        runs.attached(recipe.model_copy(update={"init_adapter": str(tmp_path)}))


ELSEWHERE: list[dict[str, Any]] = [
    {"alpha_pattern": {"q_proj": 64}},
    {"rank_pattern": {"q_proj": 2}},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "pissa_niter_4"},
    {"init_lora_weights": "loftq"},
    {"alora_invocation_tokens": [1, 2]},
    {"use_qalora": True},
    {"bias": "all"},
    {"lora_bias": True},
    {"layer_replication": [[0, 2]]},
    {"fan_in_fan_out": True},
    {"a_field_of_tomorrow": False},
    {"peft_type": "LOHA"},
]


def test_an_earlier_adapter_of_settings_that_no_recipe_has_is_refused_by_their_name(tmp_path: Path) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl")
    saved = tmp_path / "adapter"
    runs.attached(recipe).save_pretrained(saved)
    config = json.loads((saved / "adapter_config.json").read_text())
    for changes in ELSEWHERE:
        (saved / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(AdapterError, match=rf"init_adapter {re.escape(str(saved))}: .*{next(iter(changes))}"):
            adapter.require_same_settings(saved, recipe)

    # What changes how it was trained or found, and not what it computes.
    same = {"lora_dropout": 0.3, "task_type": None, "peft_version": "0.9.0", "revision": "main", "of_tomorrow": None}
    for start in (False, "gaussian", "orthogonal", "eva"):
        (saved / "adapter_config.json").write_text(json.dumps({**config, **same, "init_lora_weights": start}))
        adapter.require_same_settings(saved, recipe)


def test_adapters_of_one_digest_are_one_adapter(tmp_path: Path) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl")
    saved = tmp_path / "adapter"
    runs.attached(recipe).save_pretrained(saved)
    before = adapter_digest(saved)
    config = json.loads((saved / "adapter_config.json").read_text())

    def changed(**changes: Any) -> str:
        (saved / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        return adapter_digest(saved)

    assert changed(base_model_name_or_path="/elsewhere", revision="main") == before  # where its base lies
    assert len({before, changed(lora_alpha=16), changed(alpha_pattern={"q_proj": 64}), changed(use_rslora=True)}) == 4
    (saved / "adapter_model.safetensors").write_bytes(b"others")
    assert changed() != before


QWEN = {"model.language_model": "model", "model.visual": "visual"}
MLLAMA = {
    "model.language_model": "language_model.model",
    "model.vision_model": "vision_model",
    "model.multi_modal_projector": "multi_modal_projector",
}
LLAVA = {**MLLAMA, "model.vision_tower": "vision_tower.vision_model"}
# How a module's name begins today, and how it began in transformers 4.51.
LAYOUTS = {"qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "mllama": MLLAMA, "llava": LLAVA, "gemma3": LLAVA}
EARLIER = [
    *((family, {"parts__vision": {"train": mode}}) for family in LAYOUTS for mode in ("lora", "full")),
    ("qwen2_vl", {"lora__use_dora": True, "quantization": NF4}),
    ("qwen2_vl", {"lora__lora_bias": True}),
]


def _as_in_4_51(name: str, family: str) -> str:
    new, old = next((new, old) for new, old in LAYOUTS[family].items() if name.startswith(new))
    return old + name.removeprefix(new)


def _write_as_in_4_51(saved: Path, family: str) -> int:
    """Rewrites an adapter folder to the names of transformers 4.51, in its weights and in its config."""
    weights = load_file(saved / "adapter_model.safetensors")
    renamed = {WRAPPER + _as_in_4_51(key.removeprefix(WRAPPER), family): value for key, value in weights.items()}
    assert not renamed.keys() & weights.keys()
    save_file(renamed, saved / "adapter_model.safetensors", {"format": "pt"})

    # As published ones have it, the config names the last part of each layer.
    config = json.loads((saved / "adapter_config.json").read_text())
    config["target_modules"] = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in renamed if "lora_" in key})
    config["modules_to_save"] = [_as_in_4_51(name, family) for name in config["modules_to_save"]]
    (saved / "adapter_config.json").write_text(json.dumps(config))
    return len(renamed)


@pytest.mark.parametrize(("family", "changes"), EARLIER, ids=str)
def test_an_adapter_of_an_earlier_transformers_acts_as_it_did(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    recipe = runs.make(tmp_path, family, **changes)
    first, saved = runs.attached(recipe), tmp_path / "adapter"
    torch.manual_seed(0)
    for parameter in first.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    first.save_pretrained(saved)
    count = _write_as_in_4_51(saved, family)

    # It answers as it did, though none of its names is one that the model has.
    again = recipe.model_copy(update={"init_adapter": str(saved)})
    with pytest.warns(UserWarning, match=rf"{count} of its {count} weights have names of an earlier transformers"):
        loaded = load_model(again, torch.device("cpu")).model
    inputs = runs.batch(recipe, mixture.load(recipe.data).train[:3])
    with torch.no_grad():
        expected, losses = (token_losses(model.eval(), inputs)[0] for model in (first, loaded))
        bare, _ = token_losses(runs.attached(recipe).eval(), inputs)
    assert torch.equal(losses, expected)
    assert not torch.allclose(bare, expected, atol=1e-2)

    # One name that no layout has, and it is refused whole.
    weights = load_file(saved / "adapter_model.safetensors")
    key = next(iter(weights))
    strange = key.replace("base_model.model.", "base_model.model.thinker.")
    weights[strange] = weights.pop(key)
    save_file(weights, saved / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(
        AdapterError, match=rf"1 of its {count} weights .*first: {re.escape(strange)}.*another version's"
    ):
        runs.attached(again)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_an_earlier_adapter_of_a_tower_that_is_not_loaded_is_refused_by_its_parts(tmp_path: Path, family: str) -> None:
    recipe = runs.make(tmp_path, family, parts__vision={"train": "lora"})
    saved = tmp_path / "adapter"
    runs.attached(recipe).save_pretrained(saved)
    recipe = runs.make(tmp_path, family, init_adapter=str(saved))
    kind, path = runs.family_of(recipe), Path(recipe.base.location)
    rest = kind.without_tower(AutoConfig.from_pretrained(path))
    with pytest.raises(AdapterError, match="are not trained by this recipe"):
        adapter.attach(load_base(path, kind, recipe, config=rest), kind, recipe, cached=True)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_layout_between_the_two_is_renamed_and_a_name_twice_refused(tmp_path: Path, family: str) -> None:
    recipe = runs.make(tmp_path, family, parts__vision={"train": "lora"})
    saved = tmp_path / "adapter"
    runs.attached(recipe).save_pretrained(saved)
    config = AutoConfig.from_pretrained(recipe.base.location)
    weights = load_file(saved / "adapter_model.safetensors")
    between = {key.replace(".vision_tower.", ".vision_tower.vision_model."): value for key, value in weights.items()}
    assert between.keys() != weights.keys()  # as transformers 4.52 wrote it
    save_file(between, saved / "adapter_model.safetensors", {"format": "pt"})
    keys = adapter.todays_keys(saved, config)
    assert keys.keys() == weights.keys()
    assert all(torch.equal(weights[name], between[key]) for name, key in keys.items())

    save_file(
        {**between, **{key: value.clone() for key, value in weights.items()}}, saved / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match="in no layout known here"):
        adapter.todays_keys(saved, config)


def test_an_adapter_of_the_language_part_alone_leaves_the_projector_as_it_is(tmp_path: Path) -> None:
    lean = runs.make(tmp_path, "qwen2_vl", parts__projector={"train": "frozen"})
    runs.attached(lean).save_pretrained(tmp_path / "adapter")
    both = runs.attached(runs.make(tmp_path, "qwen2_vl", init_adapter=str(tmp_path / "adapter")))
    assert any(p.requires_grad for n, p in both.named_parameters() if "merger" in n)


@pytest.mark.parametrize("quantization", [None, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}], ids=str)
def test_bf16_without_pefts_casts_is_bf16_with_them(tmp_path: Path, quantization: dict[str, Any] | None) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl", train__bf16=True, quantization=quantization)
    model = runs.attached(recipe)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    batch = runs.batch(recipe, mixture.load(recipe.data).train[:6])
    passes = []
    for casts in (False, True):
        for layer in layers:
            layer.cast_input_dtype_enabled = casts
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = token_losses(model, batch)
        losses.mean().backward()
        passes.append([losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(passes[0]) == len(passes[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])  # whose quantised layers have biases, and have none
def test_an_evaluation_leaves_the_gradients_of_a_4_bit_base_as_they_are(tmp_path: Path, family: str) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes by itself packs what is evaluated, and no gradient passes it again."""
    recipe = runs.make(tmp_path, family, quantization=NF4)
    model = runs.attached(recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = runs.batch(recipe, mixture.load(recipe.data).train[:4])

    def gradients() -> dict[str, torch.Tensor | None]:
        model.train()
        model.zero_grad()
        token_losses(model, batch)[0].mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    before = gradients()
    model.eval()
    with torch.no_grad():
        token_losses(model, batch)
    after = gradients()
    for (name, expected), gradient in zip(before.items(), after.values(), strict=True):
        assert expected is not None, name
        assert gradient is not None, name
        assert torch.equal(gradient, expected), name
