"""The share of this machine's matmul rate that training reaches: `python benchmarks/roofline.py`.

A random Qwen2-VL language model of about 100 million parameters, one packed batch, forward and backward, with LoRA and
without adapters; counted are the products of the linear layers (2 a weight and position forward, 2 backward) and of
attention, over the rate of one product of the same shape measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from skinvl.model import attention
from skinvl.model.layout import Group, spans

THREADS, HIDDEN, INNER, LAYERS, HEADS = 2, 1024, 2816, 8, 16
PREFIX, BRANCHES, IMAGES = 160, (48, 40), 4  # tokens of a prefix and of each of its branches; images of the batch


def least(action: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    action()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    """Prints the machine's rate and the two shares of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    dtype = getattr(torch, parser.parse_args().dtype)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    members = torch.arange(IMAGES * len(BRANCHES)).view(IMAGES, -1).tolist()
    images = [Group(tuple(some), PREFIX) for some in members]
    laid = spans([images], [PREFIX + length for length in BRANCHES] * IMAGES)
    length = laid.shape[1]
    a, b = torch.randn(length, HIDDEN, dtype=dtype), torch.randn(HIDDEN, INNER, dtype=dtype)
    rate = 2 * length * HIDDEN * INNER / least(lambda: a @ b, 20)
    text = {
        **{"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": 256},
        **{"num_attention_heads": HEADS, "num_key_value_heads": HEADS},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).to(dtype)
    attention.use(model, "sdpa")
    language = model.model.language_model
    weights = sum(one.numel() for name, one in language.named_parameters() if "proj" in name)
    seen = sum((s.end - s.start) * (s.prefix[1] - s.prefix[0] + (s.end - s.start) / 2) for s in laid.spans)
    work = 4 * weights * length + 3 * 4 * seen * HIDDEN * LAYERS  # attention: two products, their backward four
    embedded = torch.randn(1, length, HIDDEN, dtype=dtype)

    def step() -> None:
        given = embedded.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            language(inputs_embeds=given, spans=laid, use_cache=False).last_hidden_state.sum().backward()

    language.requires_grad_(False)
    bare = work / least(step) / rate
    get_peft_model(model, LoraConfig(r=8, target_modules=r".*language_model.*_proj"))
    adapted = work / least(step) / rate
    print(f"{weights / 1e6:.0f} M weights, {length} positions, {dtype}, {THREADS} threads")
    print(f"one product of that shape: {rate / 1e9:.0f} GFLOP/s")
    print(f"share of it: {bare:.2f} without adapters, {adapted:.2f} with LoRA of rank 8")


if __name__ == "__main__":
    main()
