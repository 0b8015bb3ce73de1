"""Many classes and many questions on one image, beside each of them alone: `python benchmarks/classify.py`.

Random weights in the shape of Qwen2-VL-2B's language model, behind a tower that is next to nothing, so that what is
compared is the language model; the published Qwen2-VL tokenizer and template (from ../shared/data), one drawn image of
144 tokens.

With a prefix of P tokens, which all classes share, and t of its own for each of C classes, separate forwards compute
C (P + t) positions and a shared one P + C t: the ideal is their ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from roofline import least
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from skinvl.data.example import Example, text
from skinvl.data.labels import CLASSES
from skinvl.data.mixture import Row
from skinvl.model import attention, families, infer
from skinvl.model.chat import Chat
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import EncodedRow, encode_last_answer, encode_prompt
from skinvl.recipe.recipe import Generation

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
THREADS = 2
LARGE, SMALL = (1536, 8960, 28, 12, 2), (768, 3072, 8, 12, 6)  # hidden, inner, layers, heads, key-value heads
SIDE, TOKENS, NEW = 336, 144, 32  # pixels of the image, its tokens; tokens of an answer
QUESTIONS = (
    "What is the diagnosis?",
    "Describe the border of the lesion.",
    "Which colours are seen?",
    "Is the lesion symmetric?",
    "Where on the body is it?",
    "How old is the patient?",
    "Should it be excised?",
    "What else could it be?",
)


def each(action: Callable[[Batch], object], batches: Sequence[Batch]) -> None:
    """Does the action for each batch."""
    for batch in batches:
        action(batch)


def model_of(chat: Chat, shape: tuple[int, int, int, int, int]) -> Qwen2VLForConditionalGeneration:
    """A random model for this tokenizer."""
    tokenizer, family = chat.tokenizer, families.load("qwen2_vl")
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    hidden, inner, layers, heads, shared = shape
    half = hidden // heads // 2
    config = Qwen2VLConfig(
        text_config={
            **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers},
            **{"num_attention_heads": heads, "num_key_value_heads": shared, "vocab_size": len(tokenizer)},
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
            },
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": hidden, "num_heads": 2},
        tie_word_embeddings=True,
        **{key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)},
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    attention.use(model, "sdpa")
    family.prepare(model)
    model.generation_config.eos_token_id = None
    return model


def main() -> None:
    """Prints the two tables."""
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is absent: this benchmark needs the published tokenizer")
    torch.set_num_threads(THREADS)
    family = families.load("qwen2_vl")
    roles = {f"{role}_token": token for role, token in family.tiny.roles.items()}
    file = SHARED / "tokenizers" / "derived" / "tokenizer.qwen2-vl.json"
    template = SHARED / "chat_templates" / "qwen2_vl_and_qwen2_5_vl" / "chat_template.jinja"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **roles)
    chat = Chat(family.tiny.processor(tokenizer, template.read_text(encoding="utf-8")), family, TOKENS, 4096)
    model = model_of(chat, LARGE)
    folder = Path(tempfile.mkdtemp())
    Image.effect_mandelbrot((SIDE, SIDE), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(folder / "one.png")

    def asked(question: str, answer: str | None) -> EncodedRow:
        turns = (text("user", question, images=1), text("assistant", answer or "?"))
        example = Example("one", "drawn", ("one.png",), turns, "g", "test", "CC0-1.0")
        return (encode_prompt if answer is None else encode_last_answer)(chat, Row(example, folder))

    together, apart = Collator(chat), Collator(chat, share=False)
    print("classes, P, t, seconds shared, apart, ratio, ideal, share of it, largest difference")
    for name in ("isic2019", "dermnet"):
        some = [asked(QUESTIONS[0], one) for one in CLASSES[name]]
        batch, singles = together.pack(some), [apart.pack([one]) for one in some]
        prefix = batch.places[0].prefix[1]
        own = sum(place.end - place.start for place in batch.places) / len(some)
        scores = infer.likelihoods(model, batch)
        alone = [infer.likelihoods(model, one)[0] for one in singles]
        worst = max(abs(a - b) for a, b in zip(scores, alone, strict=True))
        assert worst < 1e-4 * max(map(abs, alone))
        seconds = least(partial(each, partial(infer.likelihoods, model), [batch]), 1)
        separate = least(partial(each, partial(infer.likelihoods, model), singles), 1)
        count = len(some)
        ideal = count * (prefix + own) / (prefix + count * own)
        ratio = separate / seconds
        print(
            f"{count}, {prefix}, {own:.1f}, {seconds:.3f}, {separate:.3f}, {ratio:.2f}, {ideal:.2f}, "
            f"{ratio / ideal:.2f}, {worst:.1e}"
        )
    model = model_of(chat, SMALL)  # a token at a time, the large one would take a quarter of an hour
    print(f"questions an image, seconds shared, in whole prompts, one by one ({NEW} new tokens)")
    settings = Generation(max_new_tokens=NEW)
    for count in (1, 2, 4, 8):
        some = [asked(question, None) for question in QUESTIONS[:count]]
        batch, wide = together.pack(some), apart.pack(some)
        singles = [apart.pack([one]) for one in some]
        said = infer.generate(model, chat, batch, settings)
        assert said == [infer.generate(model, chat, one, settings)[0] for one in singles]
        say = partial(infer.generate, model, chat, settings=settings)
        seconds = [least(partial(each, say, batches), 1) for batches in ([batch], [wide], singles)]
        print(f"{count}, " + ", ".join(f"{one:.2f}" for one in seconds))


if __name__ == "__main__":
    main()
