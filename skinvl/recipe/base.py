"""What a run starts from, as recipes/bases/ has it: a vision-language model, or two towers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from skinvl.recipe import strict
from skinvl.recipe.shipped import find, shipped
from skinvl.recipe.strict import StrictModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, Field(min_length=1)]
Kind = Literal["vlm", "dual"]


class Base(StrictModel):
    """The model a run starts from."""

    name: Name
    """Short name, used in the name of the run's folder."""
    kind: Kind = "vlm"
    """vlm: a vision-language model, for skinvl sft. dual: an image tower and a text tower, for skinvl pretrain."""
    model: Text | None = None
    """Model id on the Hugging Face hub, or a local folder."""
    random: Text | None = None
    """Family whose tiny model with random weights is built into bases/<name>/, instead of `model`."""
    quick_gelu: bool | None = None
    """Of a checkpoint of open_clip: whether its CLIP towers were trained with QuickGELU, which its files do not say;
    null is for towers that are not CLIP's."""
    revision: Text | None = None
    """Commit, tag or branch on the hub; null is the newest, whose commit the run records."""
    licence: str | None = None
    """Licence of the weights; null is unknown."""
    gated: bool = False
    """Whether its page on the hub asks for consent to its terms before anything is downloaded."""
    note: str | None = None
    """What a user should know before choosing it."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if (self.model is None) == (self.random is None):
            raise ValueError("expected either model (an id or a folder) or random (a family), and not both")
        if self.quick_gelu is not None and (self.kind != "dual" or self.random is not None):
            raise ValueError(
                "quick_gelu is asked of checkpoints of open_clip alone (kind dual, with model); leave it out"
            )
        return self

    @property
    def location(self) -> str:
        """The model id or folder to load; a random base lies in bases/<name> once it is built."""
        return self.model or f"bases/{self.name}"


def load_base(name: str, kind: Kind = "vlm") -> Base:
    """The base of a shipped name, a YAML file, a model id `owner/name` or a local folder.

    Args:
        kind: what an id or a folder, which does not say it, is taken for.

    Raises:
        RecipeError: the YAML has faults.
        FileNotFoundError: none of these; the message names the nearest.
    """
    if name not in bases() and not name.endswith(".yaml") and ("/" in name or Path(name).is_dir()):
        local = Path(name).expanduser()
        model, last = (str(local), local.resolve().name) if local.is_dir() else (name, name.rpartition("/")[2])
        document = strict.Document(name, {"name": last.lower(), "kind": kind, "model": model})
    else:
        path = find(name, "recipes/bases")
        document = strict.read(path)
        document.data.setdefault("name", path.stem)
    try:
        return Base.model_validate(document.data)
    except ValidationError as error:
        document.fail(strict.faults(error, Base))
        raise


def bases(kind: Kind | None = None) -> list[str]:
    """The names of the shipped bases, all or those of one kind."""
    names = sorted(path.stem for path in shipped("recipes/bases").glob("*.yaml"))
    return [name for name in names if kind is None or load_base(name).kind == kind]
