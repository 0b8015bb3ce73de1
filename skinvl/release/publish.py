"""`skinvl publish RUN REPO`: a run as a repository of the hub, with its card, once nothing in it must stay at home."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, try_to_load_from_cache
from rich.console import Console

from skinvl.data import licences, metadata
from skinvl.data.licences import Licence
from skinvl.recipe import recipe as recipes
from skinvl.recipe import strict
from skinvl.recipe.files import read_json, whole_folder, write_json
from skinvl.recipe.recipe import Base
from skinvl.recipe.towers import PretrainRecipe
from skinvl.release import card, upload, vetting
from skinvl.release import record as records
from skinvl.release.record import Record
from skinvl.release.vetting import Finding, neutral
from skinvl.score import tables

LEFT_OUT = (
    "README.md",
    "complete.json",
)  # of the adapter's folder: PEFT's blank card, and digests of what changes here
AS_THEY_ARE = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")


class PublishError(ValueError):
    """A run that cannot be published as asked."""


def main(words: Sequence[str]) -> int:
    """0, once the folder is written and checked, and, unless dry, lies on the hub.

    Raises:
        PublishError, RunError, RecordError, LicenceError, UploadError: what a user can mend; nothing was uploaded then.
    """
    # What goes in: the run's own files, the terms of all that it was made of, and where others get its base.
    args = _arguments(words)
    upload.check_name(args.repo)
    rights = _rights(args.rights)
    record = records.read(args.run, rights)
    merge = records.merged(args.run, record) if args.merged else None
    base = _base(record, args.base)
    if base is not None and not record.base.known:  # of a local copy nothing is known but what it is a copy of
        record = replace(record, base=licences.of_base(base, record.provenance.base.model_type))

    # What may not be: a name or a public model that a licence forbids, or a folder with something else in it.
    licences.refuse_name(record.base, args.repo)
    _refuse_forbidden(record)
    licence = licences.chosen(record.base, record.terms, args.license)
    _refuse_public(record, licence, args)
    out: Path = args.out or args.run / "publish"
    if args.out is not None:
        _refuse_out(out)

    # The folder, held against what must stay at home before anything leaves this machine.
    with whole_folder(out) as partial:
        faults = _write(partial, record, args.repo, licence, base, merge, rights)
    faults += vetting.check(out, _private())
    if faults:
        listed = "\n".join(f"  {finding}" for finding in faults)
        raise PublishError(f"{out}: must not be uploaded as it is, and was not:\n{listed}")

    say = Console(highlight=False, markup=False, soft_wrap=True)
    _show(say, out, licence)
    if args.dry_run:
        say.print(f"{out}: what would be uploaded to {args.repo}; nothing was")
        return 0

    # What it would replace on the hub is said before it is sent.
    plan = upload.look(args.repo, out, args.public)
    what = "public, for everyone to see" if args.public else "private"
    say.print(
        f"{plan.address}: {what}; {'new' if plan.parent is None else 'exists'}; {len(plan.files)} files, "
        f"{plan.size / 1e6:,.1f} MB; replaces {', '.join(plan.replaced) or 'nothing'}"
        + (f"; stays: {', '.join(plan.kept)}" if plan.kept else "")
    )
    if args.public and not args.yes:
        _ask(args.repo)
    say.print(upload.send(plan, out, f"Upload {args.run.resolve().name} with skinvl"))
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skinvl publish", description="Write a run's model card, check what would be uploaded, and upload it."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that has ended")
    parser.add_argument("repo", metavar="REPO", help="where on the hub, as owner/name")
    parser.add_argument("--merged", action="store_true", help="RUN/merged instead of the adapter")
    parser.add_argument("--dry-run", action="store_true", help="write and check the folder, and upload nothing")
    parser.add_argument("--public", action="store_true", help="for everyone to see; asks before it (default: private)")
    parser.add_argument("--yes", action="store_true", help="do not ask before --public")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder that is written anew (default: RUN/publish)")
    parser.add_argument("--base", metavar="NAME",
                        help="where others get the base, if it was trained on a local copy: a name that skinvl bases "
                        "lists, or owner/name")  # fmt: skip
    parser.add_argument("--license", metavar="ID",
                        help="licence of the model (default: the strictest of base and data)")  # fmt: skip
    parser.add_argument("--rights", action="append", default=[], metavar="NAME=LICENCE",
                        help="the licence of a source (or of the base) that states none, or what its "
                        "owners have permitted, as you vouch for")  # fmt: skip
    return parser.parse_intermixed_args(words)


def _rights(words: Sequence[str]) -> dict[str, str]:
    rights = dict(word.partition("=")[::2] for word in words)
    for name, stated in rights.items():
        if not licences.read(stated).known:
            raise PublishError(
                f"--rights {name}={stated}: expected NAME=LICENCE with a licence such as cc-by-4.0, cc-by-nc-4.0, "
                "apache-2.0 or 'research only'"
            )
    return rights


def _refuse_forbidden(record: Record) -> None:
    forbidden = [f"{name} ({terms.stated})" for name, terms in record.terms.items() if not terms.derivatives]
    if forbidden:
        raise PublishError(
            f"{record.path}: trained on data whose terms permit no derivatives, which a model is taken for: "
            f"{', '.join(forbidden)}. It goes to no repository, a private one included; leave that source out of "
            "training, or, if its owners have permitted it, say what they did with --rights NAME=LICENCE"
        )


def _refuse_public(record: Record, licence: Licence, args: argparse.Namespace) -> None:
    if not args.public:
        return
    if licence.private:
        raise PublishError(
            f"--public: {'; '.join(licence.private)}. Leave --public out, leave that source out of training, or, if "
            "you have read its terms, state them with --rights NAME=LICENCE"
        )
    if record.scores is None:
        raise PublishError(
            f"--public: {args.run} was not evaluated, and nobody could know what it is worth; run make eval "
            f"RUN={args.run} first, or leave --public out"
        )
    if not args.yes and not sys.stdin.isatty():
        raise PublishError("--public: nobody is there to be asked; add --yes where a script decides")


def _base(record: Record, name: str | None) -> Base | None:
    """Where others get the base; None where nobody can."""
    own, commit = record.recipe.base, record.provenance.base.commit
    if commit is not None:
        if name is not None and name not in (own.name, own.model):
            raise PublishError(f"--base {name}: the run was trained on {own.model}, and an adapter fits no other base")
        return own.model_copy(update={"revision": commit})
    if name is None:
        return None
    base = recipes.load_base(name)
    if base.model is None or base.model.count("/") != 1 or Path(base.model).is_dir():
        raise PublishError(f"--base {name}: not on the hub; expected owner/name, or a name that skinvl bases lists")
    return base.model_copy(update={"revision": None})  # of which commit the local copy was is not known


def _write(
    partial: Path,
    record: Record,
    repo: str,
    licence: Licence,
    base: Base | None,
    merge: Mapping[str, Any] | None,
    rights: Mapping[str, str],
) -> list[Finding]:
    """What of it cannot be published; the folder then holds all that would be uploaded, and nothing else."""
    # The weights, and configs that say how they were trained.
    images, quantization = _as_trained(record)
    folder = record.trained if merge is None else record.path / "merged"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in LEFT_OUT:
            target = partial / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, target)
    faults = _settle(partial, record, base, images)

    # What was trained, and what came of it, without the names of this machine.
    resolved = record.recipe.model_dump()
    if base is not None:
        resolved["base"] = base.model_dump()
    (partial / "recipe.yaml").write_text(strict.write(_neutral(resolved)), encoding="utf-8")
    if record.scores is not None:
        write_json(partial / "scores.json", _neutral(record.scores), indent=1)
        (partial / "scores.md").write_text(neutral(tables.markdown(record.scores)), encoding="utf-8")
    if (record.path / "loss.png").is_file():
        plot = (record.path / "loss.png").read_bytes()
        (partial / "loss.png").write_bytes(metadata.stripped(plot, "PNG", 1) or plot)

    # Whose terms hold, and the card that says all of this.
    if licence.id == "other":
        (partial / "LICENSE").write_text(card.licence_text(record, licence), encoding="utf-8")
    if notice := licences.notice(record.base):
        (partial / "NOTICE").write_text(notice, encoding="utf-8")
        faults += _licence_of_base(partial, record)
    text = card.text(record, repo, licence, base, merge, quantization, rights)
    (partial / "README.md").write_text(text, encoding="utf-8")
    return faults


def _refuse_out(out: Path) -> None:
    known = (
        [path for path in out.iterdir() if any(path.match(pattern) for pattern in vetting.ALLOWED)]
        if out.is_dir()
        else []
    )
    if out.exists() and (not out.is_dir() or len(known) < len(list(out.iterdir()))):
        raise PublishError(f"{out}: holds what skinvl publish does not write; give another --out, or empty it")


def _copy(path: Path, target: Path) -> None:
    """Puts the file at `target`; on one disk without a second copy of its bytes where it is one of weights."""
    if path.suffix == ".safetensors":
        try:
            os.link(path.resolve(), target)
            return
        except OSError:  # another disk, or one without hard links
            target.unlink(missing_ok=True)
    shutil.copyfile(path, target)


def _as_trained(record: Record) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The image processor's arguments within the run's image budget, and how its base was quantised.

    Two towers have saved theirs as they were trained.
    """
    if isinstance(record.recipe, PretrainRecipe):
        return {}, None
    from transformers import AutoProcessor

    from skinvl.model import families

    family = families.load(record.provenance.base.model_type)
    processor = AutoProcessor.from_pretrained(record.trained)
    images = family.image_arguments(processor, record.recipe.data.image_tokens)
    if record.recipe.quantization is None:
        return images, None
    return images, {**record.recipe.quantization, "llm_int8_skip_modules": family.unquantised}


def _settle(folder: Path, record: Record, base: Base | None, images: Mapping[str, Any]) -> list[Finding]:
    """What cannot be published; configs name the base as others find it, and the image size that was trained with."""
    faults = []
    for path in sorted(folder.glob("*.json")):
        if path.name in AS_THEY_ARE:
            continue

        before = read_json(path, "make it again with the verb that wrote it", PublishError)
        after = _neutral(before)
        for holder, name in (
            (after.get("image_processor"), "processor_config.json"),
            (after, "preprocessor_config.json"),
        ):
            if path.name == name and holder is not None:
                holder.update(images)
                for alias in ("min_pixels", "max_pixels") if "size" in images else ():
                    holder.pop(alias, None)

        if path.name == "adapter_config.json":
            after["base_model_name_or_path"] = base.model if base else neutral(record.recipe.base.location)
            after["revision"] = base.revision if base else None
            if base is None:
                faults.append(Finding(
                    path.name,
                    f"its base {neutral(record.recipe.base.location)} is not on the hub, so that nobody could load it",
                    "publish with --merged, or name with --base where others get the base",
                ))  # fmt: skip
        if path.name == "merge.json" and base is not None:
            after["base"]["model"] = base.model

        if after != before:
            write_json(path, after)
    return faults


def _licence_of_base(folder: Path, record: Record) -> list[Finding]:
    """What is missing; the folder holds the copy of the base's licence that the licence demands."""
    base = record.recipe.base
    commit = record.provenance.base.commit
    candidates = [record.path / "LICENSE.txt", Path(base.location) / "LICENSE.txt"]
    if commit is not None and isinstance(
        cached := try_to_load_from_cache(base.location, "LICENSE.txt", revision=commit), str
    ):
        candidates.append(Path(cached))
    for path in candidates:
        if path.is_file():
            shutil.copyfile(path, folder / "LICENSE-BASE")
            return []
    what = f"no copy of the licence of {licences.LLAMA[record.base.id or '']}, which has to come along"
    return [Finding("LICENSE-BASE", what, f"save it as {candidates[0]}; it is LICENSE.txt on the base's hub page")]


def _neutral(value: Any) -> Any:
    """The value with every text in it neutral, keys too."""
    if isinstance(value, str):
        return neutral(value)
    if isinstance(value, dict):
        return {_neutral(name): _neutral(part) for name, part in value.items()}
    return [_neutral(part) for part in value] if isinstance(value, list | tuple) else value


def _private() -> list[str]:
    """Words that nothing uploaded may hold: the token in use, and folders of this machine."""
    folders = [str(Path.home()), str(Path.cwd())]
    return [*filter(None, [get_token()]), *(f"{folder}/" for folder in folders if len(folder) > 1)]


def _show(say: Console, out: Path, licence: Licence) -> None:
    for path in sorted(out.iterdir()):
        say.print(f"  {path.name}  {path.stat().st_size:,} bytes")
    say.print(f"licence: {licence.name or licence.id}")
    for reason in licence.private:
        say.print(f"not to be made public: {reason}")


def _ask(repo: str) -> None:
    if input(f"everyone will see it. To go on, type {repo}: ").strip() != repo:
        raise PublishError("not confirmed; nothing was uploaded")
