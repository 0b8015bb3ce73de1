"""Tiny bases: complete, loadable, seeded, and their logits depend on the image."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers import published_configs, runs, tiny, two_towers
from skinvl.data import example
from skinvl.data.example import Example, text
from skinvl.model import families
from skinvl.model.chat import Chat
from skinvl.model.tiny import VOCABULARY
from skinvl.model.tiny import build as make
from skinvl.plan import bases


def build(family: str, out: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(make(family, out, texts=tiny.TEXTS, seed=seed) / "model.safetensors")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_base_is_a_complete_model_folder(family: str) -> None:
    folder = tiny.base(family)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert model.config.model_type == family
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert processor.chat_template
    embeddings = model.get_input_embeddings().weight.numel()
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) - embeddings < 3.5e6
    assert not list(folder.parent.glob(".*partial"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(family: str, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first, second, other = (build(family, tmp_path / str(n), seed) for n, seed in enumerate((0, 0, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    names = ("tokenizer.json", "config.json", "processor_config.json", "model.safetensors")
    assert all((tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes() for name in names)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_another_image_changes_the_logits(family: str) -> None:
    model, kind = tiny.model(family), families.load(family)
    chat = Chat(tiny.processor(family), kind, 16, 512)
    question = Example("1", "s", ("a",), (text("user", "colour?", 1), text("assistant", "brown")), "g", "t", "l")
    ids = torch.tensor([chat.encode(question, [(112, 112)]).ids])

    def logits(seed: int) -> torch.Tensor:
        inputs = kind.batch(chat.processor, ids, [[tiny.picture(seed)]], chat.image_arguments)
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids, **inputs).logits[0, -3:]
        return found

    one, other = logits(0), logits(1)
    assert torch.equal(one, logits(0))
    assert 0.2 < one.std() < 5
    assert (one - other).abs().mean() > 0.05 * one.std()


def test_every_special_path_is_in_the_tiny_configs() -> None:
    configs = {family: tiny.model(family).config for family in tiny.FAMILIES}
    assert sum(configs["qwen2_vl"].text_config.rope_parameters["mrope_section"]) * 2 == 32
    vision = configs["qwen2_5_vl"].vision_config
    assert 0 < len(vision.fullatt_block_indexes) < vision.depth
    assert vision.window_size < 112
    indexes = list(configs["qwen3_vl"].vision_config.deepstack_visual_indexes)
    assert indexes != list(range(len(indexes)))
    text_config = configs["mllama"].text_config
    assert 2 <= len(text_config.cross_attention_layers) < text_config.num_hidden_layers
    gates = [value for name, value in tiny.model("mllama").named_parameters() if "gate" in name and value.numel() == 1]
    assert len(gates) == 3 + 2 * 2 + 2 * 2
    assert all(gate.item() == 0.5 for gate in gates)


def test_the_image_token_of_mllama_lies_outside_lm_head() -> None:
    model, processor = tiny.model("mllama"), tiny.processor("mllama")
    image = processor.tokenizer.convert_tokens_to_ids("<|image|>")
    assert image == model.config.image_token_index == model.lm_head.out_features == len(processor.tokenizer) - 1
    assert model.get_input_embeddings().num_embeddings == image + 8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_trained_tokenizer_writes_any_text(family: str) -> None:
    tokenizer = tiny.processor(family).tokenizer
    assert len(tokenizer) <= VOCABULARY + 1
    for words in ("μm ≥ 6, naïve — ✓", "\n\n  two  spaces\t"):
        assert tokenizer.decode(tokenizer(words, add_special_tokens=False)["input_ids"]) == words


@pytest.mark.parametrize("family", ["mllama", "qwen2_vl"])
def test_a_real_tokenizer_keeps_its_ids(family: str, tmp_path: Path, shared: Path) -> None:
    file = shared / "tokenizers" / "derived" / f"tokenizer.{tiny.TOKENIZERS[family]}.json"
    template = (shared / "chat_templates" / tiny.TEMPLATES[family]).read_text(encoding="utf-8")
    folder = make(family, tmp_path / "base", tokenizer_json=file, chat_template=template)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == template
    real = tiny.real_processor(shared, family).tokenizer
    words = "A 6 mm naevus; see <|im_end|> and <|eot_id|>."
    assert processor.tokenizer(words)["input_ids"] == real(words)["input_ids"]
    saved = json.loads((folder / "config.json").read_text())
    image = 128256 if family == "mllama" else 151655
    assert saved["image_token_index" if family == "mllama" else "image_token_id"] == image


def test_what_cannot_be_built_is_said(tmp_path: Path, shared: Path) -> None:
    qwen = shared / "tokenizers" / "derived" / "tokenizer.qwen2-vl.json"
    with pytest.raises(ValueError, match=r"no such family; skinvl has .*mllama, .*skinvl/model/families/idefics\.py"):
        make("idefics", tmp_path / "a", texts=tiny.TEXTS)
    with pytest.raises(ValueError, match="exactly one of the two"):
        make("mllama", tmp_path / "a")
    with pytest.raises(ValueError, match=r"the tokenizer has no <\|begin_of_text\|>, .*expected one made for mllama"):
        make("mllama", tmp_path / "a", tokenizer_json=qwen)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").write_text("mine")
    with pytest.raises(FileExistsError, match="already there and not empty"):
        make("mllama", tmp_path / "full", texts=tiny.TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_build_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        make("qwen2_vl", tmp_path / "base", texts=tiny.TEXTS)
    assert not list(tmp_path.iterdir())


def test_the_verb_trains_the_tokenizer_on_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    turns = (text("user", "seborrhoeic " * 9), text("assistant", "keratosis " * 9))
    example.write(tmp_path / "source", "train", [Example(str(n), "s", (), turns, "g", "train", "l") for n in range(5)])
    out = tmp_path / "deep" / "base"
    bases.main(["build", "qwen2_vl", str(out), "--source", str(tmp_path / "source")])
    assert f"{out}: a random qwen2_vl base" in capsys.readouterr().out
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    assert len(tokenizer("seborrhoeic keratosis")["input_ids"]) == 2
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such file"):
        bases.main(["build", "qwen2_vl", str(tmp_path / "b"), "--tokenizer", "nowhere.json"])


def test_the_list_tells_what_is_known_here(
    shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ["llama-3.2-11b-vision", "medgemma-4b", "tiny-qwen3_vl"]
    monkeypatch.setattr(bases, "bases", lambda kind=None: [] if kind == "dual" else names)

    def listed(*words: str) -> dict[str, str]:
        assert bases.main([*words]) == 0
        shown = capsys.readouterr().out.splitlines()
        start = next(index for index, line in enumerate(shown) if line.startswith("base ")) + 2
        return {line.split()[0]: line for line in shown[start : start + len(names)]}  # one line a base

    rows = listed("--configs", str(shared / "configs"))
    assert list(rows) == names
    for words in ("10.7 B", "1 of 6,432", "  28/16  ", "gated, "):
        assert words in rows["llama-3.2-11b-vision"]
    assert "196 of 784" in rows["tiny-qwen3_vl"]
    assert rows["medgemma-4b"].count("–") == 4
    assert "gated, " in rows["medgemma-4b"]
    assert bases.main(["--configs", str(shared / "configs"), "llama-3.2-11b-vision"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "parameters: 10.7 billion",
        "image of 448 px: 1 of 6,432",
        "GiB for LoRA: 28",
        "GiB for QLoRA: 16",
        "gate: its terms are to be accepted on its page on the hub",
    ):
        assert f"{line}\n" in shown, line
    assert "LoRA on: q_proj, k_proj" in shown
    assert "Its multimodal models are not licensed to licensees domiciled in the EU; the\n" in shown
    assert bases.main(["llama-3.2-11b-vision", "--configs", str(shared)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": –\n") == 6
    assert "licence: Llama 3.2 Community License\n" in shown


def test_a_difference_shows_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs.make(tmp_path, "qwen2_vl")
    sides = [str(tiny.base(family)) for family in ("qwen2_vl", "mllama")]
    assert bases.main(["diff", *sides, str(tmp_path / "small.yaml")]) == 0
    said = capsys.readouterr().out
    for words in (
        "cross_attn.q_proj ×",
        "<|im_start|>assistant",
        "<|eot_id|>",
        "model.visual.merger",
        "GiB for a batch of 4",
    ):
        assert words in said, words
    row = next(line for line in said.splitlines() if line.startswith("│ image of 448 px"))
    assert row.split("│")[2].strip() != row.split("│")[3].strip()
    table = [line for line in said.splitlines() if line.startswith("│")]
    assert all(line.split("│")[1].strip() and len(line) <= 80 for line in table)  # none goes on with the one before


def test_two_towers_are_listed_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    configs = str(published_configs.write(tmp_path / "configs"))
    bases.main(["--configs", configs, "dermlip-panderm"])
    told = capsys.readouterr().out
    for line in ("image tower: beit", "text tower: bert", "parameters: 196 million", "text length: 256 tokens"):
        assert line in told
    bases.main(["diff", "clip-b16", "tiny-clip", "tiny-clip", "--configs", configs])
    told = capsys.readouterr().out
    assert "149,620,737" in told
    assert "GiB, 64 images at a time" in told
    assert max(map(len, told.splitlines())) <= 120
    monkeypatch.setattr(bases, "bases", lambda kind=None: {"dual": ["monet", "tiny-clip"], "vlm": []}[kind])
    bases._list(bases.Console(), tmp_path / "configs")
    told = capsys.readouterr().out
    assert re.search(r"monet +clip +clip +428 million +224 px +not verified", told)
    assert re.search(r"tiny-clip +clip +clip +about a million +112 px", told)


def test_tiny_towers_are_built_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_towers.source(tmp_path / "source")
    bases.main(["build", "siglip", str(tmp_path / "base"), "--source", str(tmp_path / "source")])
    assert "a random siglip base" in capsys.readouterr().out
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "skinvl_dual_encoder"
    with pytest.raises(ValueError, match="clip: two towers, whose tokenizer is trained on a source"):
        bases.main(["build", "clip", str(tmp_path / "other"), "--tokenizer", str(tmp_path / "base" / "tokenizer.json")])
