"""A merged weight is PEFT's own merge, on the weights that were trained on, under the names of the base's own files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from helpers import merges, runs, tiny
from skinvl.model.adapter import AdapterError
from skinvl.model.base import blank_model, load_base
from skinvl.model.names import of_base
from skinvl.release import merging
from skinvl.release.merging import Merging, MergingError

FAMILIES = [pytest.param(name, marks=[] if name == "qwen2_vl" else pytest.mark.slow) for name in tiny.FAMILIES]
OTHERS = [name for name in tiny.FAMILIES if name != "qwen2_vl"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"parts__vision": {"train": "full"}},
    "rslora": {"lora__use_rslora": True, "train__bf16": True},
    "dora": {"lora__use_dora": True},
    "pissa": {"lora__init_lora_weights": "pissa", "lora__use_rslora": True},
}

MERGED = [
    *(pytest.param("qwen2_vl", kind, marks=[] if kind == "lora" else pytest.mark.slow) for kind in KINDS),
    *(pytest.param(name, kind, marks=pytest.mark.slow) for name in OTHERS for kind in ("lora", "full")),
]
STORED = {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}  # fp4, packed into bf16
QUANTISED = [
    ("qwen2_vl", merges.NF4, True),
    *(
        pytest.param("qwen2_vl", bits, bf16, marks=pytest.mark.slow)
        for bits, bf16 in ((merges.NF4, False), (STORED, True))
    ),
    *(pytest.param(name, merges.NF4, True, marks=pytest.mark.slow) for name in OTHERS),
]


def blank(base: Path) -> Any:
    return blank_model(AutoConfig.from_pretrained(base))


def merged(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a run after PEFT has merged the whole model, float32."""
    recipe = merges.asked(path)
    bare = AutoModelForImageTextToText.from_pretrained(recipe.base.location, dtype=torch.float32)
    whole: Any = PeftModel.from_pretrained(bare, str(path / "adapter"))
    weights: dict[str, torch.Tensor] = whole.merge_and_unload().state_dict()
    return weights


@pytest.mark.parametrize(("family", "kind"), MERGED)
def test_merging_is_pefts_own_merge(tmp_path: Path, family: str, kind: str) -> None:
    parts = {} if kind == "full" else {"parts": merges.everywhere(family)}
    path = merges.made(tmp_path, family, **parts, **KINDS[kind])
    merge = merges.prepared(path)
    ours, expected = dict(merge.tensors("bf16")), merged(path)
    model = AutoModelForImageTextToText.from_pretrained(tiny.base(family), dtype=torch.float32)
    bare = model.state_dict()
    assert expected.keys() - ours.keys() <= {"lm_head.weight"}  # where it is the embedding
    assert merge.keys == len(load_file(path / "adapter" / "adapter_model.safetensors"))
    changed = [name for name in ours if not torch.equal(ours[name].float(), bare[name])]
    trained = [name for name, _ in model.named_parameters() if name in merge.full]  # PEFT saves buffers beside them
    assert len(changed) == len(merge.layers) + len(trained) > 20
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.float(), expected[name], atol=2e-6, rtol=1e-6, msg=name)


def test_a_wrong_scale_is_not_pefts_merge(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    merge = merges.prepared(path)
    merge.lora.lora_alpha *= 1.01
    expected = merged(path)
    assert max(float((tensor.float() - expected[name]).abs().max()) for name, tensor in merge.tensors("bf16")) > 1e-4


def test_biases_of_lora_are_merged_into_those_of_the_base(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl", parts={"vision": {"train": "lora"}}, lora__lora_bias=True)
    merge, expected = merges.prepared(path), merged(path)
    assert all("lora_B.bias" in keys for keys in merge.layers.values())
    for name, tensor in merge.tensors("bf16"):
        torch.testing.assert_close(tensor.float(), expected[name], atol=2e-6, rtol=1e-6, msg=name)
    message = "lora_bias=true: .*down_proj has no bias in the base that a trained one could go into"
    with pytest.raises(MergingError, match=message):
        merges.prepared(merges.made(tmp_path, "qwen2_vl", name="none", lora__lora_bias=True))


def test_a_base_is_merged_into_as_it_was_trained_on(tmp_path: Path) -> None:
    base = merges.sharded(tiny.base("qwen2_vl"), tmp_path / "base", dtype=torch.float32)
    for file in base.glob("*.safetensors"):
        tensors = {name: tensor * (1 + 1e-3 * torch.rand_like(tensor)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    paths = [merges.made(tmp_path, "qwen2_vl", base=base, name=str(bf16), train__bf16=bf16) for bf16 in (True, False)]
    file = Path("adapter") / "adapter_model.safetensors"
    shutil.copy(paths[0] / file, paths[1] / file)
    coarse, fine = map(merges.prepared, paths)
    stored = {tensor.parameter: load_file(base / tensor.file)[tensor.name] for tensor in fine.stored}
    layers = {f"{name}.weight" for name in fine.layers}
    for (name, rounded), (_, exact) in zip(coarse.tensors("bf16"), fine.tensors("bf16"), strict=True):
        assert rounded.dtype == (torch.float32 if name in layers or name in fine.full else torch.bfloat16)
        if name not in fine.full:
            assert name not in layers or not torch.equal(rounded, exact)
            expected = stored[name].bfloat16().float() + (exact - stored[name])
            torch.testing.assert_close(rounded.float(), expected, atol=2e-6, rtol=1e-6)


@pytest.mark.slow
def test_pissa_starts_from_the_precision_that_was_trained_in(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl", lora__init_lora_weights="pissa", train__bf16=True)
    trained = runs.attached(merges.asked(path))
    layers = {name: layer for name, layer in trained.named_modules() if hasattr(layer, "lora_A")}
    ours = dict(merges.prepared(path).tensors("bf16"))
    for name, layer in layers.items():
        residual = layer.get_base_layer().weight
        assert residual.dtype == torch.bfloat16
        expected = residual.float() + layer.get_delta_weight("default")
        torch.testing.assert_close(ours[f"{name.removeprefix('base_model.model.')}.weight"], expected)


@pytest.mark.parametrize(("family", "bits", "bf16"), QUANTISED)
def test_what_is_dequantised_is_what_was_trained_on(
    tmp_path: Path, family: str, bits: dict[str, Any], bf16: bool
) -> None:
    path = merges.made(tmp_path, family, quantization=bits, train__bf16=bf16)
    recipe = merges.asked(path)
    merge = merges.prepared(path)
    merge.layers.clear()
    merge.full.clear()
    dequantised, plain = dict(merge.tensors("dequantized")), dict(merge.tensors("bf16"))
    loaded = load_base(merge.base, merge.family, recipe)
    layers = {name: layer for name, layer in loaded.named_modules() if type(layer).__name__ == "Linear4bit"}
    assert layers.keys() == merge.quantised.keys()
    assert len(layers) >= 28
    for name, layer in layers.items():
        state: Any = layer.weight.quant_state
        state.dtype = torch.float32
        expected = merging.dequantize_4bit(layer.weight.data, state)
        assert torch.equal(dequantised[f"{name}.weight"], expected), name
        assert not torch.equal(plain[f"{name}.weight"].float(), expected)
    same = [name for name in dequantised if name.removesuffix(".weight") not in layers]
    assert same
    assert all(torch.equal(dequantised[name], plain[name]) for name in same)


@pytest.mark.parametrize("family", FAMILIES)
def test_old_and_new_names_one_file_or_many_give_the_same_tensors(tmp_path: Path, family: str) -> None:
    old = tiny.base(family)
    new = merges.sharded(old, tmp_path / "new", new_names=True)
    names = [{tensor.name for tensor in merging.stored(base, blank(base))} for base in (old, new)]
    assert names[0] != names[1] or family in ("gemma4", "qwen3_5", "qwen3_vl")
    path = merges.made(tmp_path, family)
    other = merges.made(tmp_path, family, base=new, name="other")
    shutil.copy(path / "adapter" / "adapter_model.safetensors", other / "adapter")
    first, second = dict(merges.prepared(path).tensors("bf16")), dict(merges.prepared(other).tensors("bf16"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    out = tmp_path / "out"
    out.mkdir()
    merges.prepared(other).write(out, "bf16")
    index = json.loads((out / merging.INDEX).read_text())
    assert index["weight_map"] == json.loads((new / merging.INDEX).read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in out.glob("*.safetensors") for tensor in load_file(file).values()
    )
    assert {path.name for path in out.iterdir()} == {path.name for path in new.glob("model*")}


def test_published_names_are_those_of_the_model(shared: Path) -> None:
    base = shared / "configs" / "qwen2.5-vl-7b-instruct"
    names = list(json.loads((base / merging.INDEX).read_text())["weight_map"])
    bare = blank(base)
    parameters = of_base(names, bare)
    assert parameters["visual.blocks.0.attn.qkv.weight"] == "model.visual.blocks.0.attn.qkv.weight"
    assert parameters["model.layers.3.mlp.up_proj.weight"] == "model.language_model.layers.3.mlp.up_proj.weight"
    assert len(names) == len(parameters) == len(set(parameters.values())) == 729
    assert set(parameters.values()) == bare.state_dict().keys()


def test_written_files_are_plain_safetensors_in_bf16(tmp_path: Path) -> None:
    base = merges.sharded(tiny.base("qwen2_vl"), tmp_path / "base", dtype=torch.float32)
    file = next(iter(sorted(base.glob("*.safetensors"))))
    counted = {**load_file(file), "odd": torch.arange(5), "flags": torch.tensor([True, False, True])}
    save_file(counted, file, {"format": "pt"})
    index = json.loads((base / merging.INDEX).read_text())
    index["weight_map"] |= {"odd": file.name, "flags": file.name}
    assert index["metadata"]["total_size"] > 4_000_000
    (base / merging.INDEX).write_text(json.dumps(index))
    path = merges.made(tmp_path, "qwen2_vl", base=base)
    merge = merges.prepared(path)
    out = tmp_path / "out"
    out.mkdir()
    merge.write(out, "bf16")
    expected = dict(merge.tensors("bf16"))
    seen = {}
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
        assert load_file(file).keys() == load_file(base / file.name).keys()
        seen |= load_file(file)
        header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
        sizes = {"BF16": 2, "I64": 8, "BOOL": 1}
        assert all(
            tensor["data_offsets"][0] % sizes[tensor["dtype"]] == 0
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    total = json.loads((out / merging.INDEX).read_text())["metadata"]["total_size"]
    assert total == merge.bytes == sum(tensor.nbytes for tensor in seen.values())
    assert torch.equal(seen.pop("odd"), torch.arange(5))
    assert torch.equal(seen.pop("flags"), torch.tensor([True, False, True]))
    names = {tensor.name: tensor.parameter for tensor in merge.stored}
    assert names["odd"] is None
    for name, tensor in seen.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[names[name]].bfloat16())


def test_an_adapter_that_is_not_of_this_base_is_refused(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    file = path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    first = next(name for name in whole if "lora_A" in name)

    def refused(tensors: dict[str, torch.Tensor], error: type[ValueError], message: str) -> None:
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(error, match=message):
            dict(merges.prepared(path).tensors("bf16"))

    strange = {re.sub(r"layers\.0", "layers.9", name): value for name, value in whole.items()}
    refused(strange, MergingError, r"14 of its 62 weights have no place in .*first: .*layers\.9")
    full = next(name for name in whole if "lora" not in name)
    refused({**whole, full: torch.zeros(3)}, MergingError, r"1 of its 62 weights have no place .*\(3,\)")
    refused(
        {name: tensor for name, tensor in whole.items() if name != first},
        MergingError,
        r"has lora_A and lora_B \(None, ",
    )
    refused({**whole, first: whole[first][:, 1:].contiguous()}, MergingError, r"has lora_A and lora_B .*expected")
    refused({**whole, first: whole[first] * torch.nan}, MergingError, "holds a number that is not finite")
    layer = first.split("lora_A")[0]
    lost = {name: tensor for name, tensor in whole.items() if not name.startswith(layer)}
    refused(lost, AdapterError, r"2 of 62 trained weights are not in the adapter")
    lost = {name: tensor for name, tensor in whole.items() if name != full}
    refused(lost, AdapterError, r"1 of 62 trained weights are not in the adapter")


def test_a_base_whose_files_are_not_what_they_say_is_refused(tmp_path: Path) -> None:
    base = merges.sharded(tiny.base("qwen2_vl"), tmp_path / "base")
    bare = blank(base)
    index = json.loads((base / merging.INDEX).read_text())
    name = next(iter(index["weight_map"]))
    wrong = {**index, "weight_map": {**index["weight_map"], name: "model-00003-of-00003.safetensors"}}
    (base / merging.INDEX).write_text(json.dumps(wrong))
    with pytest.raises(MergingError, match=rf"says that {re.escape(name)} is in model-00003.*; it is not"):
        merging.stored(base, bare)
    (base / merging.INDEX).write_text(json.dumps(index))
    file = base / "model-00002-of-00003.safetensors"
    tensors = load_file(file)
    save_file({**tensors, next(iter(tensors)): torch.zeros(3).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(MergingError, match="is F8_E4M3, quantised"):
        merging.stored(base, bare)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(MergingError, match=r"model-00002.*: damaged"):
        merging.stored(base, bare)
    file.unlink()
    with pytest.raises(MergingError, match=r"model-00002.*: no such file"):
        merging.stored(base, bare)


def test_a_base_that_is_stored_in_4_bits_is_refused(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    base = Path(shutil.copytree(tiny.base("qwen2_vl"), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergingError, match="its weights are stored quantised"):
        Merging(base, path / "adapter", merges.asked(path), merges.CPU)


# What is freed is given back, so that the peak is what was needed at once.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
PEAK = """
import sys
from pathlib import Path
from helpers import merges
import torch
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
torch.set_num_threads(1)
merge = merges.prepared(Path(sys.argv[1]))
before = peak()
merge.write(Path(sys.argv[2]), "bf16")
print(before, peak())
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_near_one_shard(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny.base("qwen2_vl"))
    config.text_config.hidden_size = config.vision_config.hidden_size = 1024
    config.text_config.intermediate_size, config.text_config.num_hidden_layers = 4096, 18
    config.text_config.num_attention_heads = 32
    config.text_config.layer_types = ["full_attention"] * 18
    base = Path(shutil.copytree(tiny.base("qwen2_vl"), tmp_path / "base"))
    (base / "model.safetensors").unlink()
    large = blank_model(config).bfloat16().to_empty(device="cpu")
    for parameter in large.parameters():
        parameter.data.fill_(0.01)
    large.save_pretrained(base, max_shard_size="128MB")
    path = merges.made(tmp_path, "qwen2_vl", base=base)
    (tmp_path / "out").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")],
        cwd=Path(__file__).parents[1], env={**os.environ, **EXACT}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    shards = [file.stat().st_size // 2**20 for file in base.glob("*.safetensors")]
    before, after = (int(word) for word in run.stdout.split()[-2:])
    assert len(shards) >= 4
    # The pages of a shard, some copies of a tensor, and the code of the libraries that run for the first time.
    assert after - before < 2 * max(shards) < sum(shards) * 0.6, (before, after, shards)
