"""The door to a base: what it is opened with, alone and under an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoProcessor

from helpers import runs, tiny
from skinvl.model.adapter import AdapterError
from skinvl.model.hub import BaseError
from skinvl.model.loaded import open_base, open_with_adapter

TEMPLATE = "{# of the adapter #}{% for message in messages %}{{ message['role'] }}{% endfor %}"


def adapter(folder: Path, template: str | None) -> Path:
    """The folder of an adapter as far as it is read before the weights, with a template of its own if one is given."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    if template is not None:
        processor = AutoProcessor.from_pretrained(tiny.base("qwen2_vl"))
        processor.chat_template = processor.tokenizer.chat_template = template
        processor.save_pretrained(folder)
    return folder


def test_a_base_is_opened_within_the_budget_of_its_recipe(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    base = open_base(one)
    assert (base.path, base.files.commit, base.adapter) == (tiny.base("qwen2_vl"), None, None)
    assert (base.config.model_type, base.family.model_type) == ("qwen2_vl", "qwen2_vl")
    assert base.chat.picture((4096, 4096)).text_tokens <= one.data.image_tokens == 16
    assert (base.facts["base"]["model"], base.facts["adapter"]) == (one.base.location, None)


def test_an_adapter_brings_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    own = adapter(tmp_path / "own", TEMPLATE)
    base = open_with_adapter(one.model_copy(update={"init_adapter": str(own)}))
    assert (base.adapter, base.chat.template) == (own, TEMPLATE)
    assert base.path == tiny.base("qwen2_vl")
    assert len(base.facts["adapter"]) == 32
    bare = open_with_adapter(one.model_copy(update={"init_adapter": str(adapter(tmp_path / "bare", None))}))
    assert bare.chat.template == open_base(one).chat.template != TEMPLATE
    assert bare.facts["template"] != base.facts["template"]
    assert bare.facts["adapter"] == base.facts["adapter"]


def test_an_adapter_of_other_settings_is_not_asked(tmp_path: Path) -> None:
    own = adapter(tmp_path / "own", None)
    one = runs.make(tmp_path, "qwen2_vl", init_adapter=str(own), lora__lora_alpha=64)
    with pytest.raises(AdapterError, match="made with lora_alpha=8, the recipe has 64"):
        open_with_adapter(one)


def test_training_opens_a_base_as_it_was_published(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", init_adapter=str(adapter(tmp_path / "own", TEMPLATE)))
    base = open_base(one)
    assert base.adapter is None
    assert base.chat.template != TEMPLATE
    assert base.facts["adapter"] is None


def test_an_adapter_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = runs.make(tmp_path, "qwen2_vl").model_copy(update={"init_adapter": str(tmp_path / "empty")})
    with pytest.raises(BaseError, match=r"init_adapter .*the folder has no adapter_config\.json"):
        open_with_adapter(one)
