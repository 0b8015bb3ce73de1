"""Ministral 3 and InternVL at the published settings: images and prompts as transformers' own processors have them.

The settings are those that the published configs are described to have; no config of theirs was at hand. Of mistral3:
patches of 14 px, merged by two, 1,540 px the longest side. Of internvl: tiles of 448 px, up to 12, 256 tokens each.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GotOcr2ImageProcessor, PixtralImageProcessor

from helpers import tiny
from skinvl.data.example import Example, text
from skinvl.evaluate.vllm_engine import unexpanded
from skinvl.model import families
from skinvl.model.base import ModelError, read_config
from skinvl.model.chat import Chat
from skinvl.model.families import ShapeError, Size

BOTH = ("internvl", "mistral3")
MISTRAL, INTERNVL = families.load("mistral3"), families.load("internvl")
PUBLISHED = "ministral3/mistralai-Ministral-3-14B-Reasoning-2512.jinja"


def published(family: str) -> Any:
    """The processor at the published settings, on the tiny base's tokenizer."""
    made: Any = tiny.processor(family)
    if family == "internvl":
        made.image_processor = GotOcr2ImageProcessor(size={"height": 448, "width": 448})
        made.image_seq_length = 256
    else:
        made.image_processor = PixtralImageProcessor(
            size={"longest_edge": 1540}, patch_size={"height": 14, "width": 14}
        )
    return made


def drawn(count: int, longest: int) -> list[Size]:
    """Sizes of every shape: uniform in either side, and as often very elongated."""
    draw = random.Random(7)
    return [
        (draw.randint(1, longest), draw.choice((draw.randint(1, longest), draw.randint(1, 40)))) for _ in range(count)
    ]


def question(*answers: str) -> Example:
    turns = []
    for number, answer in enumerate(answers):
        turns += [text("user", f"Question {number}?", not number), text("assistant", answer)]
    return Example("1", "s", ("0.png",), tuple(turns), "g", "train", "CC0-1.0")


# sizes, pixels and ids


@pytest.mark.parametrize("family", BOTH)
def test_sizes_are_those_of_the_published_processor_whatever_the_image_and_the_budget(family: str) -> None:
    kind, processor = families.load(family), published(family)
    seen: set[int] = set()
    for budget in (512, 1024, 3328, 100_000):
        arguments = kind.image_arguments(processor, budget)
        sizes = drawn(220, 4000)
        for size in sizes:
            try:
                picture = kind.picture(processor, size, arguments)
            except ShapeError:
                assert family == "mistral3"
                assert max(size) > arguments["size"]["longest_edge"] * min(size)
                continue
            seen.add(picture.text_tokens)
            assert picture.text_tokens <= budget
            theirs = processor._get_num_multimodal_tokens([size], **_flat(family, arguments))["num_image_tokens"][0]
            assert picture.text_tokens == theirs - 2 * (family == "internvl"), size  # whose count has <img> and </img>
    assert len(seen) >= 7


def _flat(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    # The processor of mistral3 sets the patch size itself, as it does for its image processor.
    return arguments if family == "internvl" else {"size": arguments["size"]}


@pytest.mark.parametrize("family", BOTH)
def test_ids_and_pixels_are_those_of_the_published_processor(family: str) -> None:
    kind, processor = families.load(family), published(family)
    chat = Chat(processor, kind, 1300, 4096)
    for number, size in enumerate([(448, 448), (900, 500), (31, 700), (1500, 1499), (5, 9)]):
        image = tiny.picture(number, size)
        encoded = chat.encode(question("Brown."), [size])
        parts = [{"type": "image"}, {"type": "text", "text": "Question 0?"}]
        asked = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        settings = _flat(family, chat.image_arguments)
        theirs = processor(text=[asked], images=[[image]], add_special_tokens=False, return_tensors="pt", **settings)
        ids = theirs["input_ids"][0].tolist()
        assert encoded.ids[: len(ids)] == ids
        ours = kind.batch(processor, theirs["input_ids"], [[image]], chat.image_arguments)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        other = kind.batch(processor, theirs["input_ids"], [[tiny.picture(9, size)]], chat.image_arguments)
        assert not torch.equal(other["pixel_values"], theirs["pixel_values"])
        # With one token an image is what a template wrote.
        short = unexpanded(chat, encoded)
        assert short.count(chat.image_id) == 1
        assert len(short) == len(encoded.ids) - encoded.pictures[0].text_tokens + 1


def test_a_row_of_patches_ends_by_its_token_and_an_image_by_another() -> None:
    processor = tiny.processor("mistral3")
    picture = MISTRAL.picture(processor, (80, 60), MISTRAL.image_arguments(processor, 16))
    assert picture.grid == (6, 6)
    names = processor.tokenizer.convert_ids_to_tokens(MISTRAL.expanded(processor, picture))
    row = ["[IMG]"] * 3
    assert names == [*row, "[IMG_BREAK]", *row, "[IMG_BREAK]", *row, "[IMG_END]"]
    chat = Chat(processor, MISTRAL, 16, 512)
    painted = chat.paint(chat.encode(question("Brown."), [(80, 60)])).plain
    assert "[INST]⟨image ×12⟩Question 0?[/INST]Brown.</s>" in painted


# the model


@pytest.mark.parametrize("family", BOTH)
def test_features_in_place_of_pixels_give_the_bare_models_logits_and_others_do_not(family: str) -> None:
    """Two images of unlike shapes in one row, through the tower together and apart."""
    kind, processor, model = families.load(family), tiny.processor(family), tiny.model(family, prepared=False)
    chat = Chat(processor, kind, 24, 512)
    sizes: list[Size] = [(60, 180), (150, 70)]
    images = [tiny.picture(number, size) for number, size in enumerate(sizes)]
    turns = (text("user", "Alike?", 2), text("assistant", "No."))
    encoded = chat.encode(Example("1", "s", ("a", "b"), turns, "g", "train", "CC0-1.0"), sizes)
    assert len({picture.text_tokens for picture in encoded.pictures} | {1}) == 3 or family == "internvl"
    ids = torch.tensor([encoded.ids])
    tower = model.get_submodule(kind.parts["vision"][0])
    with torch.no_grad():
        expected = model(input_ids=ids, **kind.batch(processor, ids, [images], chat.image_arguments)).logits
        features = [
            kind.encode(tower, picture, chat.pixels(image))
            for picture, image in zip(encoded.pictures, images, strict=True)
        ]
        for picture, each in zip(encoded.pictures, features, strict=True):
            assert tuple(each.shape) == kind.features(model.config, picture)
        swapped = [features[0].flip(0), features[1]]

        def read(kept: list[torch.Tensor]) -> torch.Tensor:
            inputs = kind.inputs(processor, ids, [encoded.pictures], [kept])
            made = {name: value for name, value in inputs.items() if name != "pixel_values"}
            whole = tower.forward
            tower.forward = lambda pixel_values, **settings: kind.read(tower, pixel_values, **settings)
            try:
                logits: torch.Tensor = model(input_ids=ids, pixel_values=inputs["pixel_values"], **made).logits
            finally:
                tower.forward = whole
            return logits

        assert torch.allclose(read(features), expected, atol=1e-4)
        assert not torch.allclose(read(swapped), expected, atol=1e-2)


# templates


def test_the_published_template_of_ministral_puts_in_no_system_turn_of_its_own(shared: Path) -> None:
    processor: Any = tiny.real_processor(shared, "mistral3")
    text_of = (shared / "chat_templates" / PUBLISHED).read_text(encoding="utf-8")
    settled = MISTRAL.template(text_of)
    assert MISTRAL.template(settled) == settled != text_of
    chat = Chat(processor, MISTRAL, 16, 512)
    turns = list(question("Brown.", "No.").messages)
    expected = "[INST][IMG]Question 0?[/INST]Brown.</s>[INST]Question 1?[/INST]No.</s>"
    assert chat.render(turns) == "<s>" + expected
    given = [text("system", "Be brief."), *turns]
    assert chat.render(given) == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]" + expected
    bare = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], chat_template=text_of, tokenize=False
    )
    assert "HOW YOU SHOULD THINK" in bare


@pytest.mark.parametrize(
    ("old", "new"), [("<IMG_CONTEXT>\n", "<image>\n"), ("<|im_end|>\n", "<|im_end|>"), ("assistant\n", "assistant\n\n")]
)
def test_a_template_of_internvl_that_writes_otherwise_is_refused_at_load(old: str, new: str) -> None:
    old, new = (part.replace("\n", "\\n") for part in (old, new))
    template = INTERNVL.tiny.template
    assert INTERNVL.template(template) == template
    processor = tiny.processor("internvl")
    assert old in template
    processor.chat_template = template.replace(old, new)
    with pytest.raises(ValueError, match=r"the chat template of this internvl base writes .* of two turns; expected"):
        Chat(processor, INTERNVL, 16, 512)


# what is refused


def test_budgets_below_the_least_image_are_said() -> None:
    with pytest.warns(UserWarning, match=r"data.image_tokens=3: internvl reads tiles .* takes 4 tokens"):
        assert INTERNVL.image_arguments(tiny.processor("internvl"), 3)["max_patches"] == 1
    with pytest.warns(UserWarning, match=r"data.image_tokens=1: mistral3 ends each row .* takes 2 tokens"):
        assert MISTRAL.image_arguments(tiny.processor("mistral3"), 1)["size"] == {"longest_edge": 28}
    tiles = {n: INTERNVL.image_arguments(published("internvl"), n)["max_patches"] for n in (512, 767, 768, 1024, 9999)}
    assert tiles == {512: 1, 767: 1, 768: 2, 1024: 3, 9999: 12}


def test_a_mistral_image_too_long_to_keep_a_width_is_refused() -> None:
    processor = published("mistral3")
    with pytest.raises(ShapeError, match="3000 x 1 px; within 616 px a side it has no width left"):
        MISTRAL.picture(processor, (1, 3000), MISTRAL.image_arguments(processor, 512))


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("mistral3", "vision_feature_layer", -2),
        ("internvl", "vision_feature_layer", -2),
        ("internvl", "vision_feature_select_strategy", "full"),
        ("internvl", "downsample_ratio", 0.25),
    ],
)
def test_bases_that_read_their_towers_otherwise_are_refused(family: str, name: str, value: Any) -> None:
    model, kind = tiny.model(family), families.load(family)
    kind.prepare(model)
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"{family} base with {name} "):
        kind.prepare(model)


def test_an_internvl_of_experts_is_refused() -> None:
    model = tiny.model("internvl")
    model.config.text_config.model_type = "gpt_oss"
    with pytest.raises(ValueError, match=r"text_config\.model_type 'gpt_oss'; .* knows those with 'qwen2' or 'qwen3'"):
        INTERNVL.prepare(model)


def test_fp8_weights_are_refused_with_the_name_of_those_in_bf16(tmp_path: Path) -> None:
    config = tiny.model("mistral3").config
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path)[1] is MISTRAL
    config.quantization_config = {"quant_method": "fp8", "activation_scheme": "static"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"in FP8.*mistralai/Ministral-3-3B-Instruct-2512-BF16.*base=ministral3-3b"):
        read_config(tmp_path)
