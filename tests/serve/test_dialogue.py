"""A conversation says token for token what generate says of it, follow-ups included; its base what the base says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.nn.functional import scaled_dot_product_attention

from helpers import provenances, runs, tiny
from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError
from skinvl.evaluate import benchmarks, classify
from skinvl.evaluate.engine import Question, Transformers
from skinvl.model import attention, infer
from skinvl.model.chat import Chat, ChatError
from skinvl.model.loaded import LoadedModel, load_model
from skinvl.model.pack import Collator
from skinvl.recipe import recipe, run
from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import Generation, Recipe
from skinvl.serve import dialogue
from skinvl.serve.dialogue import Dialogue, DialogueError

FEW = Generation(max_new_tokens=6)
ASKED = ("What is the colour of this lesion?", "Is the border smooth or jagged?", "How many lesions are there?")
CPU = torch.device("cpu")


def loaded(tmp_path: Path, family: str = "qwen2_vl", **changes: Any) -> LoadedModel:
    return load_model(runs.make(tmp_path, family, **changes), CPU)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    """A base that no test changes, and the folder of its images."""
    folder = tmp_path_factory.mktemp("plain")
    return loaded(folder), folder


def images(tmp_path: Path, *numbers: int) -> list[Path]:
    return [tmp_path / "drawn" / "images" / f"train-{number}.png" for number in numbers]


def expected(asked: LoadedModel, one: Dialogue, upto: int, settings: Generation = FEW) -> tuple[str | None, int]:
    """What generate says to the conversation's question of that turn, and in how many tokens."""
    messages = (*one.messages[: 2 * upto + 1], text("assistant", "?"))
    shown = sum(part["type"] == "image" for message in messages for part in message["content"])
    given = Example("ask", "ask", tuple(map(str, one.images[:shown])), messages, "ask", "ask", "none")
    question = Question(f"turn-{upto + 1}", Row(given, Path()))
    ((found,),) = Transformers(asked, settings).answers([[question]])
    return found.answer, found.tokens


def say(one: Dialogue, question: str, *shown: Path) -> str:
    pieces = list(one.ask(question, shown))
    assert one.reply is not None
    said = "".join(pieces)
    # Before a thought is closed that was never begun, its words were an answer's.
    assert said == one.reply.answer or (one.reply.thought is not None and said.endswith(one.reply.answer))
    return one.reply.answer


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every token that is chosen from here on: random models say much the same whatever they see."""
    found: list[torch.Tensor] = []
    choose = infer.choose

    def choosing(logits: torch.Tensor, *settings: Any) -> list[int]:
        found.append(logits)
        return choose(logits, *settings)

    monkeypatch.setattr(infer, "choose", choosing)
    return found


def taken(seen: list[torch.Tensor]) -> torch.Tensor:
    """float[T, V]: what was seen since this was last asked."""
    found = torch.cat(seen)
    seen.clear()
    return found


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "qwen2_vl" else pytest.mark.slow) for name in tiny.FAMILIES]
)
def test_every_turn_is_what_generate_says_of_the_same_conversation(
    family: str, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    asked = loaded(tmp_path, family)
    first, second = images(tmp_path, 0, 1)
    one, other = Dialogue(asked, FEW), Dialogue(asked, FEW)
    begun: list[torch.Tensor] = []
    cached = []
    for number, question in enumerate((*ASKED[:2], "And compare this one.", "Which is larger?")):
        say(one, question, *{0: [first], 2: [second]}.get(number, []))
        begun.append(taken(seen))
        assert one.reply is not None
        assert (one.reply.answer, one.reply.completion_tokens) == expected(asked, one, number)
        assert torch.allclose(begun[-1], taken(seen), atol=2e-4)
        cached.append(one.reply.cached_tokens > 0)
    keeps = not asked.chat.family.recurrent  # a state cannot go back to where the question began
    assert cached == [False, keeps, False, keeps]  # a new image is read, and nothing else twice
    say(other, ASKED[0], second)
    assert not torch.allclose(taken(seen)[0], begun[0][0], atol=2e-3)  # the twin: another image


def test_two_images_and_none(plain: tuple[LoadedModel, Path]) -> None:
    asked, folder = plain
    two, none = Dialogue(asked, FEW), Dialogue(asked, FEW)
    for one, shown in ((two, images(folder, 0, 1)), (none, [])):
        for number, question in enumerate(ASKED[:2]):
            say(one, question, *(shown if not number else []))
            assert one.reply is not None
            assert (one.reply.answer, one.reply.completion_tokens) == expected(asked, one, number)
    assert len(two.images) == 2
    assert two.messages[0]["content"][1]["type"] == "image"


@pytest.mark.parametrize("family", ["qwen2_vl", pytest.param("mllama", marks=pytest.mark.slow)])
def test_the_template_and_what_was_kept_decide(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[torch.Tensor]
) -> None:
    asked = loaded(tmp_path, family)
    (shown,) = images(tmp_path, 0)

    def begun() -> Dialogue:
        one = Dialogue(asked, FEW)
        say(one, ASKED[0], shown)
        seen.clear()
        return one

    say(begun(), ASKED[1])
    right = taken(seen)[0]
    broken = begun()  # keys and values of a follow-up that are not its own
    assert broken._kept is not None
    layers: list[Any] = broken._kept.decoder.cache.layers
    for layer in layers:
        layer.values = layer.values.flip(2)
    say(broken, ASKED[1])
    assert not torch.allclose(taken(seen)[0], right, atol=2e-3)
    broken = begun()
    with monkeypatch.context() as patched:
        patched.setattr(attention.FollowUp, "attend", _blind)
        say(broken, ASKED[1])
    assert not torch.allclose(taken(seen)[0], right, atol=2e-3)
    processor = asked.chat.processor
    processor.chat_template = processor.tokenizer.chat_template = "{{- 'Arr! ' * 20 -}}\n" + asked.chat.template
    chat = Chat(processor, asked.chat.family, **asked.recipe.data.budget)
    pirate = Dialogue(replace(asked, collator=Collator(chat)), FEW)
    say(pirate, ASKED[0], shown)
    seen.clear()
    say(pirate, ASKED[1])
    assert not torch.allclose(taken(seen)[0], right, atol=2e-3)


def _blind(self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    own = slice(key.shape[2] - query.shape[2], None)
    found = scaled_dot_product_attention(query, key[:, :, own], value[:, :, own], is_causal=True, enable_gqa=True)
    return found.transpose(1, 2)


def adapted(tmp_path: Path, one: Recipe) -> Recipe:
    """The recipe with an adapter, saved as a run saves it, none of whose weights are those of the base."""
    torch.manual_seed(1)
    model = runs.attached(one)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return one.model_copy(update={"init_adapter": str(tmp_path / "adapter")})


@pytest.mark.parametrize("family", ["qwen2_vl", pytest.param("mllama", marks=pytest.mark.slow)])
def test_the_base_beside_the_adapter_is_the_base_without_one(family: str, tmp_path: Path) -> None:
    plain = runs.make(tmp_path, family)
    both, alone = load_model(adapted(tmp_path, plain), CPU), load_model(plain, CPU)
    (shown,) = images(tmp_path, 0)
    trained, base, only = Dialogue(both, FEW), Dialogue(both, FEW, base=True), Dialogue(alone, FEW)
    for number, question in enumerate(ASKED[:2]):
        given = [] if number else [shown]
        parts = [trained.ask(question, given), base.ask(question, given)]
        while parts:  # by turns: neither switches the other over
            parts = [one for one in parts if next(one, None) is not None]
        say(only, question, *given)
        assert trained.reply is not None
        assert base.reply is not None
        assert only.reply is not None
        assert base.reply.answer == only.reply.answer
        assert trained.reply.answer == expected(both, trained, number)[0]
    names = ("melanoma", "nevus", "a brown lesion")
    weighed = [
        dialogue.likelihoods(*given)
        for given in ((both, [shown], "Which?", names, True), (alone, [shown], "Which?", names))
    ]
    assert weighed[0].tolist() == pytest.approx(weighed[1].tolist(), abs=1e-5)
    assert abs(dialogue.likelihoods(both, [shown], "Which?", names) - weighed[0]).max() > 1e-2


def test_parts_trained_in_full_are_switched_too(tmp_path: Path) -> None:
    """Where LoRA does nothing and the projector alone was trained, the sides still differ."""
    plain = runs.make(tmp_path, "qwen2_vl")
    torch.manual_seed(1)
    model = runs.attached(plain)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "modules_to_save" in name:
            parameter.data += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    both = load_model(plain.model_copy(update={"init_adapter": str(tmp_path / "adapter")}), CPU)
    alone = load_model(plain, CPU)
    (shown,) = images(tmp_path, 0)
    names = ("melanoma", "nevus")
    base = dialogue.likelihoods(both, [shown], "Which?", names, base=True)
    assert base.tolist() == pytest.approx(dialogue.likelihoods(alone, [shown], "Which?", names).tolist(), abs=1e-5)
    assert abs(dialogue.likelihoods(both, [shown], "Which?", names) - base).max() > 1e-3


def test_classes_weigh_what_classify_finds(plain: tuple[LoadedModel, Path]) -> None:
    asked, folder = plain
    (shown,) = images(folder, 1)
    names, question = ("melanoma", "melanoma metastasis", "nevus"), "What is the most likely diagnosis?"
    turns = (text("user", question, 1), text("assistant", "nevus"))
    case = benchmarks.Sample(Example("a", "a", (str(shown),), turns, "a", "test", "none"), Path(), "nevus", "")
    task = benchmarks.Task("a", names, None, None, question, [case])
    batch = classify.ClassCollator(asked.collator, task, False)([case]).classes
    assert batch is not None
    found = dialogue.likelihoods(asked, [shown], question, names)
    assert found.tolist() == pytest.approx(infer.likelihoods(asked.model, batch), abs=1e-5)
    assert abs(dialogue.likelihoods(asked, images(folder, 0), question, names) - found).max() > 1e-4


def test_an_image_is_turned_as_in_training(tmp_path: Path, plain: tuple[LoadedModel, Path]) -> None:
    asked, _ = plain
    picture = tiny.picture(5, (84, 140))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.save(tmp_path / "plain.png")
    picture.save(tmp_path / "upright.png")
    found = {
        name: dialogue.likelihoods(asked, [tmp_path / f"{name}.png"], "Which?", ("nevus", "melanoma")).tolist()
        for name in ("turned", "upright", "plain")
    }
    assert found["turned"] == found["upright"] != found["plain"]
    both = [Dialogue(asked, FEW) for _ in range(2)]
    said = [say(one, ASKED[0], tmp_path / f"{name}.png") for one, name in zip(both, ("turned", "upright"), strict=True)]
    assert said[0] == said[1]


def test_what_is_drawn_is_what_generate_draws(plain: tuple[LoadedModel, Path]) -> None:
    asked, folder = plain
    drawing = Generation(max_new_tokens=8, do_sample=True, temperature=2.0, top_p=0.9, seed=3)
    one = Dialogue(asked, drawing)
    for number in (0, 1):
        say(one, "Which colour?", *(images(folder, 0) if not number else []))
        assert one.reply is not None
        assert (one.reply.answer, one.reply.completion_tokens) == expected(asked, one, number, drawing)
    again = Dialogue(asked, drawing.model_copy(update={"seed": 4}))
    assert say(again, "Which colour?", *images(folder, 0)).strip() != one.messages[1]["content"][0]["text"]


def test_how_an_answer_ends(plain: tuple[LoadedModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, folder = plain
    one = Dialogue(asked, FEW)
    whole = say(one, ASKED[0], *images(folder, 0))
    assert one.reply is not None
    assert (one.reply.finish_reason, one.reply.completion_tokens) == ("length", 6)
    model: Any = asked.model
    ids = asked.chat.tokenizer(whole, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [ids[-1]])
    cut = one.anew()
    answer = say(cut, ASKED[0], *images(folder, 0))
    assert cut.reply is not None
    assert cut.reply.finish_reason == "stop"
    assert whole.startswith(answer)
    assert len(answer) < len(whole)
    assert (answer, cut.reply.completion_tokens) == expected(asked, cut, 0)


def test_a_stopped_answer_is_a_turn_and_an_abandoned_one_is_none(plain: tuple[LoadedModel, Path]) -> None:
    asked, folder = plain
    one = Dialogue(asked, Generation(max_new_tokens=60))
    pieces = []
    for piece in one.ask(ASKED[0], images(folder, 0)):
        pieces.append(piece)
        one.stop()
    assert one.reply is not None
    assert one.reply.finish_reason == "stopped"
    assert one.reply.completion_tokens < 60
    assert "".join(pieces) == one.reply.answer
    assert len(one.messages) == 2
    one.generation = FEW
    assert say(one, ASKED[1]) == expected(asked, one, 1)[0]
    left = one.ask(ASKED[2])
    next(left)
    left.close()
    assert one.reply is None
    assert len(one.messages) == 4
    say(one, ASKED[2])
    assert one.reply is not None
    assert one.reply.answer == expected(asked, one, 2)[0]


def test_what_cannot_be_asked_changes_nothing(
    tmp_path: Path, plain: tuple[LoadedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, folder = plain
    one = Dialogue(asked, FEW)
    say(one, ASKED[0], *images(folder, 0))
    tiny.picture(0, (400, 2)).save(tmp_path / "long.png")
    (tmp_path / "not.png").write_text("words")
    for question, shown, error, why in (
        ("<|im_end|> and then?", [], ChatError, "control-token"),
        ("And this?", [tmp_path / "not.png"], ImageError, "unreadable-image"),
        ("And this?", [tmp_path / "none.png"], ImageError, "missing-image"),
        ("And this?", [tmp_path / "long.png"], ChatError, "image-too-elongated"),
    ):
        with pytest.raises(error, match=why):
            list(one.ask(question, shown))
    text_config = asked.model.config.get_text_config()  # type: ignore[operator, union-attr]
    with monkeypatch.context() as patched:
        patched.setattr(text_config, "max_position_embeddings", 60)
        with pytest.raises(DialogueError, match=r"too long: \d+ tokens and up to 6 of an answer; this base reads 60\."):
            list(one.ask("word " * 40))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model: Any = asked.model
    hook = model.get_submodule("model.language_model").layers[2].register_forward_pre_hook(full)
    with pytest.raises(DialogueError, match="too long for the memory"):  # and two layers have read it
        list(one.ask(ASKED[2]))
    hook.remove()
    assert (len(one.messages), len(one.images)) == (2, 1)
    assert say(one, ASKED[1]) == expected(asked, one, 1)[0]


@pytest.mark.parametrize("family", ["qwen3_vl", "mllama"])
def test_no_word_and_no_character_is_shown_in_part(shared: Path, family: str) -> None:
    tokenizer: Any = tiny.real_processor(shared, family).tokenizer
    said = (
        "A naïve 2.5 mm papule 🧴👩🏽‍⚕️ on the nose.\n\n- Entzündung: groß\n- 皮肤 日光性角化病。\n`x = [1, 2]`  é̂ end"
    )
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    words, pieces = dialogue._Words(tokenizer), []
    for token in ids:
        words.put(torch.tensor([token]))  # type: ignore[no-untyped-call]
        pieces.append(words.taken())
    words.end()  # type: ignore[no-untyped-call]
    pieces.append(words.taken())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == said
    shown = [piece for piece in pieces if piece]
    assert not any("\ufffd" in piece for piece in shown)
    assert all(piece[-1].isspace() or "\u4e00" <= piece[-1] <= "\u9fff" for piece in shown[:-1])
    assert len(shown) > 10


def finished(tmp_path: Path, one: Recipe) -> Path:
    """A run folder as a training leaves it, as far as asking goes."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    write_text(folder / "recipe.yaml", recipe.dump(one))
    provenances.made(base={"model": one.base.location}).write(folder)
    adapted(folder, one)
    return folder


def test_what_a_name_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = runs.make(tmp_path, "qwen2_vl", quantization={"load_in_4bit": True})
    folder = finished(tmp_path, plain.model_copy(update={"quantization": None}))
    write_text(folder / "recipe.yaml", recipe.dump(plain))
    found, out = dialogue.resolve(str(folder), ["evaluate.generation.max_new_tokens=7"])
    assert (found.init_adapter, out) == (str(folder / "adapter"), folder)
    assert found.evaluate.generation.max_new_tokens == 7
    assert dialogue.resolve(str(folder), [], base=True)[0].init_adapter is None
    found, out = dialogue.resolve("small.yaml", [])
    assert (found.init_adapter, out) == (None, None)
    merged = folder / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    with pytest.raises(DialogueError, match=r"give a recipe's name and base="):
        dialogue.resolve(str(merged), [])
    (merged / "merge.json").write_text("{}")
    found, out = dialogue.resolve(str(merged), ["evaluate.generation.max_new_tokens=7"])
    assert (found.base.location, found.init_adapter, found.quantization, out) == (str(merged), None, None, folder)
    assert (found.data.image_tokens, found.evaluate.generation.max_new_tokens) == (16, 7)
    with pytest.raises(DialogueError, match=rf"--base asks the base of a run without its adapter; give {folder}"):
        dialogue.resolve(str(merged), [], base=True)
    with pytest.raises(run.RunError, match="was trained otherwise"):
        dialogue.resolve(str(merged), ["data.image_tokens=4"])


def test_a_line_says_what_is_asked(plain: tuple[LoadedModel, Path]) -> None:
    asked, _ = plain
    assert dialogue.caption("a", asked) == f"a · no adapter · base {tiny.base('qwen2_vl')} · fp32 · cpu · greedy"
    facts = {**asked.facts, "adapter": "0123456789", "quantization": {"load_in_4bit": True}}
    facts["base"] = {"model": "owner/name", "commit": "abcdef0123456"}
    drawn = asked.recipe.evaluate.model_copy(update={"generation": Generation(do_sample=True, seed=5)})
    other = replace(asked, facts=facts, recipe=asked.recipe.model_copy(update={"evaluate": drawn}))
    assert dialogue.caption("a", other) == (
        "a · adapter 01234567 · base owner/name at abcdef01 · nf4 · cpu · drawn with seed 5"
    )
    assert dialogue.readable("a\x1b[2Jb\n\tc\x00\x9b\r") == "a[2Jb\n\tc"


def test_bf16_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    asked = loaded(tmp_path, train__bf16=True)
    one = Dialogue(asked, FEW)
    say(one, ASKED[0], *images(tmp_path, 0))
    assert one.reply is not None
    assert (one.reply.answer, one.reply.completion_tokens) == expected(asked, one, 0)
    say(one, ASKED[1])
    assert one.reply is not None
    assert np.isfinite(one.reply.seconds)
    assert one.reply.cached_tokens > 0
