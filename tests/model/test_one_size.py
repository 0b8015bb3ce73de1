"""LLaVA and Gemma 3, whose towers read images of one size: nothing is cut off, ids and masks are the architecture's."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessor, Gemma3Config, LlavaConfig

from helpers import runs, tiny
from skinvl.data.example import Example, text
from skinvl.model import attention, families, infer
from skinvl.model.base import blank_model, count_parameters, load_base, load_tower, tower_names
from skinvl.model.chat import Chat
from skinvl.model.families import PARTS
from skinvl.model.layout import Group
from skinvl.model.pack import Collator
from skinvl.model.row import EncodedRow
from skinvl.recipe.recipe import Generation

LLAVA, GEMMA = families.load("llava"), families.load("gemma3")
BOTH = ("gemma3", "llava")
PUBLISHED = Path(tiny.TEMPLATES["llava"]).read_text(encoding="utf-8")  # of LLaVA-1.6 on Mistral
MISTRALS = "{{ bos_token }}{% for message in messages %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endfor %}"


def conversation(*answers: str, images: int = 1) -> Example:
    turns = []
    for number, answer in enumerate(answers):
        turns += [text("user", f"Question {number}?", images * (not number)), text("assistant", answer)]
    names = tuple(f"{number}.png" for number in range(images))
    return Example("1", "s", names, tuple(turns), "g", "train", "CC0-1.0")


def published_llava() -> Any:
    """As older conversions have it: CLIP's image processor, which cuts, and a processor that lacks what came later."""
    made: Any = tiny.processor("llava")
    made.image_processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    made.patch_size, made.num_additional_image_tokens, made.vision_feature_select_strategy = None, 0, None
    return made


def striped(width: int) -> Image.Image:
    """A wide black image, white at both ends."""
    image = Image.new("RGB", (width, 56))
    image.paste((255, 255, 255), (0, 0, width // 8, 56))
    image.paste((255, 255, 255), (width - width // 8, 0, width, 56))
    return image


# images


def test_llava_shows_the_whole_of_an_image_that_its_published_processor_cuts(tmp_path: Path) -> None:
    processor, image = published_llava(), striped(224)
    cut = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert float(cut.max()) < 0  # nothing but black is left
    chat = Chat(processor, LLAVA, 16, 512)
    assert chat.picture((56, 224)).text_tokens == 16
    shown = chat.pixels(image)
    assert shown.shape == (3, 56, 56)
    middle = shown[:, 28]
    assert float(middle[:, [0, 3, -4, -1]].min()) > 1.5
    assert float(middle[:, 10:-10].max()) < -1.4
    assert float(shown[:, [0, 5, -6, -1]].abs().max()) < 0.02  # padded with the mean colour
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(Chat(again, LLAVA, 16, 512).pixels(image), shown)
    served = again(text=["<image>?"], images=[[image]], return_tensors="pt")  # by the processor alone
    assert torch.equal(served["pixel_values"][0], shown)
    assert served["input_ids"][0].tolist().count(chat.image_id) == 16


def test_gemma_shows_an_elongated_image_once() -> None:
    chat = Chat(tiny.processor("gemma3"), GEMMA, 16, 512)
    assert chat.pixels(striped(2000)).shape == (3, 112, 112)
    crops = {f"pan_and_scan_{name}": value for name, value in (("min_crop_size", 9), ("max_num_crops", 4))}
    views = chat.processor.image_processor(
        images=[striped(2000)],
        do_pan_and_scan=True,
        pan_and_scan_min_ratio_to_activate=1.2,
        **crops,
        return_tensors="pt",
    )
    assert len(views["pixel_values"]) > 1


@pytest.mark.parametrize("family", BOTH)
def test_a_budget_that_an_image_exceeds_is_said(family: str) -> None:
    kind = families.load(family)
    with pytest.warns(UserWarning, match=f"data.image_tokens=15: {family} reads images of one size.* takes 16 tokens"):
        chat = Chat(tiny.processor(family), kind, 15, 512)
    assert chat.picture((1000, 30)).text_tokens == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chat(tiny.processor(family), kind, 16, 512)


# templates and ids


def test_llavas_template_shows_images_and_begins_the_text_itself() -> None:
    assert LLAVA.template(MISTRALS) == LLAVA.tiny.template  # which shows no image
    made = LLAVA.template(PUBLISHED)
    assert LLAVA.template(made) == made != PUBLISHED
    assert LLAVA.template(LLAVA.tiny.template) == LLAVA.tiny.template
    shown = "<s>[INST] <image>\nQuestion 0? [/INST] Brown.</s>[INST] Question 1? [/INST] No.</s>"
    turns = [text("system", "Be brief."), *conversation("Brown.", "No.").messages]
    for template, after in ((PUBLISHED, "</s> "), (LLAVA.tiny.template, "</s>")):
        processor = tiny.processor("llava")
        processor.chat_template = template
        chat = Chat(processor, LLAVA, 16, 512)
        assert chat.render(turns[1:]) == shown.replace("</s>", after)
        assert chat.render(turns) == shown.replace("</s>", after).replace(
            "[INST]", "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST]", 1
        )


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "begins by itself"])
def test_the_ids_of_a_llava_conversation_are_those_of_its_text(begins: bool) -> None:
    """An engine that lets the tokenizer begin the text and one that does not read the same."""
    processor: Any = tiny.processor("llava")
    if begins:
        processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
        )
    processor.chat_template = PUBLISHED
    chat, example = Chat(processor, LLAVA, 16, 512), conversation("Brown.", "No, it is flat.")
    ids = chat.encode(example, [(112, 112)]).ids
    plain = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Question 0?"}]}]
    text = processor.apply_chat_template(plain, add_generation_prompt=True)
    served = processor(text=[text], images=[[tiny.picture()]], add_special_tokens=False)["input_ids"][0]
    assert ids[: len(served)] == list(served)
    assert [index for index, token in enumerate(ids) if token == processor.tokenizer.bos_token_id] == [0]
    # The space that the template writes before an answer is the one that its first token has in any case.
    answer = processor.tokenizer("Brown.</s>", add_special_tokens=False)["input_ids"]
    assert ids[len(served) : len(served) + len(answer)] == answer
    assert processor.tokenizer.decode(answer) == "Brown.</s>"
    assert processor.tokenizer.convert_ids_to_tokens(answer)[0].startswith("Ġ")


def test_text_may_hold_the_blanks_that_gemmas_tokenizer_has_tokens_for() -> None:
    processor: Any = tiny.processor("gemma3")
    processor.tokenizer.add_tokens([AddedToken(blank, normalized=False) for blank in ("\n", "\n\n", "\n\n\n", "▁▁")])
    chat, example = Chat(processor, GEMMA, 16, 512), conversation("1. Brown\n\n2. Flat", images=2)
    ids = chat.encode(example, [(112, 112)] * 2).ids
    images = [tiny.picture(seed) for seed in (0, 1)]
    text = chat.render(list(example.messages))
    theirs = processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
    assert ids == list(theirs)
    assert processor.tokenizer.convert_tokens_to_ids("\n\n\n") in ids
    assert ids.count(chat.image_id) == 32


# models


def test_the_tiny_bases_have_every_path_of_their_architecture() -> None:
    gemma, llava = (tiny.model(family).config for family in BOTH)
    language = gemma.text_config
    assert set(language.layer_types) == {"sliding_attention", "full_attention"}
    assert gemma.mm_tokens_per_image < language.sliding_window < 40
    assert language.rope_parameters["full_attention"] != language.rope_parameters["sliding_attention"]
    assert (gemma.vision_config.image_size // gemma.vision_config.patch_size) ** 2 == 4 * gemma.mm_tokens_per_image
    assert gemma.tie_word_embeddings
    assert not llava.tie_word_embeddings
    assert llava.vision_feature_layer == -2
    weight = tiny.model("gemma3").model.multi_modal_projector.mm_input_projection_weight
    assert float(weight.detach().std()) > 0.05  # a new one is zero, and images would say nothing


def test_windows_and_images_are_those_of_hugging_face(tmp_path: Path) -> None:
    """Rows much longer than the window, with two images; the twin has another window."""
    ours = tiny.model("gemma3")
    chat = Chat(tiny.processor("gemma3"), GEMMA, 16, 512)
    words = "It is brown with a lighter rim. " * 6
    example = conversation(words, words, images=2)
    encoded = chat.encode(example, [(112, 112)] * 2)
    assert len(encoded.ids) > 4 * ours.config.text_config.sliding_window
    ids = torch.tensor([encoded.ids])
    inputs = chat.family.batch(chat.processor, ids, [[tiny.picture(0), tiny.picture(1)]], chat.image_arguments)
    shown = tuple(tmp_path / name for name in example.images)
    for number, path in enumerate(shown):
        tiny.picture(number).save(path)
    with torch.no_grad():
        theirs = ours(input_ids=ids, **inputs).logits
        attention.use(ours, "sdpa")
        laid = Collator(chat).lay([EncodedRow(encoded, shown)], [[Group((0,), 0)]]).inputs
        given = {name: laid[name] for name in ("input_ids", "position_ids", "spans", "pixel_values", "token_type_ids")}
        torch.testing.assert_close(ours(**given).logits, theirs, atol=1e-5, rtol=1e-5)
        for layer in ours.model.language_model.layers:
            layer.self_attn.sliding_window = layer.self_attn.sliding_window and 20
        given["spans"] = attention.Spans(laid["spans"].spans, laid["spans"].shape)
        assert float((ours(**given).logits - theirs).abs().max()) > 1e-2


@pytest.mark.parametrize("family", BOTH)
def test_files_under_their_later_names_are_the_same_base(tmp_path: Path, family: str) -> None:
    """transformers 5 writes the names of its first releases; those of 4.52 to 4.57 were others."""
    recipe = runs.make(tmp_path, family)
    kind, base, later = families.load(family), tiny.base(family), tmp_path / "later"
    later.mkdir()
    for path in base.iterdir():
        (later / path.name).write_bytes(path.read_bytes())
    first = load_file(base / "model.safetensors")
    assert any(name.startswith("language_model.model.layers.") for name in first)
    weights = {}
    for name, tensor in first.items():
        name = name.replace("language_model.model.", "language_model.").replace("language_model.lm_head", "lm_head")
        weights[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    save_file(weights, later / "model.safetensors", metadata={"format": "pt"})
    state, expected = (load_base(path, kind, recipe).state_dict() for path in (later, base))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert {kind.part_of(name) for name in expected} == set(PARTS)
    towers = [load_tower(path, kind, recipe).state_dict() for path in (later, base)]
    assert towers[0].keys() == towers[1].keys()
    assert all(torch.equal(weight, towers[1][name]) for name, weight in towers[0].items())
    for names in (first, weights):
        assert len(list(filter(tower_names(kind).match, names))) == len(towers[0])


def test_a_llava_of_another_kind_is_refused() -> None:
    config = tiny.model("llava").config
    for part, name, value, message in (
        ("text_config", "model_type", "llama", "text_config.model_type 'llama'; .* those with 'mistral'"),
        (None, "vision_feature_layer", -1, "vision_feature_layer -1; .* those with -2"),
        (None, "vision_feature_select_strategy", "full", "vision_feature_select_strategy 'full'"),
    ):
        other = copy.deepcopy(config)
        setattr(getattr(other, part) if part else other, name, value)
        with pytest.raises(ValueError, match=f"a llava base with {message}"):
            LLAVA.features(other, LLAVA.picture(tiny.processor("llava"), (9, 9), {}))
    bare = tiny.model("llava", prepared=False)
    bare.config.vision_feature_layer = -1
    with pytest.raises(ValueError, match="a llava base with vision_feature_layer -1"):
        LLAVA.prepare(bare)


PUBLISHED_SHAPES: dict[str, tuple[Any, float]] = {
    "llava": (
        lambda: LlavaConfig(
            text_config={
                "model_type": "mistral",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 32064,
                "sliding_window": None,
            },
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        7.57e9,
    ),
    "gemma3": (
        lambda: Gemma3Config(
            text_config={
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 262208,
                "sliding_window": 1024,
            },
            vision_config={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 896,
                "patch_size": 14,
                "vision_use_head": False,
            },
            mm_tokens_per_image=256,
        ),
        4.30e9,
    ),
}


@pytest.mark.parametrize("family", BOTH)
def test_the_published_shapes_have_their_parts_and_features(family: str) -> None:
    made, expected = PUBLISHED_SHAPES[family]
    config, kind = made(), families.load(family)
    whole, rest = blank_model(config), blank_model(kind.without_tower(config))
    assert count_parameters(whole) == pytest.approx(expected, rel=2e-3)
    assert {kind.part_of(name) for name, _ in whole.named_parameters()} == set(PARTS)
    assert count_parameters(whole) - count_parameters(rest) > 0.25e9
    picture = families.Picture((24, 24), 576, 577) if family == "llava" else families.Picture((64, 64), 256, 4096)
    assert kind.features(config, picture) == ((576, 1024) if family == "llava" else (256, 1152))


@pytest.mark.slow
def test_a_long_answer_leaves_the_window_as_hugging_face_does(tmp_path: Path) -> None:
    """Prompts of unlike lengths, one longer than the window, each answered alone by the bare model."""
    ours, theirs = tiny.model("gemma3"), tiny.model("gemma3")
    attention.use(ours, "sdpa")
    chat = Chat(tiny.processor("gemma3"), GEMMA, 16, 512)
    for name in ("0.png", "1.png"):
        tiny.picture(int(name[0])).save(tmp_path / name)
    asked = [
        EncodedRow(chat.prompt(conversation(*answers), [(112, 112)]), (tmp_path / "0.png",))
        for answers in (("Brown.",), ("It is brown with a lighter rim. " * 3, "No."), ("Two.", "One."))
    ]
    batch = Collator(chat).pack(asked)
    generated = infer.generate(ours, chat, batch, Generation(max_new_tokens=32))
    for prompt, answer in zip(asked, generated, strict=True):
        ids = torch.tensor([prompt.encoded.ids])
        inputs = GEMMA.batch(chat.processor, ids, [[tiny.picture(0)]], chat.image_arguments)
        whole = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=32)
        expected = whole[0, ids.shape[1] :].tolist()
        assert answer.ids == expected[: len(answer.ids)]
    assert max(len(answer.ids) for answer in generated) == 32


def test_both_are_listed_with_their_terms() -> None:
    folder = Path(__file__).parents[2] / "recipes" / "bases"
    assert "Health AI Developer Foundations" in (folder / "medgemma-4b.yaml").read_text(encoding="utf-8")
    config = json.loads((tiny.base("gemma3") / "config.json").read_text())
    assert config["model_type"] == "gemma3"
    assert AutoModelForImageTextToText.from_pretrained(tiny.base("llava")).config.model_type == "llava"
