"""What suppression brings back where an artefact goes by the label in training: `python benchmarks/suppression.py`.

Two tiny towers learn of drawn lesions whose descriptions name hair, ink and rulers, which say nothing of the rest
(`prep demo --part untied`), and a dictionary is fitted to their embeddings: 16 units for the 14 values that are said of
drawings, and 5 active, as many as are said of each. Then a probe learns the border from drawings in which the artefact
goes by it, and is tested where it does not (`--part artefact`); beside it, where it never did (`--part untied`). Which
label, how much is trained and the size of the dictionary were chosen on other seeds than those that are run here, by
the drop, by how well a line tells the artefacts, and by how well units do. Each seed has random weights, an order of
images and a dictionary of its own, and takes two to three minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skinvl.evaluate import concepts
from skinvl.evaluate.concept.rows import ConceptError
from skinvl.evaluate.concept.suppress_tables import span
from skinvl.model import tiny, tiny_towers
from skinvl.score.classification import BALANCED
from skinvl.sources import prep
from skinvl.train import pretrain

PARTS = ("artefact", "untied")  # the border is learnt from each; the towers are trained on the second
SETS = ", ".join(f"{{source: {part}, split: test, label: answer, where: {{kind: border}}}}" for part in PARTS)
TEXTS = (
    '{colour: "a lesion that is {answer}", size: "a {answer} lesion", border: "a lesion with {answer} border", '
    'artefact: "{answer} over the skin"}'
)
SETTINGS = (
    "data.train=[{source: untied, split: train}]",
    "data.eval=[{source: untied, split: test}]",
    "data.texts=" + TEXTS,
    f"evaluate.classify=[{SETS}]",
    "batch={images: 32, at_once: 32}",
    "train.num_train_epochs=32",  # 768 steps
    "train.eval_strategy=no",
    "train.save_strategy=no",
    "train.report_to=none",
)


def main() -> None:
    """Prints, by seed, the drop and the shares of it that the units and random ones bring back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="N")
    given = parser.parse_args()
    table = Table("seed", "drop", "units", "random", "difference", "all rows", "untied, drop", "all rows")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        for seed in given.seeds:
            try:
                found = measured(seed)
            except ConceptError as error:
                table.add_row(str(seed), str(error))
                continue
            tied, untied = (found[part] for part in PARTS)
            back = tied["brought_back"]
            shares = ("–" if back[key] is None else span(back[key]) for key in ("units", "random", "beyond_random"))
            drop = span(untied["brought_back"]["drop"])
            table.add_row(str(seed), span(back["drop"]), *shares, kept(tied), drop, kept(untied))
    Console(width=160).print(table)


def prepare() -> None:
    """Puts the drawings into the working folder."""
    for part in PARTS:
        prep.main(["demo", "raw", f"data/{part}", "--part", part])


def measured(seed: int) -> dict[str, dict[str, Any]]:
    """What suppression changes for the probe, by the part that it learns the border from.

    Raises:
        ConceptError: no unit stands for an artefact.
    """
    base = tiny_towers.build("clip", Path(f"bases/{seed}"), texts=tiny.texts([Path("data/untied")]), seed=seed)
    run = f"runs/seed-{seed}"
    pretrain.main(["tiny-clip", f"base={base}", f"run=seed-{seed}", f"train.seed={seed}", *SETTINGS])
    few = ("--units", "16", "--k", "5", "--steps", "2000", "--seeds", "1", "--seed", str(seed))
    concepts.main(["fit", run, *few])
    found = {}
    for part in PARTS:
        concepts.main(["suppress", run, "--concept", "hair,ink,ruler", "--classify", f"{part}-border"])
        file = Path(run) / "concepts" / "suppress" / f"hair-ink-ruler--{part}-border.json"
        found[part] = json.loads(file.read_text(encoding="utf-8"))["probe"]
    return found


def kept(probe: dict[str, Any]) -> str:
    """The balanced accuracy of all rows before and after."""
    before, after = (probe["parts"]["all"][side][BALANCED]["value"] for side in ("before", "after"))
    return f"{before:.3f} → {after:.3f}"


if __name__ == "__main__":
    main()
