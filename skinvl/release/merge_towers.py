"""The adapter of a two-tower run merged into its towers: one model that needs no PEFT, and embeds as both did."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch import nn

from skinvl.model.dual import DualEncoder
from skinvl.model.towers_loaded import LoadedTowers, OpenTowers, load_towers
from skinvl.recipe.files import whole_folder, write_json

LIBRARIES = ("skinvl", "torch", "transformers", "peft", "safetensors")
TOLERANCE = 1e-5  # on embeddings of length one, in float32
PROBES = (
    "a photograph of skin",
    "An annular plaque with scale at its border on the left forearm, 2.5 cm wide",
    "a symmetrical brown macule with a sharp border",
)


class MergeTowersError(ValueError):
    """A merged model that embeds otherwise than the towers with their adapter."""


def write(out: Path, opened: OpenTowers, facts: dict[str, Any], say: Console) -> None:
    """Writes the merged model into a folder, which appears whole or not at all, and prints how near it is.

    Args:
        opened: with what the run has trained.
        facts: of which base and adapter; merge.json holds them, and what the check found.

    Raises:
        MergeTowersError: its embeddings of probes differ from those of base and adapter.
        AdapterError, BaseError: see `load_towers`.
    """
    loaded = load_towers(opened.recipe, torch.device("cpu"))
    before = embeddings(loaded.model, loaded)
    assert isinstance(loaded.model, PeftModel)
    merged: Any = loaded.model.merge_and_unload()

    # Read again as any user of it will, before it counts as there.
    with whole_folder(out, durable=True) as partial:
        merged.save_pretrained(partial)
        loaded.tokenizer.save(partial)
        loaded.pixels.save(partial)
        model: DualEncoder = DualEncoder.from_pretrained(partial, dtype=torch.float32)
        after = embeddings(model, loaded)
        differences = {side: float((after[side] - before[side]).abs().max()) for side in before}
        if not max(differences.values()) <= TOLERANCE:
            raise MergeTowersError(
                f"{out}: merged, embeddings of probes differ by {max(differences.values()):.1e} from those of base and "
                f"adapter; expected at most {TOLERANCE:.0e}; nothing was written. Please report it"
            )
        check = {**differences, "tolerance": TOLERANCE, "texts_compared": len(PROBES)}
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        write_json(partial / "merge.json", {**facts, "check": check, "libraries": versions})
    say.print(
        f"{out}: one model of both towers in float32; on probes its embeddings differ by at most "
        f"{max(differences.values()):.1e} from those of base and adapter",
        markup=False,
        soft_wrap=True,
    )


@torch.no_grad()
def embeddings(model: nn.Module, loaded: LoadedTowers) -> dict[str, torch.Tensor]:
    """The embeddings of two images of seeded noise, and of three texts, in float32."""
    towers: Any = model
    side = loaded.pixels.side
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {
        "images": towers.encode_images(pixels).embeddings,
        "texts": towers.encode_texts(*loaded.tokenizer.pad(loaded.tokenizer(PROBES))),
    }
