"""A base is what its config says, and runs the kernel that is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from skinvl.model import families
from skinvl.model.base import ModelError, attention_kernel, blank_model, count_parameters, read_config


def test_parameter_counts_are_the_published_ones(shared: Path) -> None:
    golden = json.loads((shared / "configs" / "golden_parameter_counts.json").read_text())
    for name, expected in golden.items():
        assert count_parameters(blank_model(AutoConfig.from_pretrained(shared / "configs" / name))) == expected


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flash_attention_3"])
def test_a_kernel_that_is_not_there_is_refused(wanted: str) -> None:
    for name, reason in {"mllama": "no flash-attention path", "qwen2_vl": "no CUDA device"}.items():
        with pytest.raises(ModelError, match=rf"attention={wanted}: .*{reason}.*attention=auto"):
            attention_kernel(wanted, families.load(name))
    assert attention_kernel("auto", families.load("qwen2_vl")) == "sdpa"
    assert attention_kernel("eager", families.load("mllama")) == "eager"


def test_a_family_without_a_file_says_which_to_write(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    with pytest.raises(ValueError, match=r"write skinvl/model/families/llava_next\.py"):
        read_config(tmp_path)
