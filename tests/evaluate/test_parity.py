"""A server's answers are ours only if it reads our prompts, and parts from ours at most where rounding may."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import runs, tiny
from skinvl.data import example
from skinvl.evaluate import engine, parity
from skinvl.evaluate.parity import Own, ServedAnswer, judge
from skinvl.model.chat import Chat, ChatError
from skinvl.model.lengths import sizes
from skinvl.model.loaded import load_model
from skinvl.model.row import encode_prompt
from skinvl.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ends(chat: Chat) -> list[int]:
    return [int(chat.tokenizer.convert_tokens_to_ids("<|im_end|>"))]


def test_our_own_answers_are_those_of_the_evaluation(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", evaluate__generation={"max_new_tokens": 5})
    chat = runs.chat(one)
    asked, told = parity.examples(one, chat, tmp_path)
    assert told == "5 of the run's examples"
    assert [question.key for question in asked[:2]] == ["drawn/test-0-0", "drawn/test-0-1"]
    assert len({question.key for question in asked}) == 6
    found = parity.own(one, chat, [asked[0], asked[3], asked[5]])
    whole = load_model(one, torch.device("cpu"))
    generation = one.evaluate.generation
    (evaluated,) = engine.Transformers(whole, generation).answers([[asked[0], asked[3]]])
    assert [own.text for own in found[:2]] == [answer.answer for answer in evaluated]
    assert len({own.text for own in found}) > 1
    for own in found:
        assert own.prompt == encode_prompt(chat, own.question.row).encoded.ids
        assert len(own.rivals) == len(own.ids) + 1
        assert not any(token in some for token, some in zip(own.ids, own.rivals, strict=False))


def pair(own: Own) -> tuple[Path, example.Example]:
    return own.question.row.root, own.question.row.example


def test_rivals_are_what_rounding_may_prefer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl", evaluate__generation={"max_new_tokens": 3})
    chat = runs.chat(one)
    asked, _ = parity.examples(one, chat, tmp_path)
    (none,) = parity.own(one, chat, asked[:1])
    assert not any(none.rivals)
    monkeypatch.setitem(parity.TIE, torch.float32, 1e9)
    (every,) = parity.own(one, chat, asked[:1])
    everything = tiny.model("qwen2_vl").config.text_config.vocab_size
    assert [len(some) for some in every.rivals] == [everything - 1] * len(every.ids) + [0]  # it was cut, not ended
    # The lead of each id over the likeliest other, by the bare model that reads prompt and answer.
    row = asked[0].row
    inputs = runs.alone(chat, row).inputs
    ids = torch.tensor([none.prompt + none.ids])
    images = [[parity.upright(row.root / row.example.images[0])]]
    given = {"input_ids": ids, **chat.family.batch(chat.processor, ids, images, chat.image_arguments)}
    assert set(inputs) >= set(given)
    with torch.no_grad():
        shares = tiny.model("qwen2_vl", prepared=False)(**given).logits[0, len(none.prompt) - 1 : -1].log_softmax(-1)
    first, second = shares[2].topk(2)[0].tolist()
    for tie, some in ((first - second) * 1.01, 1), ((first - second) * 0.99, 0):
        monkeypatch.setitem(parity.TIE, torch.float32, tie)
        (found,) = parity.own(one, chat, asked[:1])
        assert found.rivals[2] == shares[2].topk(2)[1].tolist()[1:][:some]


class Words:
    """A tokenizer of whole words: a token is a place among them, the first ends an answer, the last two are one é."""

    WORDS = ("", "It", " is", " red", " brown", " redd", "\ufffd", "\ufffd")

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(self.WORDS[one % 8] for one in ids).replace("\ufffd\ufffd", "é")


def said_by(chat: Any, ids: list[int]) -> tuple[str | None, str]:
    """What a chat without thoughts makes of ids."""
    return None, chat.tokenizer.decode(ids)


def verdict(answer: list[int], rivals: dict[int, list[int]], said: str, **told: Any) -> str:
    """How what was said stands to an answer of these ids, with rivals at some places."""
    tokenizer: Any = Words()
    chat: Any = type(
        "Chat", (), {"tokenizer": tokenizer, "image_id": 99, "image_ids": {99}, "thought_and_answer": said_by}
    )()
    prompt = [7, 99, 99, 99, 8, 8]
    beside = [rivals.get(n, []) for n in range(len(answer) + 1)]
    own = Own(None, prompt, tokenizer.decode(answer), answer, beside)  # type: ignore[arg-type]
    given = {"tokens": len(prompt), "ids": None, **told}
    return judge(own, ServedAnswer(said, **given), chat, [0]).outcome


def test_an_answer_is_the_same_turned_by_rounding_or_another() -> None:
    assert verdict([1, 2, 3], {}, "It is red") == "same"
    assert verdict([2, 3], {}, "is red\n") == "same"
    assert verdict([2, 3], {1: [4]}, "is brown ") == "rounding"
    assert verdict([1, 2, 3], {}, "It is brown") == "answer"
    assert verdict([1, 2, 3], {2: [4]}, "It is brown and more") == "rounding"
    assert verdict([1, 2, 3], {1: [4], 0: [4]}, "It is brown") == "answer"  # near a tie, but elsewhere
    assert verdict([1, 2, 3], {2: [5]}, "It is brown") == "answer"  # near a tie with another
    assert verdict([1, 2, 3], {2: [0]}, "It is") == "rounding"  # it ended
    assert verdict([1, 2, 3], {2: [0]}, "It is brown") == "answer"
    assert verdict([1, 2, 3], {}, "It is") == "answer"
    assert verdict([1, 2, 3], {3: [4]}, "It is red brown") == "rounding"  # it went on
    assert verdict([1, 2, 3], {}, "It is red brown") == "answer"
    assert verdict([1, 2, 6, 7], {}, "It isé") == "same"
    assert verdict([1, 2, 6, 7], {2: [3]}, "It is red") == "rounding"


def test_a_thought_is_compared_as_the_answer_is() -> None:
    assert parity.joined("It is dark.\n", "\n Red. ") == "It is dark.\nRed."
    assert parity.joined("It is", "") == "It is"  # cut before its end
    assert parity.joined(None, " red ") == " red "


def test_another_prompt_is_never_excused() -> None:
    assert verdict([1], {}, "It", tokens=5) == "prompt"
    assert verdict([1], {}, "It", ids=[7, 99, 8, 8]) == "same"  # as the template writes it
    assert verdict([1], {}, "It", ids=[7, 99, 99, 99, 8, 8]) == "same"  # as the model reads it
    assert verdict([1], {}, "It", ids=[7, 99, 8]) == "prompt"
    assert verdict([1], {}, "It", ids=[7, 99, 8, 7]) == "prompt"


def test_a_request_is_that_of_a_user_of_the_api(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    asked, _ = parity.examples(one, runs.chat(one), tmp_path)
    (user,) = parity.messages(asked[0])
    (image, words) = user["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert (image["type"], head) == ("image_url", "data:image/png;base64")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    stored = Image.open(tmp_path / "drawn" / asked[0].row.example.images[0])
    assert sent.tobytes() == stored.tobytes()
    assert words == {"type": "text", "text": "What is the colour?"}
    system, first, answer, last = parity.messages(asked[-1])
    assert system == {"role": "system", "content": "You are a dermatologist. Answer briefly."}
    assert first["content"] == [{"type": "text", "text": "Is a mole dangerous?"}]
    assert answer == {"role": "assistant", "content": "Seldom."}
    assert last["role"] == "user"


def test_examples_that_cannot_be_asked_are_passed_over(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    (tmp_path / "drawn" / "images" / "test-0.png").unlink()
    asked, told = parity.examples(one, runs.chat(one), tmp_path)
    assert told == "5 of the run's examples"
    assert [question.key for question in asked[:2]] == ["drawn/test-1-0", "drawn/test-1-1"]


@pytest.mark.parametrize("left", ["train", None])
def test_without_the_data_others_are_asked_and_it_says_so(tmp_path: Path, left: str | None) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    for split in ("test", "train"):
        if split != left:
            (tmp_path / "drawn" / f"{split}.parquet").unlink()
    asked, told = parity.examples(one, runs.chat(one), tmp_path)
    assert len(asked) == 6
    if left:
        assert told == "5 of the run's examples"
        assert all("train" in question.key for question in asked[:5])
    else:
        assert "no such split" in told
        assert told.endswith("; 5 drawn pictures, as none of the run's examples can be asked")
        counts = {sizes(question.row.root, question.row.example) for question in asked[:5]}
        assert len(counts) == 5


def test_a_template_without_system_turns_is_asked_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    render = chat.render

    def refuse(messages: Any, *more: Any) -> str:
        if messages[0]["role"] == "system":
            raise ChatError("template-refused", "no system")
        return render(messages, *more)

    monkeypatch.setattr(chat, "render", refuse)
    asked, _ = parity.examples(one, chat, tmp_path)
    assert [message["role"] for message in parity.messages(asked[-1])] == ["user", "assistant", "user"]


def test_a_drawn_picture_has_no_two_rows_or_columns_alike() -> None:
    pixels = torch.frombuffer(bytearray(parity.drawn(90, 60).tobytes()), dtype=torch.uint8).view(60, 90, 3)
    assert len(pixels.unique(dim=0)) == 60
    assert pixels.unique(dim=1).shape[1] == 90


def test_the_check_is_greedy_and_short(tmp_path: Path) -> None:
    one: Recipe = runs.make(tmp_path, "qwen2_vl", evaluate__generation={"do_sample": True, "max_new_tokens": 500})
    found = parity.greedy(one)
    assert (found.do_sample, found.max_new_tokens) == (False, parity.CHECKED_TOKENS)
    short = runs.make(tmp_path / "short", "qwen2_vl", evaluate__generation={"max_new_tokens": 5})
    assert parity.greedy(short).max_new_tokens == 5
