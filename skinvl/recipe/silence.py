"""What other libraries say that a user can do nothing about, by name, each with its reason; all else comes through."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Logger → how messages of it begin that are left out.
MESSAGES: dict[str, tuple[str, ...]] = {
    # It would be faster by a kernel from the hub, on CPUs with AVX512-BF16 alone; its own way gives the same numbers.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
    # On a machine without a GPU, where it trains on the CPU, as asked. It warns whenever accelerate looks for it.
    "DeepSpeed": ("Setting accelerator to CPU.",),
    # SigLIP's text config has by default the special tokens of CLIP, which lie beyond its own vocabulary; its tower
    # reads neither, and two towers take theirs from the tokenizer, which is held against the vocabulary.
    "transformers.configuration_utils": ("Model config: bos_token_id must be", "Model config: eos_token_id must be"),
    # The same as of DeepSpeed, by PyTorch, where its CUDA toolkit is installed; DeepSpeed asks it for a compiler.
    "torch.utils.cpp_extension": ("No CUDA runtime is found",),
}

# Category and how a message begins, as a regular expression.
WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # transformers 5 of its own old name, which TRL and peft ask for.
    (FutureWarning, "`is_gradient_checkpointing` is deprecated"),
)

# Bars of transformers that are done at once with a small base. Of a large one they are shown on a terminal while they
# last; in a log file each would be one line of carriage returns.
BARS = ("Loading weights", "Writing model shards")
BAR_AFTER = 3.0  # seconds


class _Without(logging.Filter):
    """Lets every record through but those that begin in one of these ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def messages() -> None:
    """Leaves out the messages and warnings that are named here; to be called before the libraries are imported."""
    for name, beginnings in MESSAGES.items():
        logging.getLogger(name).addFilter(_Without(beginnings))
    for category, beginning in WARNINGS:
        warnings.filterwarnings("ignore", beginning, category)


def bars() -> None:
    """Leaves out the bars that are named here; to be called once the verb has imported its libraries."""
    theirs: Any = sys.modules.get("transformers.utils.logging")
    if theirs is not None:
        theirs.set_tqdm_hook(bar)


def bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A bar as transformers asks for it; a named one is shown on a terminal alone, late, and removed at its end."""
    if options.get("desc") in BARS:
        options = {**options, "disable": None, "delay": BAR_AFTER, "leave": False}  # tqdm's None: where no terminal is
    return factory(*args, **options)
