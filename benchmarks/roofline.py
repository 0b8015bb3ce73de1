"""The share of this machine's matmul rate that training reaches: `python benchmarks/roofline.py [--threads 2]`.

A random Qwen2-VL language model of about 100 million parameters, one packed batch, forward and backward, with LoRA and
without adapters; counted are the products of the linear layers (2 a weight and position forward, 2 backward) and of
attention, over the rate of one product of the same shape measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from skinvl.model import attention, lora
from skinvl.model.attention import Spans
from skinvl.model.layout import Group, spans

HIDDEN, INNER, LAYERS, HEADS = 1024, 2816, 8, 16
PREFIX, BRANCHES, IMAGES = 160, (48, 40), 4  # tokens of a prefix and of each of its branches; images of the batch
TARGETS = r".*language_model.*_proj"


def least(action: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    action()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def packed() -> Spans:
    """The spans of the batch: each image once, its branches behind it."""
    members = torch.arange(IMAGES * len(BRANCHES)).view(IMAGES, -1).tolist()
    images = [Group(tuple(some), PREFIX) for some in members]
    return spans([images], [PREFIX + length for length in BRANCHES] * IMAGES)


def build(dtype: torch.dtype) -> Any:
    """A random Qwen2-VL whose language model is of that size, frozen."""
    text = {
        **{"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": 256},
        **{"num_attention_heads": HEADS, "num_key_value_heads": HEADS},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2}
    model: Any = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    model.to(dtype)
    attention.use(model, "sdpa")
    return model.requires_grad_(False)


def work(language: torch.nn.Module, laid: Spans) -> float:
    """Operations of a forward and a backward of the language model, those of adapters left out."""
    weights = sum(one.numel() for name, one in language.named_parameters() if "proj" in name and "lora_" not in name)
    seen = sum((s.end - s.start) * (s.prefix[1] - s.prefix[0] + (s.end - s.start) / 2) for s in laid.spans)
    return 4 * weights * laid.shape[1] + 3 * 4 * seen * HIDDEN * LAYERS  # attention: two products, their backward four


def rate(length: int, dtype: torch.dtype) -> float:
    """Operations a second of one product of that many rows."""
    a, b = torch.randn(length, HIDDEN, dtype=dtype), torch.randn(HIDDEN, INNER, dtype=dtype)
    return 2 * length * HIDDEN * INNER / least(lambda: a @ b, 20)


def main() -> None:
    """Prints the machine's rate and the two shares of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    laid = packed()
    length = laid.shape[1]
    machine = rate(length, dtype)
    model = build(dtype)
    language = model.model.language_model
    operations = work(language, laid)
    embedded = torch.randn(1, length, HIDDEN, dtype=dtype)

    def step() -> None:
        given = embedded.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            language(inputs_embeds=given, spans=laid, use_cache=False).last_hidden_state.sum().backward()

    bare = operations / least(step) / machine
    peft_model = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
    lora.use(peft_model)
    adapted = operations / least(step) / machine
    weights = sum(one.numel() for name, one in language.named_parameters() if "base_layer.weight" in name)
    print(f"{weights / 1e6:.0f} M weights, {length} positions, {dtype}, {given.threads} threads")
    print(f"one product of that shape: {machine / 1e9:.0f} GFLOP/s")
    print(f"share of it: {bare:.2f} without adapters, {adapted:.2f} with LoRA of rank 8")


if __name__ == "__main__":
    main()
