"""Families: parts, budgets, sizes without pixels, and model inputs equal to the processor's own."""

from __future__ import annotations

import ast
import inspect
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from helpers import tiny
from skinvl.model import families
from skinvl.model.base import blank_model
from skinvl.model.families import Family, ShapeError
from skinvl.model.families.mllama import Mllama
from skinvl.serve.serving import same_but_padding

REAL = (
    "llama-3.2-11b-vision-instruct",
    "qwen2-vl-2b-instruct",
    "qwen2-vl-7b-instruct",
    "qwen2.5-vl-7b-instruct",
    "qwen3-vl-2b-instruct",
    "qwen3-vl-4b-instruct",
    "qwen3-vl-8b-instruct",
)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_vl")


def real_image_processor(family: str, tile: int = 560) -> Any:
    """A stand-in processor whose image processor has the settings of the published bases."""
    if family in ("gemma3", "internvl", "llava", "mistral3"):
        return tiny.processor(family)
    kind = families.load(family)
    made: Any = kind.tiny.processor(tiny.processor(family).tokenizer, "x").image_processor
    if family == "mllama":
        made = type(made)(size={"height": tile, "width": tile}, max_image_tiles=4)
    return SimpleNamespace(image_processor=made, tokenizer=tiny.processor(family).tokenizer)


# parts


@pytest.mark.parametrize("name", REAL)
def test_every_parameter_of_a_real_base_belongs_to_one_part(shared: Path, name: str) -> None:
    config = AutoConfig.from_pretrained(shared / "configs" / name)
    family = families.load(config.model_type)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    sizes: Counter[str] = Counter()
    for parameter_name, parameter in model.named_parameters():
        sizes[family.part_of(parameter_name)] += parameter.numel()
    golden = json.loads((shared / "configs" / "golden_parameter_counts.json").read_text())
    assert set(sizes) == set(families.PARTS)
    assert sum(sizes.values()) == golden[name]
    for prefix in (prefix for prefixes in family.parts.values() for prefix in prefixes):
        assert model.get_submodule(prefix) is not None
    merger = [n for n in dict(model.named_parameters()) if "merger" in n or "multi_modal_projector" in n]
    assert merger
    assert all(family.part_of(n) == "projector" for n in merger)


def test_a_name_of_no_part_is_refused() -> None:
    with pytest.raises(KeyError, match=r"no part of skinvl/model/families/mllama\.py claims 'model\.visual\.x'"):
        families.load("mllama").part_of("model.visual.x")
    with pytest.raises(KeyError):
        families.load("qwen2_vl").part_of("model.visually")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_in_a_family_file_the_architecture_stands_above_its_tiny_twin_and_alone(family: str) -> None:
    kind = families.load(family)
    tree = ast.parse(Path(inspect.getfile(type(kind))).read_text(encoding="utf-8"))
    defined = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    twins = [node.name.startswith("Tiny") for node in defined]
    assert twins == sorted(twins)
    assert set(twins) == {False, True}
    for node in defined[: twins.index(True)]:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        assert not any(name.startswith("Tiny") for name in names), node.name
        assert "tiny" not in {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}, node.name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_linear_layers_of_the_language_are_quantised_and_lm_head_never(family: str) -> None:
    kind = families.load(family)
    bare = blank_model(AutoConfig.from_pretrained(tiny.base(family)))
    linear = [name for name, module in bare.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {name for name in linear if kind.quantises(name)} == {
        name for name in linear if kind.part_of(name) == "language" and name != "lm_head"
    }
    assert all(bare.get_submodule(name) is not None for name in kind.unquantised)
    assert kind.quantises("model.language_model.lm_heads")  # a name that only begins so


def test_a_model_type_without_a_file_says_which_to_write() -> None:
    assert families.names() == list(tiny.FAMILIES)
    with pytest.raises(ValueError, match=r"'idefics3'.*write skinvl/model/families/idefics3\.py"):
        families.load("idefics3")


# budgets and sizes

SIZES = st.tuples(st.integers(1, 900), st.integers(1, 900))
LONG = st.tuples(st.sampled_from((1, 2, 3, 9, 40)), st.integers(600, 3000)).flatmap(st.permutations).map(tuple)
BUDGETS = st.sampled_from((1, 4, 16, 64, 333, 512, 800, 1280, 5000))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.filterwarnings("ignore:data.image_tokens")
@settings(max_examples=50, deadline=None, derandomize=True)
@given(size=st.one_of(SIZES, LONG), budget=BUDGETS)
def test_a_picture_is_what_the_image_processor_makes(family: str, size: tuple[int, int], budget: int) -> None:
    kind, processor = families.load(family), real_image_processor(family, tile=112)
    arguments = kind.image_arguments(processor, budget)
    image = Image.new("RGB", (size[1], size[0]))
    try:
        picture = kind.picture(processor, size, arguments)
    except ShapeError:
        assert max(size) > 3 * min(size)
        return
    made = processor.image_processor(images=[image], return_tensors="pt", **arguments)
    if family == "mllama":
        ids = made["aspect_ratio_ids"][0, 0] - 1
        ratios = [(w, h) for w in range(1, 5) for h in range(1, 5) if w * h <= arguments["max_image_tiles"]]
        assert picture.grid == ratios[ids]
        assert picture.grid[0] * picture.grid[1] <= arguments["max_image_tiles"]
    elif family in ("gemma3", "llava"):
        assert picture.text_tokens == 16  # whatever the budget
        assert made["pixel_values"].shape == (1, 3, picture.grid[0] * 14, picture.grid[1] * 14)
    elif family == "mistral3":
        assert made["pixel_values"].shape == (1, 3, picture.grid[0] * 14, picture.grid[1] * 14)
        assert picture.text_tokens <= max(budget, 2)
    elif family == "gemma4":
        assert picture.vision_tokens == (made["image_position_ids"][0] != -1).all(-1).sum()
        assert made["image_position_ids"][0].amax(0).tolist() == [side - 1 for side in picture.grid[::-1]]
        assert picture.text_tokens == made["num_soft_tokens_per_image"][0] <= max(budget, 70)
    elif family == "internvl":
        assert picture.text_tokens == 4 * len(made["pixel_values"]) <= max(budget, 4)
        assert picture.vision_tokens == 17 * len(made["pixel_values"])
    else:
        assert list(picture.grid) == made["image_grid_thw"][0].tolist()
        assert picture.vision_tokens == len(made["pixel_values"])
        assert picture.text_tokens == picture.vision_tokens // 4 <= budget


@pytest.mark.parametrize("family", QWEN)
def test_an_image_of_usual_shape_uses_its_budget_and_never_more(family: str) -> None:
    kind, processor = families.load(family), real_image_processor(family)
    for budget in (16, 256, 512, 1280):
        arguments = kind.image_arguments(processor, budget)
        for size in ((1536, 2044), (2000, 2000), (4000, 2000)):
            assert 0.6 * budget <= kind.picture(processor, size, arguments).text_tokens <= budget
        for size in ((100, 101), (30, 40), (90, 20), (1, 1)):  # enlarged to the least area, each side rounded up
            assert kind.picture(processor, size, arguments).text_tokens <= budget


@pytest.mark.parametrize("family", QWEN)
def test_what_is_too_elongated_is_refused(family: str) -> None:
    kind, processor = families.load(family), real_image_processor(family)
    with pytest.raises(ShapeError, match="4100 x 20 px; expected sides of at most 200 to 1"):
        kind.picture(processor, (20, 4100), kind.image_arguments(processor, 512))
    with pytest.raises(ShapeError, match=r"1900 x 10 px takes \d+ tokens; expected at most 16"):
        kind.picture(processor, (10, 1900), kind.image_arguments(processor, 16))


def test_tiles_of_mllama_follow_the_budget() -> None:
    kind, processor = families.load("mllama"), real_image_processor("mllama")
    tiles = {n: kind.image_arguments(processor, n)["max_image_tiles"] for n in (1, 400, 799, 800, 1600, 9999)}
    assert tiles == {1: 1, 400: 1, 799: 1, 800: 2, 1600: 4, 9999: 4}
    assert kind.picture(processor, (1000, 1000), {"max_image_tiles": 4}).vision_tokens == 4 * 1608


# model inputs


def conversation(family: Family, images: int) -> str:
    opening = (
        f"<|vision_start|>{family.image_token}<|vision_end|>" if "qwen" in family.model_type else family.image_token
    )
    return "How many lesions " + opening * images + "are there?" + " " + family.turn_close


SHAPES = ((112, 112), (60, 140), (300, 112), (112, 400))
BATCHES = ([1], [1, 1], [2], [2, 1], [3, 1, 2])


@pytest.mark.parametrize("counts", BATCHES, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_is_what_the_processor_makes_of_the_same(family: str, counts: list[int]) -> None:
    kind, processor = families.load(family), tiny.processor(family)
    arguments = kind.image_arguments(processor, 64)
    images = [[tiny.picture(10 * row + n, SHAPES[(row + n) % 4]) for n in range(k)] for row, k in enumerate(counts)]
    texts = [conversation(kind, k) + " more" * row for row, k in enumerate(counts)]
    theirs = processor(
        text=texts, images=images, padding=True, padding_side="right", return_tensors="pt", images_kwargs=arguments
    )
    ours = kind.batch(processor, theirs["input_ids"], images, arguments)
    assert set(ours) == set(theirs) - {"input_ids", "attention_mask"}
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert same_but_padding(theirs[name], value), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_without_images_need_no_image_inputs(family: str) -> None:
    kind, processor = families.load(family), tiny.processor(family)
    ids = processor.tokenizer([conversation(kind, 0)] * 2, return_tensors="pt")["input_ids"]
    assert kind.batch(processor, ids, [[], []], kind.image_arguments(processor, 16)) == {}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_images_in_the_wrong_row_are_refused(family: str) -> None:
    kind, processor = families.load(family), tiny.processor(family)
    ids, _, images, arguments = rows(family, [1, 0])
    with pytest.raises(ValueError, match="image tokens per row"):
        kind.batch(processor, ids, images[::-1], arguments)
    with pytest.raises(ValueError, match="image tokens per row"):
        kind.batch(processor, ids, [[], []], arguments)


def rows(family: str, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[list[Image.Image]], dict[str, Any]]:
    """Right-padded ids int64[B, T] with their mask, images and image arguments: rows of unlike lengths and shapes."""
    kind, processor = families.load(family), tiny.processor(family)
    arguments = kind.image_arguments(processor, 16)
    images = [[tiny.picture(10 * row + n, SHAPES[(row + n) % 3]) for n in range(k)] for row, k in enumerate(counts)]
    tokens = []
    for row, images_of_row in enumerate(images):
        ids = processor.tokenizer(kind.spelled(conversation(kind, len(images_of_row))) + " more" * row)["input_ids"]
        shapes = [kind.picture(processor, (image.height, image.width), arguments) for image in images_of_row]
        expanded = (kind.expanded(processor, shape) for shape in shapes)
        image_id = processor.tokenizer.convert_tokens_to_ids(kind.soft_token or kind.image_token)
        tokens.append([t for token in ids for t in (next(expanded) if token == image_id else [token])])
    length = max(map(len, tokens))
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
    return ids, mask, images, arguments


def difference(family: str, model: Any, counts: list[int]) -> list[float]:
    """The largest difference of each row's logits in the batch from those of the row alone."""
    kind, processor = families.load(family), tiny.processor(family)
    ids, mask, images, arguments = rows(family, counts)
    differences = []
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, **kind.batch(processor, ids, images, arguments)).logits
        for row, images_of_row in enumerate(images):
            alone = ids[row : row + 1, : int(mask[row].sum())]
            logits = model(input_ids=alone, **kind.batch(processor, alone, [images_of_row], arguments)).logits
            differences.append((together[row, : alone.shape[1]] - logits[0]).abs().max().item())
    return differences


@pytest.mark.parametrize("counts", [[1, 0, 1], [0, 2, 1], [0, 0], [3, 1, 2, 0]], ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_row_of_a_mixed_batch_is_as_if_alone(family: str, counts: list[int]) -> None:
    assert max(difference(family, tiny.model(family), counts)) < 1e-4


def test_without_its_hook_mllama_reads_the_blanks_of_other_rows() -> None:
    bare = difference("mllama", tiny.model("mllama", prepared=False), [2, 0, 1])
    assert bare[0] < 1e-4 < 1e-2 < min(bare[1:])


def test_the_hook_leaves_rows_with_equal_images_to_the_bare_model() -> None:
    kind, processor = families.load("mllama"), tiny.processor("mllama")
    ids, mask, images, arguments = rows("mllama", [2, 2])
    inputs = kind.batch(processor, ids, images, arguments)
    with torch.no_grad():
        hooked, bare = (
            tiny.model("mllama", prepared=prepared)(input_ids=ids, attention_mask=mask, **inputs).logits
            for prepared in (True, False)
        )
    assert torch.equal(hooked, bare)


def test_generation_with_blanks_gives_each_row_its_own_answer() -> None:
    model, kind, processor = tiny.model("mllama"), families.load("mllama"), tiny.processor("mllama")
    prompts, images = ["<|image|>a b c?", "x <|image|><|image|>?", "a b c d e?"], [[0], [1, 2], []]
    pictures = [[tiny.picture(seed) for seed in row] for row in images]
    arguments = kind.image_arguments(processor, 16)
    padded = processor.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")

    def answer(rows: slice, **padded: torch.Tensor) -> torch.Tensor:
        inputs = kind.batch(processor, padded["input_ids"], pictures[rows], arguments)
        made = model.generate(**padded, **inputs, max_new_tokens=6, do_sample=False)
        answers: torch.Tensor = made[:, padded["input_ids"].shape[1] :]
        return answers

    together = answer(slice(None), **padded)
    for row, prompt in enumerate(prompts):
        alone = answer(slice(row, row + 1), **processor.tokenizer([prompt], return_tensors="pt"))
        assert together[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_fewer_tiles_keep_the_ids_and_shapes_of_the_model() -> None:
    """The aspect ids of a two-tile budget, counted among two tiles as the image processor does, mean other shapes."""
    kind, processor = families.load("mllama"), tiny.processor("mllama")
    assert isinstance(kind, Mllama)
    ids = processor.tokenizer(["<|image|>?"], return_tensors="pt")["input_ids"]
    wide = tiny.picture(1, (60, 120))
    images = [[wide]]
    full, less = (kind.batch(processor, ids, images, {"max_image_tiles": n}) for n in (4, 2))
    upright = kind.batch(processor, ids, [[tiny.picture(1, (120, 60))]], {"max_image_tiles": 2})
    ratios = AutoConfig.from_pretrained(tiny.base("mllama")).vision_config.supported_aspect_ratios
    assert ratios[less["aspect_ratio_ids"].item() - 1] == [1, 2]
    assert ratios[upright["aspect_ratio_ids"].item() - 1] == [2, 1]
    assert less["pixel_values"].shape == full["pixel_values"].shape
    assert not less["pixel_values"][0, 0, 2:].any()
    assert less["aspect_ratio_mask"].tolist() == [[[1, 1, 0, 0]]]
    assert less["cross_attention_mask"].shape[-1] == 4
    assert less["cross_attention_mask"][0, -1, 0].tolist() == [1, 1, 0, 0]
    with torch.no_grad():
        assert tiny.model("mllama")(input_ids=ids, **less).logits.isfinite().all()
