"""The merge check lets a merge through that is base + adapter, and stops one that is anything else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import merges, tiny
from skinvl.model.loaded import load_model, open_with_adapter
from skinvl.release import merge_check
from skinvl.release.merge_check import MergeCheck, MergeCheckError
from skinvl.release.merging import Merging, Onto


def checked(path: Path, onto: Onto = "bf16", spoil: Callable[[Merging], object] | None = None) -> MergeCheck:
    """The verdict on a run's merge, written by a merging that was spoilt."""
    one = merges.asked(path)
    merging = merges.prepared(path)
    if spoil is not None:
        spoil(merging)
    out = path / "merged"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(merging.base / name, out)
    merging.write(out, onto)
    return merge_check.check(merging, out, one, onto, merge_check.examples(one, open_with_adapter(one).chat))


def scaled(merging: Merging) -> None:
    merging.lora.lora_alpha *= 1.01


def dropped(merging: Merging) -> None:
    merging.layers.pop(next(iter(merging.layers)))


def permuted(merging: Merging) -> None:
    names = [name for name in merging.layers if name.endswith("layers.0.self_attn.q_proj")]
    names += [name for name in merging.layers if name.endswith("layers.3.self_attn.q_proj")]
    first, last = names
    merging.layers[first], merging.layers[last] = merging.layers[last], merging.layers[first]


def unprojected(merging: Merging) -> None:
    merging.full.pop(next(name for name in merging.full if name.endswith("weight")))


SPOILT = [
    pytest.param(family, spoil, marks=[] if (family, spoil) == ("qwen2_vl", scaled) else pytest.mark.slow)
    for family in ("qwen2_vl", "mllama")
    for spoil in (scaled, dropped, permuted, unprojected)
]


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "qwen2_vl" else pytest.mark.slow) for name in tiny.FAMILIES],
)
def test_a_true_merge_passes(tmp_path: Path, family: str) -> None:
    found = checked(merges.made(tmp_path, family))
    assert found.exact.max < found.tolerance / 20
    assert found.exact.argmax_agreement == 1
    assert found.exact.max < found.rounded.max / 100
    assert found.drift == {"bf16": found.rounded}
    assert found.examples == 3
    assert found.positions >= 6


@pytest.mark.parametrize(("family", "spoil"), SPOILT)
def test_a_spoilt_merge_does_not_pass(tmp_path: Path, family: str, spoil: Callable[[Merging], None]) -> None:
    with pytest.raises(MergeCheckError, match="are not those of base") as told:
        checked(merges.made(tmp_path, family), spoil=spoil)
    found, allowed = (float(number) for number in re.findall(r"up to (\S+) .* at most (\S+)\.", str(told.value))[0])
    assert found > 10 * allowed


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2_vl", {}),
        *(
            (name, {"lora__use_dora": True, "parts": merges.everywhere(name), "train__bf16": True})
            for name in tiny.FAMILIES
        ),
    ],
)
@pytest.mark.slow
def test_the_dequantised_base_is_the_one_that_was_trained_on(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    path = merges.made(tmp_path, family, quantization=merges.NF4, **changes)
    found = {onto: checked(path, onto) for onto in ("dequantized", "bf16")}
    allowed = 0.5 if family == "gemma4" else 0.1  # what rounding does to a model that makes the most of it
    for onto, verdict in found.items():
        assert verdict.exact.max < verdict.tolerance / 10, onto
        assert verdict.drift["dequantized"].kl * 100 < verdict.drift["bf16"].kl
        assert verdict.drift["dequantized"].max < allowed < verdict.drift["bf16"].max
    assert found["dequantized"].rounded == found["dequantized"].drift["dequantized"]
    assert found["bf16"].rounded != found["bf16"].drift["bf16"]
    assert found["bf16"].drift["bf16"].max == pytest.approx(found["dequantized"].drift["bf16"].max, rel=0.01)


@pytest.mark.slow
def test_bits_of_other_settings_are_not_those_that_were_trained_on(tmp_path: Path) -> None:
    def other(merging: Merging) -> None:
        for layer in merging.quantised.values():
            layer.weight.compress_statistics = False

    with pytest.raises(MergeCheckError, match="are not those of base"):
        checked(merges.made(tmp_path, "qwen2_vl", quantization=merges.NF4), "dequantized", other)


def test_files_that_hold_anything_but_the_folded_weights_are_seen(tmp_path: Path, monkeypatch: Any) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    write = Merging.write

    def one_bit(self: Merging, out: Path, onto: Onto) -> None:
        write(self, out, onto)
        tensors = load_file(out / "model.safetensors")
        tensors["visual.blocks.1.mlp.fc1.weight"][5, 7] *= 1.01
        save_file(tensors, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(Merging, "write", one_bit)
    with pytest.raises(MergeCheckError, match=r"model\.visual\.blocks\.1\.mlp\.fc1\.weight is not the merged weight"):
        checked(path)


@pytest.mark.slow
def test_an_adapter_that_bf16_cannot_hold_is_stopped(tmp_path: Path) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    file = path / "adapter" / "adapter_model.safetensors"
    # A projector of small differences around a great number: in float32 it passes, in bf16 it is another one.
    tensors = load_file(file)
    for name in tensors:
        if "merger" in name and name.endswith(("mlp.0.weight", "mlp.0.bias")):
            tensors[name] += 64
        if "merger" in name and name.endswith("mlp.2.weight"):
            tensors[name] -= tensors[name].mean(-1, keepdim=True)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MergeCheckError, match=r"bf16 cannot hold the merged weights: rounding them costs .* nats"):
        checked(path)


def test_examples_are_of_the_eval_set_and_show_other_images(tmp_path: Path) -> None:
    one = merges.asked(merges.made(tmp_path, "qwen2_vl"))
    chat = open_with_adapter(one).chat
    rows = merge_check.examples(one, chat)
    assert [row.example.id for row in rows] == ["test-0-0", "test-1-0", "test-2-0"]
    trained = one.model_copy(update={"data": one.data.model_copy(update={"eval": []})})
    assert [row.example.split for row in merge_check.examples(trained, chat)] == ["train"] * 8
    asked = load_model(one, merges.CPU)
    right = merge_check.supervised_logits(asked.model, asked.collator, rows)
    images = [row.example.images for row in rows]
    others = [
        replace(row, example=replace(row.example, images=image))
        for row, image in zip(rows, images[1:] + images[:1], strict=True)
    ]
    assert (
        merge_check.compare(right, merge_check.supervised_logits(asked.model, asked.collator, others)).max > 0.1
    )  # images are looked at
    (rows[0].root / rows[0].example.images[0]).unlink()
    assert [row.example.id for row in merge_check.examples(one, chat)] == ["test-1-0", "test-2-0"]
    for row in rows[1:]:
        (row.root / row.example.images[0]).unlink()
    with pytest.raises(MergeCheckError, match=r"no conversation of .*drawn to show \(.*--unchecked"):
        merge_check.examples(one, chat)
    shutil.rmtree(rows[0].root)
    with pytest.raises(MergeCheckError, match="--unchecked"):
        merge_check.examples(one, chat)


def test_only_the_first_supervised_positions_are_compared(tmp_path: Path, monkeypatch: Any) -> None:
    one = merges.asked(merges.made(tmp_path, "qwen2_vl"))
    asked = load_model(one, merges.CPU)
    rows = merge_check.examples(one, asked.chat)
    whole = merge_check.supervised_logits(asked.model, asked.collator, rows)
    monkeypatch.setattr(merge_check, "POSITIONS", 1)
    cut = merge_check.supervised_logits(asked.model, asked.collator, rows)
    assert [len(one) for one in cut] == [1, 1, 1]
    for one, first in zip(whole, cut, strict=True):
        assert len(one) > 1
        torch.testing.assert_close(one[:1], first, atol=1e-5, rtol=1e-5)


def test_drift_is_counted_over_all_positions() -> None:
    right = [torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])]
    found = [torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[2.0, 4.0, 0.0], [0.0, 0.0, 3.0]])]
    drift = merge_check.compare(right, found)
    assert drift.max == 4
    assert drift.mean == pytest.approx(4.5 / 9)
    assert drift.argmax_agreement == pytest.approx(2 / 3)
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor]] = zip(torch.cat(right), torch.cat(found), strict=True)
    expected = [float((p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum()) for p, q in pairs]
    assert drift.kl == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert merge_check.compare(right, right) == merge_check.Drift(0, 0, 1, 0)
