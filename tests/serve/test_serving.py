"""What an engine is given makes of words and images what training made of them, and its command says the rest."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import AutoProcessor, GenerationConfig
from transformers.image_utils import load_image

from helpers import provenances, runs, tiny
from skinvl.data.example import Example, Message, text
from skinvl.model import families
from skinvl.model.chat import Chat
from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import Generation, Recipe, dump
from skinvl.recipe.run import RunError, adapter_digest
from skinvl.serve import serving
from skinvl.serve.serving import ServedModel, ServeError

SIZES = ((300, 900), (360, 640), (60, 90), (56, 57), (400, 20))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def subject(tmp_path: Path, family: str, image_tokens: int = 16, **changes: Any) -> ServedModel:
    """A base as it is, as if it were what was merged."""
    one = runs.make(tmp_path, family, data__image_tokens=image_tokens, **changes)
    return ServedModel("name", one, runs.chat(one), tiny.base(family), None)


def read(processor: Any, url: str) -> Any:
    """What an engine reads of a request: its system turn is a list of parts, its image an address."""
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "Which colour?"}]},
    ]
    return processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def as_trained(given: ServedModel, processor: Any) -> bool:
    """Whether a processor makes the trained ids and image tensors of every size of image."""
    fresh = Chat(tiny.processor(given.chat.family.model_type), given.chat.family, **given.recipe.data.budget)
    turns: tuple[Message, ...] = (text("system", "Be brief."), text("user", "Which colour?", 1), text("assistant", "-"))
    for seed, size in enumerate(SIZES):
        picture, file = tiny.picture(seed, size), io.BytesIO()
        picture.save(file, "PNG")
        told = read(processor, f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
        ids = fresh.prompt(Example("a", "s", ("x",), turns, "g", "none", "none"), [size]).ids
        if told["input_ids"].tolist() != [ids]:
            return False
        ours = fresh.family.batch(fresh.processor, told["input_ids"], [[picture]], fresh.image_arguments)
        if not all(serving.same_but_padding(told[name], tensor) for name, tensor in ours.items()):
            return False
    return True


def test_padding_behind_is_no_difference_and_anything_else_is() -> None:
    ours = torch.arange(6).reshape(1, 3, 2)
    padded = torch.nn.functional.pad(ours, (0, 0, 0, 2), value=-1)
    assert serving.same_but_padding(ours, ours)
    assert serving.same_but_padding(padded, ours)
    assert not serving.same_but_padding(ours, padded)
    assert not serving.same_but_padding(padded.roll(1, 1), ours)
    mixed = padded.clone()
    mixed[0, 3, 0] = 7
    assert not serving.same_but_padding(mixed, ours)
    assert not serving.same_but_padding(ours + 1, ours)


@pytest.mark.parametrize(("family", "image_tokens"), [*((one, 16) for one in tiny.FAMILIES), ("mllama", 4)])
def test_the_folder_reads_as_training_did(tmp_path: Path, family: str, image_tokens: int) -> None:
    given = subject(tmp_path, family, image_tokens)
    folder = serving.view(given, tmp_path / "out")
    coded = (folder / serving.CODE).is_file()
    assert coded or (family, image_tokens) != ("mllama", 4)  # its own processor has no fewer tiles than its tower
    assert as_trained(given, AutoProcessor.from_pretrained(folder, trust_remote_code=coded))
    if family == "qwen2_vl" or image_tokens == 4:
        assert not as_trained(given, AutoProcessor.from_pretrained(tiny.base(family)))


def test_the_budget_does_not_reach_the_chat_that_was_trained_with(tmp_path: Path) -> None:
    given = subject(tmp_path, "qwen2_vl")
    size, before = given.chat.processor.image_processor.size, given.chat.tokenizer.chat_template
    serving.view(given, tmp_path / "out")
    assert given.chat.processor.image_processor.size == size
    assert given.chat.tokenizer.chat_template == given.chat.processor.chat_template == before


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_published_templates_write_a_system_turn_of_parts_as_its_words(shared: Path, family: str) -> None:
    chat = Chat(tiny.real_processor(shared, family), families.load(family), image_tokens=400, max_tokens=512)
    found = serving.template(chat)
    assert (found != chat.template) == (family == "mllama")
    talk = [text("system", "Be brief."), text("user", "Which?"), text("assistant", "Red."), text("user", "Where?")]
    plain = chat.render(talk, generation=True)
    chat.processor.chat_template = chat.tokenizer.chat_template = found
    assert chat.render(talk, generation=True) == plain  # a string stays what it was
    as_parts = chat.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert as_parts == plain


def test_a_template_without_system_turns_stays_as_it_is(tmp_path: Path) -> None:
    chat = subject(tmp_path, "qwen2_vl").chat
    chat.template = chat.processor.chat_template = "{{ messages[0].content }}"
    assert serving.template(chat) == serving.FLATTEN + chat.template
    chat.template = chat.processor.chat_template = "{{ raise_exception('no system turn') }}"
    assert serving.template(chat) == chat.template


def test_weights_are_links_and_an_older_folder_is_replaced(tmp_path: Path) -> None:
    given = subject(tmp_path, "qwen2_vl")
    (tmp_path / "out" / "name").mkdir(parents=True)
    (tmp_path / "out" / "name" / "old.safetensors").touch()
    folder = serving.view(given, tmp_path / "out")
    base = tiny.base("qwen2_vl")
    linked = {file.name: file.readlink() for file in folder.iterdir() if file.is_symlink()}
    assert linked == {name: base.resolve() / name for name in ("config.json", "model.safetensors")}
    assert not (folder / "old.safetensors").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["name"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ServeError, match=r"empty: no \*\.safetensors"):
        serving.view(ServedModel("name", given.recipe, given.chat, empty, None), tmp_path / "out")


def test_a_request_that_says_nothing_is_answered_as_in_the_evaluation(tmp_path: Path) -> None:
    given = subject(tmp_path, "qwen2_vl")
    weights = tmp_path / "weights"
    shutil.copytree(tiny.base("qwen2_vl"), weights)
    theirs = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "eos_token_id": [7, 3]}
    (weights / "generation_config.json").write_text(json.dumps(theirs))
    close = given.chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    greedy = ServedModel("name", given.recipe, given.chat, weights, None)
    found = GenerationConfig.from_pretrained(serving.view(greedy, tmp_path / "out"))
    assert found.to_diff_dict() == {
        "do_sample": False, "eos_token_id": sorted({3, 7, close}), "pad_token_id": given.chat.pad_id,
        "transformers_version": found.transformers_version,
    }  # fmt: skip
    drawing = Generation(do_sample=True, temperature=0.7, top_p=0.9)
    evaluate = given.recipe.evaluate.model_copy(update={"generation": drawing})
    drawn = ServedModel("name", given.recipe.model_copy(update={"evaluate": evaluate}), given.chat, weights, None)
    found = GenerationConfig.from_pretrained(serving.view(drawn, tmp_path / "out"))
    assert (found.do_sample, found.temperature, found.top_p, found.repetition_penalty) == (True, 0.7, 0.9, None)
    assert found.top_k == 0  # as the evaluation draws: of all tokens


def finished(tmp_path: Path, family: str = "qwen2_vl", merged: bool = False, **changes: Any) -> Path:
    """The folder of a run as training leaves it, its weights but a few bytes; the recipe's base is whole."""
    one: Recipe = runs.make(tmp_path, family, **changes)
    path = tmp_path / "runs" / "a run"
    adapter = path / "adapter"
    AutoProcessor.from_pretrained(tiny.base(family)).save_pretrained(adapter)
    LoraConfig(**one.lora).save_pretrained(str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    write_text(path / "recipe.yaml", dump(one))
    provenances.made(base={"model": one.base.location, "model_type": family}).write(path)
    if merged:
        shutil.copytree(tiny.base(family), path / "merged")
        record = {"adapter": adapter_digest(adapter)}
        (path / "merged" / "merge.json").write_text(json.dumps(record))
    return path


FROZEN = {"parts__projector": {"train": "frozen"}}


def test_merged_weights_are_served_where_they_are_there(tmp_path: Path) -> None:
    path = finished(tmp_path, merged=True, quantization={"load_in_4bit": True}, train__bf16=True)
    for engine in ("vllm", "transformers"):
        found = serving.served_model(path, engine)  # type: ignore[arg-type]
        assert (found.name, found.weights, found.adapter) == ("a-run", path / "merged", None)
        assert (found.recipe.base.location, found.recipe.init_adapter) == (str(path / "merged"), None)
        assert found.recipe.quantization is None


def test_an_adapter_is_served_by_vllm_on_its_base(tmp_path: Path) -> None:
    path = finished(tmp_path, **FROZEN)
    found = serving.served_model(path, "vllm")
    assert (found.weights, found.adapter) == (tiny.base("qwen2_vl"), path / "adapter")
    assert found.recipe.init_adapter == str(path / "adapter")


@pytest.mark.parametrize(
    ("engine", "changes", "reason"),
    [
        ("transformers", FROZEN, "transformers serve takes one folder of whole weights"),
        ("vllm", {}, r"parts\.projector is trained too"),
        (
            "vllm",
            {**FROZEN, "parts__language": {"train": "full"}, "parts__vision": {"train": "lora"}},
            r"parts\.language=full",
        ),
        ("vllm", {**FROZEN, "lora__r": 1024}, r"lora\.r=1024, and vLLM takes at most 512"),
        ("vllm", {**FROZEN, "lora__use_dora": True}, r"lora\.use_dora=true, which vLLM does not take"),
        ("vllm", {**FROZEN, "quantization": {"load_in_4bit": True}, "train__bf16": True}, "is trained in 4 bits"),
    ],
)
def test_what_cannot_be_served_says_how_to_merge_it(
    tmp_path: Path, engine: Any, changes: dict[str, Any], reason: str
) -> None:
    path = finished(tmp_path, **changes)
    with pytest.raises(ServeError, match=f"{reason}.*skinvl merge '{path}'"):
        serving.served_model(path, engine)


def test_merged_weights_of_another_adapter_are_refused(tmp_path: Path) -> None:
    path = finished(tmp_path, merged=True)
    (path / "adapter" / "adapter_model.safetensors").write_bytes(b"trained on")
    with pytest.raises(ServeError, match=r"merged: made of another adapter .* make it again with: skinvl merge"):
        serving.served_model(path, "transformers")
    (path / "merged" / "merge.json").unlink()
    with pytest.raises(ServeError, match=r"no merge\.json"):
        serving.served_model(path, "vllm")


def test_no_run_and_what_vllm_has_dropped_are_refused(tmp_path: Path) -> None:
    path = finished(tmp_path, "mllama", merged=True)
    with pytest.raises(ServeError, match=r"vLLM serves no mllama since 0\.11; use --engine transformers"):
        serving.served_model(path, "vllm")
    assert serving.served_model(path, "transformers").weights == path / "merged"
    (path / "env.json").unlink()
    with pytest.raises(RunError, match=r"no run, it has no env\.json: nothing was trained here"):
        serving.served_model(path, "transformers")
    with pytest.raises(RunError, match="no run"):
        serving.served_model(tmp_path / "drawn", "transformers")


def test_the_command_of_transformers(tmp_path: Path) -> None:
    given = subject(tmp_path, "mllama", 4)
    folder = serving.view(given, tmp_path / "my out")
    found = serving.command(given, "transformers", folder, "127.0.0.1", 8001, ["--log-level", "info"])
    assert found.words == (
        *(sys.executable, "-P", "-m", "skinvl.serve.drawing"),
        *("serve", "name", "--host", "127.0.0.1", "--port", "8001", "--dtype", "float32", "--trust-remote-code"),
        *("--log-level", "info"),
    )
    assert found.folder == tmp_path / "my out"
    hub = Path(found.environment["HF_HUB_CACHE"])
    assert hub.is_dir()
    assert not any(hub.iterdir())
    assert found.environment["HF_HUB_OFFLINE"] == found.environment["DO_NOT_TRACK"] == "1"
    assert str(found).startswith(f"cd '{tmp_path}/my out' && HF_HUB_OFFLINE=1 ")
    plain = subject(tmp_path, "mllama", 16, train__bf16=True)
    words = serving.command(plain, "transformers", serving.view(plain, tmp_path), "::1", 8000, ()).words
    assert words[-1] == "bfloat16"


def test_the_command_of_vllm(tmp_path: Path) -> None:
    changes = {"evaluate__generation": {"max_new_tokens": 32}, "data__max_tokens": 100, "train__bf16": True}
    given = subject(tmp_path, "qwen2_vl", **changes)
    found = serving.command(given, "vllm", serving.view(given, tmp_path), "127.0.0.1", 8000, ["--seed", "1"])
    common = (
        *("--host", "127.0.0.1", "--port", "8000", "--dtype", "bfloat16"),
        *("--chat-template", "name/chat_template.jinja", "--chat-template-content-format", "openai"),
        *("--max-model-len", "132", "--limit-mm-per-prompt", '{"image": 6}'),
        *("--mm-processor-kwargs", '{"size": {"shortest_edge": 3136, "longest_edge": 12544}}'),
        *("--override-generation-config", '{"temperature": 0.0}', "--allowed-media-domains", "none.invalid"),
    )
    assert found.words[1:] == ("serve", "name", *common, "--served-model-name", "name", "--seed", "1")
    LoraConfig(r=8, rank_pattern={"q_proj": 33}).save_pretrained(str(tmp_path / "adapter"))
    module = ServedModel("name", given.recipe, given.chat, given.weights, tmp_path / "adapter")
    words = serving.command(module, "vllm", tmp_path / "name", "127.0.0.1", 8000, ()).words
    assert words[1:] == (
        *("serve", "name", *common, "--served-model-name", "name--base", "--enable-lora", "--max-lora-rank", "64"),
        *("--lora-modules", f"name={tmp_path / 'adapter'}"),
    )
    drawing = given.recipe.evaluate.model_copy(update={"generation": Generation(do_sample=True, top_p=0.5)})
    sampled = ServedModel(
        "name", given.recipe.model_copy(update={"evaluate": drawing}), given.chat, given.weights, None
    )
    words = serving.command(sampled, "vllm", tmp_path / "name", "127.0.0.1", 8000, ()).words
    assert words[words.index("--override-generation-config") + 1] == '{"temperature": 1.0, "top_p": 0.5}'


def test_transformers_reads_deep_grey_and_clear_parts_as_its_limits_say() -> None:
    deep = Image.fromarray(np.full((9, 9), 20_000, np.uint16))
    clear = Image.new("RGBA", (9, 9), (10, 200, 30, 0))
    for picture, colour in ((deep, (255, 255, 255)), (clear, (10, 200, 30))):
        file = io.BytesIO()
        picture.save(file, "PNG")
        shown = load_image(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
        assert shown.getcolors() == [(81, colour)]


@pytest.mark.parametrize(("tokens", "images"), [(1000, 8), (100, 6), (10, 1)])
def test_a_request_shows_as_many_images_as_a_trained_conversation_has_room_for(
    tmp_path: Path, tokens: int, images: int
) -> None:
    given = subject(tmp_path, "qwen2_vl", data__max_tokens=tokens)
    words = serving.command(given, "vllm", tmp_path, "127.0.0.1", 8000, ()).words
    assert words[words.index("--limit-mm-per-prompt") + 1] == json.dumps({"image": images})


def test_vllm_parts_thoughts_from_answers_where_they_were_trained(tmp_path: Path) -> None:
    thinking, plain = (
        subject(tmp_path / thoughts, "qwen3_5", 16, data__thoughts=thoughts) for thoughts in ("shown", "dropped")
    )
    words = serving.command(thinking, "vllm", tmp_path / "name", "127.0.0.1", 8000, ()).words
    assert words[words.index("--reasoning-parser") + 1] == "qwen3"
    assert "--reasoning-parser" not in serving.command(plain, "vllm", tmp_path, "127.0.0.1", 8000, ()).words


def test_vllm_is_not_given_a_budget_that_it_would_not_keep(tmp_path: Path) -> None:
    given = subject(tmp_path, "mllama", 4)
    folder = serving.view(given, tmp_path)
    with pytest.raises(ServeError, match=r"data\.image_tokens=4: no setting .* use --engine transformers"):
        serving.command(given, "vllm", folder, "127.0.0.1", 8000, ())


def test_an_engine_that_is_not_there_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError, match="--engine vllm: it is not installed; install it with pip install vllm"):
        serving.require("vllm")
    serving.require("transformers")  # which lies beside this Python, on no PATH
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    with pytest.raises(ServeError, match=r"pip install 'skinvl\[serve\]'"):
        serving.require("transformers")
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    assert serving.program("vllm") == str(tmp_path / "vllm")
