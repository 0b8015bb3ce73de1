"""A protocol: sets that papers report numbers of, where each may lie on this machine, and the figures published."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from skinvl.recipe import strict
from skinvl.recipe.recipe import ClassSpec, Probe, Text
from skinvl.recipe.shipped import find, shipped
from skinvl.recipe.strict import StrictModel

FOLDER = "recipes/protocols"
Metric = Literal["accuracy", "balanced_accuracy", "auroc", "mean_recall", "macro_auroc"]
_OF: dict[str, tuple[Metric, ...]] = {  # the numbers that each verb gives
    "zeroshot": ("accuracy", "balanced_accuracy", "auroc"),
    "probe": ("accuracy", "balanced_accuracy", "auroc"),
    "retrieve": ("mean_recall",),
    "concepts": ("macro_auroc",),
}


class ProtocolSet(StrictModel):
    """One set of a protocol."""

    at: list[ClassSpec] = Field(min_length=1)
    """Where its rows may lie, the first that is there being taken: a released CSV, or a prepared source and its split;
    of retrieve and concepts source and split alone."""
    metric: Metric
    """What is compared: of retrieve the mean of R@k over `depths`, of concepts the mean of the concepts' AUROC."""
    n: int | None = Field(default=None, gt=0)
    """Rows that the figures are of."""
    figures: dict[str, float | list[float]] = Field(default={})
    """Model → its published figure; of retrieve two, image to text and text to image."""

    def of(self, model: str) -> list[float]:
        """The published figures of a model, none where it has none here."""
        figure = self.figures.get(model, [])
        return figure if isinstance(figure, list) else [figure]


class Protocol(StrictModel):
    """What a run is asked as others were, and what they report."""

    name: Text
    """Name of the protocol: the stem of its file."""
    verb: Literal["zeroshot", "retrieve", "probe", "concepts"]
    """What it asks: a vision-language model asked for zeroshot classifies by likelihood."""
    sets: dict[str, ProtocolSet] = Field(min_length=1)
    """Its sets by name."""
    probe: Probe | None = None
    """Shares and seeds of a probe."""
    depths: list[int] | None = Field(default=None, min_length=1)
    """k of the R@k whose mean retrieve compares."""
    figures_from: dict[str, Text] = Field(default={})
    """Model → where its figures were read."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.verb == "probe") != (self.probe is not None):
            raise ValueError("probe belongs to the verb probe, which needs it")
        if (self.verb == "retrieve") != (self.depths is not None):
            raise ValueError("depths belong to the verb retrieve, which needs them")
        for name, one in self.sets.items():
            if one.metric not in _OF[self.verb]:
                raise ValueError(
                    f"sets.{name}.metric: found {one.metric}; {self.verb} gives {', '.join(_OF[self.verb])}"
                )
            if unsaid := sorted(one.figures.keys() - self.figures_from.keys()):
                raise ValueError(f"sets.{name}.figures: {unsaid[0]} is not in figures_from, which says whence they are")
            wanted = 2 if self.verb == "retrieve" else 1
            if any(len(one.of(model)) != wanted for model in one.figures):
                raise ValueError(f"sets.{name}.figures: two of each model for retrieve, one for the other verbs")
        return self


def load(name_or_path: str) -> Protocol:
    """The protocol of a shipped name or a YAML file.

    Raises:
        RecipeError: every fault with its line, key and what was expected.
        FileNotFoundError: no such protocol; the message names the nearest.
    """
    path = find(name_or_path, FOLDER)
    document = strict.read(path)
    document.data.setdefault("name", path.stem)
    try:
        return Protocol.model_validate(document.data)
    except ValidationError as error:
        document.fail(strict.faults(error, Protocol))
        raise


def protocols() -> list[str]:
    """The names of the shipped protocols."""
    return sorted(path.stem for path in shipped(FOLDER).glob("*.yaml"))
