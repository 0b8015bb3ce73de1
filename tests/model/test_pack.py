"""Conversations that share a prefix in one row train as they would apart: every loss and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import runs, tiny
from skinvl.data import mixture
from skinvl.data.example import Example, Message, text
from skinvl.data.mixture import Row
from skinvl.model import families
from skinvl.model.attention import Span, Spans
from skinvl.model.chat import UNTRAINED, Chat, ChatError
from skinvl.model.layout import Group, grouped, spans, stretches
from skinvl.model.lengths import sizes
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import EncodedRow, encode_row
from skinvl.recipe.recipe import Recipe
from skinvl.train.trainer import token_losses

PICTURES = 3
ANSWERS = ("Brown.", "It is jagged all the way round.", "Yes.", "One lesion, red with a lighter rim.")
ASKED = ("What is the colour?", "How many lesions are there?", "Compare them.")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn pictures of unlike shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, size in enumerate(((112, 112), (84, 140), (112, 84))):
        tiny.picture(seed, size).save(folder / f"{seed}.png")
    return folder


def row(folder: Path, name: str, images: tuple[int, ...], turns: int = 1, system: bool = False, late: int = 0) -> Row:
    """A conversation of some turns about pictures, the last `late` of which are shown in its second turn."""
    messages: list[Message] = [text("system", "Answer briefly.")] if system else []
    start = sum(map(ord, name))
    for turn in range(turns):
        shown = len(images) - late if turn == 0 else late if turn == 1 else 0
        messages.append(text("user", ASKED[(start + turn) % 3], images=shown))
        messages.append(text("assistant", ANSWERS[(start // 3 + turn) % 4]))
    paths = tuple(f"{index}.png" for index in images)
    return Row(Example(name, "drawn", paths, tuple(messages), "g", "train", "CC0-1.0"), folder)


def some_rows(folder: Path) -> list[Row]:
    """Every kind of conversation that a batch may hold."""
    return [
        row(folder, "a", (0,)),
        row(folder, "b", (1, 2), turns=2),
        row(folder, "c", (0,), turns=3),
        row(folder, "d", ()),
        row(folder, "e", (1, 2)),
        row(folder, "f", (0,)),
        row(folder, "g", (0, 1), turns=2, late=1),
        row(folder, "h", (0, 1), turns=2, late=1),
        row(folder, "i", (), turns=2),
        row(folder, "j", (2,), system=True),
    ]


def trainable(one: Recipe) -> Any:
    """The attached base of a recipe, its adapter away from zero."""
    model = runs.attached(one).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def step(model: nn.Module, batches: list[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses of some batches, sorted, and the gradients of their sum."""
    model.zero_grad()
    losses = []
    for batch in batches:
        found, _ = token_losses(model, batch)
        found.sum().backward()
        losses.append(found.detach())
    return torch.cat(losses).sort().values, {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of two sets of gradients."""
    assert first.keys() == second.keys()
    return max(float((one - second[n]).norm() / one.norm().clamp(min=1e-9)) for n, one in first.items())


def apart(model: nn.Module, chat: Chat, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What `step` finds where each conversation runs alone, through torch's own attention."""
    config = model.config.get_text_config()
    ours, config._attn_implementation = config._attn_implementation, "sdpa"
    try:
        return step(model, [runs.alone(chat, one) for one in rows])
    finally:
        config._attn_implementation = ours


PARTS = {"parts": {part: {"train": mode} for part, mode in (("language", "lora"), ("projector", "full"))}}
ALL = {"parts": {"language": {"train": "lora"}, "projector": {"train": "full"}, "vision": {"train": "lora"}}}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_shared_prefix_trains_as_separate_rows_do(
    tmp_path: Path, pictures: Path, family: str, checkpointing: bool
) -> None:
    one = runs.make(tmp_path, family, **(PARTS if checkpointing else ALL))
    rows, chat, model = some_rows(pictures), runs.chat(one), trainable(one)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        model.train()
    packed = Collator(chat)([{"row": one} for one in rows])
    losses, gradients = step(model, [packed])
    expected, theirs = apart(model, chat, rows)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert distance(theirs, gradients) < 1e-4
    assert float((losses.sum() - expected.sum()).abs() / expected.sum()) < 1e-6
    parts = {runs.family_of(one).part_of(name.removeprefix("base_model.model.")) for name in gradients}
    assert parts == {"language", "projector"} | (set() if checkpointing else {"vision"})
    fewer = packed.ids.numel() < 0.9 * sum(len(chat_ids(chat, one)) for one in rows)
    assert fewer or family == "mllama"


def chat_ids(chat: Chat, one: Row) -> list[int]:
    """The ids of a conversation on its own."""
    ids: list[int] = runs.alone(chat, one).ids[0].tolist()
    return ids


def hide_nothing(batch: Batch) -> None:
    """Lets every branch see the branches before it."""
    rows, length = batch.spans.shape
    batch.inputs["spans"] = Spans(tuple(Span(row, 0, length) for row in range(rows)), (rows, length))


def forget_prefix(batch: Batch) -> None:
    """Takes the prefix away from every branch."""
    spans = batch.spans
    batch.inputs["spans"] = Spans(tuple(replace(span, prefix=(0, 0)) for span in spans.spans), spans.shape)


def look_back_alone(batch: Batch) -> None:
    """Hides from the tokens of an image those of it that follow."""
    spans = batch.spans
    batch.inputs["spans"] = Spans(tuple(replace(span, whole=()) for span in spans.spans), spans.shape)


def go_on_counting(batch: Batch) -> None:
    """Gives branches the positions that follow the branch before them."""
    positions = batch.inputs["position_ids"]
    batch.inputs["position_ids"] = torch.arange(batch.ids.shape[1]).expand_as(positions)


def other_pixels(batch: Batch) -> None:
    """Shows other images: darker too; another contrast alone is all the same to a tower that begins by a norm."""
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].flip(0) * 0.5 - 0.5


@pytest.mark.parametrize(
    ("family", "breaks"),
    [(family, breaks) for family in tiny.FEW for breaks in (go_on_counting, other_pixels)]
    + [(family, breaks) for family in tiny.FEW for breaks in (hide_nothing, forget_prefix)]
    + [
        pytest.param(family, breaks, marks=pytest.mark.slow)
        for family in tiny.FAMILIES
        if family not in tiny.FEW
        for breaks in (go_on_counting, other_pixels, hide_nothing, forget_prefix)
    ]
    + [(family, look_back_alone) for family in tiny.FAMILIES if families.load(family).looks_ahead],
)
def test_a_broken_row_would_be_seen(
    tmp_path: Path, pictures: Path, family: str, breaks: Callable[[Batch], None]
) -> None:
    one = runs.make(tmp_path, family)
    rows, chat, model = [row(pictures, name, (0,)) for name in "abc"], runs.chat(one), trainable(one)
    packed = Collator(chat)([{"row": one} for one in rows])
    with torch.no_grad():
        right, _ = token_losses(model, packed)
        breaks(packed)
        wrong, _ = token_losses(model, packed)
    assert float((right - wrong).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", *(pytest.param(one, marks=pytest.mark.slow) for one in ("mllama", "qwen3_5"))]
)
def test_bf16_and_nf4_share_as_they_would_apart(tmp_path: Path, pictures: Path, family: str) -> None:
    """In bf16 the sums run in another order: 2 % of a gradient, 1 % of a loss."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    for changes in ({"train__bf16": True}, {"quantization": nf4, "train__bf16": True}):
        one = runs.make(tmp_path, family, **changes)
        rows, chat, model = some_rows(pictures), runs.chat(one), trainable(one)
        with torch.autocast("cpu", torch.bfloat16):
            losses, gradients = step(model, [Collator(chat)([{"row": one} for one in rows])])
            expected, theirs = apart(model, chat, rows)
        assert float(losses.sum()) == pytest.approx(float(expected.sum()), rel=1e-2)
        whole = torch.cat([value.flatten() for value in theirs.values()])
        found = torch.cat([gradients[name].flatten() for name in theirs])
        assert float((whole - found).norm() / whole.norm()) < 0.02


SHOWN = st.lists(st.integers(0, PICTURES - 1), max_size=2, unique=True).map(tuple)
KINDS = st.tuples(SHOWN, st.integers(1, 3), st.booleans(), st.booleans())


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Chat, Any]]:
    """The chat and the attached base of each family."""
    made = {}
    for family in tiny.FAMILIES:
        one = runs.make(tmp_path_factory.mktemp(family), family, data__max_tokens=512)
        made[family] = runs.chat(one), trainable(one)
    return made


@pytest.mark.parametrize("family", tiny.SOME)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(kinds=st.lists(KINDS, min_size=1, max_size=12))
def test_any_conversations_train_as_they_do_apart(
    ready: dict[str, tuple[Chat, Any]], pictures: Path, family: str, kinds: list[tuple[Any, ...]]
) -> None:
    chat, model = ready[family]
    rows = [
        row(pictures, f"r{number}", images, turns, system, late=int(late and turns > 1 and len(images) > 1))
        for number, (images, turns, system, late) in enumerate(kinds)
    ]
    losses, gradients = step(model, [Collator(chat)([{"row": one} for one in rows])])
    expected, theirs = apart(model, chat, rows)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    # Text alone gives mllama's cross layers no gradient, or none but zeros.
    gradients = {name: gradients.get(name, torch.zeros_like(value)) for name, value in theirs.items()}
    assert distance(theirs, gradients) < 1e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_positions_are_those_of_the_model(pictures: Path, family: str) -> None:
    model, kind = tiny.model(family), families.load(family)
    chat = Chat(tiny.processor(family), kind, 16, 512)
    for one in some_rows(pictures):
        inputs = runs.alone(chat, one).inputs
        encoded = chat.encode(one.example, sizes(one.root, one.example))
        found = kind.positions(chat.processor, encoded.ids, encoded.pictures)
        if not hasattr(model.model, "get_rope_index"):
            assert found.tolist() == list(range(len(encoded.ids)))
            continue
        kinds = inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
        theirs, _ = model.model.get_rope_index(inputs["input_ids"], kinds, inputs.get("image_grid_thw"))
        assert torch.equal(found, theirs[:, 0])


def test_a_prefix_ends_before_the_first_trained_token_is_predicted(pictures: Path) -> None:
    chat = Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 512)
    same = [row(pictures, "a", (0,)), row(pictures, "a", (0,))]  # alike to the last token
    encoded = [chat.encode(one.example, [(112, 112)]) for one in same]
    (group,) = grouped([EncodedRow(ids, (pictures / "0.png",)) for ids in encoded], chat.image_id)
    first = next(i for i, label in enumerate(encoded[0].labels) if label != UNTRAINED)
    assert group.members == (0, 1)
    assert group.prefix == first - 1
    laid = spans([[group]], [len(one.ids) for one in encoded])
    rest = len(encoded[0].ids) - group.prefix
    assert laid.spans == (
        Span(0, 0, group.prefix),
        Span(0, group.prefix, group.prefix + rest, (0, group.prefix)),
        Span(0, group.prefix + rest, group.prefix + 2 * rest, (0, group.prefix)),
    )


def test_an_image_is_where_its_conversation_stands() -> None:
    groups, images = [Group((0, 1), 0), Group((2, 3), 6)], [[(1, 3)], [(2, 4), (5, 6)], [(0, 4)], [(0, 4)]]
    assert spans([groups], [5, 7, 8, 9], whole=images).spans == (
        Span(0, 0, 5, whole=((1, 3),)),
        Span(0, 5, 12, whole=((7, 9), (10, 11))),
        Span(0, 12, 18, whole=((12, 16),)),
        Span(0, 18, 20, (12, 18)),
        Span(0, 20, 23, (12, 18)),
    )
    assert stretches([7, 7, 1, 7, 7, 7, 2, 7], 7) == [(0, 2), (3, 6), (7, 8)]
    assert stretches([1, 2], 7) == []


def test_a_batch_counts_conversations_and_not_what_it_shares(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    rows, chat = mixture.load(one.data).train[:3], runs.chat(one)
    packed, single = (Collator(chat, share=share)([{"row": row} for row in rows]) for share in (True, False))
    assert packed.tokens == single.tokens == single.ids.numel()
    assert packed.ids.numel() < 0.75 * packed.tokens
    assert len(packed.inputs["image_grid_thw"]) == 1
    assert len(single.inputs["image_grid_thw"]) == 3
    assert packed.names == tuple(f"drawn/{row.example.id}" for row in rows)
    encoded = [encode_row(chat, row).encoded for row in rows]
    trained = sum(len(one.labels) - one.labels.count(UNTRAINED) for one in encoded)
    for batch in (packed, single):
        assert batch.supervised.sum() == trained


def test_a_batch_moves_with_all_its_tensors(pictures: Path) -> None:
    chat = Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 512)
    batch = Collator(chat)([{"row": row} for row in some_rows(pictures)])
    moved = send_to_device(batch, torch.device("meta"))  # as accelerate does with what the data loader gives
    assert isinstance(moved, Batch)
    assert moved.targets.is_meta
    for name, value in batch.inputs.items():
        if isinstance(value, torch.Tensor):
            assert moved.inputs[name].is_meta, name
            assert not value.is_meta
        else:
            assert moved.inputs[name] is value
    assert (moved.places, moved.names, moved.tokens) == (batch.places, batch.names, batch.tokens)


def test_a_conversation_that_cannot_be_encoded_is_named(pictures: Path) -> None:
    chat = Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 8)
    with pytest.raises(ChatError, match="too-long"):
        Collator(chat)([{"row": row(pictures, "a", (0,))}])
