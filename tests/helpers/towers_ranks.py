"""`torchrun … towers_ranks.py FOLDER`: what ranks make of batches that are cut among them, for test_dual_ranks.py.

The folder holds the bases, since a tokenizer that is trained again may number its words otherwise.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from helpers import batches, two_towers
from skinvl.model import ranks

IMAGES = 7
CASES = [("clip", "clip"), ("siglip", "siglip"), ("beit_bert", "make"), ("clip", "make-ontology")]
CUTS = {2: [0, 3, 7], 4: [0, 4, 4, 6, 7]}  # where each rank's images begin; of four the second has none


def towers(family: str, objective: str) -> tuple[batches.CachedGradients, batches.DualBatch]:
    """Towers and the batch of all ranks, the same in every process."""
    made = batches.cached(family, objective, 2)
    return made, batches.batch(made.tokenizer, IMAGES)


def main() -> None:
    """Writes the loss and every gradient that the first rank and the last one have, case by case."""
    torch.set_num_threads(1)
    ranks.FLAT = 1 << 12  # so that gradients are summed in several goes
    two_towers.base = lambda family: Path(sys.argv[1]) / family
    built = [(objective, *towers(family, objective)) for family, objective in CASES]
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    cuts = CUTS[count]
    for objective, made, given in built:
        own = batches.rows(given, cuts[rank], cuts[rank + 1])
        for at_once in (2, 64):
            made.model.zero_grad()
            whole = replace(made, at_once=at_once).gradients(own, 0.3)
            gradients = {name: weight.grad for name, weight in made.model.named_parameters() if weight.requires_grad}
            if rank in (0, count - 1):
                file = Path(sys.argv[1]) / f"{objective}-{count}-{rank}-{at_once}.pt"
                torch.save({"loss": whole.loss, **gradients}, file)
        evaluated = made.evaluated(own, 0.3)
        assert abs(float(evaluated.loss - whole.loss)) < 1e-5
        assert len(evaluated.features.images) == IMAGES
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
