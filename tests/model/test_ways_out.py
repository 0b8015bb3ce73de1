"""What merging, vLLM and the public hub cannot take of a training is said before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import runs
from skinvl.model import ways_out
from skinvl.model.base import blank_model, read_config
from skinvl.model.ways_out import WayOutError
from skinvl.plan import dry
from skinvl.train import sft

FROZEN = {"parts__projector": {"train": "frozen"}}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def ahead(tmp_path: Path, **changes: Any) -> list[str]:
    recipe = runs.make(tmp_path, "qwen2_vl", **changes)
    config, family = read_config(Path(recipe.base.location))
    return ways_out.ahead(blank_model(config), family, recipe)


@pytest.mark.parametrize("quantization", [None, NF4], ids=["bf16", "nf4"])
def test_what_no_way_out_takes_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: dict[str, Any] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = runs.make(tmp_path, "qwen2_vl", quantization=quantization, lora__lora_bias=True)
    for begin in (lambda: dry.show(recipe, None), lambda: sft.train(recipe)):
        with pytest.raises(WayOutError, match=r"lora_bias=true: .*down_proj has no bias.*skinvl merge.*nor does vLLM"):
            begin()


def test_what_a_single_way_out_will_refuse_is_one_line(tmp_path: Path) -> None:
    unknown = "skinvl publish will refuse --public: the base has terms that are not known (none stated)"
    assert ahead(tmp_path, **FROZEN) == [unknown]
    line, last = ahead(tmp_path, **FROZEN, lora__use_dora=True)
    assert line == "vLLM will not take this adapter as it is, but merged: lora.use_dora=true, which vLLM does not take"
    assert last == unknown
    assert "parts.projector is trained too" in ahead(tmp_path)[0]
    assert "in 4 bits" in ahead(tmp_path, **FROZEN, quantization=NF4)[0]
    assert "at most 512" in ahead(tmp_path, **FROZEN, lora__r=1024)[0]

    # Where every adapted layer has a bias of its own, what is trained can be merged.
    vision = {"parts": {"vision": {"train": "lora"}}, "lora__lora_bias": True}
    assert [line.split(":")[0] for line in ahead(tmp_path, **vision)] == [
        "vLLM will not take this adapter as it is, but merged",
        "skinvl publish will refuse --public",
    ]
