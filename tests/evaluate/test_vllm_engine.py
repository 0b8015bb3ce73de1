"""vLLM's part, against a stand-in for it that decodes with the tiny base: the same prompts, rows and format.

The library itself needs a GPU and has never been run here.
"""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import runs, tiny
from skinvl.evaluate import generate, vllm_engine
from skinvl.model import infer
from skinvl.model.chat import Chat
from skinvl.model.loaded import load_model
from skinvl.recipe import run
from skinvl.recipe.recipe import Recipe
from skinvl.score import predictions
from skinvl.score.predictions import Answer
from skinvl.train import sft


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@dataclass
class Said:
    token_ids: list[int]
    finish_reason: str


@dataclass
class Output:
    prompt_token_ids: list[int]
    outputs: list[Said]


def standing_in(monkeypatch: pytest.MonkeyPatch, one: Recipe, drop: int = 0) -> list[dict[str, Any]]:
    """What vLLM was started with and asked for; its `drop` last prompt tokens get lost."""
    calls: list[dict[str, Any]] = []
    chat, theirs = runs.chat(one), tiny.model("qwen2_vl")

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.append(settings)

        def generate(self, prompts: Any, params: Any, lora_request: Any, use_tqdm: bool) -> list[Output]:
            calls.append({"prompts": prompts, "params": params, "lora": lora_request})
            return [self._one(prompt, one) for prompt, one in zip(prompts, params, strict=True)]

        def _one(self, prompt: Any, params: dict[str, Any]) -> Output:
            images = prompt.get("multi_modal_data", {}).get("image", [])
            pictures = iter([chat.picture((image.height, image.width)) for image in images])
            ids: list[int] = []
            for token in prompt["prompt_token_ids"]:
                ids += [token] * next(pictures).text_tokens if token == chat.image_id else [token]
            row = torch.tensor([ids])
            batch = chat.family.batch(chat.processor, row, [images], chat.image_arguments)
            made = theirs.generate(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                **batch,
                max_new_tokens=params["max_tokens"],
                do_sample=False,
                eos_token_id=params["stop_token_ids"],
            )[0, len(ids) :].tolist()
            ended = made[-1] in params["stop_token_ids"]
            return Output(ids[: len(ids) - drop], [Said(made, "stop" if ended else "length")])

    module, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = LLM, dict  # type: ignore[attr-defined]
    lora.LoRARequest = lambda *given: given  # type: ignore[attr-defined]
    for name, found in (("vllm", module), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", lora)):
        monkeypatch.setitem(sys.modules, name, found)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "vllm" else version(name))
    return calls


def made(tmp_path: Path, **changes: Any) -> Recipe:
    few = {"evaluate__generation": {"max_new_tokens": 8}, "evaluate__batch_size": 4, "evaluate__control_rows": 0}
    return runs.make(tmp_path, "qwen2_vl", **few, **changes)


def test_its_rows_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path)
    (tmp_path / "drawn" / "images" / "test-2.png").unlink()
    generate.generate_sets(one, tmp_path / "plain")
    calls = standing_in(monkeypatch, one)
    other = one.model_copy(update={"evaluate": one.evaluate.model_copy(update={"engine": "vllm"})})
    generate.generate_sets(other, tmp_path / "vllm")
    (settings, first), (beside, second) = (
        predictions.read(tmp_path / name / "eval" / "answers" / "drawn.jsonl", Answer) for name in ("plain", "vllm")
    )
    assert second == first
    assert (settings["engine"], beside["engine"], beside["vllm"]) == ("transformers", "vllm", "0")
    start = calls[0]
    assert start["mm_processor_kwargs"] == runs.chat(one).image_arguments
    assert start["enable_lora"] is False
    assert calls[1]["params"][0]["temperature"] == 0.0
    chat: Chat = runs.chat(one)
    assert set(calls[1]["params"][0]["stop_token_ids"]) == infer.stops(load_model(one, torch.device("cpu")).model, chat)
    assert all(prompt["prompt_token_ids"].count(chat.image_id) == 1 for prompt in calls[1]["prompts"])


def test_other_tokens_than_were_trained_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path, evaluate__engine="vllm")
    standing_in(monkeypatch, one, drop=1)
    with pytest.raises(vllm_engine.EngineError, match=r"drawn/test-0-0: vLLM asked \d+ tokens, other than the \d+"):
        generate.generate_sets(one, tmp_path / "out")


def test_an_adapter_of_the_language_model_is_served_and_any_other_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(tmp_path, parts__projector={"train": "frozen"})
    sft.train(one)
    path = run.folder(one)
    calls = standing_in(monkeypatch, one)
    generate.generate_sets(*run.evaluated(str(path), ["evaluate.engine=vllm"]))
    assert calls[0]["enable_lora"] is True
    assert calls[0]["max_lora_rank"] == 8  # the least that vLLM takes which holds 4
    assert calls[1]["lora"] == ("run", 1, str(path / "adapter"))
    full, _ = run.evaluated(str(path), ["evaluate.engine=vllm"])
    parts = full.parts.model_copy(update={"projector": full.parts.projector.model_copy(update={"train": "full"})})
    with pytest.raises(vllm_engine.EngineError, match=r"parts\.projector is trained too"):
        vllm_engine.Vllm(full.model_copy(update={"parts": parts}))


def test_an_adapter_that_an_earlier_transformers_named_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(tmp_path, parts__projector={"train": "frozen"}, evaluate__engine="vllm")
    saved = tmp_path / "adapter"
    runs.attached(one).save_pretrained(saved)
    again = one.model_copy(update={"init_adapter": str(saved)})
    standing_in(monkeypatch, one)
    vllm_engine.Vllm(again)
    weights = load_file(saved / "adapter_model.safetensors")
    earlier = {key.replace(".language_model.", "."): value for key, value in weights.items()}
    save_file(earlier, saved / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(vllm_engine.EngineError, match=r"names of an earlier transformers, .*engine=transformers"):
        vllm_engine.Vllm(again)


def test_its_absence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(vllm_engine.EngineError, match=r"cannot be imported .*pip install 'skinvl\[vllm\]'"):
        generate.generate_sets(made(tmp_path, evaluate__engine="vllm"), tmp_path / "out")
