"""`skinvl merge RUN`: the adapter of a run merged into its base, as a model folder that needs neither."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from skinvl.data.mixture import Row
from skinvl.model.base import count_parameters
from skinvl.model.loaded import OpenBase, open_with_adapter
from skinvl.model.towers_loaded import OpenTowers, open_towers
from skinvl.plan.dual_configs import blank
from skinvl.recipe.files import MANIFEST, existing, read_json, whole_folder, write_json
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import Run, TowersRun, begun, finished, finished_towers
from skinvl.release import merge_check, merge_towers
from skinvl.release.merge_check import MergeCheck
from skinvl.release.merging import Merging, Onto

LIBRARIES = ("skinvl", "torch", "transformers", "peft", "bitsandbytes", "safetensors")
# Of an adapter's folder, what a merged model does not need; the rest is processor, tokenizer and template.
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md", MANIFEST)


class MergeError(ValueError):
    """A run that cannot be merged, or a folder that cannot take it."""


def main(words: Sequence[str]) -> int:
    """0, once the merged model lies in its folder, whole, and passed the merge check.

    Raises:
        MergeError, RunError, MergingError, MergeCheckError, AdapterError, BaseError: what a user can mend.
    """
    args = _arguments(words)
    if isinstance(begun(args.run), TowersRun):
        return _towers(args)
    run = finished(args.run)
    recipe = run.adapted()
    onto = _onto(recipe, args.onto)
    out: Path = args.out or run.path / "merged"

    # What the merge would be made of; where the folder says the same of itself, it is that merge.
    base = open_with_adapter(recipe)
    facts: dict[str, Any] = {"base": _base(run, base), "adapter": base.facts["adapter"], "onto": onto}
    say = Console(highlight=False)
    if _merged(out, facts, say):
        return 0

    rows = [] if args.unchecked else merge_check.examples(recipe, base.chat)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    merging = Merging(base.path, run.adapter, recipe, device)
    _room(out, merging.bytes)
    facts |= _write(out, merging, recipe, facts, rows)
    _show(say, out, merging, facts)
    return 0


def _towers(args: argparse.Namespace) -> int:
    """0, once the towers of a run with their adapter merged in lie in the folder.

    Raises:
        MergeError: the run made a whole model, or an option is of vision-language models; see `main` for the rest.
    """
    for option in ("onto", "unchecked"):
        if getattr(args, option):
            raise MergeError(f"--{option}: of vision-language models; {args.run} is a run of two towers, leave it out")
    run = finished_towers(args.run)
    if not run.recipe.makes_adapter:
        raise MergeError(f"{run.trained}: a whole model already, without an adapter to merge; use it as it is")
    out: Path = args.out or run.path / "merged"
    opened, say = open_towers(run.adapted()), Console(highlight=False)
    facts = {"base": _base(run, opened), "adapter": opened.facts["adapter"]}
    if not _merged(out, facts, say):
        _room(out, 4 * count_parameters(blank(opened.config)))
        merge_towers.write(out, opened, facts, say)
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="skinvl merge", description="Merge a run's adapter into its base, and check.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--onto", choices=("bf16", "dequantized"),
                        help="the base to merge into: as it was published, or, of a 4-bit training and then the "
                        "default, as its 4 bits have it")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the merged model (default: RUN/merged)")
    parser.add_argument("--unchecked", action="store_true",
                        help="do not compare with base + adapter, where the data is gone or a model in float32 does "
                        "not fit into memory; merge.json says so")  # fmt: skip
    return parser.parse_args(words)


def _onto(recipe: Recipe, wanted: Onto | None) -> Onto:
    if recipe.quantization is None and wanted == "dequantized":
        raise MergeError("--onto dequantized: the run was not trained on a 4-bit base; leave --onto out")
    return wanted or ("bf16" if recipe.quantization is None else "dequantized")


def _base(run: Run | TowersRun, base: OpenBase | OpenTowers) -> dict[str, Any]:
    """What says which base it is, the same now as when it was trained on.

    Raises:
        MergeError: another one.
    """
    then, location = run.provenance.base, run.recipe.base.location
    if then.model != location:
        raise MergeError(f"{run.path}: trained on {then.model}, but its recipe.yaml names {location}")
    now = {"model": location, "commit": base.files.commit, "fingerprint": base.files.fingerprint()}
    if then.fingerprint != now["fingerprint"]:
        raise MergeError(
            f"{base.path}: not the base that {run.path} was trained on: its fingerprint is {now['fingerprint']} and "
            f"was {then.fingerprint}. Put that base back; a merge with another is another model"
        )
    return now


def _merged(out: Path, facts: dict[str, Any], say: Console) -> bool:
    """Whether the folder is what the merge would make, which is said then; an older merge is replaced.

    Raises:
        MergeError: something else lies there.
    """
    if not out.exists():
        return False
    if not (out / "merge.json").is_file():
        if not out.is_dir() or any(out.iterdir()):
            raise MergeError(f"{out}: no merged model, and not empty; give another folder with --out, or remove it")
        return False
    then = read_json(out / "merge.json", "remove the folder and merge again", MergeError)
    same = all(then.get(name) == value for name, value in facts.items())
    if same:
        say.print(
            f"{out}: merged already, from this adapter onto this base; remove it to merge again",
            markup=False,
            soft_wrap=True,
        )
    return same


def _room(out: Path, size: int) -> None:
    free = shutil.disk_usage(existing(out.absolute().parent)).free
    if size > free:
        raise MergeError(
            f"{out}: {size / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free; free some space or give --out"
        )


def _write(out: Path, merging: Merging, recipe: Recipe, facts: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What the merge check found; the folder appears whole, or not at all."""
    with whole_folder(out, durable=True) as partial:
        _beside(merging, partial)
        merging.write(partial, facts["onto"])
        verdict = merge_check.check(merging, partial, recipe, facts["onto"], rows) if rows else None
        checked = _verdict(verdict) | {"libraries": {name: importlib.metadata.version(name) for name in LIBRARIES}}
        write_json(partial / "merge.json", {**facts, **checked})
    return checked


def _beside(merging: Merging, out: Path) -> None:
    """Writes into the folder all but the weights: the base's configs, the adapter's processor and template."""
    config = read_json(merging.base / "config.json", "put the base back as it was", MergeError)
    _in_bf16(config)
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = "bfloat16"
    write_json(out / "config.json", config)
    if (merging.base / "generation_config.json").is_file():
        shutil.copy(merging.base / "generation_config.json", out)
    for path in sorted(merging.trained.iterdir()):
        if path.is_file() and path.name not in ADAPTER:
            shutil.copy(path, out)


def _in_bf16(config: dict[str, Any]) -> None:
    for name, value in config.items():
        if name in ("dtype", "torch_dtype"):
            config[name] = "bfloat16"
        elif isinstance(value, dict):
            _in_bf16(value)


def _verdict(verdict: MergeCheck | None) -> dict[str, Any]:
    if verdict is None:
        return {"check": None, "drift": {}}
    return {"check": verdict.record(), "drift": {name: asdict(drift) for name, drift in verdict.drift.items()}}


def _show(say: Console, out: Path, merging: Merging, facts: dict[str, Any]) -> None:
    used = f"{merging.keys} keys of the adapter used, none left over; {merging.bytes / 1e9:.2f} GB in bf16"
    say.print(f"{out}: onto the {facts['onto']} base; {used}", markup=False, soft_wrap=True)
    if facts["check"] is None:
        say.print("not compared with base + adapter (--unchecked)")
        return
    check = facts["check"]
    seen = f"{check['positions']} supervised positions of {check['examples']} examples, in float32"
    table = Table("logits by base + adapter", "max", "mean", "same argmax", "KL, nats", title=seen)
    table.add_row(f"not rounded: max ≤ {check['tolerance']:.1g}", *_numbers(check))
    rounded = check["rounded"]
    bound = rounded["tolerance"]["kl"]
    table.add_row(f"as written, bf16: KL ≤ {bound:g}", *_numbers(rounded), end_section=True)
    if len(facts["drift"]) > 1:
        for name, drift in facts["drift"].items():
            table.add_row(f"onto {name}", *_numbers(drift))
    say.print(table)
    if len(facts["drift"]) > 1:
        say.print("onto …: the logits of that merge beside those of the 4-bit model that was trained", soft_wrap=True)


def _numbers(distance: dict[str, Any]) -> list[str]:
    kl = f"{distance['kl']:.2g}" if "kl" in distance else ""
    return [f"{distance['max']:.2g}", f"{distance['mean']:.2g}", f"{distance['argmax_agreement']:.1%}", kl]
