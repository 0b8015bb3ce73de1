"""Whether a server says what we say: the same prompts by their tokens, the same answers by their text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from skinvl.data.example import Example, ExampleError, Message, text, words
from skinvl.data.mixture import Row, rows
from skinvl.data.pixels import ImageError, upright
from skinvl.data.profiles import Profiles
from skinvl.evaluate.engine import Question, questions
from skinvl.model import infer
from skinvl.model.base import base_dtype, logits
from skinvl.model.chat import UNTRAINED, Chat, ChatError
from skinvl.model.loaded import load_model
from skinvl.model.pack import Collator
from skinvl.model.row import encode_prompt, read_images
from skinvl.recipe.recipe import Generation, Recipe

CHECKED = 5  # examples that a server is asked before anyone else asks it
CHECKED_TOKENS = 64  # of each of their answers
HOT = 100.0  # a temperature at which nearly every token is as likely as any other
HOT_TOKENS = 8  # of an answer at it
PATIENCE = 600.0  # seconds for one answer: the first compiles
# The lead over another token, in nats, that rounding can turn: another order of the same sums. At half a nat the other
# is still .6 as likely.
TIE = {torch.bfloat16: 0.5, torch.float16: 0.1, torch.float32: 0.01}


@dataclass(frozen=True, slots=True)
class Own:
    """Our own answer to a question, with what nearly came instead.

    `rivals` has, for each id of the answer and for its end, the other tokens that rounding may prefer.
    """

    question: Question
    prompt: list[int]
    text: str
    ids: list[int]
    rivals: list[list[int]]


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What a server said: the answer, behind its thought if there is one; how many tokens it read, and which.

    It does not always tell which; of each image one.
    """

    text: str
    tokens: int
    ids: list[int] | None


@dataclass(frozen=True, slots=True)
class ParityVerdict:
    """How a server's answer stands to ours: the same; turned by rounding; another; or to another prompt."""

    outcome: Literal["same", "rounding", "answer", "prompt"]
    detail: str


def examples(recipe: Recipe, chat: Chat, folder: Path) -> tuple[list[Question], str]:
    """What a server is asked, and a word on it: questions of the eval data, else of the train data, else drawn ones.

    A last one has a system turn and a turn before it, as people who build on a server write.

    Args:
        folder: where drawn pictures go.
    """
    chosen: dict[str, Question] = {}
    lacking = ""
    for spec in (*recipe.data.eval, *recipe.data.train):
        try:
            candidates = rows(spec)
        except (FileNotFoundError, ExampleError) as error:
            lacking = lacking or f"{error}; "
            continue
        for row in chain(candidates[:: max(1, len(candidates) // CHECKED)], candidates):
            question = next(questions(row))
            if len(chosen) < CHECKED and question.key not in chosen and _askable(chat, question):
                chosen[question.key] = question
        if len(chosen) == CHECKED:
            break
    if chosen:
        return [*chosen.values(), _talk(chat)], f"{len(chosen)} of the run's examples"
    why = f"{lacking}{CHECKED} drawn pictures, as none of the run's examples can be asked"
    return [*_drawn(folder), _talk(chat)], why


def _askable(chat: Chat, question: Question) -> bool:
    try:
        encode_prompt(chat, question.row)
        read_images(question.row)
    except (ChatError, ImageError):
        return False
    return True


def drawn(width: int, height: int) -> Image.Image:
    """A picture of so many pixels, no two rows or columns of which are alike."""
    ramp = Image.linear_gradient("L")
    parts = ramp, ramp.transpose(Image.Transpose.ROTATE_90), Image.radial_gradient("L")
    return Image.merge("RGB", [part.resize((width, height)) for part in parts])


def _drawn(folder: Path) -> list[Question]:
    asked = []
    for number in range(CHECKED):
        name = f"drawn-{number}.png"
        drawn(200 + 90 * number, 480 - 60 * number).save(folder / name)
        asked.append(_question(str(number), folder, (name,), text("user", "What does the image show?", images=1)))
    return asked


def _talk(chat: Chat) -> Question:
    turns = text("user", "Is a mole dangerous?"), text("assistant", "Seldom."), text("user", "When is it?")
    whole = _question("talk", Path(), (), text("system", "You are a dermatologist. Answer briefly."), *turns)
    return whole if _askable(chat, whole) else _question("talk", Path(), (), *turns)


def _question(name: str, root: Path, images: tuple[str, ...], *turns: Message) -> Question:
    messages = (*turns, text("assistant", "-"))  # where the reference answer stands, which nobody is asked
    return Question(name, Row(Example(name, "drawn", images, messages, name, "none", "none"), root))


def greedy(recipe: Recipe) -> Generation:
    """How the check asks: always the likeliest token, and of long answers the first CHECKED_TOKENS."""
    return Generation(max_new_tokens=min(CHECKED_TOKENS, recipe.evaluate.generation.max_new_tokens))


def own(recipe: Recipe, chat: Chat, asked: Sequence[Question]) -> list[Own]:
    """Our own greedy answers, by the model as it is evaluated."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(recipe, device)
    collator = Collator(chat)
    with loaded.autocast():
        return [_own(loaded.model, collator, recipe, question) for question in asked]


@torch.no_grad()
def _own(model: torch.nn.Module, collator: Collator, recipe: Recipe, question: Question) -> Own:
    chat, row = collator.chat, encode_prompt(collator.chat, question.row)
    prompt = row.encoded.ids
    (answer,) = infer.generate(model, chat, collator.pack([row]), greedy(recipe))

    # Prompt and answer once more in one forward: what each id, and the end, was chosen from. An image token that the
    # model said has no image to stand for, and what follows it cannot be computed.
    shown = answer.ids[: answer.ids.index(chat.image_id)] if chat.image_id in answer.ids else answer.ids
    ids = [*prompt, *shown]
    both = replace(row.encoded, ids=ids, labels=[UNTRAINED] * len(ids))
    batch = collator.pack([replace(row, encoded=both)]).to(next(model.parameters()).device)
    (span,) = batch.places
    where = torch.zeros_like(batch.ids, dtype=torch.bool)
    where[span.row, span.end - len(shown) - 1 : span.end] = True
    log_shares = logits(model, batch.inputs, where).log_softmax(-1)

    # Every token within a tie of the chosen one; at the end any of those that end an answer was as good.
    chosen = [[id_] for id_ in answer.ids] + [sorted(infer.stops(model, chat))] * (answer.finish_reason == "stop")
    rivals: list[list[int]] = [[] for _ in range(len(answer.ids) + 1)]
    for number, (shares, taken) in enumerate(zip(log_shares, chosen, strict=False)):
        least = max(shares[taken].tolist()) - TIE[base_dtype(recipe)]
        rivals[number] = [id_ for id_ in (shares >= least).nonzero()[:, 0].tolist() if id_ not in taken]
    return Own(question, prompt, joined(*chat.thought_and_answer(answer.ids)), answer.ids, rivals)


def joined(thought: str | None, answer: str) -> str:
    """What was said, in one text."""
    return answer if thought is None else f"{thought.strip()}\n{answer.strip()}".strip()


def messages(question: Question, profiles: Profiles = "srgb") -> list[dict[str, Any]]:
    """The question as a user of the OpenAI-compatible API sends it, its images as data: addresses of what we read."""
    row = question.row
    images = iter(row.example.images)
    turns = []
    for message in row.example.messages[:-1]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _address(row.root / next(images), profiles)}}
            if part["type"] == "image"
            else {"type": "text", "text": part["text"]}
            for part in message["content"]
        ]
        content: Any = parts if message["role"] == "user" else words(message)
        turns.append({"role": message["role"], "content": content})
    return turns


def _address(path: Path, profiles: Profiles) -> str:
    png = io.BytesIO()
    upright(path, profiles).save(png, "PNG")  # no reader turns it, nor reads clear parts or colours in its own way
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def ask(
    address: str,
    name: str,
    question: Question,
    recipe: Recipe,
    key: str | None,
    tells: bool,
    temperature: float | None = None,
) -> ServedAnswer:
    """What the server at an address says to a question.

    A request says nothing of how to choose tokens where the evaluation is greedy: the server is to know.

    Args:
        address: without the /v1.
        tells: whether it has vLLM's /tokenize.
        temperature: to draw HOT_TOKENS at, in place of the likeliest answer.

    Raises:
        openai.OpenAIError: it did not answer, or refused.
    """
    import openai

    conversation: Any = messages(question, recipe.data.profiles)
    settings: dict[str, Any] = {"temperature": 0.0} if recipe.evaluate.generation.do_sample else {}
    longest = greedy(recipe).max_new_tokens
    if temperature is not None:
        settings, longest = {"temperature": temperature}, min(HOT_TOKENS, longest)
    with openai.DefaultHttpxClient(trust_env=False, timeout=PATIENCE) as http:  # no proxy stands before this machine
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none", max_retries=0, http_client=http)
        completion = client.chat.completions.create(model=name, messages=conversation, max_tokens=longest, **settings)
        ids = None
        if tells:
            tokenized: Any = client.post(
                f"{address}/tokenize", cast_to=object, body={"model": name, "messages": conversation}
            )
            ids = tokenized["tokens"]
    # A thought is a field of its own, which engines name differently.
    message: Any = completion.choices[0].message
    thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    tokens = completion.usage.prompt_tokens if completion.usage else 0
    return ServedAnswer(joined(thought, message.content or ""), tokens, ids)


def judge(ours: Own, served: ServedAnswer, chat: Chat, ends: Sequence[int]) -> ParityVerdict:
    """How a server's answer stands to ours.

    Another answer is the same model's if, where the two part, what the server took was among what rounding may prefer
    to our token. Another prompt is never excused.
    """
    mine = _images_once(ours.prompt, chat)
    if served.tokens != len(ours.prompt):
        return ParityVerdict("prompt", f"it read {served.tokens} tokens; trained are {len(ours.prompt)}")
    if served.ids is not None and _images_once(served.ids, chat) != mine:
        return ParityVerdict(
            "prompt", f"it read {chat.tokenizer.decode(served.ids)!r}; trained is {chat.tokenizer.decode(mine)!r}"
        )
    text = served.text.strip()  # as transformers serve has it of some models, whatever the model text
    if text == ours.text.strip():
        return ParityVerdict("same", ours.text)
    both = f"it says {served.text!r}; we say {ours.text!r}"
    return ParityVerdict("rounding" if _turned(ours, text, chat, ends) else "answer", both)


def _images_once(ids: Sequence[int], chat: Chat) -> list[int]:
    """The ids, of each image one: /tokenize has them as the template wrote them, or as the model reads them."""
    runs = groupby(ids, lambda id_: id_ in chat.image_ids)
    return [id_ for image, run in runs for id_ in ([chat.image_id] if image else run)]


def _turned(ours: Own, text: str, chat: Chat, ends: Sequence[int]) -> bool:
    """Whether an answer parts from ours where rounding may have preferred what it goes on with."""

    def shown(ids: Sequence[int]) -> str:
        words = joined(*chat.thought_and_answer(ids))
        return words.lstrip().rstrip("\ufffd")  # of a letter whose bytes are two tokens, the first alone

    parting = next((n for n in range(len(ours.ids)) if not text.startswith(shown(ours.ids[: n + 1]))), len(ours.ids))
    before = shown(ours.ids[:parting])
    for number in range(parting, -1, -1):
        if shown(ours.ids[:number]) != before:  # a token back shows less, unless it is the first half of a letter
            return False
        for rival in ours.rivals[number]:
            after = shown([*ours.ids[:number], rival])
            if text == before if rival in ends else len(after) > len(before) and text.startswith(after):
                return True
    return False
